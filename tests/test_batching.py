"""The queue as a value: its guarantees over random sequences of arrivals, drops and deadlines."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bei.batching import BRIEF, LOOKAHEAD, PATIENCE, Entry, Limits, Outcome, Queue, Request
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
        while queries < flood:  # a new query for each answered one
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
    for number in range(1, 100):  # two new queries per batch: under fair queueing alone the bulk would get a hundredth
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


@pytest.mark.parametrize("behind", [False, True])
def test_what_is_dropped_is_forgotten(behind):
    q = queue()
    q.push(kept := entries([50] * 10, Request(is_background=behind)))
    for _ in range(100):
        q.push(bulk := entries([50] * 100, Request(is_background=behind)))
        q.drop(bulk[0].request)
    assert max(len(q._heap), len(q._ages), len(q._behind)) <= 2 * len(q) + LOOKAHEAD
    assert [entry for batch in drain(q) for entry in batch] == kept


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
    q.push(entries([400, 400, 400]))  # nothing waits, so a request of any size is admitted
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
        q.push(entries([100]))  # brief requests may take the place of others
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
            batch = q.take(clock := clock + 1.0).batch  # of the earlier ones, all are old
            assert batch
            check_batch(batch)
            seen += batch
        waiting = [entry for entry in pushed if entry not in (*seen, *dropped)]
        assert (len(q), q.tokens) == (len(waiting), sum(lengths(waiting)))
        if not waiting and step == "take":
            break
    assert len(seen) + len(dropped) == len(pushed) == len({id(entry) for entry in (*seen, *dropped)})


@given(steps, st.lists(st.tuples(st.integers(0, 40), requests), max_size=8), st.integers(300, 2000))
def test_requests_in_the_background_change_nothing_for_others(script, behind, most):
    """Batches, their order and refusals are as without them; they run when nothing else waits."""
    alone, both = (Queue(Limits(BUDGET, SIZE, most, brief_apart=True)) for _ in range(2))
    pushed: list[tuple[Request, Request]] = []
    made = [(at, entries(wanted, Request(is_background=True))) for at, wanted in behind]
    background = []
    for i, step in enumerate(script):
        background += [entry for at, some in made if at == i and admitted(both, some) for entry in some]
        act(alone, both, pushed, step, i)
        assert (both.texts, both.tokens) == (len(alone), alone.tokens)
    drain(both, 1e9)
    assert (both.texts, both.tokens, all(entry.taken for entry in background)) == (0, 0, True)


def act(alone: Queue, both: Queue, pushed: list[tuple[Request, Request]], step: list[int] | str, now: int) -> None:
    """Does the same to both queues, with the same outcome for all requests that are not in the background."""
    if isinstance(step, list):
        first, second = entries(step), entries(step)
        assert admitted(alone, first) == admitted(both, second)
        pushed.append((first[0].request, second[0].request))
    elif step == "drop" and pushed:
        for q, request in zip((alone, both), pushed[-1], strict=True):
            q.drop(request)
    elif step == "take brief":
        assert lengths(alone.take_brief(now).batch) == lengths(both.take_brief(now).batch)
    elif step == "take":
        expected, found = alone.take(now).batch, both.take(now).batch
        check_batch(found)
        assert lengths(found) == lengths(expected) or not expected
        assert {entry.request.is_background for entry in found} <= {not expected}


def test_in_the_background_the_oldest_is_first_and_none_is_brief():
    q = Queue(Limits(BUDGET, SIZE, 1000, brief_apart=True))
    behind = [entries([40], Request(is_background=True)) for _ in range(4)]
    for made in behind:
        q.push(made)
    assert not q.has_brief()
    q.drop(behind[1][0].request)
    q.push(query := entries([5]))
    assert [q.take(PATIENCE + 99).batch for _ in range(3)] == [query, behind[0] + behind[2], behind[3]]
    q.push(entries([900], Request(is_background=True)))
    with pytest.raises(Overloaded):
        q.push(entries([5], Request(is_background=True)))


def admitted(q: Queue, made: list[Entry]) -> bool:
    try:
        q.push(made)
    except Overloaded:
        return False
    return True


def check_batch(batch: list[Entry]) -> None:
    assert len(batch) <= SIZE
    assert sum(lengths(batch)) <= BUDGET or len(batch) == 1


@given(st.lists(requests, min_size=1, max_size=10), requests)
def test_an_entry_waits_for_no_more_than_its_share(before, mine):
    """Of all that arrives at once, entry k of a request runs after at most as many batches as there are entries whose
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


