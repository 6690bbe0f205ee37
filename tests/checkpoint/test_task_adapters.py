"""jina-embeddings-v3's layout: adapters of several tasks in the weights, of which a setting names one."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from bei.checkpoint.load import read
from bei.checkpoint.sources import load
from bei.errors import SetupError
from tests.support.saved import settings
from tests.support.tiny_models import random_model, save, write_json

TASKS = ["retrieval.query", "retrieval.passage", "separation"]
RANK, ALPHA = 4, 2
CONFIG = {"lora_adaptations": TASKS, "lora_rank": RANK, "lora_alpha": ALPHA, "use_flash_attn": True}


@pytest.fixture
def published(tmp_path) -> tuple:
    """The folder, and the tensors of each task and of none, computed plainly: W + alpha / rank * B A."""
    folder = save(tmp_path / "m", random_model("jina_embeddings_v3"))
    plain, stored, generator = load_file(folder / "model.safetensors"), {}, torch.Generator().manual_seed(0)
    worth = {task: dict(plain) for task in (*TASKS, "none")}
    for name, weight in plain.items():
        if weight.dim() != 2:
            stored[name] = weight
            continue
        rows, columns = weight.shape
        shapes = [(3, RANK, columns), (3, rows, RANK)]
        a, b = (torch.randn(shape, generator=generator) / 8 for shape in shapes)
        for i, task in enumerate(TASKS):
            worth[task][name] = weight + ALPHA / RANK * (b[i] @ a[i])
        sides = (b, a) if "embeddings" in name else (a, b)
        stored[name.replace(".weight", ".parametrizations.weight.original")] = weight
        for side, of in zip("AB", sides, strict=True):
            stored[name.replace(".weight", f".parametrizations.weight.0.lora_{side}")] = of
    save_file({f"roberta.{name}": of for name, of in stored.items()}, folder / "model.safetensors", {"format": "pt"})
    change(folder, **CONFIG)
    rows = json.loads((folder / "modules.json").read_text())
    write_json(folder / "modules.json", [{**rows[0], "type": "custom_st.Transformer", "kwargs": ["task"]}, rows[1]])
    return folder, worth


def change(folder, **fields) -> None:
    write_json(folder / "config.json", json.loads((folder / "config.json").read_text()) | fields)


@pytest.mark.parametrize("task", [*TASKS, "none"])
def test_the_task_that_the_setting_names(published, tmp_path, task):
    folder, worth = published
    checkpoint = load(settings("LOCAL", str(folder), tmp_path, task_adapter=task))
    found = {name: checkpoint.tensors[name] for name in checkpoint.tensors}
    assert (checkpoint.spec.pooling.modes, checkpoint.prompts.adapter) == (("mean",), task)
    expected = save(tmp_path / "expected", random_model("jina_embeddings_v3"))
    save_file(worth[task], expected / "model.safetensors", {"format": "pt"})
    tensors = read(expected, "m").tensors
    assert set(found) == set(tensors)
    for name in tensors:
        np.testing.assert_allclose(found[name], tensors[name], rtol=1e-5, atol=1e-6, err_msg=name)


def test_each_task_has_its_plan(published, tmp_path):
    folder, _ = published
    read_as = (read(folder, "m", task_adapter=task).tensors for task in (*TASKS, "none"))
    assert len({tensors.fingerprint(tmp_path / "notes") for tensors in read_as}) == 4


def test_none_is_served_unasked(published):
    folder, _ = published
    listed = "set BEI_TASK_ADAPTER to one of 'retrieval.query', 'retrieval.passage', 'separation', or to none"
    with pytest.raises(SetupError, match=f"the checkpoint has an adapter for each task: {listed}"):
        read(folder, "m")
    with pytest.raises(SetupError, match=f"'clustering' is no task: {listed}"):
        read(folder, "m", task_adapter="clustering")


def test_a_task_of_a_checkpoint_without_any(tiny_folder):
    with pytest.raises(SetupError, match="BEI_TASK_ADAPTER is 'separation', but the checkpoint has no task adapters"):
        read(tiny_folder, "m", task_adapter="separation")


@pytest.mark.parametrize(
    "fields",
    [
        *({"lora_adaptations": value} for value in ("separation", [], [7], {"separation": 1})),
        *({"lora_rank": value} for value in (0, -1, "4", 5)),
        {"lora_alpha": "1"},
    ],
)
def test_what_no_config_says(published, fields):
    folder, _ = published
    change(folder, **fields)
    with pytest.raises(SetupError) as caught:
        read(folder, "m", task_adapter="separation")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("shape", [None, (2, RANK, 48), (RANK, 48), (3, 5, 48)])
def test_adapters_that_do_not_fit(published, shape):
    """Of too few tasks, of another rank, or missing."""
    folder, _ = published
    stored = load_file(folder / "model.safetensors")
    name = "roberta.encoder.layers.0.mixer.Wqkv.parametrizations.weight.0.lora_A"
    stored.pop(name)
    more = {} if shape is None else {name: torch.ones(shape)}
    save_file(stored | more, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(SetupError, match=r"Wqkv.*do not fit it; download the checkpoint again"):
        read(folder, "m", task_adapter="separation")


def test_the_module_of_a_checkpoint_without_adapters_is_code(published):
    folder, _ = published
    change(folder, lora_adaptations=None)
    with pytest.raises(SetupError, match=r"'custom_st\.Transformer' is code of the repository's own"):
        read(folder, "m")
