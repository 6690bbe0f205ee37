"""The faults that a batch triggers, and the sequence that triggers each."""

import numpy as np

from bei.engines.base import Batch
from benchmarks.faulty_engine import FAULTS, _asked, poison


def test_a_fault_is_found_wherever_its_ids_lie():
    specials = [101, 102]
    for fault in FAULTS:
        batch = Batch.pack([[101, 17, 102], [specials[0], *poison(fault), specials[1]], [101, 71, 17, 102]])
        assert _asked(batch) == {fault: 1}


def test_texts_ask_for_none():
    rng = np.random.default_rng(0)
    assert _asked(Batch.pack([rng.integers(1000, 30000, 500).tolist() for _ in range(20)])) == {}
    assert _asked(Batch.pack([[101]])) == {}
