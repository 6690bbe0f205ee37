"""The identity of a job: everything that changes a row, so that parts of two jobs are never joined."""

import hashlib
import inspect
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from bei import __version__
from bei.bulk.parts import Identity
from bei.bulk.worker import Job
from bei.checkpoint.load import Checkpoint
from bei.files import expanded
from bei.settings import ModelSettings
from bei.settings.groups import NO_ROW

OF_SETTINGS = tuple(
    name for name in inspect.get_annotations(ModelSettings) if NO_ROW not in ModelSettings.model_fields[name].metadata
)
"""Settings that decide the vectors. The workers agree on the meaning of `auto` (`Parts.agree`)."""
ELSEWHERE = ("name", "revision", "folder", "tensors", "tokenizer_file", "m3", "lookup", "gliner", "similarity")
"""Fields of a checkpoint that change no dense vector, or whose content is hashed. All others belong to the identity."""


def identity(job: Job, checkpoint: Checkpoint, part_rows: int) -> Identity:
    settings: dict[str, Any] = job.settings.model_dump(mode="json", include=set(OF_SETTINGS))
    return {
        "bei": __version__,
        "model": job.settings.served_model_name,
        "weights": checkpoint.tensors.fingerprint(expanded(job.settings.cache_dir) / "bulk"),
        "tokenizer": hashlib.sha256(checkpoint.tokenizer_file.read_bytes()).hexdigest(),
        **_of_checkpoint(checkpoint),
        "input": job.input.sha256,
        "column": job.input.column,
        "rows": job.input.row_count,
        "part_rows": part_rows,
        "dimensions": job.dimensions,
        "normalize": job.normalize,
        "prompt_name": job.prompt_name,
        **settings,
    }


def _of_checkpoint(checkpoint: Checkpoint) -> Mapping[str, Any]:
    """The fields of a checkpoint by name: numbers and words as they are, the others as a hash."""
    names = [field.name for field in fields(checkpoint) if field.name not in ELSEWHERE]
    values = {f"checkpoint.{name}": getattr(checkpoint, name) for name in names}
    return {name: value if isinstance(value, int | str | None) else _hash(value) for name, value in values.items()}


def _hash(value: object) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()
