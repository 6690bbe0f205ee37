"""The ranges of an embedding's numbers, which int8 vectors divide into steps: measured on texts, written and read."""

from itertools import islice
from pathlib import Path

import numpy as np

from bei.checkpoint.load import Checkpoint
from bei.engines.calibration import texts_of
from bei.errors import Error, SetupError, one_line
from bei.files import SHARED, expanded, replacing
from bei.serving.model import ServedModel

_BATCH = 256  # texts


def read(file: Path, checkpoint: Checkpoint) -> np.ndarray:
    """float32[2, D] of an .npy file: the least and the greatest value of each dimension. Raises SetupError for a model
    without embeddings, or a file of another shape."""
    if checkpoint.task != "embedding":
        raise SetupError(f"int8_ranges is for embedding models; the task of {checkpoint.name} is {checkpoint.task}")
    try:
        ranges = np.load(expanded(file), mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError, SyntaxError) as exc:
        raise SetupError(f"int8_ranges {file} cannot be read: {one_line(exc)}") from None
    if ranges.shape != (2, checkpoint.width) or ranges.dtype.kind != "f":
        wrong = f"must be float32[2, {checkpoint.width}], not {ranges.dtype}{list(ranges.shape)}"
        raise SetupError(f"int8_ranges {file}: {wrong}; bei build --calibrate writes it")
    found = np.array(ranges, np.float32)
    if not np.isfinite(found).all() or (found[0] > found[1]).any():
        raise SetupError(f"int8_ranges {file}: its first row must have the least values, its second the greatest")
    return found


async def measure(model: ServedModel, file: Path) -> np.ndarray:
    """float32[2, D] over the embeddings of a file's texts: .txt, .jsonl, .csv or .tsv. Raises SetupError."""
    from bei.progress import Stage  # a server reads ranges, and shows no bar

    count = sum(1 for _ in texts_of(expanded(file), "--calibrate"))
    texts = texts_of(expanded(file), "--calibrate")
    found: list[np.ndarray] = []
    most = min(_BATCH, model.settings.max_client_batch_size)
    try:
        with Stage("calibrate", count, " texts") as stage:
            while batch := list(islice(texts, most)):
                rows = (await model.embed(batch)).rows
                found = [np.min([*found[:1], *rows], axis=0), np.max([*found[1:], *rows], axis=0)]
                stage.add(len(batch))
    except Error as exc:
        raise exc if isinstance(exc, SetupError) else SetupError(f"--calibrate {file}: {exc}") from None
    if not found:
        raise SetupError(f"--calibrate {file}: no text in it")
    return np.stack(found)


def write(ranges: np.ndarray, file: Path) -> None:
    """Raises SetupError."""
    try:
        with replacing(expanded(file), mode=SHARED) as unfinished, unfinished.open("wb") as out:
            np.save(out, ranges, allow_pickle=False)
    except OSError as exc:
        raise SetupError(f"int8_ranges {file} cannot be written: {one_line(exc)}") from None
