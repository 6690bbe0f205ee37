"""The functions that each test calls, so that a mutant runs only the tests that can notice it."""

import sys
import threading
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import pytest

Function = tuple[str, str]
"""The path of a source, and the name of one of its functions, with its class; "" for code outside of functions."""


@dataclass
class Reach:
    """By the names of tests, in their order: the functions that each calls, and its seconds. `of_file`: those that the
    fixtures of a file's tests call. `before`: those that are called while tests are imported."""

    of_test: dict[str, set[Function]] = field(default_factory=lambda: defaultdict(set))
    of_file: dict[str, set[Function]] = field(default_factory=lambda: defaultdict(set))
    before: set[Function] = field(default_factory=set)
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    def tests(self, function: Function) -> Sequence[str]:
        """The tests that can notice a change of the function: all, where it is no function, or called before the tests,
        or by no test of this process."""
        found = [test for test in self.of_test if function in self.of_test[test] | self.of_file[_file(test)]]
        is_anywhere = not function[1] or function in self.before
        return list(self.of_test) if is_anywhere or not found else found


def _file(test: str) -> str:
    return test.partition("::")[0]


class Recorder:
    """A plugin of pytest that records the calls of `paths` in all threads."""

    def __init__(self, tree: Path, paths: Sequence[str]):
        self._paths: Mapping[str, str] = {str(tree / path): path for path in paths}
        self.reach = Reach()
        self._now = self.reach.before
        threading.settrace(self._trace)
        sys.settrace(self._trace)

    def _trace(self, frame: FrameType, event: str, arg: object) -> None:
        path = self._paths.get(frame.f_code.co_filename)
        if path is not None:
            self._now.add((path, frame.f_code.co_qualname.partition(".<locals>")[0]))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> Iterator[None]:
        self._now = self.reach.of_file[_file(item.nodeid)]
        return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Iterator[None]:
        self._now = self.reach.of_test[item.nodeid]
        return (yield)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.reach.seconds[report.nodeid] += report.duration


class Only:
    """A plugin of pytest that runs these tests and no other."""

    def __init__(self, tests: Sequence[str]):
        self._tests = frozenset(tests)

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = [item for item in items if item.nodeid in self._tests]


def files_of(tests: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(map(_file, tests)))
