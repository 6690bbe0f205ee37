"""Tasks of mteb on a server, through mteb's own wrapper of OpenAI's API, or on a model in this process."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from bei.errors import SetupError, one_line
from bei.inprocess import Model
from bei.settings import Settings


def of_server(url: str, model: str, key: str | None, names: Sequence[str]) -> dict[str, float]:
    """The main score of each task by its name; mteb fetches its data. Raises SetupError, also where mteb is missing or
    a task fails."""

    def encoder() -> AbstractContextManager[Any]:
        from mteb.models.openai_wrappers import OpenAIAPIEncodeWrapper

        wrapper = OpenAIAPIEncodeWrapper(endpoint_url=url, model_name=model, api_key=key, use_chat_template=False)
        return nullcontext(wrapper)

    return _scores(encoder, names)


def of_model(settings: Settings, names: Sequence[str]) -> dict[str, float]:
    """The same of a model in this process, with its prompts."""
    return _scores(lambda: Model.of(settings), names)


def _scores(start: Callable[[], AbstractContextManager[Any]], names: Sequence[str]) -> dict[str, float]:
    try:
        import mteb
    except ModuleNotFoundError as exc:
        raise SetupError(f"--mteb: {exc.name} is not installed: pip install 'mteb>=2.26'") from None
    try:
        tasks = list(mteb.get_tasks(tasks=list(names)))
        with start() as encoder:
            found: Any = mteb.evaluate(encoder, tasks, cache=None)
    except SetupError:
        raise
    except Exception as exc:  # of any kind: its tasks fetch and compute much
        raise SetupError(f"--mteb {', '.join(names)}: {type(exc).__name__}: {one_line(exc, 300)}") from None
    return {of.task_name: float(of.get_score()) for of in found.task_results}
