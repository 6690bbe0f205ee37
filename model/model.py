"""Truss host of bei.api: `predict` answers as the config's default route, `embeddings` as OpenAI's /v1/embeddings.

`load` lists the other routes. They exist only on the full server: `bei serve`, or a docker_server block
(examples/docker-server).
"""

import asyncio
import atexit
import json
import logging
from typing import Any

from anyio import from_thread
from anyio.to_thread import current_default_thread_limiter
from starlette.requests import Request
from starlette.responses import Response

from bei import api
from bei.engines.interpreters import Interpreters
from bei.errors import NotReady
from bei.serving.registry import Registry
from bei.settings import several

log = logging.getLogger("bei")


class Model:
    def __init__(self, trt_llm: dict[str, Any] | None = None, **kwargs: Any) -> None:
        self._config = kwargs["config"]
        self._secrets = kwargs.get("secrets")

    def load(self) -> None:
        models = several.for_all(several.models_of("config.yaml", self._config), secrets=self._secrets)
        self._registry = Registry.of(models, interpreters=Interpreters())
        self._registry.load()
        first, *others = self._registry.services
        # `/` answers as the default route of the model that the body names.
        self._route = "/" if others else first.route
        log.info(
            "on the Truss server predict answers as %s, embeddings as /v1/embeddings; on the full server only: %s",
            "the model that `model` names" if others else self._route,
            ", ".join(route.path for route in api.ROUTES if route.path not in (self._route, "/v1/embeddings")),
        )
        atexit.register(self._registry.close)

    def predict(self, inputs: Any, request: Request = None) -> Any:
        if request is not None:  # from the Truss server
            return from_thread.run(self._respond, self._route, request)
        # From TrussHandle.predict(dict), in the same process.
        call = api.Call("POST", self._route, json.dumps(inputs).encode())
        return json.loads(asyncio.run(api.answer(self._registry, call)).body)

    async def embeddings(self, inputs: Any, request: Request) -> Response:
        return await self._respond("/v1/embeddings", request)

    def is_healthy(self) -> bool:
        try:
            asyncio.run(self._registry.check())
        except NotReady:
            return False
        return True

    async def _respond(self, path: str, request: Request) -> Response:
        # Truss runs `predict` in anyio's threads, by default 40, which are too few to fill a batch.
        limiter = current_default_thread_limiter()
        limiter.total_tokens = max(limiter.total_tokens, self._config["runtime"]["predict_concurrency"])
        headers = {name.lower(): value for name, value in request.headers.items()}
        reply = await api.answer(self._registry, api.Call("POST", path, await request.body(), headers))
        return Response(reply.body, reply.status, dict(reply.headers))
