"""The queue as a value: what it promises, over random sequences of arrivals, drops and deadlines."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bei.batching import BRIEF, LOOKAHEAD, PATIENCE, Entry, Limits, Queue, Request
from bei.errors import Overloaded

BUDGET, SIZE = 100, 8


def entries(lengths: list[int], request: Request | None = None, row_kind: str = "pooled") -> list[Entry]:
    request = request or Request()
    return [Entry(request, i, [1] * n, row_kind=row_kind) for i, n in enumerate(lengths)]


def queue(max_queue_tokens: int = 1 << 30) -> Queue:
    return Queue(Limits(BUDGET, SIZE, max_queue_tokens))


def lengths(batch: list[Entry]) -> list[int]:
    return [entry.tokens for entry in batch]


def drain(q: Queue, now: float = 0.0) -> list[list[Entry]]:
    batches = []
    while len(q):
        batches.append(q.take(now).batch)
    return batches


def test_cut_by_tokens_filled_from_behind_and_never_starved():
    q = queue()
    q.push(entries([60, 50, 30, 400, 10]))
    assert [lengths(batch) for batch in drain(q)] == [[60, 30, 10], [50], [400]]
    assert q.tokens == 0


def test_a_shared_beginning_does_not_count():
    q, request = queue(), Request()
    q.push([Entry(request, i, [1] * 120, shared=90) for i in range(5)])
    assert [len(batch) for batch in drain(q)] == [3, 2]
    assert q.tokens == 0


def test_cut_by_size():
    q = queue()
    q.push(entries([1] * 20))
    assert [len(batch) for batch in drain(q)] == [8, 8, 4]


def test_a_query_does_not_wait_for_a_bulk():
    q = queue()
    q.push(entries([50] * 1000))
    q.take(0)
    q.push(query := entries([5]))
    assert query[0] in q.take(0).batch


@pytest.mark.parametrize("flood", [1, 3, 20])
def test_a_bulk_is_not_starved_by_a_flood_of_queries(flood):
    q = queue()
    q.push(bulk := entries([50] * 20))
    left, queries = set(bulk), 0
    for _ in range(20 * (flood + 2)):
        while queries < flood:  # a new query for each that was answered
            q.push(entries([60]))
            queries += 1
        batch = q.take(0).batch
        queries -= sum(entry not in left for entry in batch)
        left -= set(batch)
    assert not left


def test_brief_requests_and_others_may_be_kept_apart():
    q = Queue(Limits(1000, SIZE, 1 << 30, brief_apart=True))
    q.push(entries([50] * 5))
    q.push(entries([5]))
    q.push(entries([6]))
    assert [lengths(batch) for batch in drain(q)] == [[50] * 5, [5, 6]]


def test_what_has_waited_long_is_taken_by_age_every_other_batch():
    q = queue()
    q.push(bulk := entries([50] * 40))
    for number in range(1, 100):  # two new queries for each batch: by fairness the bulk would get a hundredth
        for made in (entries([50]), entries([50])):
            for entry in made:
                entry.queued = number
            q.push(made)
        batch = q.take(float(number)).batch
        if number > PATIENCE + 1 and number % 2:
            assert len([entry for entry in batch if entry in bulk]) == 2
        bulk = [entry for entry in bulk if not entry.taken]
        if not bulk:
            break
    assert number < 60


@given(st.lists(st.lists(st.integers(1, 150), min_size=1, max_size=6), min_size=1, max_size=8), st.integers(0, 3))
def test_what_is_to_be_finished_is_finished_in_the_order_of_arrival(lengths_of, before):
    q = queue()
    pushed = [entries(lengths) for lengths in lengths_of]
    for made in pushed:
        q.push(made)
    for _ in range(before):
        q.take(0.0)
    q.finish_oldest_first()
    left = [entry for made in pushed for entry in made if not entry.taken]
    for batch in drain(q):
        assert batch[0] is left[0], "the oldest opens each batch"
        check_batch(batch)
        left = [entry for entry in left if entry not in batch]
    assert not left


def test_eight_long_requests_are_finished_one_after_the_other():
    q = queue()
    pushed = [entries([60] * 10) for _ in range(8)]
    for made in pushed:
        q.push(made)
    q.finish_oldest_first()
    for made in pushed[:4]:
        for _ in range(10):
            q.take(0.0)
        assert all(entry.taken for entry in made)
    assert not any(entry.taken for made in pushed[4:] for entry in made)


def test_one_kind_of_rows_a_batch():
    q = queue()
    q.push(entries([5, 5], row_kind="tokens"))
    q.push(entries([5, 5]))
    assert [{entry.row_kind for entry in batch} for batch in drain(q)] == [{"tokens"}, {"pooled"}]


def test_dropped_and_expired_do_not_run():
    q = queue()
    gone, late, fine = Request(), Request(deadline=1.0), Request(deadline=3.0)
    for request in (gone, late, fine):
        q.push(entries([4], request))
    q.drop(gone)
    assert (len(q), q.tokens) == (2, 8), "what nobody wants counts no more"
    taken = q.take(now=2.0)
    assert [entry.request for entry in taken.batch] == [fine]
    assert [entry.request for entry in taken.expired] == [late]
    assert q.tokens == 0


def test_what_is_dropped_is_forgotten():
    q = queue()
    q.push(entries([50] * 10))
    for _ in range(100):
        q.push(bulk := entries([50] * 100))
        q.drop(bulk[0].request)
    assert len(q._heap) <= 2 * len(q) + LOOKAHEAD
    assert sum(len(batch) for batch in drain(q)) == 10


def test_a_brief_request_may_pass_out_of_turn():
    q = queue()
    q.push(entries([50] * 1000))
    assert not q.take_brief(0)
    q.push(first := entries([5, 6]))
    q.push(late := entries([5], Request(deadline=1.0)))
    q.push(rest := entries([BRIEF - 20, 20]))
    taken = q.take_brief(2.0)
    assert taken.batch == [*first, rest[0]]
    assert taken.expired == late
    assert q.take_brief(2.0).batch == [rest[1]]
    assert not q.has_brief()
    assert len(q) == 1000


def test_a_request_is_admitted_whole_or_not_at_all():
    q = queue(max_queue_tokens=1000)
    q.push(entries([400, 400, 400]))  # nothing waits: however large, it is admitted
    with pytest.raises(Overloaded, match="Model is overloaded"):
        q.push(entries([100, 100]))
    assert (len(q), q.tokens) == (3, 1200)


@pytest.mark.parametrize("bulk", [750, 4000])
def test_what_brief_requests_may_have_is_taken_by_no_other(bulk):
    q = queue(max_queue_tokens=1000)
    q.push(long := entries([bulk]))
    assert not has_room(q, BRIEF + 1)
    for _ in range(2):
        q.push(entries([100]))
    assert has_room(q, 50) and not has_room(q, 51)
    q.drop(long[0].request)
    assert has_room(q, 750) and not has_room(q, 751)
    for _ in range(8):
        q.push(entries([100]))  # they may have the place of others
    assert not has_room(q, 1)


def has_room(q: Queue, tokens: int) -> bool:
    try:
        q.push(made := entries([tokens]))
    except Overloaded:
        return False
    q.drop(made[0].request)
    return True


def test_texts_are_bounded_as_tokens_are():
    q = Queue(Limits(BUDGET, SIZE, 1 << 30, size=3))
    q.push(entries([1, 1]))
    with pytest.raises(Overloaded):
        q.push(entries([1, 1]))
    q.push(entries([1]))


requests = st.lists(st.integers(1, 150), min_size=1, max_size=12)
steps = st.lists(st.one_of(requests, st.sampled_from(["take", "take brief", "drop"])), max_size=40)


@given(steps)
def test_nothing_is_lost_or_run_twice_and_no_batch_is_too_large(script):
    q, pushed, seen, dropped, clock = queue(), [], [], [], PATIENCE - 3.0
    for step in [*script, *["take"] * 500]:
        if isinstance(step, list):
            q.push(made := entries(step))
            pushed += made
        elif step == "drop" and pushed:
            request = pushed[-1].request
            q.drop(request)
            dropped += [entry for entry in pushed if entry.request is request and entry not in (*seen, *dropped)]
        elif step == "take brief":
            batch = q.take_brief(clock).batch
            assert sum(lengths(batch)) <= BRIEF
            seen += batch
        elif step == "take" and len(q):
            batch = q.take(clock := clock + 1.0).batch  # of those that were there before, all are old
            assert batch
            check_batch(batch)
            seen += batch
        waiting = [entry for entry in pushed if entry not in (*seen, *dropped)]
        assert (len(q), q.tokens) == (len(waiting), sum(lengths(waiting)))
        if not waiting and step == "take":
            break
    assert len(seen) + len(dropped) == len(pushed) == len({id(entry) for entry in (*seen, *dropped)})


def check_batch(batch: list[Entry]) -> None:
    assert len(batch) <= SIZE
    assert sum(lengths(batch)) <= BUDGET or len(batch) == 1


@given(st.lists(requests, min_size=1, max_size=10), requests)
def test_an_entry_waits_for_no_more_than_its_share(before, mine):
    """However much arrives at once, entry k of a request runs after no more batches than there are entries whose
    requests have had as few tokens before them."""
    q = queue()
    for other in before:
        q.push(entries(other))
    own = entries(mine)
    q.push(own)
    taken = drain(q)
    for k, entry in enumerate(own):
        ahead = sum(mine[:k])
        rivals = sum(1 for other in before for i in range(len(other)) if sum(other[:i]) <= ahead)
        turn = next(turn for turn, batch in enumerate(taken) if entry in batch)
        assert turn <= rivals + k


@given(st.lists(st.integers(1, BUDGET), min_size=1, max_size=3 * LOOKAHEAD))
def test_a_batch_is_as_full_as_the_lookahead_allows(sizes):
    q = queue()
    q.push(entries(sizes))
    batch = q.take(0.0).batch
    room = BUDGET - sum(lengths(batch))
    left_over = [n for n in sizes[: LOOKAHEAD - SIZE] if n <= room]
    taken = lengths(batch)
    for n in taken:
        if n in left_over:
            left_over.remove(n)
    assert len(batch) == SIZE or not left_over
