"""The grammar of `--devices`: every GPU, every NUMA node, or devices by the numbers of their GPU or processors.

A set of processors is written as taskset takes it: `cpu:0-15,64-79,cpu:16-31,80-95` are two devices. Which GPUs and
processors a machine has is not known here.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Literal

DeviceKind = Literal["cpu", "cuda"]

_RANGE = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?")
_FORMS = "must be cuda, numa, or devices such as cuda:0,cuda:1 or cpu:0-15,cpu:16-31"
_ENGINES: dict[DeviceKind, tuple[str, ...]] = {
    "cpu": ("auto", "native", "torch", "null"),
    "cuda": ("auto", "tensorrt", "torch", "null"),
}


def kind_of(devices: str) -> DeviceKind:
    return "cuda" if devices.startswith("cuda") else "cpu"


def numbers_of(devices: str) -> list[tuple[int, ...]]:
    """The GPU or the processors of each device that a value names; empty for `cuda` and `numa`. Raises ValueError."""
    if devices in ("cuda", "numa"):
        return []
    found = [tuple(_numbers(part)) for part in _parts(devices)]
    _refuse_shared(kind_of(devices), found)
    return found


def names_of(devices: str) -> list[str]:
    """Each device of a value that names them; none of an empty one."""
    return [named(kind_of(devices), numbers) for numbers in numbers_of(devices)] if devices else []


def processors_of(devices: str) -> frozenset[int]:
    """The processors of all devices of a value; none of GPUs."""
    sets = numbers_of(devices) if devices.startswith("cpu:") else []
    return frozenset(number for numbers in sets for number in numbers)


def named(kind: DeviceKind, numbers: Iterable[int]) -> str:
    """A device as a value names it: `cpu:0-3,8`."""
    return f"{kind}:{','.join(_runs(sorted(numbers)))}"


def normalized(value: str | None) -> str | None:
    """A value without spaces at its commas, each device in its shortest form. Raises ValueError."""
    if value is None:
        return None
    devices = re.sub(r"\s*,\s*", ",", value.strip())
    if not devices:
        raise ValueError(_FORMS)
    return ",".join(names_of(devices)) or devices


def contradiction(devices: str, engine: str, threads: int | None) -> str | None:
    """Why other settings do not fit these devices."""
    kind = kind_of(devices)
    if engine not in _ENGINES[kind]:
        return f"settings devices and engine: {engine} does not run on {kind}; set another engine, or leave it at auto"
    if threads is not None and kind == "cpu":
        return "settings devices and threads: a device has a thread for each of its processors; set one of them"
    return None


def _parts(devices: str) -> list[str]:
    """The text of each device. `cpu:0-1,4` is one: it continues up to the next kind. Raises ValueError."""
    parts = re.split(r",(?=[a-z])", devices)
    kinds = {part.partition(":")[0] for part in parts}
    if not kinds <= {"cpu", "cuda"} or not all(":" in part for part in parts):
        raise ValueError(_FORMS)
    if len(kinds) > 1:
        raise ValueError("must be GPUs only or processors only")
    return parts


def _numbers(part: str) -> Iterator[int]:
    kind, _, listed = part.partition(":")
    for item in listed.split(","):
        found = _RANGE.fullmatch(item)
        if found is None:
            raise ValueError(_FORMS)
        first, last = int(found[1]), int(found[2] or found[1])
        if kind == "cuda" and not listed.isdecimal():
            raise ValueError("must name each GPU as a device of its own, such as cuda:0,cuda:1")
        if first > last:
            raise ValueError(f"must have the smaller number of a range first, as in {last}-{first}")
        yield from range(first, last + 1)


def _refuse_shared(kind: DeviceKind, devices: list[tuple[int, ...]]) -> None:
    seen: set[int] = set()
    for number in (number for numbers in devices for number in numbers):
        if number in seen:
            raise ValueError(f"must not name {kind}:{number} twice")
        seen.add(number)


def _runs(numbers: list[int]) -> Iterator[str]:
    begin = 0
    for end in range(1, len(numbers) + 1):
        if end == len(numbers) or numbers[end] != numbers[end - 1] + 1:
            first, last = numbers[begin], numbers[end - 1]
            yield str(first) if first == last else f"{first}-{last}"
            begin = end
