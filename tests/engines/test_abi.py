"""The library and abi.py have one layout of every structure, else loading refuses by the field's name."""

import ctypes
import re
import shutil
import subprocess
from ctypes import Structure
from pathlib import Path

import pytest

from bei.engines.native import abi, library
from bei.engines.native.levels import level
from bei.errors import SetupError

CPP = Path(library.__file__).parent / "cpp"


def altered(structure: type[Structure], fields: list) -> tuple[type[Structure], ...]:
    """All structures, one of them with other fields."""
    other = type(structure.__name__, (Structure,), {"_fields_": fields})
    return tuple(other if of is structure else of for of in abi.STRUCTURES)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda fields: [fields[1], fields[0], *fields[2:]], "Norm.bias is 8 bytes at 8 in the library, and 8"),
        (lambda fields: [*fields[:2], ("size", ctypes.c_int64), *fields[3:]], "Norm.size is 4 bytes at 16 in"),
        (lambda fields: fields[:-1], "Norm.eps is 4 bytes at 24 in the library, and missing in abi.py"),
        (lambda fields: [*fields, ("gain", ctypes.c_float)], "Norm.gain is missing in the library, and 4 bytes at 28"),
    ],
)
def test_a_structure_that_python_has_otherwise_is_refused(native_cache, monkeypatch, change, said):
    monkeypatch.setattr(abi, "STRUCTURES", altered(abi.Norm, change(abi.Norm._fields_)))
    with pytest.raises(SetupError, match=re.escape(said)):
        library.load(level(), native_cache)


@pytest.mark.parametrize(
    ("ours", "theirs", "said"),
    [
        (
            "heads, intermediate_size,",
            "intermediate_size, heads,",
            "Model.heads is 4 bytes at 16 in the library, and 4",
        ),
        ("int32_t size, kind;", "int32_t size; int64_t kind;", "Norm.kind is 8 bytes at 24 in the library"),
        ("int32_t threads;", "int32_t threads, images;", ""),
    ],
)
def test_a_structure_that_the_library_has_otherwise_is_refused(tmp_path, ours, theirs, said):
    """A field that is not in the library's list changes its structure's size, or nothing that Python reads."""
    text = (CPP / "abi.h").read_text()
    assert ours in text
    (tmp_path / "abi.h").write_text(text.replace(ours, theirs))
    shutil.copy(CPP / "fields.cpp", tmp_path)
    file = tmp_path / "fields.so"
    options = ["-std=c++17", "-fPIC", "-shared", *level().compiler_flags]
    subprocess.run([library.compiler(), *options, str(tmp_path / "fields.cpp"), "-o", str(file)], check=True)
    loaded = ctypes.CDLL(str(file))
    if not said:
        return library._check(loaded, file)
    with pytest.raises(SetupError, match=re.escape(said)):
        library._check(loaded, file)


def test_a_library_lists_what_python_has(native_cache):
    fields = library.load(level(), native_cache).bei_abi()
    names = []
    while fields[len(names)].name:
        names.append(fields[len(names)].name.decode())
    assert sorted(names) == sorted(name for name, _ in abi._places())


def test_the_layouts_are_those_of_words(native_cache):
    """A word is 32 bits, and a panel is whole vectors."""
    layouts = library.layouts(library.load(level(), native_cache))
    half = 2 if level().has_bf16 else 1
    row_groups = {name: layout.row_group for name, layout in layouts.items()}
    assert row_groups == {"fp32": 1, "bf16": 2, "int8": 4, "int4": half}
    assert all(layout.word_multiple % layout.row_group == 0 for layout in layouts.values())
    assert all(layout.panel % layout.lanes == 0 for layout in layouts.values())
    assert {layout.block_rows for layout in layouts.values()} == {448 if level().has_tiles else 96}
    assert {name: layout.largest for name, layout in layouts.items()} == {**dict.fromkeys(layouts, 0), "int8": 127}
    vnni = any(feature.endswith("vnni") for feature in level().features)
    pairs = {name: layout.largest_pair for name, layout in layouts.items()}
    assert pairs == {**dict.fromkeys(layouts, 0), "int8": 0 if vnni else pytest.approx(32767 / 255 - 1)}
