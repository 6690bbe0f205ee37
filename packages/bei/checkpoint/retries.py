"""A download that the network breaks is tried again, after pauses that grow."""

import errno
import logging
from collections.abc import Callable
from typing import TypeVar

from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_attempt, wait_exponential, wait_random

from bei.errors import SetupError

log = logging.getLogger("bei")

TRIES = 5
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0  # seconds; what a server asks for is waited, up to the second
_LATER = {408, 425, 429}  # of 4xx those that say nothing against the request itself
_NEVER = {501, 505}
_FINAL = (SetupError, FileNotFoundError, PermissionError, NotADirectoryError, IsADirectoryError, FileExistsError)
_MISUSE = (ValueError, TypeError, LookupError, AttributeError, ImportError)
_OF_THE_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ENAMETOOLONG, errno.EFBIG}

Result = TypeVar("Result")


class GaveUp(Exception):
    """`error` is that of the last of `tries` tries in a row."""

    def __init__(self, error: BaseException, tries: int):
        super().__init__(f"{error} ({tries} tries)")
        self.error, self.tries = error, tries


def persist(
    attempt: Callable[[], Result],
    *,
    passes: Callable[[BaseException], bool],
    say: Callable[[BaseException], str],
    progress: Callable[[], int] = lambda: 0,
    tries: int | None = None,
) -> Result:
    """The result of `attempt`. After an error that `passes` with time it is called again, at most `tries` times (TRIES)
    in a row in which `progress`, a number of bytes, did not grow. `say` is the error in a clause for the log.

    Raises the other errors of `attempt`, or GaveUp.
    """
    most = progress()

    def count(state: RetryCallState) -> None:
        nonlocal most
        if progress() > most:
            most, state.attempt_number = progress(), 1

    def tell(state: RetryCallState) -> None:
        log.warning("%s: it is asked again in %.1f s", say(_error(state)), state.upcoming_sleep)

    def give_up(state: RetryCallState) -> Result:
        raise GaveUp(_error(state), state.attempt_number) from None

    retrying = Retrying(
        retry=retry_if_exception(passes),
        after=count,
        stop=stop_after_attempt(tries or TRIES),
        wait=_pause,
        before_sleep=tell,
        retry_error_callback=give_up,
    )
    return retrying(attempt)


def _error(state: RetryCallState) -> BaseException:
    error = state.outcome.exception() if state.outcome else None
    assert error is not None, "a try that failed has an error"
    return error


def _pause(state: RetryCallState) -> float:
    """Seconds: those that the server asks for, or twice as many as before."""
    response = getattr(_error(state), "response", None)
    asked = getattr(response, "headers", {}).get("retry-after", "")
    growing = wait_exponential(FIRST_PAUSE, max=LONGEST_PAUSE)(state) + wait_random(0, FIRST_PAUSE)(state)
    return max(growing, min(float(asked), LONGEST_PAUSE)) if asked.isdecimal() else growing


def status_passes(status: int) -> bool:
    """Whether a server that answers so may answer otherwise soon."""
    return status in _LATER or (status >= 500 and status not in _NEVER)


def passes(error: BaseException) -> bool:
    """Whether an error of a library may be of the network. Each library has its own: what says that the request is
    wrong, or that the disk is, does not pass; the rest may."""
    if not isinstance(error, Exception) or isinstance(error, (*_FINAL, *_MISUSE)):
        return False
    response = getattr(error, "response", None)
    stated = (getattr(response, "status_code", None), *(getattr(error, name, None) for name in ("code", "status")))
    status = next((value for value in stated if isinstance(value, int) and value >= 400), None)
    if status is not None:
        return status_passes(status)
    return getattr(error, "errno", None) not in _OF_THE_DISK