# Bounds, to the entry and to the moment


@pytest.mark.parametrize("take", [Queue.take, Queue.take_brief])
def test_a_deadline_is_over_at_its_very_moment(take):
    for now, runs in ((1.99, True), (2.0, False)):
        q = queue()
        q.push(made := entries([4, 4], Request(deadline=2.0)))
        taken = take(q, now)
        assert (taken.batch, taken.expired) == ((made, []) if runs else ([], made))
        assert (len(taken), len(q), q.tokens) == (2, 0, 0)


def test_two_that_fill_a_batch_share_it():
    q = queue()
    q.push(entries([60, 41, 40]))
    assert [lengths(batch) for batch in drain(q)] == [[60, 40], [41]]


def test_one_that_is_larger_than_a_batch_runs_alone_and_first_where_it_is_due():
    q = queue()
    q.push(entries([101, 1]))
    assert [lengths(batch) for batch in drain(q)] == [[101], [1]]


@pytest.mark.parametrize(("passed", "last"), [(LOOKAHEAD - 1, True), (LOOKAHEAD, False)])
def test_so_many_that_do_not_fit_are_looked_past(passed, last):
    q = queue()
    q.push(entries([60, *[50] * passed, 40]))
    assert lengths(q.take(0).batch) == ([60, 40] if last else [60])
    assert len(q) == passed + (not last), "and those keep their place"


def test_what_was_looked_past_keeps_its_order():
    q = queue()
    q.push(made := entries([60, 50, 51, 52, 40]))
    q.take(0)
    assert [q.take(0).batch for _ in range(3)] == [[entry] for entry in made[1:4]]


def test_so_many_requests_may_wait():
    """One counts until its last entry is taken, expires or is dropped, and a second drop changes nothing."""
    q = Queue(Limits(BUDGET, SIZE, 1 << 30, requests=2))
    q.push(first := entries([100, 100]))
    q.push(second := entries([100], Request(deadline=1.0)))

    def refuses() -> bool:
        try:
            q.push(entries([1]))
        except Overloaded:
            return True
        return False

    q.take(0)
    assert refuses(), "half of the first still waits"
    q.drop(first[0].request)
    q.drop(first[0].request)
    assert not refuses() and refuses()
    assert second[0] in q.take(1.0).expired
    q.drop(second[0].request)
    assert (len(q), q.tokens) == (0, 0), "the one entry behind it was taken, too"
    q.push(entries([1]))
    q.push(entries([1]))
    q.drop(second[0].request)
    assert refuses()


def test_so_many_texts_may_wait_and_whoever_is_alone_may_have_more():
    q = Queue(Limits(BUDGET, SIZE, 1 << 30, size=3))
    q.push(entries([1] * 5))
    q.take(0)
    q.push(made := entries([1] * 3))
    with pytest.raises(Overloaded):
        q.push(entries([1]))
    q.drop(made[0].request)
    q.push(entries([1, 1]))
    q.push(entries([1]))
    assert len(q) == 3


def test_a_refused_request_leaves_no_trace():
    q = queue(max_queue_tokens=200)
    q.push(made := entries([140]))
    with pytest.raises(Overloaded):
        q.push(refused := entries([150]))
    assert (len(q), q.tokens, refused[0].request.waiting) == (1, 140, 0)
    assert drain(q) == [made]


