"""The allowed and the forbidden costs of a fault."""

from collections import Counter

from benchmarks.faults import FAULTS, Seen, check


def test_ends_that_are_not_allowed_are_violations():
    fault = FAULTS["engine exception"]
    seen = Seen(victims=Counter({"424": 20}), during=Counter({"200": 7}), apart=Counter({"200": 9}))
    check(seen, fault.allowed, fault.victims)
    assert seen.violations == []
    seen.victims["hung"], seen.during["424"], seen.apart["wrong"] = 1, 2, 3
    check(seen, fault.allowed, fault.victims)
    assert seen.violations == ["2 424 of others, meanwhile", "3 wrong apart from it", "1 hung of its victims"]
