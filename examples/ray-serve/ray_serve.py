"""bei behind Ray Serve: every route of `bei serve`, on as many replicas as the load needs.

serve run ray_serve:app config=../../config.yaml threads=4
"""

import asyncio
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from ray import serve
from ray.serve import Application
from starlette.applications import Starlette
from starlette.routing import Mount

from bei.server.app import asgi
from bei.serving.registry import Registry
from bei.serving.service import Service
from bei.settings import Settings


async def to_the_model(scope: Any, receive: Any, send: Any) -> None:
    await serve.get_replica_context().servable_object.bei(scope, receive, send)


@serve.deployment(max_ongoing_requests=256)
@serve.ingress(Starlette(routes=[Mount("/", to_the_model)]))
class Replica:
    """A model and its server. Requests batch together inside the engine, so one replica takes many at once."""

    async def __init__(self, settings: Settings):
        self.service = Service(settings)
        await asyncio.to_thread(self.service.load)
        self.bei = asgi(Registry(self.service))

    async def check_health(self) -> None:
        await self.service.check()


class Arguments(BaseModel):
    """What `serve run` may say: a replica computes on `threads` processors, or on one of `gpus`."""

    config: Path = Path("config.yaml")
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
    return replicas.bind(Settings.from_file(arguments.config, threads=arguments.threads))
