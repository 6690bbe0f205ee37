"""Checkpoints that people deploy, read by the code that serves them, from their JSON files alone: checkpoints.json has
these. models.py makes the table of models.md from the outcomes."""

import json
import re
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bei.architectures import families
from bei.architectures.shapes import tensor_shapes
from bei.architectures.spec import EncoderSpec
from bei.checkpoint.load import described
from bei.engines.native import engine as native
from bei.errors import SetupError

FILE = Path(__file__).with_suffix(".json")
_LIBRARIES = {"": "sentence_transformers.models.", "pylate.": "pylate.models.Dense."}
_ACTIVATIONS = {"Identity": "torch.nn.modules.linear.Identity"}
_VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a"]
_WORDS = ["yes", "no", "Yes", "0", "1"]  # the answers of language models that rerank
_SIZE = {"F32": 4}


@dataclass(frozen=True)
class Outcome:
    """`parameters` counts the numbers of the weights; `settings` are those that the checkpoint needs. A refused
    checkpoint has only `refusal`."""

    name: str
    task: str = ""
    engine: str = ""
    parameters: int = 0
    settings: str = ""
    refusal: str = ""


def outcomes() -> Iterable[Outcome]:
    data = json.loads(FILE.read_text())
    for row in data["models"]:
        config = {**data["configs"].get(row.get("config"), {}), **row.get("with", {})}
        with tempfile.TemporaryDirectory() as folder:
            yield _outcome(row, config, Path(folder))


def _outcome(row: Mapping[str, Any], config: Mapping[str, Any], folder: Path) -> Outcome:
    _write(row, config, folder)
    try:
        task, spec = described(folder, row["name"], folder / "cache", **row.get("settings", {}))
        _check_tensors(row, config)
    except SetupError as exc:
        return Outcome(row["name"], refusal=_shortened(exc.message, folder))
    parameters = sum(_product(shape) for shape in tensor_shapes(spec).values())
    settings = ", ".join(f"`BEI_{name.upper()}={value}`" for name, value in row.get("settings", {}).items())
    return Outcome(row["name"], task, _engine_of(spec), parameters, settings)


def _check_tensors(row: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """Raises SetupError if the family does not know a tensor that the checkpoint has beside its architecture's."""
    if "tensors" not in row:
        return
    family = families.family(config)
    spec = family.spec(config)
    known = {name for names in family.tensors(config, spec).values() for name in names}
    known |= {f"{module}.weight" for _, modules in family.token_layers(config, spec) for module in modules}
    left = [name for name in row["tensors"] if name not in known]
    if left:
        raise SetupError(f"tensors that config.json does not account for: {', '.join(left)}")


def _engine_of(spec: EncoderSpec) -> str:
    """The engine of a CPU."""
    if not spec.layers:
        return "static"
    try:
        native.check(spec)
    except SetupError:
        return "torch"
    return "native"


def _shortened(message: str, folder: Path) -> str:
    """The message without the folder, and without the list of everything that is supported."""
    return re.sub(r"; supported: .*", "", message.replace(f"{folder}/", "").replace(str(folder), "the checkpoint"))


# -- a folder --------------------------------------------------------------------------------------------------------


def _write(row: Mapping[str, Any], config: Mapping[str, Any], folder: Path) -> None:
    files = dict(row.get("files", {}))
    table, tokenizer = files.pop("table", None), files.pop("tokenizer", None)
    if config:
        _write_json(folder / "config.json", {key: value for key, value in config.items() if value is not None})
    if table:
        _hollow(folder / "model.safetensors", {"embedding.weight": table})
    for name, content in files.items():
        _write_json(folder / name, content)
    _write_tokenizer(folder, tokenizer)
    if "modules" in row:
        _write_modules(row, config, folder)


def _write_tokenizer(folder: Path, older: Mapping[str, Any] | None) -> None:
    """tokenizer.json; or vocab.txt and what tokenizer_config.json says of it."""
    if older is not None:
        _write_json(folder / "tokenizer_config.json", older)
        (folder / "vocab.txt").write_text("\n".join(_VOCABULARY))
        return
    vocabulary = {word: i for i, word in enumerate((*_VOCABULARY, *_WORDS))}
    _write_json(folder / "tokenizer.json", {"model": {"type": "WordLevel", "vocab": vocabulary}})


def _write_modules(row: Mapping[str, Any], config: Mapping[str, Any], folder: Path) -> None:
    rows = []
    for i, module in enumerate(row["modules"]):
        library = next((library for library in _LIBRARIES if library and module.startswith(library)), "")
        kind, *arguments = module.removeprefix(library).split(":")
        path = "" if i == 0 else f"{i}_{kind}"
        rows.append({"idx": i, "name": str(i), "path": path, "type": f"{_LIBRARIES[library]}{kind}"})
        _write_module(folder / path, kind, arguments, row, config)
    _write_json(folder / "modules.json", rows)


def _write_module(
    place: Path, kind: str, arguments: list[str], row: Mapping[str, Any], config: Mapping[str, Any]
) -> None:
    match kind:
        case "Pooling":
            _write_json(place / "config.json", {"pooling_mode": row["pooling"]})
        case "Dense":
            _write_dense(place, *arguments)
        case "LayerNorm":
            _write_json(place / "config.json", {"dimension": int(arguments[0])})
            size = [int(arguments[0])]
            _hollow(place / "model.safetensors", {"norm.weight": size, "norm.bias": size})
        case "Router":
            _write_router(place, config)


def _write_dense(place: Path, inputs: str, outputs: str, activation: str, *options: str) -> None:
    sizes, bias, residual = (int(outputs), int(inputs)), "False" not in options, "residual" in options
    stated = {"in_features": sizes[1], "out_features": sizes[0], "bias": bias, "use_residual": residual}
    name = _ACTIVATIONS.get(activation, f"torch.nn.modules.activation.{activation}")
    _write_json(place / "config.json", {**stated, "activation_function": name})
    shapes = {"linear.weight": list(sizes), **({"linear.bias": [sizes[0]]} if bias else {})}
    _hollow(place / "model.safetensors", shapes | ({"residual.weight": list(sizes)} if residual else {}))


def _write_router(place: Path, config: Mapping[str, Any]) -> None:
    """As OpenSearch's models have it: the encoder lies beside the router."""
    models = "sentence_transformers.sparse_encoder.models."
    queries, documents = ["query_0_SparseStaticEmbedding"], ["", "document_1_SpladePooling"]
    types = dict(zip((*queries, *documents), ("SparseStaticEmbedding", "MLMTransformer", "SpladePooling"), strict=True))
    router = {
        "types": {name: models + kind for name, kind in types.items()},
        "structure": {"query": queries, "document": documents},
        "parameters": {"default_route": "document", "allow_empty_key": True},
    }
    _write_json(place / "router_config.json", router)
    _write_json(place / documents[1] / "config.json", {"pooling_strategy": "max", "activation_function": "log1p_relu"})
    _hollow(place / queries[0] / "model.safetensors", {"weight": [config["vocab_size"]]})


def _write_json(file: Path, content: object) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content))


def _hollow(file: Path, shapes: Mapping[str, list[int]]) -> None:
    """A safetensors file whose data is a hole: it takes no space on the disk."""
    header, end = {}, 0
    for name, shape in shapes.items():
        size = _SIZE["F32"] * _product(shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    content = json.dumps(header).encode()
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("wb") as opened:
        opened.write(len(content).to_bytes(8, "little") + content)
        opened.truncate(8 + len(content) + end)


def _product(shape: Iterable[int]) -> int:
    found = 1
    for size in shape:
        found *= size
    return found
