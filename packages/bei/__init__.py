"""An open engine for embedding, reranking, classification and entity models."""

from typing import Any

__all__ = ["Model"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """`Model`, imported when it is asked for: most processes of a server need less."""
    if name == "Model":
        from bei.inprocess import Model

        return Model
    raise AttributeError(f"module 'bei' has no attribute '{name}'")
