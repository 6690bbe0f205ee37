"""A long list of texts as requests of one model, which wait for one another."""

import asyncio
import math
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any, TypeVar

from bei.settings import Settings

T = TypeVar("T")
R = TypeVar("R")

_REQUESTS_AT_ONCE = 16  # with _TEXTS and _CHARACTERS a bound on what waits, and enough for many cores
_TEXTS = 256
_CHARACTERS = 1 << 16


async def answered(
    inputs: Sequence[T], ask: Callable[[Sequence[T]], Awaitable[R]], most: int, size: Callable[[T], int]
) -> list[R]:
    """The answers of `ask` to each request, in order. A request has at most `most` inputs; `size` is the number of
    characters of one."""
    permits = asyncio.Semaphore(_REQUESTS_AT_ONCE)

    async def request(some: Sequence[T]) -> R:
        async with permits:
            return await ask(some)

    return await asyncio.gather(*map(request, requests(inputs, most, size)))


def requests(inputs: Sequence[T], most: int, size: Callable[[T], int]) -> Iterator[Sequence[T]]:
    """All inputs in order, in batches; one empty batch of none."""
    begin, characters = 0, 0
    for i, one in enumerate(inputs):
        if i > begin and (i - begin == min(_TEXTS, most) or characters + size(one) > _CHARACTERS):
            yield inputs[begin:i]
            begin, characters = i, 0
        characters += size(one)
    yield inputs[begin:]


def unhurried(settings: Settings) -> Settings:
    """Settings without limits on waiting work: whoever asks bounds it."""
    limits: dict[str, Any] = {
        "max_queue_tokens": 1 << 62,
        "max_queue_texts": 1 << 62,
        "max_queue_seconds": math.inf,
    }
    return settings.model_copy(update=limits)