def test_a_limit_that_the_scheduler_lowers_is_kept_to():
    q = queue(max_queue_tokens=4000)
    q.push(entries([200]))
    q.most_tokens = 1000
    assert has_room(q, 550) and not has_room(q, 551)


# Virtual time, which is the tag of whoever comes now


def tag_of_a_newcomer(q: Queue) -> int:
    q.push(made := entries([1]))
    q.drop(made[0].request)
    return made[0].tag


def test_an_entry_s_tag_is_what_its_request_had_before_it():
    q = queue()
    q.push(made := entries([30, 5, 10]))
    q.push(shared := [Entry(Request(), i, [1] * 50, shared=45) for i in range(3)])
    assert [entry.tag for entry in made] == [0, 30, 35]
    assert [entry.tag for entry in shared] == [0, 5, 10]
    assert [entry.arrival for entry in (*made, *shared)] == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("of_each", "expected"),
    [([[50] * 4, [50] * 4], 50), ([[25] * 3], 75), ([[25], [25], [25], [25]], 25), ([[400]], 400)],
)
def test_a_batch_moves_virtual_time_on_by_its_part_of_each_request(of_each, expected):
    q = queue()
    for sizes in of_each:
        q.push(entries(sizes))
    q.take(0)
    assert tag_of_a_newcomer(q) == expected


def test_a_part_of_a_token_is_one():
    q = queue()
    q.push(entries([34, 66]))
    q.push(entries([66]))
    q.push(entries([200]))
    q.take(0)
    assert tag_of_a_newcomer(q) == 34, "100 tokens, of three requests"


def test_virtual_time_is_no_earlier_than_what_runs():
    q = queue()
    q.push(made := entries([100, 100]))
    others = [entries([100]), entries([100])]
    for other in others:
        q.push(other)
    assert q.take(0).batch == made[:1]
    for other in others:
        q.drop(other[0].request)
    assert q.take(0).batch == made[1:]
    assert tag_of_a_newcomer(q) == 200


def test_virtual_time_does_not_go_back():
    q = queue()
    q.push(entries([100] * 3))
    q.push(late := entries([100]))
    for _ in range(2):
        q.take(0)
    assert late[0].taken
    assert tag_of_a_newcomer(q) == 100


def test_what_runs_out_of_turn_is_paid_for():
    q = queue()
    q.push(entries([50] * 10))
    q.push(entries([20]))
    q.take_brief(0)
    assert tag_of_a_newcomer(q) == 10, "20 tokens, of two requests"


# Age


def after_patience() -> tuple[list[Entry], list[Entry], Queue]:
    """A request that waits since 0, one that came at PATIENCE and is due before it, and the queue."""
    q = queue()
    q.push(old := entries([100] * 4))
    q.push(other := entries([100]))
    assert q.take(0).batch == old[:1]
    q.drop(other[0].request)
    q.push(new := entries([10] * 4))
    for entry in new:
        entry.queued = PATIENCE
    return old, new, q


@pytest.mark.parametrize(("now", "by_age"), [(PATIENCE - 0.01, False), (PATIENCE, True)])
def test_patience_ends_at_its_moment(now, by_age):
    old, new, q = after_patience()
    assert q.take(now).batch[0] is (old[1] if by_age else new[0])


def test_age_decides_every_other_batch_and_virtual_time_stays():
    old, new, q = after_patience()
    assert q.take(PATIENCE).batch == [old[1]]
    assert q.take(PATIENCE).batch == new
    assert q.take(PATIENCE).batch == [old[2]]
    assert q.take(PATIENCE).batch == [old[3]]


def test_those_who_were_looked_past_by_age_keep_their_order():
    q = queue()
    q.push(made := entries([60, 50, 51, 40, 9]))
    q.finish_oldest_first()
    assert [q.take(0).batch for _ in range(3)] == [[made[0], made[3]], [made[1], made[4]], [made[2]]]


# Brief requests


