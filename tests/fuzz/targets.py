"""The readers of foreign files and bodies. A target takes one hostile input; it may raise only our own errors, in time,
and write nothing outside its folder."""

import asyncio
import io
import json
import os
import pickletools
import shutil
import struct
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from hypothesis import strategies as st
from safetensors.numpy import save

from bei import api
from bei.api import Call
from bei.checkpoint import archive, vocabulary
from bei.checkpoint.load import read
from bei.checkpoint.rerank_file import read_template
from bei.checkpoint.tensors import Tensors, scan
from bei.engines.null import NullEngine
from bei.errors import Error
from bei.serving.registry import Registry
from bei.serving.service import Service
from bei.settings import Settings
from bei.tokenizer import Tokenizer
from tests.fuzz.values import as_json, damaged, mutated, values
from tests.support import torch_saves
from tests.support.configs import tiny_config
from tests.support.module_folders import QUERIES, save_router, save_static
from tests.support.tiny_models import random_model, write_json
from tests.support.tiny_models import save as save_model
from tests.support.vocabularies import CASES, as_bytes, write

LIMIT = 200_000  # bytes that a fuzzed archive may unpack to


@dataclass(frozen=True)
class Target:
    """`inputs` are made at their first use, because some need a model."""

    inputs: Callable[[], st.SearchStrategy[Any]]
    run: Callable[[Any], None]


@contextmanager
def _folder() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="bei-fuzz-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


# -- bodies ----------------------------------------------------------------------------------------------------------

_STATUSES = {200, 400, 413, 415, 422, 424, 429, 504}
_HEADS = {"": "BertModel", "classifier": "ForSequenceClassification", "entities": "ForTokenClassification"}


@cache
def _models() -> Path:
    """Folders of tiny models, made once per process."""
    root = Path(tempfile.mkdtemp(prefix="bei-fuzz-models-"))
    for family in ("bert", "modernbert", "deberta-v2", "qwen3", "gemma3_text"):
        save_model(root / family, random_model(family))
    labels = {0: "O", 1: "B-PER", 2: "I-PER"}
    for head in ("ForSequenceClassification", "ForTokenClassification", "ForMaskedLM"):
        save_model(root / head, random_model("bert", 0, head, id2label=labels), pooling=None)
    save_router(root / "router")
    save_static(root / "static")
    prompts = {"prompts": {"query": "then ", "passage": "it was "}, "default_prompt_name": "query"}
    write_json(root / "bert" / "config_sentence_transformers.json", prompts)
    write_json(root / "bert" / "sentence_bert_config.json", {"max_seq_length": 50, "do_lower_case": True})
    names = {name: "model.safetensors" for name in _tensor_names(root / "bert" / "model.safetensors")}
    write_json(root / "bert" / "model.safetensors.index.json", {"metadata": {}, "weight_map": names})
    return root


def _tensor_names(file: Path) -> list[str]:
    return list(scan(file))


@cache
def _services() -> list[Service]:
    services = []
    for name in ("bert", "ForSequenceClassification", "ForTokenClassification", "ForMaskedLM"):
        pooling = "splade" if name == "ForMaskedLM" else None
        checkpoint = read(_models() / name, "tiny", pooling=pooling)
        service = Service(Settings.load(tiny_config(), environ={}, max_client_batch_size=64))
        service.start(checkpoint, NullEngine(checkpoint))
        services.append(service)
    return services


def _calls() -> st.SearchStrategy[tuple[int, str, bytes]]:
    routes = [route for route in api.ROUTES if route.method == "POST" and route.body]
    bodies = st.sampled_from(routes).flatmap(
        lambda route: st.tuples(
            st.integers(0, 3),
            st.just(route.path),
            mutated(route.example).map(as_json) | damaged(as_json(route.example)) | st.binary(max_size=40),
        )
    )
    return bodies


def _call(given: tuple[int, str, bytes]) -> None:
    kind, path, body = given
    reply = asyncio.run(api.answer(Registry(_services()[kind]), Call("POST", path, body)))
    assert reply.status in _STATUSES, (reply.status, reply.body[:300])
    json.loads(reply.body)
    assert reply.status == 200 or len(reply.body) < 5000


