"""The small real models that `make models` makes (examples/small-models)."""

from pathlib import Path

MODELS = Path(__file__).parents[2] / ".models"


def small_model(name: str) -> Path:
    """The folder of one: reranker, classifier, pii or splade."""
    folder = MODELS / name
    assert folder.exists(), f"{folder} is missing; run: make models"
    return folder
