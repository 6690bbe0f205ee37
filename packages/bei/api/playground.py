"""A page for browsers, to try what the served models do and every route. It is one file that asks nobody else."""

import base64
import hashlib
from functools import cache
from importlib.resources import files
from typing import Any

from bei.api.call import Call
from bei.api.reply import Reply
from bei.api.routes import Dialect, Route
from bei.serving.registry import Registry

_SCRIPTS = ("core.js", "charts.js", "tasks.js", "schemas.js", "routes.js", "main.js")


@cache
def _page() -> tuple[bytes, dict[str, str]]:
    """The page, and headers that let a browser run and ask only what is its own."""
    folder = files("bei.api") / "page"
    style = (folder / "page.css").read_text()
    script = "".join((folder / name).read_text() for name in _SCRIPTS)
    page = (folder / "page.html").read_text().replace("{style}", style).replace("{script}", script)
    policy = f"default-src 'none'; style-src {_source(style)}; script-src {_source(script)}; connect-src 'self'; "
    return page.encode(), {
        "content-type": "text/html; charset=utf-8",
        "content-security-policy": policy
        + "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        "vary": "accept",
    }


def _source(text: str) -> str:
    """A source expression (CSP, level 2) for an element with that text."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


async def page(registry: Registry, body: Any, call: Call) -> Reply:
    text, headers = _page()
    return Reply(text, headers=dict(headers))


async def home(registry: Registry, body: Any, call: Call) -> Reply:
    """The page for browsers, and for others whether the server is ready."""
    if "text/html" in call.headers.get("accept", ""):
        return await page(registry, body, call)
    await registry.check(call.model)
    return Reply(b"")


DIALECT = Dialect(
    "playground",
    (
        Route(
            "/",
            home,
            "A page to try the models, for browsers; for others 200 while requests are answered",
            "GET",
            public=True,
        ),
        Route("/docs", page, "A page to try the models and the routes", "GET", public=True),
    ),
)
