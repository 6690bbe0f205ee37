"""Every target, briefly; `python -m tests.fuzz --minutes 10` is the same for longer."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.guard import guarded
from tests.fuzz.targets import TARGETS


@pytest.mark.parametrize("name", TARGETS)
def test_only_our_own_errors(name):
    target = TARGETS[name]

    @settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(st.deferred(target.inputs))
    def run(given):
        guarded(target.run, given)

    run()
