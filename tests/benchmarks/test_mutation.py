"""The parts that mutation runs measure: every source, function and test of them exists."""

import ast

import pytest

from benchmarks.mutation_parts import PARTS
from tests.support.servers import ROOT


def functions(path: str) -> set[str]:
    return {
        node.name
        for node in ast.walk(ast.parse((ROOT / path).read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
    }


@pytest.mark.parametrize("name", PARTS)
def test_every_source_and_test_is_there(name):
    for source in PARTS[name].sources:
        path, _, wanted = source.partition(":")
        assert set(filter(None, wanted.split(","))) <= functions(path), source
    for test in PARTS[name].tests:
        path, _, wanted = test.partition("::")
        assert (ROOT / path).exists() and (not wanted or wanted in functions(path)), test
