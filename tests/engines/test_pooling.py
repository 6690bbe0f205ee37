"""Pooling in each engine against the numpy oracle, and the oracle against sentence-transformers."""

import itertools
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sentence_transformers.sentence_transformer.modules import Pooling as ReferencePooling

from bei.architectures.families import FAMILIES
from bei.architectures.spec import Pooling, PoolingMode
from bei.checkpoint import modules
from bei.engines import base
from bei.engines.torch import pooling
from bei.engines.torch.inputs import Inputs
from bei.engines.torch.layout import Layout
from docs.models import CONFIG

MODES = get_args(PoolingMode)
REFERENCE = {ours: theirs for theirs, ours in modules._MODES.items()}
COMBINATIONS = [(mode,) for mode in MODES] + list(itertools.combinations(MODES, 2)) + [tuple(MODES)]
WIDTH = 6
SPEC = FAMILIES["bert"].spec(CONFIG)


def random_batch(lengths: list[int], prompts: list[int]) -> tuple[base.Batch, np.ndarray]:
    batch = base.Batch.pack([[0] * n for n in lengths], prompt_tokens=prompts)
    return batch, np.random.default_rng(sum(lengths)).standard_normal((sum(lengths), WIDTH), np.float32)


@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(0, 50)), min_size=1, max_size=12),
    st.booleans(),
    st.sampled_from(COMBINATIONS),
)
def test_device_equals_oracle(sizes, include_prompt, modes):
    batch, states = random_batch([n for n, _ in sizes], [p for _, p in sizes])
    spec = Pooling(modes, include_prompt)
    inputs = Inputs.of(batch, replace(SPEC, pooling=spec))
    rows = pooling.pool(torch.from_numpy(states[inputs.layout.tokens]), inputs, spec)
    np.testing.assert_allclose(
        inputs.layout.unsorted(rows.numpy(), "pooled"), base.pool(states, batch, spec), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("include_prompt", [True, False])
@pytest.mark.parametrize("modes", COMBINATIONS, ids="+".join)
def test_rows_are_the_pooled_states(make, tiny_checkpoint, modes, include_prompt):
    spec = replace(tiny_checkpoint.spec, pooling=Pooling(modes, include_prompt))
    engine = make(replace(tiny_checkpoint, spec=spec), precision="fp32")
    ids, prompts = [[7] * n for n in (1, 4, 64, 9, 30)], [0, 2, 60, 9, 1]
    states = engine.run(base.Batch.pack(ids, row_kind="tokens"))
    batch = base.Batch.pack(ids, prompt_tokens=prompts)
    np.testing.assert_allclose(engine.run(batch), base.pool(states, batch, spec.pooling), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("prompt", [0, 3])
@pytest.mark.parametrize("modes", [modes for modes in COMBINATIONS if set(modes) <= set(REFERENCE)], ids="+".join)
def test_oracle_equals_sentence_transformers(modes, prompt):
    lengths = [4, 9, 30, 5]
    batch, states = random_batch(lengths, [prompt] * len(lengths))
    padded, mask = torch.full((len(lengths), 30, WIDTH), 7.0), torch.zeros(len(lengths), 30, dtype=torch.int64)
    for b, (start, end) in enumerate(itertools.pairwise(batch.cu_seqlens)):
        padded[b, : end - start] = torch.from_numpy(states[start:end])
        mask[b, : end - start] = 1
    module = ReferencePooling(WIDTH, tuple(REFERENCE[m] for m in modes), include_prompt=False)
    features = {"token_embeddings": padded, "attention_mask": mask, "prompt_length": prompt}
    expected = module(features)["sentence_embedding"].numpy()
    ours = base.pool(states, batch, Pooling(modes, include_prompt=False))
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5)


@given(st.lists(st.integers(1, 20), min_size=1, max_size=20))
def test_layout_is_a_permutation_in_groups_of_equal_length(lengths):
    batch = base.Batch.pack([[i] * n for i, n in enumerate(lengths)])
    layout = Layout.of(batch)
    assert sorted(layout.tokens) == list(range(sum(lengths)))
    for group in layout.groups:
        block = batch.input_ids[layout.tokens][group.tokens].reshape(group.count, group.length)
        assert (block == block[:, :1]).all()
        assert all(lengths[i] == group.length for i in block[:, 0])
    assert layout.unsorted(batch.input_ids[layout.tokens], "tokens").tolist() == batch.input_ids.tolist()
