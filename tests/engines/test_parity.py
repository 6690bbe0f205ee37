"""Every engine against transformers, family by family, on tiny random models in their real format."""

import numpy as np
import pytest
import torch

from bei.checkpoint.load import read
from bei.engines.base import Batch
from tests.support.model_options import OPTIONS
from tests.support.parity import cosines, expected_states, least_in_bf16, reference, sequences
from tests.support.tiny_models import ALL_EXPERTS, FAMILIES, random_model, save

CASES = [(family, seed, options) for family in FAMILIES for options in OPTIONS.get(family, [{}]) for seed in range(3)]


@pytest.mark.parametrize(("family", "seed", "options"), CASES)
def test_states_equal_transformers(make, saved, family, seed, options):
    model, folder = saved(family, seed, **options)
    checkpoint = read(folder, family)
    engine = make(checkpoint, precision="fp32")
    states = engine.run(Batch.pack(sequences(seed), row_kind="tokens"))
    expected = expected_states(model, seed)
    assert checkpoint.max_tokens == (512 if family == "xlnet" else 64)  # its config.json has no limit
    limit = 2e-5 if engine.facts.name == "tensorrt" else 1e-5  # it multiplies queries, not scores
    assert np.abs(states - expected).max() <= limit * max(1, np.abs(expected).max())


@pytest.mark.parametrize("family", ["bert", "xlnet"])
def test_token_types_reach_the_model(make, tmp_path, family):
    model = random_model(family)
    engine = make(read(save(tmp_path, model), family), precision="fp32")
    ids, types = [[7, 8, 9, 10]], [[0, 0, 1, 1]]
    with torch.no_grad():
        expected = model(torch.tensor(ids), token_type_ids=torch.tensor(types)).last_hidden_state[0].numpy()
    assert np.abs(engine.run(Batch.pack(ids, types, row_kind="tokens")) - expected).max() <= 1e-5


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_row_does_not_depend_on_its_neighbors(make, saved, family, precision):
    checkpoint = read(saved(family)[1], family)
    engine = make(checkpoint, precision=precision)
    ids = sequences()
    together = engine.run(Batch.pack(ids))
    order = np.random.default_rng(1).permutation(len(ids))
    shuffled = engine.run(Batch.pack([ids[i] for i in order]))
    alone = np.concatenate([engine.run(Batch.pack([s])) for s in ids])
    limit = 1 - (1e-6 if precision == "fp32" else 1e-4)
    assert cosines(shuffled, together[order]).min() >= limit
    assert cosines(alone, together).min() >= limit


@pytest.mark.parametrize("family", FAMILIES)
def test_bf16_is_close(make, saved, family):
    checkpoint = read(saved(family, **ALL_EXPERTS.get(family, {}))[1], family)
    batch = Batch.pack(sequences())
    exact, rounded = (make(checkpoint, precision=p).run(batch) for p in ("fp32", "bf16"))
    assert cosines(exact, rounded).min() >= least_in_bf16(family)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_stored_in_16_bits(make, tmp_path, dtype):
    model = random_model("bert").to(dtype)
    checkpoint = read(save(tmp_path, model), "bert")
    ids = sequences()
    states = make(checkpoint, precision="fp32").run(Batch.pack(ids, row_kind="tokens"))
    assert checkpoint.dtype == str(dtype).removeprefix("torch.")
    assert np.abs(states - reference(model.float(), ids)).max() <= 1e-5


def test_one_thread_gives_the_same(make, tmp_path):
    checkpoint = read(save(tmp_path, random_model("bert")), "bert")
    batch = Batch.pack(sequences())
    one, many = (make(checkpoint, precision="fp32", threads=n).run(batch) for n in (1, 2))
    assert np.abs(one - many).max() <= 1e-5