# -- archives --------------------------------------------------------------------------------------------------------

_NAMES = ["config.json", "model/config.json", "a.safetensors", "../up.json", "/abs.json", "a/../b.json", "./c.json", ""]
_KINDS = [tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE]
_members = st.tuples(
    st.sampled_from(_NAMES) | st.text(max_size=12).map(lambda text: text + ".json"),
    st.sampled_from([*_KINDS, tarfile.REGTYPE, tarfile.GNUTYPE_SPARSE, tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME]),
    st.integers(0, 300_000),
    st.dictionaries(
        st.sampled_from(["path", "size", "linkpath", "GNU.sparse.major", "GNU.sparse.map", "GNU.sparse.realsize"]),
        st.sampled_from(["1", "-1", "../x.json", "99999999999999", "0,1,2,3", "\0", ""]),
        max_size=2,
    ),
)


def _tar(members: list[tuple[str, bytes, int, dict[str, str]]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, kind, size, headers in members:
            member = tarfile.TarInfo(name)
            member.type, member.linkname, member.pax_headers = kind, "/etc/passwd", headers
            member.size = size if kind not in _KINDS[1:] else 0
            with suppress(ValueError, UnicodeError, tarfile.TarError):
                tar.addfile(member, io.BytesIO(b"{}" * (size // 2 + 1)) if member.size else None)
    return buffer.getvalue()


def _archives() -> st.SearchStrategy[bytes]:
    import gzip

    tars = st.lists(_members, max_size=4).map(_tar)
    compressed = tars.flatmap(lambda tar: damaged(tar[:4096]).map(lambda head: gzip.compress(head + tar[4096:], 1)))
    return compressed | compressed.flatmap(damaged) | st.binary(max_size=60)


def _unpack(content: bytes) -> None:
    with _folder() as root:
        folder, file = root / "into", root / "archive.tar.gz"
        folder.mkdir()
        file.write_bytes(content)
        with suppress(Error):
            archive.unpack(file, folder, max_bytes=LIMIT, shown="it")
        assert sorted(path.name for path in root.iterdir()) == ["archive.tar.gz", "into"], "written outside"
        found = [path for path in folder.rglob("*") if not path.is_dir()]
        assert all(path.is_file() and not path.is_symlink() for path in found)
        assert sum(path.stat().st_size for path in found) <= LIMIT


# -- safetensors -----------------------------------------------------------------------------------------------------


def _safetensors() -> st.SearchStrategy[bytes]:
    content = save({"a.weight": np.ones((2, 3), np.float32), "b": np.ones(4, np.float16)})
    size = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + size])
    header["c.weight"] = {"dtype": "F8_E4M3", "shape": [2, 2], "data_offsets": [32, 36]}
    header["c.weight_scale"] = {"dtype": "F32", "shape": [], "data_offsets": [36, 40]}
    data = content[8 + size :] + b"\x38" * 4 + np.float32(1).tobytes()

    def file(parts: tuple[Any, int | None]) -> bytes:
        text = as_json(parts[0])
        return struct.pack("<Q", len(text) if parts[1] is None else parts[1]) + text + data

    lengths = st.none() | st.none() | st.sampled_from([0, 1, 8, 100, 2**31, 2**63, 2**64 - 1])
    return st.tuples(mutated(header), lengths).map(file) | damaged(file((header, None))) | st.binary(max_size=60)


def _scan(content: bytes, name: str = "model.safetensors") -> None:
    with _folder() as folder:
        file = folder / name
        file.write_bytes(content)
        with suppress(Error):
            tensors = Tensors({name: (tensor,) for name, tensor in scan(file).items()})
            for name in tensors:
                assert tensors[name].nbytes <= 8 * len(content)


# -- files of torch.save ---------------------------------------------------------------------------------------------

_PIECES = (
    *(torch_saves.tensor(), torch_saves.storage(), torch_saves.numbers(2, 3), torch_saves.text("a")),
    *(torch_saves.named(name) for name in ("os.system", "collections.OrderedDict", "torch._utils._rebuild_tensor_v2")),
    *(torch_saves.number(value) for value in (0, 1, 16, 2**31, 2**63, -1)),
    *(code.code.encode("latin-1") for code in pickletools.opcodes),
)


def _torch_saves() -> st.SearchStrategy[bytes]:
    """Files with damaged bytes, and pickles of pieces in any order in files that are in order."""
    forms = st.sampled_from([torch_saves.zipped, torch_saves.old])
    steps = st.lists(st.sampled_from(_PIECES) | st.binary(max_size=4), max_size=12).map(b"".join)
    made = steps.map(torch_saves.dictionary) | steps.map(lambda content: b"\x80\2" + content + b".")
    in_order = torch_saves.dictionary(torch_saves.tensor() + torch_saves.text("b") + torch_saves.tensor(4))
    pickles = made | damaged(in_order) | damaged(torch_saves.dictionary(torch_saves.tensor()))
    files = st.sampled_from([torch_saves.saved(), torch_saves.saved(old=True), torch_saves.zipped(in_order)])
    return st.builds(lambda form, content: form(content), forms, pickles) | files.flatmap(damaged)


# -- the JSON files of a checkpoint ------------------------------------------------------------------------------------

_FILES = (
    *("config.json", "config.json", "config.json", "modules.json", "1_Pooling/config.json", "tokenizer_config.json"),
    *("config_sentence_transformers.json", "sentence_bert_config.json", "model.safetensors.index.json"),
    *("router_config.json", f"{QUERIES}/config.json", f"{QUERIES}/idf.json"),
)


def _checkpoints() -> st.SearchStrategy[tuple[str, str, bytes]]:
    present = [
        (folder.name, name) for folder in sorted(_models().iterdir()) for name in _FILES if (folder / name).exists()
    ]

    def hostile(place: tuple[str, str]) -> st.SearchStrategy[tuple[str, str, bytes]]:
        content = (_models() / place[0] / place[1]).read_bytes()
        changed = mutated(json.loads(content)).map(as_json) | damaged(content)
        return st.tuples(st.just(place[0]), st.just(place[1]), changed)

    return st.sampled_from(present).flatmap(hostile)


def _read(given: tuple[str, str, bytes]) -> None:
    model, name, content = given
    with _folder() as root:
        folder = root / "model"
        shutil.copytree(_models() / model, folder, copy_function=os.link if _same_device(root) else shutil.copy)
        (folder / name).unlink()
        (folder / name).write_bytes(content)
        with suppress(Error):
            checkpoint = read(folder, "tiny", pooling="splade" if model == "ForMaskedLM" else None)
            Tokenizer(checkpoint).encode(["the cat", ("a", "dog")], truncate=True)


@cache
def _same_device(folder: Path) -> bool:
    return folder.stat().st_dev == _models().stat().st_dev


def _tokenizers() -> st.SearchStrategy[bytes]:
    content = (_models() / "bert" / "tokenizer.json").read_bytes()
    return mutated(json.loads(content)).map(as_json) | damaged(content)


@cache
def _tiny() -> Any:
    return read(_models() / "bert", "tiny"), read(_models() / "ForTokenClassification", "tiny")


def _tokenize(content: bytes) -> None:
    with _folder() as folder:
        file = folder / "tokenizer.json"
        file.write_bytes(content)
        embedder, tagger = (replace(of, tokenizer_file=file) for of in _tiny())
        with suppress(Error):
            tokenizer = Tokenizer(embedder)
            for item in ("the cat sat", "\u00e9\u4e00 \ud83d\ude00", ("a", "dog")):
                with suppress(Error):
                    (encoding,) = tokenizer.encode([item], truncate=True)
                    assert len(encoding.ids) <= embedder.max_tokens
                    assert all(0 <= id < embedder.spec.vocab_size for id in encoding.ids)
                    assert encoding.token_types is None or max(encoding.token_types) < embedder.spec.token_types
            with suppress(Error):
                tokenizer.tokenize(["the cat"], add_special_tokens=True)
        with suppress(Error):
            Tokenizer(tagger).windows(["the cat sat on the mat " * 9], truncate=True)


_SPELLED = (
    "BERT, tokens added",
    "RoBERTa, prefix",
    "XLM-R, stated",
    "ALBERT",
    "Llama 2",
    "by its settings",
    "tiktoken",
)


def _vocabularies() -> st.SearchStrategy[dict[str, bytes]]:
    """The files of older tokenizers, one of them damaged."""
    _tiny()  # made here, since the time of a run is bounded
    folders = [{name: as_bytes(of) for name, of in CASES[case].items()} for case in _SPELLED]
    each = [(files, name) for files in folders for name in files]
    return st.sampled_from(each).flatmap(
        lambda one: damaged(one[0][one[1]]).map(lambda found: {**one[0], one[1]: found})
    )


def _build(files: dict[str, bytes]) -> None:
    with _folder() as folder, suppress(Error):
        built = vocabulary.build(write(folder / "model", files))
        (folder / "tokenizer.json").write_bytes(built)
        tokenizer = Tokenizer(replace(_tiny()[0], tokenizer_file=folder / "tokenizer.json"))
        for item in ("the cat sat", "\u00e9\u4e00 \ufdfa", ("a", "dog")):
            with suppress(Error):
                tokenizer.encode([item], truncate=True)


# -- config.yaml -----------------------------------------------------------------------------------------------------

_BOMB = "a: &a [1, 2, 3, 4, 5, 6, 7, 8, 9]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
_YAML = [
    _BOMB,
    _BOMB + "trt_llm: *i\n",
    _BOMB + "trt_llm: {build: {checkpoint_repository: *i, max_num_tokens: *i}}\n",
    "[" * 1000,  # the operator's own file: PyYAML takes quadratic time for it
    "a: &a {b: *a}\n",
    "a: 2001-99-99\n",
    "? [a]\n: b\n",
    "!!python/object/apply:os.system ['true']\n",
    "a: !!binary '&'\n",
    "x: 0x" + "f" * 9000,
    "trt_llm: &a {build: *a}\n",
    "\ufeff%YAML 9.9\n---\n",
]


def _configs() -> st.SearchStrategy[bytes]:
    config = tiny_config()
    config["trt_llm"]["runtime"] = {"webserver_default_route": "/rerank", "served_model_name": "tiny"}
    config["trt_llm"]["build"] |= {"max_num_tokens": 8192, "quantization_type": "no_quant"}
    config |= {"model_name": "tiny", "resources": {"accelerator": "L4"}, "model_metadata": {"trt_llm": None}}
    text = yaml.safe_dump(config).encode()

    def dump(value: Any) -> bytes:
        return yaml.safe_dump(value, allow_unicode=True).encode("utf-8", "surrogatepass")

    return mutated(config).map(dump) | damaged(text) | st.sampled_from(_YAML).map(str.encode) | values.map(dump)


def _configure(content: bytes) -> None:
    with _folder() as folder:
        file = folder / "config.yaml"
        file.write_bytes(content)
        try:
            Settings.from_file(file, environ={})
        except Error as error:
            assert len(str(error)) < 5000


_TEMPLATE = {"prefix": "a", "body": ["{instruction} {query}", "{document}"], "suffix": "b", "yes": "y", "no": "n"}


def _templates() -> st.SearchStrategy[bytes]:
    whole = {**_TEMPLATE, "instruction": "c", "plain": "{query} {document}"}
    return mutated(whole).map(as_json) | damaged(as_json(whole))


def _read_template(content: bytes) -> None:
    with _folder() as root:
        (root / "template.json").write_bytes(content)
        with suppress(Error):
            read_template(root / "template.json").pieces("q", "d", None)


TARGETS = {
    "bodies": Target(_calls, _call),
    "archives": Target(_archives, _unpack),
    "safetensors": Target(_safetensors, _scan),
    "pickles": Target(_torch_saves, partial(_scan, name="pytorch_model.bin")),
    "checkpoints": Target(_checkpoints, _read),
    "tokenizers": Target(_tokenizers, _tokenize),
    "vocabularies": Target(_vocabularies, _build),
    "configs": Target(_configs, _configure),
    "templates": Target(_templates, _read_template),
}
