"""The strength of the tests: a mutant is a module with one small fault, and the score is the share that tests notice.

The faults are mutmut's: `<` for `<=`, `+` for `-`, an argument left out, a string changed, a result that is None. The
runner is ours: mutmut's own takes sources from `src/` only and skips decorated functions and tables, and cosmic-ray's
starts an interpreter for each mutant, which imports torch for seconds. Here a fork of a process that has imported the
libraries imports the mutant in place of its module, and no file changes. It runs the tests that call the function that
has the fault.
Run: make mutation, or python -m benchmarks.mutation --help in .venv-mutation.
"""

import ast
import difflib
import importlib
import json
import multiprocessing
import os
import random
import signal
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import spec_from_file_location
from itertools import islice
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Literal, get_args

import click
import libcst as cst
import libcst.matchers as m
import pytest
from hypothesis import HealthCheck, Phase, settings
from mutmut.mutation.mutators import mutation_operators

from benchmarks.mutation_parts import PARTS, Part
from benchmarks.mutation_reach import Only, Reach, Recorder, files_of

ROOT = Path(__file__).parents[1]
FORK = multiprocessing.get_context("fork")
SCOPES = (cst.FunctionDef, cst.ClassDef)
LIBRARIES = ("orjson", "pydantic", "scipy", "sentence_transformers", "torch", "transformers")
"""Large libraries of the tests: imported once, before the forks."""
TYPE = m.Subscript(m.Name("Literal"))
NEVER = (
    m.Annotation() | m.Decorator() | m.Import() | m.ImportFrom() | TYPE | m.Assign(value=TYPE) | m.Call(m.Name("Route"))
)
"""No mutants are made of types, which mypy checks, of `slots=True` and its like, of imports, and of a route's example,
which live servers of `tests/live/` must answer as it says."""
LEAST_SECONDS, TIMES = 15.0, 6
"""A mutant's tests may take so many times as long as they do without it, and at least so many seconds."""

FLAGS = (
    *("-x", "-q", "-c", "pyproject.toml", "-p", "no:cacheprovider", "-p", "no:xdist", "--hypothesis-profile=mutation"),
    *("-W", "ignore::pytest.PytestAssertRewriteWarning"),  # of plugins that a library has imported
)
Fate = Literal["killed", "timeout", "survived", "broken"]
_BROKEN = 99  # the exit status of a process whose mutant cannot be imported; pytest's are below


@dataclass(frozen=True)
class Mutant:
    """`function`: the one that has the fault, with its class; "" outside of functions."""

    path: str
    function: str
    source: str
    mutated: str

    @property
    def module(self) -> str:
        return self.path.removeprefix("packages/").removesuffix(".py").removesuffix("/__init__").replace("/", ".")

    def diff(self) -> str:
        lines = (text.splitlines(keepends=True) for text in (self.source, self.mutated))
        return "".join(difflib.unified_diff(*lines, self.path, self.path, n=2))


class _Sites(cst.CSTVisitor):
    """The nodes of a module, or of some of its functions, that can change, each with what may stand in its place."""

    def __init__(self, functions: Sequence[str]):
        self._functions, self._inside = functions, 0 if functions else 1
        self._scopes: list[tuple[str, bool]] = []
        self.found: list[tuple[str, cst.CSTNode, list[cst.CSTNode]]] = []

    def on_visit(self, node: cst.CSTNode) -> bool:
        self._inside += self._opens(node)
        if isinstance(node, SCOPES):
            self._scopes.append((node.name.value, isinstance(node, cst.FunctionDef)))
        if m.matches(node, NEVER) or _is_log_line(node):
            return False
        if self._inside:
            operators = (change for kind, change in mutation_operators if isinstance(node, kind))
            self.found += [(self._function(), node, mutants) for change in operators if (mutants := list(change(node)))]
        return True

    def on_leave(self, original_node: cst.CSTNode) -> None:
        self._inside -= self._opens(original_node)
        if isinstance(original_node, SCOPES):
            self._scopes.pop()

    def _opens(self, node: cst.CSTNode) -> bool:
        return isinstance(node, SCOPES) and node.name.value in self._functions

    def _function(self) -> str:
        """The name of the outermost function here, as its code has it."""
        outermost = next((i for i, (_, is_function) in enumerate(self._scopes) if is_function), None)
        return "" if outermost is None else ".".join(name for name, _ in self._scopes[: outermost + 1])