@pytest.mark.parametrize(("sizes", "is_brief"), [([BRIEF], True), ([BRIEF - 5, 5], True), ([BRIEF - 5, 6], False)])
def test_a_request_is_brief_by_all_its_entries(sizes, is_brief):
    q = queue()
    assert not q.has_brief()
    q.push(made := entries(sizes))
    assert (q.has_brief(), made[0].request.is_brief) == (is_brief, is_brief)
    assert q.take_brief(0).batch == (made if is_brief else [])
    assert len(q) == (0 if is_brief else 2)


def test_what_is_shared_makes_no_request_long():
    q, request = queue(), Request()
    q.push([Entry(request, i, [1] * 120, shared=90) for i in range(4)])
    assert (request.is_brief, request.cost, request.tokens, request.waiting) == (True, 120, 480, 4)
    assert len(q.take_brief(0).batch) == 4
    assert (q.tokens, request.tokens, request.waiting) == (0, 0, 0)


def test_out_of_turn_go_the_oldest_that_fit_together():
    q = queue()
    q.push(first := entries([100]))
    q.push(second := entries([29]))
    q.push(third := entries([28]))
    assert q.take_brief(0).batch == first, "none overtakes the one that does not fit"
    assert q.take_brief(0).batch == [*second, *third]


def test_out_of_turn_too_a_batch_has_one_kind_of_rows_and_its_size():
    q = queue()
    for rows in ("pooled", "pooled", "tokens"):
        q.push(entries([1], row_kind=rows))
    assert [[entry.row_kind for entry in q.take_brief(0).batch] for _ in range(2)] == [["pooled"] * 2, ["tokens"]]
    q.push(entries([1] * (SIZE + 2)))
    assert [len(q.take_brief(0).batch) for _ in range(2)] == [SIZE, 2]


def test_what_ran_out_of_turn_runs_no_second_time():
    q = queue()
    q.push(entries([5]))
    q.push(bulk := entries([50] * 10))
    q.take_brief(0)
    assert [entry for batch in drain(q) for entry in batch] == bulk
    q.push(brief := entries([5]))
    assert q.take(0).batch == brief
    assert not q.has_brief()


def test_one_who_left_is_not_waited_for():
    q = queue()
    q.push(gone := entries([5]))
    q.push(brief := entries([6]))
    q.drop(gone[0].request)
    assert q.has_brief()
    assert q.take_brief(0).batch == brief


def test_brief_and_long_share_batches_unless_they_are_kept_apart():
    q = queue()
    q.push(entries([70] * 2))
    q.push(entries([30]))
    assert lengths(q.take(0).batch) == [70, 30]


# Forgotten, or told of


def test_what_is_forgotten_by_age_too():
    q = queue()
    q.push(entries([50] * 10))
    for _ in range(100):
        q.push(bulk := entries([50] * 100))
        q.drop(bulk[0].request)
    assert 10 <= len(q._ages) <= 2 * len(q) + LOOKAHEAD
    q.finish_oldest_first()
    assert sum(len(batch) for batch in drain(q)) == 10


def test_an_empty_queue_gives_nothing():
    q = queue()
    assert not q.take(0) and not q.take_brief(0) and not len(q)


def test_an_outcome_says_what_became_of_an_entry():
    (entry,) = entries([3])
    outcome = Outcome(entry, "row", 0.25, 0.5)
    assert (outcome.entry, outcome.result, outcome.queue, outcome.inference) == (entry, "row", 0.25, 0.5)
    assert entry.request.receiver([outcome]) is None, "nobody is told of a request without a receiver"


def test_what_an_entry_is_unless_it_is_said():
    entry = Entry(Request(), 3, [7, 8])
    assert (entry.index, entry.tokens, entry.cost, entry.prompt_tokens, entry.row_kind) == (3, 2, 2, 0, "pooled")
    assert (entry.token_types, entry.attended, entry.taken, entry.request.dropped) == (None, None, False, False)
    assert not Limits(1, 1, 1).brief_apart
