"""A folder becomes a Checkpoint, or one line that names the file and the remedy."""

import json

import numpy as np
import pytest
import safetensors.torch
import torch
from safetensors.numpy import load_file, save_file

from bei.architectures.spec import Dense, LayerNorm, Normalize, Pooling
from bei.checkpoint.load import read, read_for
from bei.errors import SetupError
from bei.settings import Settings
from tests.support.configs import tiny_config
from tests.support.tiny_models import FAMILIES, random_model, save, write_json, write_modules


@pytest.fixture
def folder(tmp_path):
    return save(tmp_path, random_model("bert"))


def edit(file, **changes):
    """Set keys of a JSON file; None removes."""
    content = {**(json.loads(file.read_text()) if file.exists() else {}), **changes}
    write_json(file, {key: value for key, value in content.items() if value is not None})


def test_reads_what_a_model_is(folder):
    checkpoint = read(folder, "org/name", "abc")
    assert (checkpoint.name, checkpoint.revision, checkpoint.dtype) == ("org/name", "abc", "float32")
    assert checkpoint.spec.pooling == Pooling(("mean",))
    assert checkpoint.max_tokens == 64
    assert checkpoint.tensors["layers.2.qkv.weight"].shape == (144, 48)
    assert checkpoint.tokenizer_file == folder / "tokenizer.json"


def test_limit_is_the_smallest_of_what_is_stated(folder):
    edit(folder / "tokenizer_config.json", model_max_length=40)
    assert read(folder, "m").max_tokens == 40
    edit(folder / "sentence_bert_config.json", max_seq_length=50, do_lower_case=True)
    assert read(folder, "m").max_tokens == 50
    assert read(folder, "m").lowercase
    edit(folder / "sentence_bert_config.json", max_seq_length=5000)
    assert read(folder, "m").max_tokens == 64
    assert read(folder, "m", max_num_tokens=33).max_tokens == 33
    for limits in ({"max_seq_len": 20}, {"max_num_tokens": 20}, {"max_seq_len": 20, "max_num_tokens": 99}):
        assert read_for(Settings.load(tiny_config(), environ={}, **limits), folder, None).max_tokens == 20


def test_prompts(folder):
    edit(folder / "config_sentence_transformers.json", prompts={"query": "q: ", "doc": ""}, default_prompt_name="query")
    prompts = read(folder, "m").prompts
    assert (dict(prompts.texts), prompts.default) == ({"query": "q: ", "doc": ""}, "query")
    edit(folder / "config_sentence_transformers.json", prompts={"query": "q" * 20_000})
    with pytest.raises(SetupError, match="prompt 'query' has 20000 characters; at most 16384 are read"):
        read(folder, "m")
    edit(folder / "config_sentence_transformers.json", prompts={}, default_prompt_name="absent")
    with pytest.raises(SetupError, match="'absent' is not among its prompts"):
        read(folder, "m")


def test_sizes_of_the_answer(folder):
    file = folder / "config_sentence_transformers.json"
    edit(file, truncate_dim=5000, max_active_dims=7)
    assert (read(folder, "m").dimensions, read(folder, "m").max_terms) == (48, 7)
    for wrong in (0, -1, 1.5, "16", True, [16]):
        edit(file, truncate_dim=wrong)
        with pytest.raises(SetupError, match=r"`truncate_dim` must be a whole number of at least 1, not "):
            read(folder, "m")


def test_the_side_that_is_cut(folder):
    assert read(folder, "m").truncation_side == "right"
    edit(folder / "tokenizer_config.json", truncation_side="left")
    assert read(folder, "m").truncation_side == "left"
    edit(folder / "tokenizer_config.json", truncation_side="both")
    with pytest.raises(SetupError, match=r"truncation_side cannot be 'both'"):
        read(folder, "m")


