"""Reading weights without copying them, and knowing their content without reading them."""

import hashlib
import os

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from bei.checkpoint.load import read
from bei.checkpoint.tensors import Tensors, scan


@pytest.mark.parametrize("stored", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_rows_that_are_wanted_as_they_are_stored_are_mapped(tmp_path, stored):
    numbers = np.arange(24).reshape(6, 4).astype(stored)
    save_file({"a": numbers[:1], "x": numbers}, tmp_path / "w.safetensors")
    whole = scan(tmp_path / "w.safetensors")["x"]
    parts = (whole.rows(1, 3), whole.rows(0, 6, step=2), whole.rows(4, 5, less=0))
    pieces = Tensors({"ours": parts}).pieces()
    mapped, every_other, difference = pieces["ours"]
    np.testing.assert_array_equal(mapped, numbers[1:3])
    assert (mapped.dtype, mapped.flags.writeable, mapped.base is not None) == (stored, False, True)
    np.testing.assert_array_equal(every_other, numbers[::2])
    np.testing.assert_array_equal(difference, numbers[4:5].astype(np.float32) - numbers[:1].astype(np.float32))
    exact = pieces.exact("ours")
    assert exact.dtype == np.float32
    np.testing.assert_array_equal(exact, np.concatenate([mapped, every_other, difference]).astype(np.float32))


def test_pieces_are_the_tensors_of_a_checkpoint(tiny_checkpoint):
    pieces = tiny_checkpoint.tensors.pieces()
    for name, tensor in tiny_checkpoint.tensors.items():
        np.testing.assert_array_equal(np.concatenate(pieces[name]), tensor)


@pytest.fixture
def in_the_hubs_cache(tiny_folder, tmp_path):
    """As huggingface_hub keeps a repository: files of weights by their SHA-256, others by git's hash."""
    repository = tmp_path / "models--org--tiny"
    snapshot = repository / "snapshots" / ("c" * 40)
    (repository / "blobs").mkdir(parents=True)
    for file in filter(os.path.isfile, sorted(tiny_folder.rglob("*"))):
        content, place = file.read_bytes(), snapshot / file.relative_to(tiny_folder)
        name = hashlib.sha256(content).hexdigest()
        blob = repository / "blobs" / (name if file.suffix == ".safetensors" else name[:40])
        blob.write_bytes(content)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(os.path.relpath(blob, place.parent))
    return snapshot


def test_the_hubs_cache_says_what_weights_are(tiny_folder, in_the_hubs_cache, tmp_path, monkeypatch):
    """They are not read for it, and they are what they are elsewhere."""
    elsewhere = read(tiny_folder, "m").tensors.fingerprint(tmp_path / "notes")
    tensors = read(in_the_hubs_cache, "m").tensors
    monkeypatch.setattr(hashlib, "file_digest", lambda *of: pytest.fail("it is read"))
    assert tensors.fingerprint(tmp_path / "no notes") == elsewhere
    assert not (tmp_path / "no notes").exists()
