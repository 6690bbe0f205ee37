"""Prints the packages that the Truss server installs for a bundle: its own requirements, then those of
examples/model-py.

Run it by the Python that has truss. The index that truss writes into its file is left out: pip has its own.
"""

from pathlib import Path

import truss
import yaml

server = Path(truss.__file__).parent / "templates" / "server" / "requirements.txt"
bundle = Path(__file__).parents[2] / "examples" / "model-py" / "config.yaml"
own = yaml.safe_load(bundle.read_text())["requirements"]
replaced = {line.split(">")[0].split("=")[0] for line in own}
lines = [line.split("#")[0].strip() for line in server.read_text().splitlines()]
kept = [
    line for line in lines if line and not line.startswith("-") and line.split(">")[0].split("=")[0] not in replaced
]
print("\n".join(kept + own))  # noqa: T201  pip reads it
