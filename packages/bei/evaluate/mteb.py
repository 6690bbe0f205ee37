"""Tasks of mteb on a server, through mteb's own wrapper of OpenAI's API; mteb fetches their data."""

from collections.abc import Sequence
from typing import Any

from bei.errors import SetupError, one_line


def run(url: str, model: str, key: str | None, names: Sequence[str]) -> dict[str, float]:
    """The main score of each task by its name. Raises SetupError, also where mteb is missing or a task fails."""
    try:
        import mteb
        from mteb.models.openai_wrappers import OpenAIAPIEncodeWrapper
    except ModuleNotFoundError as exc:
        raise SetupError(f"--mteb: {exc.name} is not installed: pip install 'mteb>=2.26'") from None
    try:
        tasks = list(mteb.get_tasks(tasks=list(names)))
        server = OpenAIAPIEncodeWrapper(endpoint_url=url, model_name=model, api_key=key, use_chat_template=False)
        found: Any = mteb.evaluate(server, tasks, cache=None)
    except Exception as exc:  # of any kind: its tasks fetch and compute much
        raise SetupError(f"--mteb {', '.join(names)}: {type(exc).__name__}: {one_line(exc, 300)}") from None
    return {of.task_name: float(of.get_score()) for of in found.task_results}
