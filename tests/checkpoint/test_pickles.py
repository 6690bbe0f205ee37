"""Files of torch.save: their tensors as torch reads them, and nothing else of what a pickle may ask for."""

import os
import pickle
import pickletools
import struct
import sys
import tracemalloc
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import safetensors.torch
import torch

from bei.checkpoint import pickles, torch_files
from bei.checkpoint.load import read
from bei.checkpoint.tensors import Tensors, scan
from bei.errors import SetupError
from tests.support.tiny_models import random_model, save, write_json
from tests.support.torch_saves import (
    STATE,
    dictionary,
    named,
    number,
    numbers,
    old,
    saved,
    storage,
    tensor,
    text,
    write,
    zipped,
)

MEMORY = 32 << 20  # bytes that a refusal may take: twice the largest pickle


def arrays(file) -> dict[str, np.ndarray]:
    tensors = Tensors({name: (of,) for name, of in scan(file).items()})
    return {name: tensors[name] for name in tensors}


# -- tensors as torch reads them ---------------------------------------------------------------------------------------

BASE = torch.arange(24, dtype=torch.float32)
VALUES = {
    "float32": torch.rand(3, 4),
    "float16": torch.rand(3, 4).half(),
    "bfloat16": torch.rand(3, 4).bfloat16(),
    "float64": torch.rand(3).double(),
    "int64": torch.arange(3),
    "bool": torch.tensor([True, False]),
    "a number": torch.tensor(2.5),
    "nothing": torch.ones(0, 3),
    "a parameter": torch.nn.Parameter(torch.rand(2)),
    "a part": BASE[3:9],
    "transposed": BASE.reshape(4, 6).t(),
    "every second": BASE[::2],
    "a permutation": BASE.reshape(2, 3, 4).permute(2, 0, 1),
}


@pytest.mark.parametrize("old", [False, True])
def test_every_tensor_is_as_torch_reads_it(tmp_path, old):
    found = arrays(write(tmp_path / "pytorch_model.bin", saved(VALUES, old=old)))
    assert list(found) == list(VALUES)
    for name, value in VALUES.items():
        expected = value.detach().float().numpy()
        assert found[name].shape == expected.shape, name
        np.testing.assert_array_equal(found[name].astype(np.float32), expected, name)


def test_float8(tmp_path):
    value = torch.tensor([[1.5, -448.0], [0.25, 3.0]]).to(torch.float8_e4m3fn)
    found = arrays(write(tmp_path / "pytorch_model.bin", saved({"a": value})))["a"]
    assert found.dtype.name == "float8_e4m3fn"
    np.testing.assert_array_equal(found.astype(np.float32), value.float().numpy())


@pytest.mark.parametrize("old", [False, True])
def test_rows_of_a_tensor(tmp_path, old):
    file = write(tmp_path / "pytorch_model.bin", saved({"a": BASE.reshape(6, 4), "t": BASE.reshape(4, 6).t()}, old=old))
    parts = {name: (of.rows(1, 4), of.rows(5, 6, less=0)) for name, of in scan(file).items()}
    for name, whole in arrays(file).items():
        expected = np.concatenate([whole[1:4], whole[5:6] - whole[:1]])
        np.testing.assert_array_equal(Tensors(parts)[name], expected)


def test_other_values_are_no_weights(tmp_path):
    state = {"a": torch.ones(2), "epoch": 3, "name": "x", "more": {"b": torch.ones(2)}, "list": [1, 2.5, None, True]}
    assert list(arrays(write(tmp_path / "pytorch_model.bin", saved(state)))) == ["a"]
    assert list(arrays(write(tmp_path / "pytorch_model.bin", saved(state, old=True)))) == ["a"]


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("family", ["bert", "qwen3"])
def test_a_model_is_the_one_of_safetensors(tmp_path, family, old):
    folder = save(tmp_path / "m", random_model(family))
    before = read(folder, "m")
    expected = {name: before.tensors[name] for name in before.tensors}
    state = safetensors.torch.load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    write(folder / "pytorch_model.bin", saved(OrderedDict(state), old=old))
    after = read(folder, "m")
    assert after.spec == before.spec
    for name, value in expected.items():
        np.testing.assert_array_equal(after.tensors[name], value)


def test_shards(tmp_path):
    folder = save(tmp_path / "m", random_model("bert"))
    before = read(folder, "m").tensors
    expected = {name: before[name] for name in before}
    state = safetensors.torch.load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    places = {name: f"pytorch_model-0000{1 + i % 2}-of-00002.bin" for i, name in enumerate(state)}
    for file in set(places.values()):
        write(folder / file, saved({name: value for name, value in state.items() if places[name] == file}))
    write_json(folder / "pytorch_model.bin.index.json", {"weight_map": places})
    after = read(folder, "m").tensors
    for name, value in expected.items():
        np.testing.assert_array_equal(after[name], value)


