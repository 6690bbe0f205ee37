"""The content of a config.yaml, for tests and the processes that they start; it imports no torch."""

from pathlib import Path


def tiny_config(folder: Path | str = "tiny") -> dict:
    """The content of a config.yaml that names a folder."""
    repository = {"source": "LOCAL", "repo": str(folder)}
    build = {"base_model": "encoder_bert", "checkpoint_repository": repository}
    return {"trt_llm": {"build": build}}
