"""BART against transformers: its states are the decoder's, and its classifier reads that of the last token."""

import numpy as np
import pytest
import torch
import transformers

from bei.checkpoint.load import read
from bei.engines.base import Batch
from bei.errors import SetupError
from tests.support.native_rows import check_rows
from tests.support.parity import LENGTHS, cosines
from tests.support.tiny_models import VOCAB, save, write_json

END = 3
OPTIONS = [{}, {"scale_embedding": True, "activation_function": "relu"}, {"decoder_start_token_id": 0}]


def bart(head: str = "", seed: int = 0, **options) -> transformers.PreTrainedModel:
    torch.manual_seed(seed)
    sizes = {f"{side}_{name}": n for side in ("encoder", "decoder") for name, n in (("layers", 2), ("ffn_dim", 96))}
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4}
    tokens = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": END, "decoder_start_token_id": END}
    fields = {"vocab_size": len(VOCAB), "d_model": 48, "max_position_embeddings": 64, "init_std": 0.2}
    config = transformers.BartConfig(**{**fields, **sizes, **heads, **tokens, **options})
    model = getattr(transformers, f"AutoModel{head}").from_config(config, attn_implementation="eager").eval()
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def texts(seed: int = 0) -> list[list[int]]:
    """Each ends with the one token that the classifier reads."""
    rng = np.random.default_rng(seed)
    return [[*rng.integers(5, len(VOCAB), length - 1).tolist(), END] for length in LENGTHS]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("options", OPTIONS)
def test_states_equal_transformers(make, tmp_path, seed, options):
    model, ids = bart(seed=seed, **options), texts(seed)
    checkpoint = read(save(tmp_path, model), "bart")
    states = make(checkpoint, precision="fp32").run(Batch.pack(ids, row_kind="tokens"))
    with torch.no_grad():
        expected = np.concatenate([model(torch.tensor([s])).last_hidden_state[0].numpy() for s in ids])
    assert checkpoint.max_tokens == 64
    assert np.abs(states - expected).max() <= 1e-5 * max(1, np.abs(expected).max())


def test_a_classifier_shuffled_alone_and_rounded(make, tmp_path):
    names = {0: "contradiction", 1: "neutral", 2: "entailment"}
    model, ids = bart("ForSequenceClassification", id2label=names), texts()
    checkpoint = read(save(tmp_path, model, pooling=None), "bart")
    assert (checkpoint.task, checkpoint.labels) == ("classifier", tuple(names.values()))
    engine = make(checkpoint, precision="fp32")
    with torch.no_grad():
        expected = np.concatenate([model(torch.tensor([s])).logits.numpy() for s in ids])
    rows = engine.run(Batch.pack(ids))
    assert np.abs(rows - expected).max() <= 1e-5 * max(1, np.abs(expected).max())
    order = np.random.default_rng(1).permutation(len(ids))
    assert np.abs(engine.run(Batch.pack([ids[i] for i in order])) - rows[order]).max() <= 1e-5
    assert np.abs(np.concatenate([engine.run(Batch.pack([s])) for s in ids]) - rows).max() <= 1e-5
    assert cosines(make(checkpoint, precision="bf16").run(Batch.pack(ids)), rows).min() >= 0.999


def test_natively_a_row_is_what_it_is_alone(tmp_path, native_cache):
    """More tokens than a block of rows, so that threads share them."""
    model, long = bart(max_position_embeddings=200), [5 + i * i % 40 for i in range(150)]
    checkpoint = read(save(tmp_path, model, pooling={"pooling_mode": "lasttoken"}), "bart")
    check_rows(checkpoint, [*texts(), [*long, END]], native_cache)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decoder_attention_heads": 6}, "decoder_attention_heads 6"),
        ({"decoder_ffn_dim": 80}, "decoder_ffn_dim 80"),
        ({"decoder_start_token_id": len(VOCAB)}, f"decoder_start_token_id {len(VOCAB)} is not one of"),
    ],
)
def test_a_decoder_that_cannot_be_is_refused_by_name(tmp_path, options, message):
    with pytest.raises(SetupError, match=message):
        read(save(tmp_path, bart(**options)), "bart")


def test_a_colbert_is_refused_by_name(tmp_path):
    save(tmp_path, bart(), pooling=None)
    write_json(tmp_path / "config_sentence_transformers.json", {"model_type": "ColBERT"})
    with pytest.raises(SetupError, match="a ColBERT whose encoder has a decoder"):
        read(tmp_path, "bart")