def _is_log_line(node: cst.CSTNode) -> bool:
    return isinstance(node, cst.Call) and cst.Module([]).code_for_node(node.func).startswith("log.")


def sample(tree: Path, sources: Sequence[str], size: int, seed: int) -> list[Mutant]:
    """`size` mutants of all sources together, each of another site."""
    chance = random.Random(seed)
    sites = [site for source in sources for site in _sites_of(tree, source)]
    chance.shuffle(sites)
    mutants = (_mutant(chance, *site) for site in sites)
    return list(islice(filter(None, mutants), size))


def _sites_of(tree: Path, source: str) -> Iterator[tuple[str, cst.Module, str, cst.CSTNode, list[cst.CSTNode]]]:
    path, _, functions = source.partition(":")
    module, sites = cst.parse_module((tree / path).read_text()), _Sites(functions.split(",") if functions else ())
    module.visit(sites)
    return ((path, module, *site) for site in sites.found)


def _mutant(
    chance: random.Random,
    path: str,
    module: cst.Module,
    function: str,
    node: cst.CSTNode,
    changed: list[cst.CSTNode],
) -> Mutant | None:
    """None for a change that is no code, or the same code but for `strict=True`, a check that is never to fail."""
    mutated = module.deep_replace(node, chance.choice(changed)).code
    try:
        is_same = _meaning(module.code) == _meaning(mutated)
    except SyntaxError:
        return None
    return None if is_same else Mutant(path, function, module.code, mutated)


def _meaning(code: str) -> str:
    tree = ast.parse(code)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            node.keywords = [keyword for keyword in node.keywords if keyword.arg != "strict"]
    return ast.dump(tree)


class _Instead(SourceFileLoader):
    """The finder and loader of one module, the mutant."""

    def __init__(self, tree: Path, mutant: Mutant):
        super().__init__(mutant.module, str(tree / mutant.path))
        self._mutated = mutant.mutated

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        return spec_from_file_location(name, self.path, loader=self) if name == self.name else None

    def get_code(self, fullname: str) -> object:
        return compile(self._mutated, self.path, "exec")


def run_tests(tree: Path, tests: Sequence[str], mutant: Mutant) -> None:
    """Run tests without output, in a process and a group of its own, and exit with pytest's status. A mutant that
    cannot be imported needs no test: it has a status of its own."""
    _in_silence()
    sys.meta_path.insert(0, _Instead(tree, mutant))
    try:
        importlib.import_module(mutant.module)
    except Exception:
        os._exit(_BROKEN)
    os._exit(pytest.main([*FLAGS, *files_of(tests)], plugins=[Only(tests)]))


def _in_silence() -> None:
    """Ends the output of this process, and makes it the first of a group."""
    os.setpgid(0, 0)
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)


def record(tree: Path, tests: Sequence[str], paths: Sequence[str]) -> Reach | None:
    """The functions that tests call without a mutant; None where a test fails."""

    def run(answers: Connection) -> None:
        _in_silence()
        recorder = Recorder(tree, paths)
        is_right = pytest.main([*FLAGS, *tests], plugins=[recorder]) == pytest.ExitCode.OK
        answers.send(recorder.reach if is_right else None)
        os._exit(0)

    answer, answers = FORK.Pipe(duplex=False)
    process = FORK.Process(target=run, args=(answers,))
    process.start()
    answers.close()
    try:
        return answer.recv()
    except EOFError:
        return None
    finally:
        process.join()


def fate(tree: Path, reach: Reach, mutant: Mutant) -> Fate:
    tests = reach.tests((mutant.path, mutant.function))
    process = FORK.Process(target=run_tests, args=(tree, tests, mutant))
    process.start()
    process.join(max(LEAST_SECONDS, TIMES * sum(reach.seconds[test] for test in tests)))
    hangs = process.exitcode is None
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # and the processes that tests have started
    process.kill()
    process.join()
    if hangs:
        return "timeout"
    return "broken" if process.exitcode == _BROKEN else "killed" if process.exitcode else "survived"


