"""python -m tests.fuzz [--minutes 10] [TARGET ...]: runs each target for so long; failures are shrunk, printed and
counted."""

import argparse
import logging
import sys
import time
import traceback

from hypothesis import HealthCheck, Phase, given, seed, settings

from tests.fuzz.guard import bound_memory, guarded
from tests.fuzz.targets import TARGETS, Target

_ROUND = 2000  # examples of one seed
_MEMORY = 2 << 30


class _Over(BaseException):
    """Time is over."""


def fuzz(name: str, target: Target, minutes: float) -> tuple[int, int]:
    """The number of inputs, and the number of seeds that found a failure."""
    inputs, end = target.inputs(), time.monotonic() + 60 * minutes
    ran = failures = number = 0
    while time.monotonic() < end:
        number += 1

        @seed(time.time_ns())
        @settings(
            max_examples=_ROUND,
            deadline=None,
            database=None,
            phases=(Phase.generate, Phase.shrink),
            suppress_health_check=list(HealthCheck),
            print_blob=False,
        )
        @given(inputs)
        def one_round(given):
            nonlocal ran
            if time.monotonic() > end:
                raise _Over
            ran += 1
            guarded(target.run, given)

        try:
            one_round()
        except _Over:
            break
        except BaseException:
            failures += 1
            print(f"{name}: {traceback.format_exc(limit=-8)[-6000:]}", flush=True)  # noqa: T201  whoever runs it reads it
            if failures >= 20:
                break
    return ran, failures


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(TARGETS)}; all unless named")
    asked = parser.parse_args()
    logging.disable()
    failed = 0
    for name in asked.targets or TARGETS:
        target = TARGETS[name]
        target.inputs()
        bound_memory(_MEMORY)
        ran, failures = fuzz(name, target, asked.minutes)
        failed += failures
        print(f"{name}: {ran} inputs, {failures} failures", flush=True)  # noqa: T201  whoever runs it reads it
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
