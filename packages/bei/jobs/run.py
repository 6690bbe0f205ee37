"""The lines of one job, from where it is to its end: some at once, the answers in their order."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterator

from bei.errors import TooLarge
from bei.jobs import lines
from bei.jobs.lines import Line
from bei.jobs.output import Answered, Output, request_id
from bei.jobs.records import Fault, Job, Order, Status
from bei.jobs.store import Store
from bei.metrics import Metrics

Ask = Callable[[Order, Line, str], Awaitable[Answered]]
"""The answer to a line, in the background, under a request id."""

# At once: enough for the batches of many cores, in little memory.
_LINES, _TEXTS, _BYTES = 512, 4096, 1 << 20
_LOOK_SECONDS = 0.25  # between two looks at the clock, and for a client's wish
_NOT_NOW = (429, 503)
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0  # seconds before a line that cannot be answered now is asked again
_TRIES = 3  # of a line at which the engine fails
_ROOM_EACH = 1 << 24  # bytes of answers between two looks at the room
_LEFT: dict[Status, tuple[str, str]] = {
    "expired": ("batch_expired", "This request could not be executed before the completion window expired."),
    "cancelled": ("batch_cancelled", "This request was not executed because the batch was cancelled."),
}


class _Over(Exception):
    """The job ends before its last line."""

    def __init__(self, ending: Status):
        self.ending = ending


class Run:
    """Of a job that is in progress."""

    def __init__(self, store: Store, job: Job, ask: Ask, metrics: Metrics):
        self._store, self._order, self._progress = store, job.order, job.progress
        self._ask, self._metrics = ask, metrics
        self._folder = store.job_folder(job.order.id)
        self._input = store.content(job.order.input_file_id)
        self._window: deque[tuple[Line, asyncio.Task[Answered]]] = deque()
        self._texts = self._bytes = 0
        self._next_look = self._next_room = 0.0

    async def finish(self) -> None:
        """Answers the lines up to the last one, or until the job expires, is cancelled or has no room; then it is
        finalizing. Answers that are there when this is cancelled stay. Raises OSError."""
        with Output(self._folder, self._order, self._progress) as output:
            ending: Status = "completed"
            try:
                await self._answer_all(output)
            except _Over as over:
                ending = over.ending
                self._leave_rest(output, ending)
            self._progress.ending = ending
            self._progress.become("finalizing", self._store.clock())

    def _rest(self) -> Iterator[Line]:
        for raw, number, end in lines.read(self._input, self._progress.offset, self._progress.line):
            yield lines.parsed(raw, number, end, self._order.endpoint)

    async def _answer_all(self, output: Output) -> None:
        """Raises _Over."""
        self._look()
        try:
            for line in self._rest():
                while not self._has_room(line):
                    await self._settle(output)
                self._begin(line)
            while self._window:
                await self._settle(output)
        finally:
            begun = [task for _, task in self._window]
            for task in begun:
                task.cancel()
            await asyncio.gather(*begun, return_exceptions=True)

    def _has_room(self, line: Line) -> bool:
        """Whether one more line may be asked beside others."""
        fits = self._texts + line.texts <= _TEXTS and self._bytes + len(line.body) <= _BYTES
        return not self._window or (len(self._window) < _LINES and fits)

    def _begin(self, line: Line) -> None:
        self._window.append((line, asyncio.create_task(self._answered(line))))
        self._texts += line.texts
        self._bytes += len(line.body)

    async def _answered(self, line: Line) -> Answered:
        """The answer, as soon as the server gives one."""
        pause = _FIRST_PAUSE
        while (answered := await self._ask(self._order, line, request_id(self._order, line.number))).status in _NOT_NOW:
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
        return answered

    async def _settle(self, output: Output) -> None:
        """Adds the answer to the first line. If the engine fails at it, it is asked again once nothing else runs, so
        that no line fails for another's sake. Raises _Over."""
        line, task = self._window[0]
        answered = await self._until(task)
        for _ in range(_TRIES - 1):
            if not _is_fault(answered):
                break
            for _, other in self._window:
                await self._until(other)
            answered = await self._until(asyncio.create_task(self._answered(line)))
        self._window.popleft()
        self._texts -= line.texts
        self._bytes -= len(line.body)
        self._metrics.observe_line(is_success=output.answer(line, answered))
        if output.is_due:
            output.commit()

    async def _until(self, task: asyncio.Task[Answered]) -> Answered:
        """The result. Raises _Over."""
        try:
            self._look()
            while not task.done():
                await asyncio.wait([task], timeout=_LOOK_SECONDS)
                self._look()
        except BaseException:
            task.cancel()
            raise
        return task.result()

    def _look(self) -> None:
        now = asyncio.get_running_loop().time()
        if now < self._next_look:
            return
        self._next_look = now + _LOOK_SECONDS
        if self._folder.cancellation() is not None:
            raise _Over("cancelled")
        if self._store.clock() >= self._order.expires:
            raise _Over("expired")
        made = self._progress.output_size + self._progress.error_size
        if made >= self._next_room:
            self._next_room = made + _ROOM_EACH
            self._check_room()

    def _check_room(self) -> None:
        try:
            self._store.check_room()
        except TooLarge as full:
            self._progress.faults = [Fault(code="no_room", message=full.message)]
            raise _Over("failed") from None

    def _leave_rest(self, output: Output, ending: Status) -> None:
        """Notes that the other lines were not run."""
        if ending in _LEFT:
            for line in self._rest():
                output.leave(line, *_LEFT[ending])
                self._metrics.observe_line(is_success=False)


def _is_fault(answered: Answered) -> bool:
    """Whether the server is at fault, and not the line."""
    return answered.status == 424 or answered.status >= 500
