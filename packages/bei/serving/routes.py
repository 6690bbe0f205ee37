"""The default routes that a task may have."""

from typing import get_args

from bei.checkpoint.load import Checkpoint
from bei.checkpoint.task import Task
from bei.errors import SetupError
from bei.settings import DefaultRoute, ModelSettings

ROUTES: dict[Task, tuple[str, ...]] = {
    "embedding": ("/v1/embeddings",),
    "reranker": ("/rerank", "/predict"),
    "list_reranker": ("/rerank",),
    "classifier": ("/predict",),
    "entities": ("/predict_tokens",),
    "sparse": ("/embed_sparse",),
    "multi_vector": ("/embed_all", "/rerank"),
}
"""The possible default routes of a task; the first one applies unless the settings name another."""


def default_route(settings: ModelSettings, checkpoint: Checkpoint) -> str:
    """The default route of the settings, or that of the task. Raises SetupError for a route that does not fit the
    model."""
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