def test_both_layouts_of_pooling(folder):
    flags = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True, "include_prompt": False}
    write_json(folder / "1_Pooling" / "config.json", flags)
    assert read(folder, "m").spec.pooling == Pooling(("first", "mean"), include_prompt=False)
    write_json(folder / "1_Pooling" / "config.json", {"pooling_mode": ["lasttoken", "max"]})
    assert read(folder, "m").spec.pooling == Pooling(("last", "max"))


def test_head_layers_after_pooling(folder):
    rng = np.random.default_rng(0)
    write_modules(folder, {"Transformer": "", "Pooling": "1_Pooling", "Normalize": "2", "Dense": "3", "LayerNorm": "4"})
    write_json(
        folder / "3" / "config.json",
        {"in_features": 48, "out_features": 8, "bias": True, "activation_function": "torch.nn.modules.linear.Identity"},
    )
    save_file(
        {"linear.weight": rng.random((8, 48), np.float32), "linear.bias": rng.random(8, np.float32)},
        folder / "3" / "model.safetensors",
    )
    write_json(folder / "4" / "config.json", {"dimension": 8})
    save_file(
        {"norm.weight": rng.random(8, np.float32), "norm.bias": rng.random(8, np.float32)},
        folder / "4" / "model.safetensors",
    )
    checkpoint = read(folder, "m")
    assert checkpoint.spec.head == (Normalize(), Dense(48, 8, True, "identity"), LayerNorm(8))
    assert checkpoint.spec.row_size == 8
    edit(folder / "3" / "config.json", in_features=96)
    with pytest.raises(SetupError, match="takes 96 numbers, the layer before it gives 48"):
        read(folder, "m")


def test_the_last_normalize_is_left_to_the_request(folder):
    write_modules(
        folder, {"Transformer": "", "Pooling": "1_Pooling", "Dropout": "2_Dropout", "Normalize": "3_Normalize"}
    )
    assert read(folder, "m").spec.head == ()


def test_without_modules_bert_pools_the_first_token_and_says_so(tmp_path, caplog):
    folder = save(tmp_path, random_model("bert"), pooling=None)
    assert read(folder, "m").spec.pooling == Pooling(("first",))
    assert "pooling the first token" in caplog.text


def test_without_modules_the_setting_decides(tmp_path):
    folder = save(tmp_path, random_model("mpnet"), pooling=None)
    assert read(folder, "m", pooling="mean").spec.pooling == Pooling(("mean",))


def test_without_modules_mpnet_is_refused(tmp_path):
    with pytest.raises(SetupError, match=r"1_Pooling/config\.json is missing"):
        read(save(tmp_path, random_model("mpnet"), pooling=None), "m")


def test_old_names_prefixes_heads_and_shards(folder):
    file = folder / "model.safetensors"
    stored = load_file(file)
    renamed = {}
    for name, array in stored.items():
        if "LayerNorm" in name:
            name = name.replace(".weight", ".gamma").replace(".bias", ".beta")
        renamed["bert." + name] = array
    renamed["cls.predictions.bias"] = np.zeros(4, np.float32)
    names = sorted(renamed)
    shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for shard, part in shards.items():
        save_file({name: renamed[name] for name in part}, folder / shard)
    write_json(
        folder / "model.safetensors.index.json", {"weight_map": {n: s for s, part in shards.items() for n in part}}
    )
    file.unlink()
    tensors = read(folder, "m").tensors
    np.testing.assert_array_equal(
        tensors["layers.0.attention_end.bias"], stored["encoder.layer.0.attention.output.LayerNorm.bias"]
    )
    (folder / "b.safetensors").unlink()
    with pytest.raises(SetupError, match=r"b\.safetensors is missing"):
        read(folder, "m")


