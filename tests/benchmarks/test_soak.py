"""The bookkeeping of the programs that load a server: a rule that never fails would pass any server."""

from collections import Counter

import numpy as np
import pytest

from benchmarks.soak import Minute, Soak, grown, percentiles, violations
from benchmarks.traffic import TASKS, Planned, Traffic, differ, request_sizes
from benchmarks.wire import Ask, Reply


def minutes(*medians: float) -> list[Minute]:
    return [Minute(resident=[mb - 1, mb, mb + 1]) for mb in medians]


@pytest.mark.parametrize(
    ("medians", "growth"),
    [
        ((100, 200, 200, 210), 1.05),
        ((100, 200, 190), 0.95),
        ((100, 200, 230, 200), 1.15),  # memory that returns is not growth
        ((500, 200, 200), 1.0),
        ((100, 200), None),
    ],
)
def test_memory_is_judged_after_two_minutes(medians, growth):
    assert grown(minutes(*medians)) == pytest.approx(growth)


def test_memory_is_judged_after_so_many_minutes():
    assert grown(minutes(100, 200, 190, 209), settled=3) == pytest.approx(1.1)


def test_percentiles():
    assert percentiles(range(101)) == {"p50": 50, "p99": 99, "max": 100}
    assert percentiles([]) == {}


def test_violations():
    soak = Soak([], 1, 0)
    soak.minutes = minutes(100, 100, 100)
    assert violations(soak, 20, 20, 0, [0]) == []
    soak._end(soak.minutes[0], "plain", "200", "")
    soak._end(soak.minutes[0], "plain", "hung", "7 texts")
    soak._end(soak.minutes[2], "plain", "hung", "9 texts")
    assert violations(soak, 20, 20, 0, [0]) == ["2 hung; the first: plain, 7 texts"]
    soak.minutes += minutes(106)
    assert len(violations(soak, 20, 60, 1, [0, -9])) == 5


def test_sizes_go_from_one_to_the_most_that_a_client_may_send():
    rng = np.random.default_rng(0)
    sizes = Counter(request_sizes(rng) for _ in range(50_000))
    assert min(sizes) == 1 and 2000 < max(sizes) <= 2048
    assert 0.58 < sizes[1] / 50_000 < 0.64


def reply(vectors: str) -> Reply:
    rows = ", ".join(f'{{"embedding": {vector}}}' for vector in vectors.split(";"))
    return Reply(0.0, 200, {}, bytearray(f'{{"data": [{rows}]}}'.encode()))


@pytest.mark.parametrize(
    ("vectors", "wrong"),
    [
        ("[0, 2];[3, 0]", 0),
        ("[1, 0];[0, 1]", 2),  # those of another
        ("[0, 1];[1, 0.02]", 1),
        ("[0, 1];[0, 0]", 1),  # not a number
    ],
)
def test_vectors_are_compared_with_those_of_their_own_texts(vectors, wrong):
    traffic = Traffic(TASKS["embedding"], ["a", "b"], [[1.0, 0.0], [0.0, 1.0]])
    with np.errstate(invalid="ignore"):
        assert traffic.wrong(Planned(Ask("/"), np.array([1, 0]), "json"), reply(vectors)) == wrong


def test_an_answer_of_other_length_or_shape_is_malformed():
    traffic = Traffic(TASKS["embedding"], ["a", "b"], [[1.0, 0.0], [0.0, 1.0]])
    for body in ("[0, 1]", "[0, 1];null"):
        with pytest.raises(ValueError):
            traffic.wrong(Planned(Ask("/"), np.array([1, 0]), "json"), reply(body))


def test_numbers_by_name():
    assert not differ({"a": 0.5, "b": 0.001}, {"a": 0.5})
    assert differ({"a": 0.5}, {"a": 0.5, "b": 0.1})
    assert differ({"a": float("nan")}, {"a": 0.5})
