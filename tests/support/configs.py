"""What a config.yaml holds, for tests and the processes they start: so without torch."""

from pathlib import Path


def tiny_config(folder: Path | str = "tiny") -> dict:
    """A config.yaml's content that names a folder."""
    repository = {"source": "LOCAL", "repo": str(folder)}
    build = {"base_model": "encoder_bert", "checkpoint_repository": repository}
    return {"trt_llm": {"build": build}}
