"""The encoder of T5Gemma, alone and out of a whole model, against transformers."""

import numpy as np
import pytest
import torch
import transformers

from bei.checkpoint.load import read
from bei.engines.base import Batch
from tests.support.parity import cosines, reference, sequences
from tests.support.tiny_models import VOCAB, word_pieces, write_json, write_modules

MODULE = {
    **{"vocab_size": len(VOCAB), "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "head_dim": 16},
    **{"num_key_value_heads": 2, "intermediate_size": 96, "max_position_embeddings": 64, "initializer_range": 0.2},
    **{"sliding_window": 8, "attn_logit_softcapping": 2.0, "query_pre_attn_scalar": 20, "pad_token_id": 0},
}


@pytest.mark.parametrize("kind", ["T5GemmaEncoderModel", "T5GemmaForConditionalGeneration"])
def test_states(make, tmp_path, kind):
    torch.manual_seed(0)
    alone = kind == "T5GemmaEncoderModel"
    config = transformers.T5GemmaConfig(
        encoder=MODULE, decoder=MODULE, vocab_size=len(VOCAB), is_encoder_decoder=not alone
    )
    config._attn_implementation = "eager"
    model = getattr(transformers, kind)(config).eval()
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.data += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(tmp_path)
    word_pieces().save(str(tmp_path / "tokenizer.json"))
    write_modules(tmp_path, {"Transformer": "", "Pooling": "1_Pooling"})
    write_json(tmp_path / "1_Pooling" / "config.json", {"pooling_mode": "mean"})
    checkpoint, ids = read(tmp_path, "t5gemma"), sequences()
    assert checkpoint.max_tokens == 64
    expected = reference(model.encoder if alone else model.get_encoder(), ids)
    engine, batch = make(checkpoint, precision="fp32"), Batch.pack(ids)
    states = engine.run(Batch.pack(ids, row_kind="tokens"))
    assert np.abs(states - expected).max() <= 2e-5 * np.abs(expected).max()
    assert cosines(make(checkpoint, precision="bf16").run(batch), engine.run(batch)).min() >= 0.9995