@pytest.mark.parametrize("index", [False, True])
def test_safetensors_are_preferred(tmp_path, index):
    folder = save(tmp_path / "m", random_model("bert"))
    write(folder / "pytorch_model.bin", b"no pickle")
    if index:
        (folder / "model.safetensors").rename(folder / "part.safetensors")
        places = dict.fromkeys(scan(folder / "part.safetensors"), "part.safetensors")
        write_json(folder / "model.safetensors.index.json", {"weight_map": places})
    assert read(folder, "m").spec.hidden_size == 48


# -- everything else ---------------------------------------------------------------------------------------------------


class Runs:
    """A pickle module calls the function that it stands for."""

    def __init__(self, call, *arguments, state=None):
        self.made = (call, arguments) if state is None else (call, arguments, state)

    def __reduce__(self):
        return self.made


@pytest.fixture
def trap(tmp_path, monkeypatch):
    """A module that leaves a file when it is imported, and a function that does when it is called."""
    sprung = tmp_path / "sprung"
    (tmp_path / "site").mkdir()
    code = f"def spring(*_): open({str(sprung)!r}, 'w')\nspring()\nclass Spring: __setstate__ = __init__ = spring\n"
    (tmp_path / "site" / "trap_of_a_pickle.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path / "site")
    yield sprung
    sys.modules.pop("trap_of_a_pickle", None)
    assert not sprung.exists()


def refused(file, message: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(SetupError, match=message) as caught:
            scan(file)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600
    assert peak < MEMORY


TRAP = named("trap_of_a_pickle.spring")
OPENERS = {
    "GLOBAL": TRAP,
    "GLOBAL and REDUCE": TRAP + b")R",
    "a class, BUILD": named("trap_of_a_pickle.Spring") + b")\x81}b",
    "INST": b"(itrap_of_a_pickle\nspring\n",
    "OBJ": b"(" + TRAP + b"o",
    "NEWOBJ": named("trap_of_a_pickle.Spring") + b")\x81",
    "NEWOBJ_EX": named("trap_of_a_pickle.Spring") + b")}\x92",
    "STACK_GLOBAL": text("trap_of_a_pickle") + text("spring") + b"\x93)R",
    "STACK_GLOBAL of known names": text("collections") + text("OrderedDict") + b"\x93)R",
    "STACK_GLOBAL of names in the memo": text("trap_of_a_pickle") + b"q\0" + text("spring") + b"q\1h\0h\1\x93)R",
    "EXT1": b"\x82\1",
    "EXT2": b"\x83\1\0",
    "EXT4": b"\x84\1\0\0\0",
    "PERSID": b"Ptrap_of_a_pickle.spring\n",
    "a name behind a known one": named("torch._utils._rebuild_tensor_v2.__globals__"),
    "a name inside a known one": b"ctorch._utils\n_rebuild_tensor_v2.__globals__\n",
    "os.system": named("os.system") + text("true") + b"\x85R",
    "builtins": named("builtins.eval") + text("1") + b"\x85R",
    "getattr": named("builtins.getattr") + named("torch.FloatStorage") + text("from_file") + b"\x86R",
    "torch's own loader": named("torch.load") + text("x") + b"\x85R",
    "a storage's file": named("torch.FloatStorage.from_file") + text("x") + b"\x85R",
    "a tensor's class": named("torch._tensor._rebuild_from_type_v2") + b")R",
    "numpy": named("numpy.core.multiarray._reconstruct") + b")R",
    "a set": b"\x8f",
    "a frozen set": b"(\x91",
    "bytes": b"C\1x",
    "a byte array": b"\x96\1\0\0\0\0\0\0\0x",
    "a buffer": b"\x97",
    "DUP": b"K\1\x32",
    "POP": b"K\1K\1\x30",
}


@pytest.mark.parametrize("form", [zipped, old])
@pytest.mark.parametrize("case", OPENERS)
def test_whatever_could_call_is_refused_by_name(tmp_path, trap, case, form):
    """Wherever it is: alone, or behind tensors that are in order."""
    for content in (dictionary(OPENERS[case]), dictionary(tensor() + text("b") + OPENERS[case])):
        file = write(tmp_path / "pytorch_model.bin", form(content))
        refused(
            file, r"pytorch_model\.bin: its pickle (asks for|holds) .*nothing of it was run\. Save the model as saf"
        )


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("call", [os.system, eval, open, __import__, pickle.loads])
def test_payloads_of_every_protocol(tmp_path, trap, call, protocol):
    argument = f"{trap}" if call is open else f"open({str(trap)!r}, 'w')"
    for value in (Runs(call, argument), {"a": Runs(call, argument, state={"x": 1})}, {Runs(call, argument): 1}):
        file = write(tmp_path / "pytorch_model.bin", zipped(pickle.dumps(value, protocol)))
        refused(file, "its pickle (asks for|holds)")


KNOWN = [
    *("PROTO", "STOP", "MARK", "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
    *("BINUNICODE", "SHORT_BINUNICODE", "BINSTRING", "SHORT_BINSTRING", "EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE"),
    *("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "APPEND", "APPENDS", "SETITEM", "SETITEMS"),
    *("BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET", "GLOBAL", "REDUCE", "BUILD", "BINPERSID"),
]
"""The operations that are read. The four last could call, and have functions of ours, tried above."""
SAMPLES = {"stringnl": b"'x'\n", "stringnl_noescape_pair": b"os\nsystem\n", "unicodestringnl": b"x\n"}


@pytest.mark.parametrize("code", pickletools.opcodes, ids=lambda code: code.name)
def test_an_operation_is_known_or_refused(tmp_path, code):
    assert (code.name in pickles._OPERATIONS) == (code.name in KNOWN)
    if code.name in KNOWN:
        return
    argument = b"" if code.arg is None else SAMPLES.get(code.arg.name, b"1\n" if "nl" in code.arg.name else bytes(8))
    content = b"\x80\2" + code.code.encode("latin-1") + argument + b"N."
    refused(write(tmp_path / "m.bin", zipped(content)), rf"its pickle holds {code.name},")


DEEP = 50_000
DAMAGED = {
    "empty": b"",
    "a pointer of Git LFS": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
    "half": saved()[:400],
    "half of the old format": saved(old=True)[:-9],
    "without its end": saved()[:-1],
    "a comment at its end": saved() + b"more",
    "no pickle inside": zipped(b""),
    "a pickle without an end": zipped(dictionary(tensor())[:-1]),
    "an empty stack": zipped(b"\x80\2."),
    "two values": zipped(b"\x80\2}}."),
    "a mark without an end": zipped(b"\x80\2(}."),
    "nothing to take": zipped(b"\x80\2\x85."),
    "below the mark": zipped(b"\x80\2}(\x85t."),
    "an unknown number in the memo": zipped(b"\x80\2h\7."),
    "no numbers of text": zipped(dictionary(b"X\xff\xff\xff\xff")),
    "no text": zipped(dictionary(b"X\1\0\0\0\xff")),
    "a long number": zipped(dictionary(b"\x8b\xff\xff\xff\x7f")),
    "an item of no dictionary": zipped(b"\x80\2]K\1K\1s."),
    "an odd item": zipped(b"\x80\2}(K\1u."),
    "a key that hashes for ever": zipped(b"\x80\2}(" + b")" + b"q\0h\0\x86" * 64 + b"K\1u."),
    "a key of tensors": zipped(dictionary(b"K\1", tensor())),
    "a call of no name": zipped(dictionary(b"K\1)R")),
    "a call of a type": zipped(dictionary(named("torch.FloatStorage") + b")R")),
    "a call without a tuple": zipped(dictionary(named("collections.OrderedDict") + b"]R")),
    "arguments of a dictionary": zipped(dictionary(named("collections.OrderedDict") + b"]\x85R")),
    "a state of no dictionary": zipped(dictionary(b"]}b")),
    "a tensor of nothing": zipped(dictionary(named("torch._utils._rebuild_tensor_v2") + b")R")),
    "a tensor of no storage": zipped(dictionary(tensor(of=text("0")))),
    "a parameter of no tensor": zipped(dictionary(named("torch._utils._rebuild_parameter") + b"K\1\x85R")),
    "a type that is none": zipped(
        dictionary(
            named("torch._utils._rebuild_tensor_v3")
            + b"("
            + storage(16, kind="torch.storage.UntypedStorage")
            + number(0)
            + numbers(4)
            + numbers(1)
            + b"\x89N"
            + named("torch.FloatStorage")
            + b"tR"
        )
    ),
    "a storage by a tensor": zipped(dictionary(b"(" + text("storage") + tensor() + text("0") + text("") + b"K\1tQ")),
    "a storage that is absent": zipped(dictionary(tensor(of=storage(key="7")))),
    "a storage elsewhere": zipped(dictionary(tensor(of=storage(key="../../0")))),
    "a storage by a number": zipped(dictionary(tensor(of=storage().replace(text("0"), b"K\0")))),
    "a storage of another size": zipped(dictionary(tensor(of=storage(17), shape=numbers(17)))),
    "a storage of no size": zipped(dictionary(tensor(of=storage(-1)))),
    "a view": old(dictionary(tensor(of=storage()[:-2] + b"(" + text("v") + b"K\0K\1ttQ"))),
    "a huge shape": zipped(dictionary(tensor(shape=numbers(2**40), of=storage(2**40)))),
    "a huge shape of 0 strides": zipped(dictionary(tensor(shape=numbers(2**40, 2**40), strides=numbers(0, 0)))),
    "a shape that overflows": zipped(dictionary(tensor(shape=numbers(2**32, 2**32), strides=numbers(1, 1)))),
    "a shape of long numbers": zipped(dictionary(tensor(shape=b"\x8a\xff" + b"\x7f" * 255 + b"\x85"))),
    "a negative shape": zipped(dictionary(tensor(shape=numbers(-4)))),
    "two negative sizes": zipped(dictionary(tensor(shape=numbers(-2, -2), strides=numbers(1, 1)))),
    "a negative stride": zipped(dictionary(tensor(offset=8, strides=numbers(-1)))),
    "a negative offset": zipped(dictionary(tensor(offset=-1))),
    "an offset beyond the end": zipped(dictionary(tensor(offset=13))),
    "a stride beyond the end": zipped(dictionary(tensor(strides=numbers(6)))),
    "an overlap": zipped(dictionary(tensor(shape=numbers(5, 5), strides=numbers(1, 1)))),
    "shape and strides differ": zipped(dictionary(tensor(shape=numbers(2, 2)))),
    "a shape of text": zipped(dictionary(tensor(shape=text("4")))),
    "a shape of fractions": zipped(dictionary(tensor(shape=b"G@\x10\0\0\0\0\0\0\x85"))),
    "a shape of truth": zipped(dictionary(tensor(shape=b"\x88\x85"))),
    "65 axes": zipped(dictionary(tensor(shape=numbers(*[1] * 65), strides=numbers(*[1] * 65)))),
    "a shape of a tuple of itself": zipped(dictionary(tensor(shape=b")" + b"q\0h\0\x86" * 64))),
    "many names of one tensor": zipped(
        b"\x80\2}("
        + b"".join(text(f"{i}") + tensor(shape=numbers(1 << 14), of=storage(1 << 14)) for i in range(900))
        + b"u.",
        {"0": bytes(1 << 16)},
    ),
    "no dictionary": zipped(b"\x80\2" + tensor() + b"."),
    "a dictionary of itself": zipped(b"\x80\2}q\0" + text("a") + b"h\0s."),
    "a list of itself": zipped(b"\x80\2}" + text("a") + b"]q\0h\0as."),
    "deep lists": zipped(dictionary(b"]" * DEEP + b"a" * (DEEP - 1))),
    "deep tuples": zipped(dictionary(b")" + b"\x85" * DEEP)),
    "deep dictionaries": zipped(dictionary((text("a") + b"}") * 10_000 + b"s" * 9_999)),
    "too many marks": zipped(b"\x80\2" + b"(" * DEEP + b"}."),
    "a place in the memo for everybody": zipped(b"\x80\2}r\xff\xff\xff\xff0."),
    "compressed": zipped(dictionary(tensor()), method=zipfile.ZIP_DEFLATED),
    "old, of no storage": old(dictionary(tensor()), ()),
    "old, of an unknown storage": old(dictionary(tensor()), ("1",)),
    "old, of many storages": old(dictionary(tensor()), ("0",) * 1000),
    "old, of another size": old(dictionary(tensor(of=storage(2**40)))),
    "old, where no file reaches": old(dictionary(tensor(of=storage(2**60))), ("0", "0")).replace(
        struct.pack("<q", 16), struct.pack("<q", 2**60)
    ),
    "old, truncated": old(dictionary(tensor()))[:-20],
}
LARGE = {
    "more steps than are read": lambda: zipped(b"\x80\2}" + b"0" * (1 << 21) + b"."),
    "more steps of a kind that is read": lambda: zipped(b"\x80\2}" + b"q\0" * (1 << 20) + b"."),
    "a pickle of a gigabyte's beginning": lambda: zipped(dictionary(text("x" * (17 << 20)))),
    "a bomb": lambda: zipped(dictionary(tensor()), {"0": bytes(64 << 20)}, method=zipfile.ZIP_DEFLATED),
    "a bomb of a pickle": lambda: zipped(dictionary(text("x" * (64 << 20))), method=zipfile.ZIP_LZMA),
}
"""Made by their tests: every worker imports this file."""


@pytest.mark.parametrize("case", [*DAMAGED, *LARGE])
def test_hostile_files(tmp_path, case):
    content = DAMAGED[case] if case in DAMAGED else LARGE[case]()
    refused(write(tmp_path / "pytorch_model.bin", content), r"pytorch_model\.bin")


def change(content: bytes, at: int, new: bytes) -> bytes:
    return content[:at] + new + content[at + len(new) :]


def hostile_zips() -> dict[str, bytes]:
    content = saved()
    directory, end = content.index(b"PK\1\2"), len(content) - 22
    long_end = content.index(b"PK\6\6")
    most = struct.pack("<Q", 2**64 - 1)
    plain = zipped(dictionary(tensor()))
    first = plain.index(b"PK\1\2")
    twice = zipped(dictionary(tensor()), {"0": bytes(64), "1": bytes(64)})
    return {
        "more entries than there are": change(content, long_end + 32, struct.pack("<Q", 10**6)),
        "entries without a number": change(content, long_end + 32, most),
        "a list larger than the file": change(content, long_end + 40, most),
        "a list elsewhere": change(content, long_end + 48, most),
        "a locator elsewhere": change(content, end - 20 + 8, most),
        "a locator where no file reaches": change(content, end - 20 + 8, struct.pack("<Q", 2**63 - 1)),
        "an end of another kind": change(content, end - 20 + 8, struct.pack("<Q", 0)),
        "a header elsewhere": change(content, directory + 42, struct.pack("<I", 2**31)),
        "a size beyond the end": change(plain, first + 20, struct.pack("<2I", 2**31, 2**31)),
        "two sizes": change(plain, first + 24, struct.pack("<I", 4096)),
        "a method": change(plain, first + 10, struct.pack("<H", 8)),
        "a password": change(plain, first + 8, struct.pack("<H", 1)),
        "long sizes that are none": change(plain, first + 20, struct.pack("<2I", 2**32 - 1, 2**32 - 1)),
        "two entries of one name": twice.replace(b"archive/data/1", b"archive/data/0"),
        "two pickles": zipped(dictionary(tensor()), {"0": bytes(64), "data.pkl": b"."}),
        "no pickle": plain.replace(b"data.pkl", b"data.pk1"),
        "a name that is no text": plain.replace(b"data.pkl", b"data\xff\xfe\xff\xff"),
        "big-endian": content.replace(b"little", b"bigbig"),
    }


@pytest.mark.parametrize("case", hostile_zips())
def test_hostile_zips(tmp_path, case):
    refused(write(tmp_path / "pytorch_model.bin", hostile_zips()[case]), r"pytorch_model\.bin is truncated or no file")


def test_a_zip_of_zip64_sizes(tmp_path):
    """Sizes of 64 bits where 32 would do: what a file of more than 4 GB has."""
    content = zipped(dictionary(tensor()))
    directory, end = content.index(b"PK\1\2"), len(content) - 22
    header = content[directory:end]
    name = header.index(b"archive/data.pkl")
    size = struct.unpack_from("<I", header, 24)[0]
    extra = struct.pack("<2H2Q", 1, 16, size, size)
    changed = change(change(header, 20, struct.pack("<2I", *[2**32 - 1] * 2)), 30, struct.pack("<H", len(extra)))
    changed = changed[: name + 16] + extra + changed[name + 16 :]
    tail = change(content[end:], 12, struct.pack("<I", len(changed)))
    assert list(arrays(write(tmp_path / "m.bin", content[:directory] + changed + tail))) == ["a"]


def test_a_file_that_shrinks_while_it_is_read(tmp_path):
    file = write(tmp_path / "pytorch_model.bin", saved())
    tensors = Tensors({name: (of,) for name, of in scan(file).items()})
    os.truncate(file, 100)
    with pytest.raises(SetupError, match="was cut off while it was read"):
        tensors["a.weight"]


def test_the_known_names_are_few():
    """Of each module, and nothing that torch does not have."""
    for name in pickles._KNOWN:
        module, _, last = name.partition(" ")
        assert module in ("torch", "torch.storage", "torch._utils", "collections")
        assert hasattr(torch.storage, last) or hasattr(torch, last) or module in ("torch._utils", "collections")
    assert set(torch_files._NUMPY) == {*pickles.STORAGES.values(), *pickles._TYPES.values()}
    assert list(STATE) == ["a.weight", "b"]
