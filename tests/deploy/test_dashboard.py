"""The metrics of the dashboard, the autoscaler and docs/operations.md are those that a server exposes."""

import json
import re

import pytest
import yaml

from bei.metrics import Metrics
from tests.support.exposition import TIMES
from tests.support.servers import ROOT

DASHBOARD = json.loads((ROOT / "deploy" / "grafana" / "bei.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
OPERATIONS = (ROOT / "docs" / "operations.md").read_text()
NAME = re.compile(r"\b(?:te|bei|process)_[a-z_]+")
LABEL_OR_FORM = re.compile(r"_(?:bucket|sum|count)$")


@pytest.fixture(scope="module")
def text() -> str:
    """The metrics of a server that has counted something of each kind."""
    model = Metrics().of_model("m")
    for scored in (False, True):
        model.observe_answer(1, 1, scored=scored, **TIMES)
    model.observe_failure(1, "validation", scored=False)
    model.observe_engine("null", "cpu", "fp32", 1)
    model.of_device("any").observe_start(1)
    model.server.observe_reply("/embed", 200)
    model.server.observe_cancelled("drain")
    return model.server.exposition().decode()


@pytest.fixture(scope="module")
def exposed(text) -> dict[str, str]:
    """Name of every family → its type, as in the text."""
    return dict(re.findall(r"^# TYPE (\w+) (\w+)$", text, re.MULTILINE))


@pytest.fixture(scope="module")
def of_server(text, exposed) -> set[str]:
    """Families without the label `model`."""
    labeled = re.findall(r'^(\w+)\{.*\bmodel="m".*\}', text, re.MULTILINE)
    return {name for name in exposed if not any(sample.startswith(name) for sample in labeled)}


def queried(promql: str, exposed: dict[str, str]) -> list[str]:
    """Families that a query names; a histogram is queried by its series."""
    names = NAME.findall(re.sub(r'"[^"]*"', "", promql))
    return [name if name in exposed else LABEL_OR_FORM.sub("", name) for name in names]


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_a_panel_queries_what_is_exposed(panel, exposed):
    for target in panel["targets"]:
        names = queried(target["expr"], exposed)
        assert names
        assert set(names) <= exposed.keys()
        histograms = {name for name in names if exposed[name] == "histogram"}
        assert all(re.search(rf"{name}_(bucket|sum|count)", target["expr"]) for name in histograms)
        assert target["datasource"] == {"type": "prometheus", "uid": "${datasource}"}


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_a_panel_shows_the_models_that_are_chosen(panel, exposed, of_server):
    for target in panel["targets"]:
        for name, chosen in re.findall(r"([a-z_]+)\{([^}]*)\}", target["expr"]):
            (family,) = queried(name, exposed)
            assert ('model=~"$model"' in chosen) == (family not in of_server), family


def test_what_is_of_the_server_is_said(of_server):
    (line,) = re.findall(r"^Each metric of a model has the label `model`.*$", OPERATIONS, re.MULTILINE)
    said = {name for name in of_server if name.startswith(("te_", "bei_"))}
    assert set(re.findall(r"`((?:te|bei)_\w+)`", line)) == said


def test_the_panels_fill_a_grid():
    places = [panel["gridPos"] for panel in DASHBOARD["panels"]]
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(places)
    taken = [(x, y) for p in places for x in range(p["x"], p["x"] + p["w"]) for y in range(p["y"], p["y"] + p["h"])]
    assert len(set(taken)) == len(taken)
    assert max(x for x, _ in taken) == 23


def test_variables_are_those_that_queries_use(exposed):
    defined = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
    used = set(re.findall(r"\$\{?([a-z_]+)", json.dumps(DASHBOARD["panels"]))) - {"__rate_interval"}
    assert used == defined.keys()
    for name, family in (("job", "bei_build_info"), ("instance", "bei_build_info"), ("model", "bei_ready")):
        assert queried(defined[name]["definition"], exposed) == [family]


def test_the_table_of_metrics_is_whole(exposed):
    rows = re.findall(r"^\| (`[^|]+`) \| (counter|gauge|histogram) \|", OPERATIONS, re.MULTILINE)
    table = {name: kind for names, kind in rows for name in re.findall(r"`(\w+)`", names)}
    assert table == {name: kind for name, kind in exposed.items() if name.startswith(("te_", "bei_"))}


def test_the_questions_query_what_is_exposed(exposed):
    queries = [query for query in re.findall(r"^\| [^|]+\? \| `([^`]+)` \|$", OPERATIONS, re.MULTILINE)]
    assert len(queries) == 6
    assert all(set(queried(query, exposed)) <= exposed.keys() for query in queries)


def test_an_alert_reads_what_is_exposed(exposed):
    (group,) = yaml.safe_load((ROOT / "deploy" / "prometheus" / "alerts.yaml").read_text())["groups"]
    for rule in group["rules"]:
        names = queried(rule["expr"], exposed)
        assert names
        assert set(names) <= exposed.keys()


def test_the_autoscaler_reads_what_is_exposed(exposed):
    hpa, adapter, keda = (
        yaml.safe_load((ROOT / "deploy" / "kubernetes" / f"{name}.yaml").read_text())
        for name in ("hpa", "prometheus-adapter", "keda")
    )
    (rule,) = adapter["rules"]["custom"]
    (metric,) = hpa["spec"]["metrics"]
    name = metric["pods"]["metric"]["name"]
    assert name == rule["name"]["as"] == rule["seriesQuery"].partition("{")[0]
    assert exposed[name] == "gauge"
    (trigger,) = keda["spec"]["triggers"]
    assert queried(trigger["metadata"]["query"], exposed) == [name]
    assert trigger["metadata"]["threshold"] == metric["pods"]["target"]["averageValue"]
