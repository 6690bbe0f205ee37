"""Dialects: which route a path is, with its parameters, and in which form its clients read errors."""

import ast
import json

import pytest

from bei import api
from bei.api import Call
from bei.api.error_shapes import ErrorShape
from bei.api.routes import Dialect, Route
from bei.api.table import DIALECTS, TABLE, Table
from bei.errors import MethodNotAllowed, NotFound
from tests.support.calls import call
from tests.support.servers import ROOT


async def nothing(service, body, call):
    """The handler of a route that is only looked up."""


def table(*paths: str, method: str = "GET") -> Table:
    return Table([Dialect("d", tuple(Route(path, nothing, "", method=method) for path in paths))])


@pytest.mark.parametrize(
    ("path", "template", "parameters"),
    [
        ("/v1/models", "/v1/models", {}),
        ("/v1/models/a", "/v1/models/{model}", {"model": "a"}),
        ("/v1/models/owner/name", "/v1/models/{model}", {"model": "owner/name"}),
        ("/v1/models/a:embed", "/v1/models/{model}:embed", {"model": "a"}),
        ("/v1/models/a.b/{x}", "/v1/models/{model}", {"model": "a.b/{x}"}),
        ("/v1/files/1/content", "/v1/files/{id}/content", {"id": "1"}),
        ("/v1/files/1", "/v1/files/{id}", {"id": "1"}),
        ("/v1/files/none", "/v1/files/none", {}),
    ],
)
def test_a_path_is_the_route_that_says_most_of_it(path, template, parameters):
    paths = ["/v1/models", "/v1/models/{model}", "/v1/models/{model}:embed"]
    files = ["/v1/files/{id}", "/v1/files/{id}/content", "/v1/files/none"]
    found, asked = table(*paths, *files), Call("GET", path)
    assert found.route(asked).path == found.label(path) == template
    assert asked.parameters == parameters


@pytest.mark.parametrize("path", ["/", "/v1/model", "/v1/models/", "/v1/models/a/b/", "/x/v1/models/a", "/v1.models/a"])
def test_a_path_that_fits_none(path):
    found = table("/v1/models/{model}/b")
    with pytest.raises(NotFound, match="no such path"):
        found.route(Call("GET", path))
    assert found.label(path) == "other"


def test_another_method_of_a_template():
    with pytest.raises(MethodNotAllowed) as error:
        table("/v1/models/{model}", method="POST").route(Call("GET", "/v1/models/a"))
    assert error.value.headers == {"allow": "POST"}


def test_two_routes_of_one_path_and_method_are_refused():
    with pytest.raises(ValueError, match="two routes for GET /a"):
        table("/a", "/a")


@pytest.mark.parametrize(
    ("path", "shape"),
    [
        *(("/v1/embeddings", "OpenAIError"), ("/embeddings", "Error"), ("/v1/models/a", "OpenAIError")),
        *(("/v2/rerank", "OpenAIError"), ("/rerank", "Error"), ("/v1/score", "OpenAIError"), ("/score", "Error")),
        *(("/v1/nothing", "OpenAIError"), ("/v2/nothing", "OpenAIError"), ("/v3/nothing", "Error"), ("/no", "Error")),
    ],
)
def test_the_form_of_an_error_is_that_of_the_path_s_clients(path, shape):
    assert TABLE.errors(path).name == shape


def test_the_routes_of_a_version_have_openai_s_errors_and_no_other():
    for route in api.ROUTES:
        versioned = route.path.startswith(("/v1/", "/v2/", "/openai/"))
        assert (TABLE.errors(route.path).name == "OpenAIError") == versioned, route.path


def test_a_dialect_brings_its_own_errors():
    shape = ErrorShape("OtherError", lambda error, message: {"error": message}, {"type": "object"})
    other = Dialect("other", (Route("/other/embed", nothing, ""),), errors=shape, prefixes=("/other/",))
    found = Table([*DIALECTS, other])
    paths = ("/other/embed", "/other/nothing", "/v1/embeddings", "/embed", "/api/nothing")
    assert [found.errors(path).name for path in paths] == [
        *("OtherError", "OtherError", "OpenAIError", "Error", "OllamaError")
    ]


def test_a_model_is_found_by_its_name(start_service):
    service = start_service()
    listed = json.loads(call(service, "/v1/models", method="GET").body)["data"]
    for name in ("tiny", "owner/any"):  # with one model served, any name is it
        assert json.loads(call(service, f"/v1/models/{name}", method="GET").body) == listed[0]


def test_calls_of_a_template_are_counted_as_one_path(start_service):
    service = start_service()
    for name in ("a", "b"):
        call(service, f"/v1/models/{name}", method="GET")
    exposition = service.metrics.exposition().decode()
    assert 'bei_requests_total{path="/v1/models/{model}",status="200"} 2.0' in exposition


def test_dialects_share_by_modules_of_their_own():
    """Types that two of them have stand beside them. `shared` has the paths that several have."""
    folder = ROOT / "packages" / "bei" / "api"
    named = {dialect.name for dialect in DIALECTS} - {"openapi"}
    assert named <= {file.stem for file in folder.glob("*.py")}
    for name in named - {"shared"}:
        nodes = [node for node in ast.walk(ast.parse((folder / f"{name}.py").read_text()))]
        sources = {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
        names = {f"bei.api.{a.name}" for n in nodes if isinstance(n, ast.ImportFrom) for a in n.names}
        assert not (sources | names) & {f"bei.api.{other}" for other in named}, name
