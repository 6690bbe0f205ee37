"""`bei convert`: the same model in safetensors, whole or not at all."""

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from click.testing import CliRunner

from bei import cli
from bei.checkpoint.load import read
from tests.support.saved import adapter, with_dense, without_safetensors
from tests.support.tiny_models import VOCAB, random_model, save, write_json


def run(*arguments: object):
    return CliRunner().invoke(cli.main, ["convert", *map(str, arguments)])


def values(folder: Path) -> dict[str, np.ndarray]:
    tensors = read(folder, "m").tensors
    return {name: tensors[name] for name in tensors}


@pytest.fixture
def pickled(tmp_path) -> Path:
    """An encoder, a Dense, the heads of BGE-M3, vocab.txt, and files that are no model's."""
    folder = with_dense(tmp_path / "saved")
    without_safetensors(folder)
    for name, rows in (("sparse", 1), ("colbert", 48)):
        torch.save({"weight": torch.rand(rows, 48), "bias": torch.rand(rows)}, folder / f"{name}_linear.pt")
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.txt").write_text("\n".join(VOCAB))
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "BertTokenizer", "do_lower_case": True})
    for name in ("optimizer.bin", "modeling.py", "training_args.bin"):
        (folder / name).write_text("no weights")
    return folder


def test_the_converted_model_is_the_same(tmp_path, pickled, caplog):
    expected, m3 = values(pickled), read(pickled, "m").m3
    result = run(pickled, tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert result.stdout == f"{tmp_path / 'out'}: {pickled} as safetensors; serve it with source LOCAL\n"
    assert "model.safetensors: 55 tensors, 0 MB" in caplog.text
    out = tmp_path / "out"
    found = values(out)
    assert all(np.array_equal(found[name], expected[name]) for name in expected)
    assert np.array_equal(read(out, "m").m3.colbert.weight, m3.colbert.weight)
    names = {file.relative_to(out).as_posix() for file in out.rglob("*") if file.is_file()}
    assert names >= {"model.safetensors", "2_Dense/model.safetensors", "sparse_linear.safetensors", "tokenizer.json"}
    assert not [name for name in names if name.endswith((".bin", ".pt", ".py"))]
    assert (out.stat().st_mode & 0o777) == (pickled.stat().st_mode & 0o777)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_torch_reads_what_is_written(tmp_path, dtype):
    folder = save(tmp_path / "m", random_model("bert").to(dtype))
    expected = safetensors.torch.load_file(folder / "model.safetensors")
    expected["loss.count"] = torch.tensor(3)
    (folder / "model.safetensors").unlink()
    written = {f"module.{name}": of.t().contiguous().t() if of.dim() == 2 else of for name, of in expected.items()}
    torch.save(written, folder / "pytorch_model.bin")
    assert run(folder, tmp_path / "out").exit_code == 0
    found = safetensors.torch.load_file(tmp_path / "out" / "model.safetensors")
    assert found.keys() == written.keys()
    assert all(torch.equal(of, expected[name.removeprefix("module.")]) for name, of in found.items())


def test_shards_become_one_file(tmp_path):
    folder = save(tmp_path / "m", random_model("bert"))
    expected = values(folder)
    state = safetensors.torch.load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    places = {name: f"pytorch_model-{i % 2}.bin" for i, name in enumerate(state)}
    for file in set(places.values()):
        torch.save({name: of for name, of in state.items() if places[name] == file}, folder / file)
    write_json(folder / "pytorch_model.bin.index.json", {"weight_map": places})
    assert run(folder, tmp_path / "out").exit_code == 0
    found = values(tmp_path / "out")
    assert all(np.array_equal(found[name], expected[name]) for name in expected)
    assert not list((tmp_path / "out").glob("*index.json"))


def test_safetensors_are_copied(tmp_path, tiny_folder):
    (tmp_path / "out").mkdir()
    assert run(tiny_folder, tmp_path / "out").exit_code == 0
    for file in tiny_folder.rglob("*.*"):
        if file.is_file():
            assert (tmp_path / "out" / file.relative_to(tiny_folder)).read_bytes() == file.read_bytes()


def test_what_is_there_is_never_written_over(tmp_path, tiny_folder):
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine").write_text("mine")
    for place in (out, out / "mine"):
        result = run(tiny_folder, place)
        assert result.exit_code == 2
        assert result.stderr.splitlines()[-1] == f"bei: {place} is not empty; name a new folder"
    assert [file.name for file in out.iterdir()] == ["mine"]


@pytest.mark.parametrize("is_there", [True, False])
def test_a_link_is_followed(tmp_path, tiny_folder, is_there):
    place = tmp_path / "place"
    if is_there:
        place.mkdir()
    (tmp_path / "link").symlink_to(place)
    assert run(tiny_folder, tmp_path / "link").exit_code == 0
    assert (tmp_path / "link").is_symlink() and (place / "config.json").exists()


def test_what_comes_there_meanwhile_stays_and_is_told(tmp_path, tiny_folder, monkeypatch):
    out = tmp_path / "out"
    out.mkdir()
    monkeypatch.setattr("bei.checkpoint.convert.read", lambda *_: (out / "mine").write_text("mine"))
    result = run(tiny_folder, out)
    assert (result.exit_code, result.stderr.splitlines()[-1]) == (2, f"bei: {out}: Directory not empty")
    assert [file.name for file in out.iterdir()] == ["mine"]


def test_a_mounted_folder_is_refused_at_once(tmp_path, tiny_folder, monkeypatch):
    out = tmp_path / "out"
    out.mkdir()
    monkeypatch.setattr(Path, "is_mount", lambda place: place == out)
    result = run(tiny_folder, out)
    assert result.exit_code == 2
    assert result.stderr.endswith(f"bei: {out} is mounted and cannot be replaced; name a folder in it\n")


@pytest.mark.parametrize(
    "fault", ["a pickle that runs", "a model that is not served", "an adapter", "no model", "no repository"]
)
def test_a_refusal_leaves_nothing(tmp_path, fault):
    folder = save(tmp_path / "m", random_model("bert"))
    match fault:
        case "a pickle that runs":
            (folder / "model.safetensors").unlink()
            torch.save({"a": json.JSONDecoder}, folder / "pytorch_model.bin")
        case "a model that is not served":
            write_json(folder / "config.json", {"model_type": "another"})
        case "an adapter":
            base = save(tmp_path / "base", random_model("bert"))
            adapter(folder, base, "bert")
        case "no model":
            (folder / "config.json").unlink()
            (folder / "modules.json").unlink()
        case "no repository":
            folder = "not/a/repository"
    result = run(folder, tmp_path / "out" / "inside")
    assert result.exit_code == 2, result.output
    assert result.stderr.splitlines()[-1].startswith("bei: ")
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())
