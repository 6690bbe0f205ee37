"""A pickle that torch.save wrote, read as data. Nothing that it names is imported, made or called: only the names of
tensors and dictionaries are known, and these become values of ours."""

import pickletools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import IO, Any

from bei.errors import SetupError, short

MAX_BYTES = 1 << 24  # of a pickle: a hundred thousand tensors with long names
_MAX_STEPS = 1 << 20

STORAGES = {
    **{"FloatStorage": "F32", "HalfStorage": "F16", "BFloat16Storage": "BF16", "DoubleStorage": "F64"},
    **{"LongStorage": "I64", "IntStorage": "I32", "ShortStorage": "I16", "CharStorage": "I8"},
    **{"ByteStorage": "U8", "BoolStorage": "BOOL", "UntypedStorage": "U8"},
}
"""torch's class of a storage → the type of its numbers, as safetensors names it."""
_TYPES = {
    **{"float32": "F32", "float16": "F16", "bfloat16": "BF16", "float64": "F64", "float8_e4m3fn": "F8_E4M3"},
    **{"int64": "I64", "int32": "I32", "int16": "I16", "int8": "I8", "uint8": "U8", "bool": "BOOL"},
}


@dataclass(frozen=True)
class Storage:
    """Numbers that tensors share: its key among the file's storages, their type and their count."""

    key: str
    kind: str
    count: int


