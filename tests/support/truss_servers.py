"""The real Truss server around a bundle, on loopback, without Docker."""

import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.support.servers import free_port, wait_until_ready
from tests.support.truss_bundles import BUILD, ENVIRONMENT

# main.py, the argument, listens on every address; a test must not.
ON_LOOPBACK = """
import sys
import uvicorn
original = uvicorn.Config.__init__
def on_loopback(self, *args, **kwargs):
    original(self, *args, **{**kwargs, "host": "127.0.0.1"})
uvicorn.Config.__init__ = on_loopback
import pathlib, runpy
sys.path.insert(0, str(pathlib.Path(sys.argv[1]).parent))
runpy.run_path(sys.argv[1], run_name="__main__")
"""


@contextmanager
def truss_server(in_truss: Callable[..., str], truss_python: str, folder: Path, bundle: Path) -> Iterator[str]:
    """Base URL of a server of the bundle, from the context that truss builds of it in `folder`."""
    in_truss(BUILD, str(folder / "context"), str(bundle))
    # An image of an encoder config lacks the server, for Baseten puts BEI there; one without the block has it.
    server = folder / "run"
    template = in_truss("import pathlib, truss; print(pathlib.Path(truss.__file__).parent / 'templates' / 'server')")
    shutil.copytree(template.strip(), server)
    for name in ("_truss_shared", "_truss_common"):
        found = next((p for p in (folder / "context").rglob(name) if p.is_dir()), None)
        if found:
            shutil.copytree(found, server / name, dirs_exist_ok=True)
    for name in ("model", "data"):
        shutil.copytree(folder / "context" / name, server / name)
    shutil.copy(folder / "context" / "config.yaml", server)
    variables = {
        "PYTHONPATH": str(folder / "context" / "packages"),
        "BEI_ENGINE": "native",
        "BEI_PRECISION": "fp32",
    }
    with running([truss_python, "main.py"], server, folder / "log", variables) as url:
        yield url


@contextmanager
def running(command: Sequence[str], folder: Path, log: Path, variables: Mapping[str, str]) -> Iterator[str]:
    """Base URL of Truss's server, which the command, a Python and its main.py, starts in a folder."""
    python, main = command
    port = free_port()
    environment = {**ENVIRONMENT, "INFERENCE_SERVER_PORT": str(port), **variables}
    with log.open("w") as output:
        command = [python, "-c", ON_LOOPBACK, main]
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT)
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until_ready(url, process, log, path="/v1/models/model")
        yield url
    finally:
        process.terminate()
        process.wait(timeout=30)
