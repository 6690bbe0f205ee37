"""T5's encoders: how long their texts may be, what of a whole T5 is left out, and types that are too narrow."""

import numpy as np
import pytest
import torch
import transformers

from bei.architectures.families import FAMILIES
from bei.checkpoint.load import read
from bei.engines.base import Batch
from bei.engines.quantization import gpu_dtype
from bei.engines.torch.engine import TorchEngine
from bei.errors import SetupError
from tests.support.parity import reference
from tests.support.tiny_models import T5, VOCAB, random_model, save, write_json

LONG = [[7 + i % 40 for i in range(200)]]


def test_a_module_may_state_more_tokens_than_the_model_was_trained_with(tmp_path):
    """Relative positions saturate: transformers reads any length."""
    model = random_model("t5", relative_attention_max_distance=30)
    folder = save(tmp_path, model)
    assert read(folder, "t5").max_tokens == 64
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": 256, "do_lower_case": False})
    checkpoint = read(folder, "t5")
    assert checkpoint.max_tokens == 256
    states = TorchEngine(checkpoint).run(Batch.pack(LONG, row_kind="tokens"))
    assert np.abs(states - reference(model, LONG)).max() <= 0.05 * np.abs(states).max()
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": 32})
    assert read(folder, "t5").max_tokens == 32


def test_without_a_length_a_t5_reads_what_all_were_trained_with():
    config = {"vocab_size": 64, "d_model": 64, "d_ff": 64, "num_layers": 1, "num_heads": 4}
    assert {FAMILIES[name].spec(config).max_tokens for name in T5} == {512}


@pytest.mark.parametrize("name", ["T5Model", "T5ForConditionalGeneration"])
def test_the_decoder_of_a_whole_t5_is_left_out(tmp_path, name):
    alone = random_model("t5")
    torch.manual_seed(0)
    whole = getattr(transformers, name)(alone.config)
    whole.encoder.load_state_dict(alone.encoder.state_dict())
    whole.shared.load_state_dict(alone.shared.state_dict())
    checkpoint = read(save(tmp_path, whole), "t5")
    expected = reference(alone, [[7, 8, 9]])
    found = TorchEngine(checkpoint).run(Batch.pack([[7, 8, 9]], row_kind="tokens"))
    assert np.abs(found - expected).max() <= 0.02 * np.abs(expected).max()


def test_fp16_is_refused(tmp_path):
    checkpoint = read(save(tmp_path, random_model("t5").half()), "t5")
    assert checkpoint.dtype == "float16"
    assert gpu_dtype(checkpoint, (8, 0), "auto") == "bf16"
    assert gpu_dtype(checkpoint, (7, 5), "auto") == "fp32"
    with pytest.raises(SetupError, match="exceed its range"):
        gpu_dtype(checkpoint, (9, 0), "fp16")


def test_a_decoder_is_refused():
    with pytest.raises(SetupError, match="is_decoder"):
        FAMILIES["t5"].spec({"is_decoder": True, "vocab_size": len(VOCAB)})