@dataclass(frozen=True)
class Strided:
    """A tensor: where it begins in a storage, its shape and its strides, in numbers of its type `kind`."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    kind: str


@dataclass(frozen=True)
class _Name:
    """A global that the pickle names."""

    name: str


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> Strided:
    numbers = (offset, *_whole(shape), *_whole(strides))
    if not isinstance(storage, Storage) or any(type(n) is not int or n < 0 for n in numbers):
        raise ValueError("a tensor whose shape or strides are no counts")
    if len(shape) != len(strides):
        raise ValueError("a tensor whose shape and strides differ in number")
    return Strided(storage, offset, shape, strides, storage.kind)


def _typed_tensor(storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> Strided:
    made, kind = _tensor(storage, offset, shape, strides), rest[2]
    if storage.kind != "U8" or not isinstance(kind, _Name):
        raise ValueError("a tensor whose type is unknown")
    return Strided(storage, offset, made.shape, made.strides, _TYPES[kind.name.removeprefix("torch ")])


def _whole(counts: Any) -> tuple[Any, ...]:
    if not isinstance(counts, tuple) or len(counts) > 64:
        raise ValueError("a tensor whose shape is no tuple")
    return counts


def _parameter(data: Any, *rest: Any) -> Strided:
    if not isinstance(data, Strided):
        raise ValueError("a parameter without a tensor")
    return data


def _size(counts: Any) -> tuple[Any, ...]:
    return _whole(counts)


_CALLS: Mapping[str, Callable[..., Any]] = {
    "collections OrderedDict": lambda: {},
    "torch._utils _rebuild_tensor": _tensor,
    "torch._utils _rebuild_tensor_v2": _tensor,
    "torch._utils _rebuild_tensor_v3": _typed_tensor,
    "torch._utils _rebuild_parameter": _parameter,
    "torch Size": _size,
}
"""The names that REDUCE may apply, and our function of each."""
_KNOWN = {
    *_CALLS,
    *(f"{module} {name}" for module in ("torch", "torch.storage") for name in STORAGES),
    *(f"torch {name}" for name in _TYPES),
}


def read_pickle(stream: IO[bytes], storages: dict[str, Storage]) -> Any:
    """The value of the pickle at the stream's place, which is then behind it: numbers, strings, lists, tuples,
    dictionaries and Strided. `storages` gets each storage that it names. Raises SetupError, which begins with a verb,
    for a pickle that names anything else, before any of it is read; ValueError, LookupError or TypeError for one that
    is damaged."""
    start = stream.tell()
    for operation, argument in _steps(stream):
        if operation == "GLOBAL" and argument not in _KNOWN:
            raise SetupError(f"asks for {short(argument.replace(' ', '.'))}, which is no tensor and no dictionary")
        if operation not in _OPERATIONS:
            raise SetupError(f"holds {operation}, which makes no tensor and no dictionary")
    stream.seek(start)
    machine = _Machine(storages)
    for operation, argument in _steps(stream):
        _OPERATIONS[operation](machine, argument)
    (value,) = machine.stack
    return value


def _steps(stream: IO[bytes]) -> Iterator[tuple[str, Any]]:
    for count, (operation, argument, _) in enumerate(pickletools.genops(stream)):
        if count >= _MAX_STEPS:
            raise SetupError(f"has more than {_MAX_STEPS} steps, the most that are read")
        yield operation.name, argument


class _Machine:
    """The stack of a pickle, where its marks are, the values that it remembers by number, and its storages."""

    def __init__(self, storages: dict[str, Storage]) -> None:
        self.storages = storages
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def pop(self, count: int) -> tuple[Any, ...]:
        """The last values, which must be above the last mark."""
        below = len(self.stack) - count
        if below < (self.marks[-1] if self.marks else 0):
            raise ValueError("values are missing")
        values = tuple(self.stack[below:])
        del self.stack[below:]
        return values

    def pop_to_mark(self) -> tuple[Any, ...]:
        start = self.marks.pop()
        values = tuple(self.stack[start:])
        del self.stack[start:]
        return values

    def top(self, kind: type) -> Any:
        if not isinstance(self.stack[-1], kind):
            raise ValueError(f"a {kind.__name__} is missing")
        return self.stack[-1]

    def set_items(self, items: tuple[Any, ...]) -> None:
        """A key is a string or a number: the hash of a tuple may take for ever."""
        keys, values = items[::2], items[1::2]
        if any(not isinstance(key, (str, int)) for key in keys):
            raise ValueError("a key is no string")
        self.top(dict).update(zip(keys, values, strict=True))

    def call(self) -> None:
        name, arguments = self.pop(2)
        if not isinstance(name, _Name) or not isinstance(arguments, tuple):
            raise ValueError("nothing to call")
        self.stack.append(_CALLS[name.name](*arguments))

    def find_storage(self) -> None:
        ((what, kind, key, _, count, *view),) = self.pop(1)
        if what != "storage" or not isinstance(kind, _Name) or not isinstance(key, str) or any(view):
            raise ValueError("a storage is missing")
        if type(count) is not int or count < 0:
            raise ValueError("a storage's size is no count")
        named = Storage(key, STORAGES[kind.name.rpartition(" ")[2]], count)
        if self.storages.setdefault(key, named) != named:
            raise ValueError("a storage has two sizes")
        self.stack.append(named)

    def forget_state(self) -> None:
        """The attributes of an OrderedDict: `_metadata`, the versions of modules."""
        self.pop(1)
        self.top(dict)


_Operation = Callable[[_Machine, Any], Any]


def _push(machine: _Machine, argument: Any) -> None:
    machine.stack.append(argument)


def _constant(make: Callable[[], Any]) -> _Operation:
    return lambda machine, _: machine.stack.append(make())


def _remember(machine: _Machine, number: int) -> None:
    machine.memo[number] = machine.stack[-1]


_OPERATIONS: Mapping[str, _Operation] = {
    "PROTO": lambda machine, _: None,
    "STOP": lambda machine, _: None,
    **dict.fromkeys(("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"), _push),
    **dict.fromkeys(("BINUNICODE", "SHORT_BINUNICODE", "BINSTRING", "SHORT_BINSTRING"), _push),
    "NONE": _constant(lambda: None),
    "NEWTRUE": _constant(lambda: True),
    "NEWFALSE": _constant(lambda: False),
    "EMPTY_DICT": _constant(dict),
    "EMPTY_LIST": _constant(list),
    "EMPTY_TUPLE": _constant(tuple),
    "MARK": lambda machine, _: machine.marks.append(len(machine.stack)),
    "TUPLE": lambda machine, _: machine.stack.append(machine.pop_to_mark()),
    "TUPLE1": lambda machine, _: machine.stack.append(machine.pop(1)),
    "TUPLE2": lambda machine, _: machine.stack.append(machine.pop(2)),
    "TUPLE3": lambda machine, _: machine.stack.append(machine.pop(3)),
    "APPEND": lambda machine, _: _append(machine, machine.pop(1)),
    "APPENDS": lambda machine, _: _append(machine, machine.pop_to_mark()),
    "SETITEM": lambda machine, _: machine.set_items(machine.pop(2)),
    "SETITEMS": lambda machine, _: machine.set_items(machine.pop_to_mark()),
    "BINPUT": _remember,
    "LONG_BINPUT": _remember,
    "BINGET": lambda machine, number: machine.stack.append(machine.memo[number]),
    "LONG_BINGET": lambda machine, number: machine.stack.append(machine.memo[number]),
    "GLOBAL": lambda machine, name: machine.stack.append(_Name(name)),
    "REDUCE": lambda machine, _: machine.call(),
    "BUILD": lambda machine, _: machine.forget_state(),
    "BINPERSID": lambda machine, _: machine.find_storage(),
}
"""The operations that torch.save's pickles have. Each moves values of ours; any other is refused."""


def _append(machine: _Machine, values: tuple[Any, ...]) -> None:
    machine.top(list).extend(values)