def score(fates: Sequence[Fate]) -> float:
    """The percentage of mutants that tests notice, by a failure or a timeout, of those that can be imported."""
    noticed, survived = sum(of in ("killed", "timeout") for of in fates), fates.count("survived")
    return 100 * noticed / (noticed + survived)


def measure(tree: Path, part: Part, size: int, seed: int, jobs: int) -> Iterable[tuple[Mutant, Fate]]:
    tests = [test for test in part.tests if (tree / test.partition("::")[0]).exists()]
    sources = [source for source in part.sources if (tree / source.partition(":")[0]).exists()]
    mutants = sample(tree, sources, size, seed)
    paths = [source.partition(":")[0] for source in sources]
    with ProcessPoolExecutor(jobs, mp_context=FORK) as pool:
        reached = list(pool.map(partial(record, tree, tests), [paths] * jobs))  # as many at once as later
        if None in reached:
            raise click.ClickException(f"without a mutant these fail: {' '.join(tests)}")
        return list(zip(mutants, pool.map(partial(fate, tree, reached[0]), mutants), strict=True))


@click.command(context_settings={"show_default": True})
@click.argument("names", nargs=-1, type=click.Choice(list(PARTS)))
@click.option("--mutants", default=50, help="the size of the sample of each part")
@click.option("--seed", default=0)
@click.option("--jobs", default=2, help="mutants that are tested at once")
@click.option("--tree", type=click.Path(exists=True, path_type=Path), default=ROOT, help="a checkout to measure")
@click.option("--survivors", type=click.Path(path_type=Path), default=".benchmarks/mutation", help="folder of diffs")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="write the figures here, too")
def main(
    names: Sequence[str], mutants: int, seed: int, jobs: int, tree: Path, survivors: Path, json_file: Path | None
) -> None:
    """Measure the share of small faults in each part of the engine that its tests notice."""
    tree, survivors = tree.resolve(), survivors.resolve()
    survivors.mkdir(parents=True, exist_ok=True)
    json_file = json_file and json_file.resolve()
    prepare(tree)
    figures, started = {}, time.monotonic()
    every: list[Fate] = []
    click.echo(f"{'part':<14} mutants  killed  timeouts  survived  broken  score  seconds")
    for name in names or PARTS:
        began = time.monotonic()
        found = measure(tree, PARTS[name], mutants, seed, jobs)
        fates = [of for _, of in found]
        figures[name] = {"mutants": len(fates), **{of: fates.count(of) for of in get_args(Fate)}}
        click.echo(_line(name, fates, time.monotonic() - began))
        every += fates
        diffs = [mutant.diff() for mutant, of in found if of == "survived"]
        (survivors / f"{name}.diff").write_text("\n".join(diffs))
    click.echo(_line("in all", every, time.monotonic() - started))
    if json_file:
        json_file.write_text(json.dumps({"seed": seed, "parts": figures}, indent=1) + "\n")


def _line(name: str, fates: Sequence[Fate], seconds: float) -> str:
    killed, hung, survived, broken = map(fates.count, get_args(Fate))
    counts = f"{len(fates):7} {killed:7} {hung:9} {survived:9} {broken:7}"
    return f"{name:<14} {counts} {score(fates):5.0f}% {seconds:8.0f}"


def prepare(tree: Path) -> None:
    """Set up what all forks share: folder, environment, libraries, and a profile of hypothesis that does not shrink."""
    os.chdir(tree)
    sys.dont_write_bytecode = True
    os.environ |= {
        "PYTHONPATH": f"{tree}/packages:{tree}",
        "PYTHONDONTWRITEBYTECODE": "1",
        "HF_HUB_OFFLINE": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
    }
    for library in LIBRARIES:
        importlib.import_module(library)
    checks = {"deadline": None, "suppress_health_check": list(HealthCheck)}  # a busy machine is no fault
    phases = (Phase.explicit, Phase.generate)
    settings.register_profile("mutation", phases=phases, derandomize=True, database=None, **checks)


if __name__ == "__main__":
    main()
