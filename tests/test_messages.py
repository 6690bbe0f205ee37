"""The text of a file, a client or a library is quoted short and cannot control a terminal, in answers and on
screens."""

import ast
import json
import re

import pytest
from click.testing import CliRunner

from bei import cli, launch
from bei.api import ROUTES
from bei.errors import one_line, printable, short
from tests.support.calls import call
from tests.support.configs import tiny_config
from tests.support.servers import ROOT
from tests.support.tiny_models import random_model, save, write_json

PACKAGE = ROOT / "packages" / "bei"
OURS = {"Error", "SetupError", "Invalid", "EngineFailed", "EngineDied", "NotReady"}
SAFE = {"one_line", "why", "short", "quote"}
EVIL = "\x1b[2J\r\x9b8m\u202e\u2028" + "x" * 3000


def faults(tree: ast.AST) -> list[int]:
    """Lines of f-strings that quote by `!r`, which has no bound, or that contain a library's error unchanged."""
    bare = [node for node in ast.walk(tree) if isinstance(node, ast.FormattedValue) and node.conversion == ord("r")]
    for handler in (node for node in ast.walk(tree) if isinstance(node, ast.ExceptHandler) and node.type):
        kinds = {
            name.id if isinstance(name, ast.Name) else "" for name in getattr(handler.type, "elts", [handler.type])
        }
        if handler.name and not kinds <= OURS:
            values = [node for node in ast.walk(handler) if isinstance(node, ast.FormattedValue)]
            bare += [value for value in values if _says(value.value, handler.name)]
    return sorted({node.lineno for node in bare})


def _says(value: ast.AST, name: str) -> bool:
    """Whether an expression is the unbounded text of this error."""
    if isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id in {*SAFE, "type"}:
        return False
    if isinstance(value, ast.Attribute) and isinstance(value.value, ast.Name):
        return False
    if isinstance(value, ast.Name):
        return value.id == name
    return any(_says(child, name) for child in ast.iter_child_nodes(value))


def test_what_others_say_is_quoted_by_one_of_ours():
    found = {path.relative_to(PACKAGE): faults(ast.parse(path.read_text())) for path in PACKAGE.rglob("*.py")}
    told = {path: of for path, of in found.items() if of}
    assert told == {}, "use short() for a value, one_line() for an error"


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ('raise Invalid(f"{name!r} is none")', 1),
        ('try: f()\nexcept OSError as exc: raise SetupError(f"no: {exc}")', 1),
        ("try: f()\nexcept OSError as exc: raise SetupError(f\"no: {' '.join(str(exc).split())}\")", 1),
        ('try: f()\nexcept OSError as exc: raise SetupError(f"no: {one_line(exc)}, {exc.filename}")', 0),
        ('try: f()\nexcept SetupError as exc: raise SetupError(f"no: {exc}")', 0),
    ],
)
def test_the_rule_bites(source, count):
    assert len(faults(ast.parse(source))) == count


def test_quotes():
    for quoted in (short(EVIL), one_line(EVIL), short({EVIL: EVIL}), short([EVIL] * 9)):
        assert quoted.isprintable()
        assert len(quoted) <= 120
    assert one_line("no such\n  file") == "no such file"
    assert printable("é 漢 a\tb") == "é 漢 a\\tb"


def variants(example: object, path: tuple = ()):
    """An example with a long value in place of each of its values, and beside them."""
    if isinstance(example, dict):
        yield {**example, EVIL: 1}
        for key, value in example.items():
            yield from ({**example, key: changed} for changed in (EVIL, {EVIL: EVIL}, [EVIL], [[EVIL]], [1, EVIL]))
            yield from ({**example, key: changed} for changed in variants(value))


@pytest.mark.parametrize(
    "route", [route for route in ROUTES if route.method == "POST" and route.body], ids=lambda route: route.path
)
def test_no_refusal_quotes_more_than_120_characters(start_service, route):
    service = start_service()
    fields = ("model", "prompt_name", "input_type", "encoding_format", "truncate", "dimensions", "aggregation_strategy")
    bodies = [*variants(route.example), *({**route.example, field: EVIL} for field in fields)]
    replies = [call(service, route.path, body) for body in bodies]
    assert any(reply.status in (400, 422) for reply in replies)
    for reply in replies:
        if reply.status != 200:
            assert len(max(re.findall(rb"x+", reply.body), key=len, default=b"")) <= 120, reply.body[:200]
    for path, headers in (
        ("/" + EVIL, {}),
        (route.path, {"content_type": EVIL}),
        (route.path, {"request_timeout_ms": EVIL}),
    ):
        assert b"x" * 121 not in call(service, path, route.example, **headers).body


def test_a_checkpoint_s_names_move_no_terminal(tmp_path, monkeypatch):
    """Labels in a banner, a folder's name in the output of `build`, a key of config.json in a refusal."""
    folder = tmp_path / "m\x1b[2J"
    model = save(folder, random_model("bert", 0, "ForSequenceClassification", num_labels=2), pooling=None)
    config = json.loads((model / "config.json").read_text())
    write_json(model / "config.json", config | {"id2label": {"0": "a\x1b[31m\nbei: ready", "1": "b"}})
    settings = tmp_path / "config.yaml"
    settings.write_text(json.dumps(tiny_config(model)))
    said = []
    for command in (["build"], ["info"], ["info", "--json"], ["embed", str(model / "absent"), "out\x1b[2J.npy"]):
        flags = ["--config", str(settings), "--engine", "null", "--log-level", "warning"]
        result = CliRunner().invoke(cli.main, [command[0], *command[1:], *flags])
        said.append(result.stdout + result.stderr)
        assert all(line.isprintable() for line in said[-1].splitlines()), said[-1]
    assert "classifier" in said[1] and r"m\x1b[2J" in said[0]
    write_json(model / "config.json", config | {"model_type": "evil\x1b[2J" + "x" * 3000})
    refused = CliRunner().invoke(cli.main, ["info", "--config", str(settings)])
    assert refused.exit_code == 2
    assert refused.stderr.strip().isprintable() and len(refused.stderr) < 2100


def test_a_banner_is_what_it_was_made_of(tiny_folder, start_service):
    service = start_service(served_model_name="a\x1b[2J\nb")
    banner = launch._banner(service, "http://127.0.0.1:1")
    assert r"  a\x1b[2J\nb" in banner.splitlines()
    assert all(line.isprintable() for line in banner.splitlines())
