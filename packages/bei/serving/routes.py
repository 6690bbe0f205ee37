"""Which routes may be a model's default one."""

from typing import get_args

from bei.checkpoint.load import Checkpoint
from bei.checkpoint.task import Task
from bei.errors import SetupError
from bei.settings import DefaultRoute, ModelSettings

ROUTES: dict[Task, tuple[str, ...]] = {
    "embedding": ("/v1/embeddings",),
    "reranker": ("/rerank", "/predict"),
    "classifier": ("/predict",),
    "entities": ("/predict_tokens",),
    "sparse": ("/embed_sparse",),
    "multi_vector": ("/embed_all", "/rerank"),
}
"""What may be a model's default route; the first is it unless the settings say otherwise."""


def default_route(settings: ModelSettings, checkpoint: Checkpoint) -> str:
    """The settings' default route, or the task's. Raises SetupError for one that does not fit the model."""
    fitting = ROUTES[checkpoint.task]
    if settings.route is None:
        return fitting[0]
    if settings.route not in fitting:
        allowed = [route for route in fitting if route in get_args(DefaultRoute)]
        remedy = f"set {' or '.join(allowed)}" if allowed else f"leave it out for {fitting[0]}"
        raise SetupError(
            f"runtime.webserver_default_route: {settings.route} does not fit {checkpoint.name}, whose task is "
            f"{checkpoint.task}; {remedy}"
        )
    return settings.route