def test_a_tensor_is_read_from_the_shard_that_the_index_names(folder):
    """Shards may hold older copies, and tensors of other models, which the index does not name."""
    stored = load_file(folder / "model.safetensors")
    name = "encoder.layer.0.attention.self.query.bias"
    stale = {name: stored[name] + 1, "encoder.layer.9.strange": np.zeros(1, np.float32)}
    for first, second in (("a", "b"), ("b", "a")):
        rest = {other: array for other, array in stored.items() if other != name}
        save_file({name: stored[name]}, folder / f"{first}.safetensors")
        save_file({**rest, **stale}, folder / f"{second}.safetensors")
        places = {n: f"{first if n == name else second}.safetensors" for n in stored}
        write_json(folder / "model.safetensors.index.json", {"weight_map": places})
        (folder / "model.safetensors").unlink(missing_ok=True)
        bias = read(folder, "m").tensors["layers.0.qkv.bias"]
        np.testing.assert_array_equal(bias[:48], stored[name])


def test_a_tensor_that_its_shard_lacks_is_missing(folder):
    stored = load_file(folder / "model.safetensors")
    (first, *others) = stored
    save_file({name: stored[name] for name in others}, folder / "a.safetensors")
    save_file({first: stored[first]}, folder / "b.safetensors")
    places = {**dict.fromkeys(stored, "a.safetensors"), "of.nobody": "b.safetensors"}
    write_json(folder / "model.safetensors.index.json", {"weight_map": places})
    (folder / "model.safetensors").unlink()
    with pytest.raises(SetupError, match=rf"(missing: |no tensor '){first}"):
        read(folder, "m")
    write_json(folder / "model.safetensors.index.json", {"weight_map": {**places, first: "b.safetensors"}})
    read(folder, "m")


def test_two_stored_tensors_never_pass_for_one(folder):
    stored = load_file(folder / "model.safetensors")
    norm = stored["embeddings.LayerNorm.weight"]
    save_file({**stored, "embeddings.LayerNorm.gamma": norm + 1}, folder / "model.safetensors")
    with pytest.raises(SetupError, match=r"embeddings\.LayerNorm\.(weight|gamma) and .* are one tensor of the model"):
        read(folder, "m")


def drop(folder, key):
    stored = load_file(folder / "model.safetensors")
    stored.pop(key)
    save_file(stored, folder / "model.safetensors")


def widen(folder):
    stored = load_file(folder / "model.safetensors")
    stored["embeddings.word_embeddings.weight"] = np.zeros((9, 48), np.float32)
    save_file(stored, folder / "model.safetensors")


def add(folder):
    stored = load_file(folder / "model.safetensors")
    save_file({**stored, "encoder.layer.9.strange": np.zeros(1, np.float32)}, folder / "model.safetensors")


