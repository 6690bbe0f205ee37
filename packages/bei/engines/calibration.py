"""The texts of `quantization_config`, which set the scales of a quantized engine, as packed batches."""

import csv
import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

from tokenizers import Tokenizer

from bei.checkpoint.load import Checkpoint
from bei.engines.base import Batch, Calibration
from bei.errors import SetupError, one_line, short
from bei.files import expanded

log = logging.getLogger("bei")

_BATCH_TOKENS = 8192
_COLUMNS = ("text", "messages", "article")
"""Baseten's docs ask for one of the first two; their own default data set has the third."""


def calibration_batches(checkpoint: Checkpoint, calibration: Calibration) -> Iterator[Batch]:
    """At most `calibration.texts` texts, cut to `calibration.tokens` tokens or to the model's limit. Raises SetupError
    for a data set that is missing or has no text."""
    texts = list(islice(_texts(calibration.dataset), calibration.texts))
    if not texts:
        raise SetupError(f"calib_dataset {calibration.dataset}: no text in it")
    log.info("calibrating on %d texts of %s ...", len(texts), calibration.dataset)
    tokenizer = Tokenizer.from_file(str(checkpoint.tokenizer_file))
    tokenizer.no_padding()
    tokenizer.enable_truncation(min(calibration.tokens, checkpoint.max_tokens))
    waiting: list[list[int]] = []
    for encoding in tokenizer.encode_batch(texts):
        if waiting and sum(map(len, waiting)) + len(encoding.ids) > _BATCH_TOKENS:
            yield Batch.pack(waiting)
            waiting = []
        if encoding.ids:
            waiting.append(encoding.ids)
    if waiting:
        yield Batch.pack(waiting)


def _texts(dataset: str) -> Iterator[str]:
    file = expanded(dataset)
    if file.is_file():
        return texts_of(file, "calib_dataset")
    return _from_hub(dataset)


def texts_of(file: Path, setting: str) -> Iterator[str]:
    """The texts of a .txt, .jsonl, .csv or .tsv file, which `setting` names. Raises SetupError."""
    try:
        with file.open(encoding="utf-8", errors="replace", newline="") as lines:
            yield from _of_lines(lines, file, f"{setting} {file.name}")
    except (OSError, ValueError, RecursionError, csv.Error) as exc:
        raise SetupError(f"{setting} {file} cannot be read: {one_line(exc)}") from None


def _of_lines(lines: TextIO, file: Path, called: str) -> Iterator[str]:
    match file.suffix:
        case ".jsonl":
            yield from _of_rows((json.loads(line) for line in lines if line.strip()), called)
        case ".csv" | ".tsv":
            rows = csv.DictReader(lines, delimiter="\t" if file.suffix == ".tsv" else ",")
            yield from _of_rows(rows, called)
        case _:
            yield from (line.strip() for line in lines if line.strip())


def _from_hub(name: str) -> Iterator[str]:
    """The split `train`, of the newest configuration if there are several."""
    remedy = "or set quantization_config.calib_dataset to a file: .txt, .jsonl, .csv, .tsv"
    try:
        import datasets
    except ModuleNotFoundError:
        missing = f"calib_dataset {name}: no such file, and datasets is not installed"
        raise SetupError(f"{missing}; install it, {remedy}") from None
    try:
        configurations = datasets.get_dataset_config_names(name)
        rows = datasets.load_dataset(name, configurations[-1], split="train", streaming=True)
        yield from _of_rows(rows, f"calib_dataset {name}")
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as exc:
        raise SetupError(f"calib_dataset {name}: {one_line(exc)}; give another, {remedy}") from None


def _of_rows(rows: Iterable[Mapping[str, Any]], called: str) -> Iterator[str]:
    for row in rows:
        if not isinstance(row, Mapping):
            raise SetupError(f"{called}: a row is {short(row)}, not an object")
        column = next((column for column in _COLUMNS if row.get(column)), None)
        if column is None:
            raise SetupError(f"{called}: a row has none of the columns {', '.join(_COLUMNS)}")
        value = row[column]
        yield value if isinstance(value, str) else "\n".join(str(message["content"]) for message in value)
