"""bei behind Ray Serve: every route of `bei serve`, on as many replicas as the load needs.

serve run ray_serve:app config=../../config.yaml threads=4
"""

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from ray import serve
from ray.serve import Application
from starlette.applications import Starlette
from starlette.routing import Mount

from bei.server.app import asgi
from bei.serving.registry import Registry
from bei.settings import Settings, several


async def to_the_model(scope: Any, receive: Any, send: Any) -> None:
    """The model that Ray's header names, if any, else the one that the request names."""
    replica, name = serve.get_replica_context().servable_object, serve.get_multiplexed_model_id()
    if name:
        scope = {**scope, "path": f"/models/{name}{scope['path']}"}
        if name in replica.registry.known:
            await replica.has(name)
    await replica.bei(scope, receive, send)


@serve.deployment(max_ongoing_requests=256)
@serve.ingress(Starlette(routes=[Mount("/", to_the_model)]))
class Replica:
    """Models and their server. Requests batch together inside an engine, so one replica takes many at once."""

    async def __init__(self, models: Sequence[Settings]):
        self.registry = Registry.of(models)
        await asyncio.to_thread(self.registry.load)
        self.bei = asgi(self.registry)

    @serve.multiplexed(max_num_models_per_replica=-1)
    async def has(self, name: str) -> str:
        """Tells Ray that this replica answered for a model, so that further requests for it come here."""
        return name

    async def check_health(self) -> None:
        await self.registry.check()


class Arguments(BaseModel):
    """The arguments of `serve run`: a replica serves the models of `config`, one file or several with colons between
    them, and computes on `threads` processors, or on one of `gpus`."""

    config: str = "config.yaml"
    threads: int = 2
    gpus: float = 0
    min_replicas: int = 1
    max_replicas: int = 8
    target_ongoing_requests: float = 64


def app(arguments: Arguments) -> Application:
    replicas = Replica.options(
        ray_actor_options={"num_cpus": arguments.threads, "num_gpus": arguments.gpus},
        autoscaling_config=arguments.model_dump(include={"min_replicas", "max_replicas", "target_ongoing_requests"}),
    )
    configs = [Path(part) for part in arguments.config.split(os.pathsep)]
    return replicas.bind(several.from_files(configs, threads=arguments.threads))