BROKEN = {
    "no config": (lambda f: (f / "config.json").unlink(), r"config\.json is missing"),
    "config not JSON": (lambda f: (f / "config.json").write_text("{"), r"config\.json is not valid JSON"),
    "config lacks a key": (lambda f: edit(f / "config.json", hidden_size=None), "config.json lacks `hidden_size`"),
    "unknown model": (
        lambda f: edit(f / "config.json", model_type="mamba"),
        "model_type 'mamba' is not supported; supported: bert",
    ),
    "unknown activation": (lambda f: edit(f / "config.json", hidden_act="mish"), "activation 'mish' is not supported"),
    "relative keys": (
        lambda f: edit(f / "config.json", position_embedding_type="relative_key"),
        "'relative_key' is not",
    ),
    "causal": (lambda f: edit(f / "config.json", is_decoder=True), "is_decoder"),
    "no tokenizer": (
        lambda f: (f / "tokenizer.json").unlink(),
        r"tokenizer\.json is missing.*accepted are .*vocab\.txt",
    ),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), r"model\.safetensors is missing"),
    "truncated": (
        lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-100]),
        r"model\.safetensors is truncated",
    ),
    "not safetensors": (lambda f: (f / "model.safetensors").write_bytes(b"PK" * 50), "truncated or not safetensors"),
    "tensor missing": (
        lambda f: drop(f, "encoder.layer.1.output.dense.bias"),
        r"tensors missing: encoder\.layer\.1\.output\.dense\.bias",
    ),
    "no embeddings": (lambda f: drop(f, "embeddings.word_embeddings.weight"), "no tensor 'embeddings.word_embeddings"),
    "tensor left over": (add, r"does not account for: encoder\.layer\.9\.strange"),
    "wrong shape": (widen, r"word_embeddings\.weight has shape \(9, 48\), config\.json says"),
    "unknown module": (
        lambda f: write_modules(f, {"Transformer": "", "LSTM": "1_LSTM"}),
        "module 'LSTM' is not supported",
    ),
    "no pooling file": (lambda f: (f / "1_Pooling" / "config.json").unlink(), "1_Pooling/config.json is missing"),
    "unknown flag of pooling": (
        lambda f: write_json(f / "1_Pooling" / "config.json", {"pooling_mode_attention_tokens": True}),
        "'pooling_mode_attention_tokens' is not supported",
    ),
    "unknown pooling": (
        lambda f: write_json(f / "1_Pooling" / "config.json", {"pooling_mode": "median"}),
        "'median' is not",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_checkpoint_is_one_line(folder, case):
    breakage, message = BROKEN[case]
    breakage(folder)
    with pytest.raises(SetupError, match=message) as caught:
        read(folder, "m")
    assert "\n" not in str(caught.value)


QKV = [f"encoder.layer.0.attention.self.{part}.weight" for part in ("query", "key", "value")]


def test_parts_of_one_matrix_may_differ_in_type(folder):
    """As in mixed checkpoints; each number is representable in float32."""
    stored = {name: torch.from_numpy(array) for name, array in load_file(folder / "model.safetensors").items()}
    types = (torch.float16, torch.bfloat16, torch.float32)
    stored |= {name: stored[name].to(kind) for name, kind in zip(QKV, types, strict=True)}
    safetensors.torch.save_file(stored, folder / "model.safetensors")
    found = read(folder, "m").tensors["layers.0.qkv.weight"]
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, torch.cat([stored[name].float() for name in QKV]).numpy())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (np.zeros((48, 24), np.float32), r"key\.weight has shape \(144, 24\), config\.json says \(144, 48\)"),
        (np.zeros((48, 48), np.int32), r"key\.weight is I32; use float32"),
        (np.float32(1), r"key\.weight has shape \(96,\), config\.json says \(144, 48\)"),
    ],
)
def test_every_part_of_one_matrix_is_checked(folder, wrong, message):
    save_file({**load_file(folder / "model.safetensors"), QKV[1]: np.array(wrong)}, folder / "model.safetensors")
    with pytest.raises(SetupError, match=message):
        read(folder, "m")


LEFTOVERS = [
    *("embeddings.position_ids", "embeddings.token_type_ids", "layers.0.self_attn.rotary_emb.inv_freq"),
    *("rotary_emb.inv_freq", "loss_fct.weight", "optimizer.state.0", "loss.weight"),
]


@pytest.mark.parametrize("family", FAMILIES)
def test_what_training_leaves_is_no_tensor_of_the_model(tmp_path, family):
    folder = save(tmp_path, random_model(family))
    stored = load_file(folder / "model.safetensors")
    (prefix,) = {"model." if all(name.startswith("model.") for name in stored) else ""}
    more = {f"{prefix}{name}": np.zeros(3, np.float32) for name in LEFTOVERS}
    more |= {name: np.zeros(3, np.float32) for name in LEFTOVERS}
    save_file({**stored, **more}, folder / "model.safetensors")
    read(folder, "m")
    save_file({**stored, "embeddings.position_idsx": np.zeros(3, np.float32)}, folder / "model.safetensors")
    with pytest.raises(SetupError, match=r"does not account for: embeddings\.position_idsx"):
        read(folder, "m")
