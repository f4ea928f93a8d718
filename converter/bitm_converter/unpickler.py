"""A pickle interpreter that can build tensors and plain containers, and nothing else.

A pickle is a program for a stack machine, and Python's own machine lets it call any function. This
one reads the same opcodes (through `pickletools`, which decodes and never executes) but has no way
to import or call: the few globals that checkpoints use are rows of a table here, every other one is
refused by name before anything happens. Optimizer, scheduler and argument records of training
scripts become `Inert` marks, since a converter has no use for them.

Whatever the file says, work and memory stay bounded: one step per opcode or copied item and a limit
on steps, no integers beyond 128 bits, and dictionaries keep only their text keys (the only ones in
a state dict), so nothing nested or crafted is ever hashed.
"""

from __future__ import annotations

import io
import math
import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import CheckpointError, UnsafePickleError

MAX_STEPS = 1_000_000
MAX_INTEGER_BITS = 128
MAX_RANK = 8
MAX_ELEMENTS = 2**31
# A view may repeat its storage's elements (`expand`), but one float must not fill the memory.
MAX_REPEATED_ELEMENTS = 2**24


@dataclass(frozen=True)
class StorageType:
    """A class such as `torch.HalfStorage`: says how to read the bytes of a storage."""

    dtype: str


@dataclass(frozen=True)
class Storage:
    """A flat run of `count` elements that lies elsewhere in the checkpoint under `key`."""

    key: str
    dtype: str
    count: int


@dataclass(frozen=True)
class StoredTensor:
    """A strided view inside a storage; `offset` and `strides` count elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class Inert:
    """Stands for an object that is of no use here (an optimizer setting, a device, a set)."""


_INERT = Inert()


@dataclass(frozen=True)
class _Function:
    """A global that a pickle may call, as the function of this module that does its work."""

    build: Callable[[Unpickler, tuple[Any, ...]], object]


class Unpickler:
    """Interprets one pickle: `load` returns its object, whose tensors refer to `storages`.

    Raises UnsafePickleError for anything beyond tensors and plain containers, CheckpointError for a
    malformed pickle.
    """

    def __init__(self, stream: io.BytesIO, path: Path) -> None:
        self.storages: dict[str, Storage] = {}
        self._stream = stream
        self._path = path
        self._stack: list[Any] = []
        self._below_marks: list[list[Any]] = []
        self._memo: dict[int, Any] = {}
        self._steps = 0
        self._position = 0

    def load(self) -> object:
        """Runs the opcodes up to STOP and leaves the stream behind it."""
        opcodes = pickletools.genops(self._stream)
        while True:
            try:
                opcode, argument, position = next(opcodes)
            except (ValueError, OverflowError, Warning) as error:  # Warning: under -W error
                raise self._malformed(f"not a valid pickle: {error}") from None
            self._position = position or 0
            if opcode.name == "STOP":
                return self._pop()
            operation = _OPERATIONS.get(opcode.name)
            if operation is None:
                named = f" {argument!r}" if opcode.name == "INST" else ""
                raise self._unsafe(f"opcode {opcode.name}{named}, which no tensor needs")
            self._count_steps(1)
            operation(self, argument)

    # Errors

    def _malformed(self, problem: str) -> CheckpointError:
        return CheckpointError(self._path, f"pickle, byte {self._position}: {problem}")

    def _unsafe(self, what: str, hint: str = "") -> UnsafePickleError:
        return UnsafePickleError(
            self._path,
            f"refused: the pickle uses {what} (byte {self._position}); nothing was run{hint}",
        )

    def _count_steps(self, count: int) -> None:
        self._steps += count
        if self._steps > MAX_STEPS:
            raise self._malformed(f"more than {MAX_STEPS} steps, too many for a checkpoint")

    # Stack

    def _push(self, value: object) -> None:
        self._stack.append(value)

    def _pop(self) -> Any:
        if not self._stack:
            raise self._malformed("takes a value from an empty stack")
        return self._stack.pop()

    def _mark(self, _: object) -> None:
        self._below_marks.append(self._stack)
        self._stack = []

    def _pop_to_mark(self) -> list[Any]:
        if not self._below_marks:
            raise self._malformed("a mark is missing")
        items, self._stack = self._stack, self._below_marks.pop()
        return items

    def _discard(self, _: object) -> None:
        if self._stack or not self._below_marks:
            self._pop()
        else:
            self._pop_to_mark()

    def _discard_to_mark(self, _: object) -> None:
        self._pop_to_mark()

    def _duplicate(self, _: object) -> None:
        value = self._pop()
        self._stack += [value, value]

    # Plain values and containers

    def _push_integer(self, value: int) -> None:
        if value.bit_length() > MAX_INTEGER_BITS:
            raise self._malformed(f"an integer of {value.bit_length()} bits")
        self._push(value)

    def _tuple(self, count: int) -> None:
        items = [self._pop() for _ in range(count)]
        self._push(tuple(reversed(items)))

    def _tuple_from_mark(self, _: object) -> None:
        self._push(tuple(self._pop_to_mark()))

    def _list_from_mark(self, _: object) -> None:
        self._push(self._pop_to_mark())

    def _dict_from_mark(self, _: object) -> None:
        items = self._pop_to_mark()
        self._push(self._set_items({}, items))

    def _append(self, _: object) -> None:
        self._append_all([self._pop()])

    def _append_from_mark(self, _: object) -> None:
        self._append_all(self._pop_to_mark())

    def _append_all(self, items: list[Any]) -> None:
        target = self._pop()
        if type(target) is not list:
            raise self._malformed(f"appends to a {type(target).__name__}")
        target += items
        self._push(target)

    def _set_item(self, _: object) -> None:
        value, key = self._pop(), self._pop()
        self._push(self._set_items(self._pop(), [key, value]))

    def _set_items_from_mark(self, _: object) -> None:
        items = self._pop_to_mark()
        self._push(self._set_items(self._pop(), items))

    def _set_items(self, target: object, items: list[Any]) -> dict[str, Any]:
        if type(target) is not dict:
            raise self._malformed(f"sets items of a {type(target).__name__}")
        if len(items) % 2:
            raise self._malformed("a dictionary key without a value")
        for key, value in zip(items[::2], items[1::2]):
            if type(key) is str:
                target[key] = value
        return target

    def _inert_from_mark(self, _: object) -> None:
        self._pop_to_mark()
        self._push(_INERT)

    def _add_to_set(self, _: object) -> None:
        self._pop_to_mark()
        if type(self._stack[-1] if self._stack else None) is not Inert:
            raise self._malformed("adds items to something that is not a set")

    # Memo

    def _put(self, index: int) -> None:
        value = self._pop()
        self._push(value)
        self._memo[index] = value

    def _memoize(self, _: object) -> None:
        self._put(len(self._memo))

    def _get(self, index: int) -> None:
        if index not in self._memo:
            raise self._malformed(f"memo entry {index} was never stored")
        self._push(self._memo[index])

    # Globals, calls, state

    def _global(self, module_and_name: str) -> None:
        module, _, name = module_and_name.partition(" ")
        self._push(self._find(module, name))

    def _stack_global(self, _: object) -> None:
        name, module = self._pop(), self._pop()
        if type(name) is not str or type(module) is not str:
            raise self._malformed("a global whose name is not text")
        self._push(self._find(module, name))

    def _find(self, module: str, name: str) -> object:
        found = _GLOBALS.get((module, name))
        if found is None:
            whole = module.partition(".")[0] in ("torch", "transformers", "__main__")
            hint = (
                "; if the file holds a whole model object, save model.state_dict() instead"
                if whole
                else ""
            )
            raise self._unsafe(f"{module}.{name}", hint)
        return found

    def _call(self, _: object) -> None:
        arguments, function = self._pop(), self._pop()
        if type(arguments) is not tuple:
            raise self._malformed(f"calls with a {type(arguments).__name__} for arguments")
        if type(function) is Inert:
            self._push(_INERT)
        elif type(function) is _Function:
            self._push(function.build(self, arguments))
        else:
            raise self._unsafe(f"a call of a {type(function).__name__}")

    def _set_state(self, _: object) -> None:
        """BUILD: a state (`_metadata` of a state dict, fields of a Namespace) is dropped."""
        self._pop()
        target = self._stack[-1] if self._stack else None
        if type(target) not in (dict, Inert):
            raise self._unsafe(f"BUILD on a {type(target).__name__}")

    def _ordered_dict(self, arguments: tuple[Any, ...]) -> dict[str, Any]:
        """`OrderedDict()` or, from Python 2, `OrderedDict([[key, value], ...])`."""
        if not arguments:
            return {}
        pairs = arguments[0]
        if type(pairs) is not list:
            raise self._malformed("an OrderedDict that is not made from a list")
        self._count_steps(len(pairs))
        result: dict[str, Any] = {}
        for pair in pairs:
            if type(pair) not in (list, tuple) or len(pair) != 2:
                raise self._malformed("an OrderedDict whose items are not pairs")
            self._set_items(result, list(pair))
        return result

    # Tensors

    def _storage(self, _: object) -> None:
        """BINPERSID: ("storage", storage class, key, device, element count[, view])."""
        identity = self._pop()
        if type(identity) is not tuple or not identity or type(identity[0]) is not str:
            raise self._malformed("a persistent id that is not a storage")
        if identity[0] != "storage":
            raise self._unsafe(f"a persistent '{identity[0]}'", "; save model.state_dict() instead")
        if len(identity) not in (5, 6) or any(view is not None for view in identity[5:]):
            raise self._malformed("a storage of an unsupported kind (a view of torch before 0.4)")
        kind, key, count = identity[1], identity[2], identity[4]
        if type(kind) is not StorageType or type(key) is not str or not _is_size(count):
            raise self._malformed("a storage without a class, a key and an element count")
        storage = self.storages.setdefault(key, Storage(key, kind.dtype, count))
        if storage != Storage(key, kind.dtype, count):
            before = f"{storage.count} {storage.dtype}"
            raise self._malformed(f"storage '{key}' is {before} before, {count} {kind.dtype} here")
        self._push(storage)

    def _tensor(self, arguments: tuple[Any, ...]) -> StoredTensor:
        """`_rebuild_tensor(storage, offset, shape, strides, ...)`; the rest changes no value."""
        if len(arguments) < 4 or type(arguments[0]) is not Storage:
            raise self._malformed("a tensor without a storage, an offset, a shape and strides")
        storage, offset, shape, strides = arguments[:4]
        if not (_is_size(offset) and _is_sizes(shape) and _is_sizes(strides)):
            raise self._malformed("a tensor whose offset, shape or strides are not sizes")
        described = f"a tensor of shape {list(shape)}, strides {list(strides)}, offset {offset}"
        if len(shape) != len(strides):
            raise self._malformed(described)
        if math.prod(max(n, 1) for n in shape) > MAX_ELEMENTS:
            raise self._malformed(f"{described}: more than {MAX_ELEMENTS} elements")
        elements = math.prod(shape)
        last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides))
        leaves = elements > 0 and last >= storage.count
        if leaves or elements > max(storage.count, MAX_REPEATED_ELEMENTS):
            whole = f"its storage '{storage.key}' of {storage.count} elements"
            raise self._malformed(f"{described} does not fit {whole}")
        return StoredTensor(storage, offset, shape, strides)

    def _parameter(self, arguments: tuple[Any, ...]) -> StoredTensor:
        """`_rebuild_parameter(tensor, requires_grad, hooks)`: its tensor."""
        if not arguments or type(arguments[0]) is not StoredTensor:
            raise self._malformed("a parameter without a tensor")
        return arguments[0]

    def _size(self, arguments: tuple[Any, ...]) -> tuple[int, ...]:
        """`torch.Size(sizes)`: its sizes."""
        if len(arguments) != 1 or not _is_sizes(arguments[0]):
            raise self._malformed("a torch.Size that is not made from sizes")
        sizes: tuple[int, ...] = arguments[0]
        return sizes


def _is_size(value: object) -> bool:
    return type(value) is int and value >= 0


def _is_sizes(value: object) -> bool:
    return type(value) is tuple and len(value) <= MAX_RANK and all(_is_size(n) for n in value)


def _always(value: object) -> Callable[[Unpickler, Any], None]:
    return lambda self, _: self._push(value)


def _empty(kind: type[list[Any]] | type[dict[str, Any]]) -> Callable[[Unpickler, Any], None]:
    return lambda self, _: self._push(kind())


# Opcodes that are not here (INST, OBJ, EXT1, PERSID, NEWOBJ_EX, buffers, ...) are refused.
_OPERATIONS: dict[str, Callable[[Unpickler, Any], None]] = {
    **dict.fromkeys(("PROTO", "FRAME"), lambda self, _: None),
    **dict.fromkeys(
        ("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4"), Unpickler._push_integer
    ),
    **dict.fromkeys(
        ("FLOAT", "BINFLOAT", "STRING", "BINSTRING", "SHORT_BINSTRING"), Unpickler._push
    ),
    **dict.fromkeys(("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"), Unpickler._push),
    **dict.fromkeys(("BINBYTES", "SHORT_BINBYTES", "BINBYTES8"), Unpickler._push),
    "NONE": _always(None),
    "NEWTRUE": _always(True),
    "NEWFALSE": _always(False),
    "MARK": Unpickler._mark,
    "POP": Unpickler._discard,
    "POP_MARK": Unpickler._discard_to_mark,
    "DUP": Unpickler._duplicate,
    "EMPTY_TUPLE": _always(()),
    "TUPLE": Unpickler._tuple_from_mark,
    "TUPLE1": lambda self, _: self._tuple(1),
    "TUPLE2": lambda self, _: self._tuple(2),
    "TUPLE3": lambda self, _: self._tuple(3),
    "EMPTY_LIST": _empty(list),
    "LIST": Unpickler._list_from_mark,
    "APPEND": Unpickler._append,
    "APPENDS": Unpickler._append_from_mark,
    "EMPTY_DICT": _empty(dict),
    "DICT": Unpickler._dict_from_mark,
    "SETITEM": Unpickler._set_item,
    "SETITEMS": Unpickler._set_items_from_mark,
    "EMPTY_SET": _always(_INERT),
    "ADDITEMS": Unpickler._add_to_set,
    "FROZENSET": Unpickler._inert_from_mark,
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), Unpickler._put),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), Unpickler._get),
    "MEMOIZE": Unpickler._memoize,
    "GLOBAL": Unpickler._global,
    "STACK_GLOBAL": Unpickler._stack_global,
    "REDUCE": Unpickler._call,
    "NEWOBJ": Unpickler._call,
    "BUILD": Unpickler._set_state,
    "BINPERSID": Unpickler._storage,
}

_STORAGE_DTYPES = {
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "FloatStorage": "float32",
    "DoubleStorage": "float64",
    "CharStorage": "int8",
    "ShortStorage": "int16",
    "IntStorage": "int32",
    "LongStorage": "int64",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}

_PATHS = "Path PosixPath PurePosixPath WindowsPath PureWindowsPath"
_BUILTINS = "bool bytearray bytes complex dict float frozenset int list set str tuple"
_INERT_NAMES = {
    "argparse": "Namespace",
    "builtins": _BUILTINS,
    "__builtin__": _BUILTINS,
    "collections": "Counter",
    "pathlib": _PATHS,
    "pathlib._local": _PATHS,
    "_codecs": "encode",
    "numpy": "dtype ndarray",
    "numpy.core.multiarray": "scalar _reconstruct",
    "numpy._core.multiarray": "scalar _reconstruct",
    "torch": "device bool uint8 int8 int16 int32 int64 float16 bfloat16 float32 float64",
}

_GLOBALS: dict[tuple[str, str], object] = {
    ("collections", "OrderedDict"): _Function(Unpickler._ordered_dict),
    ("collections", "defaultdict"): _Function(lambda self, arguments: {}),
    ("torch", "Size"): _Function(Unpickler._size),
    ("torch._utils", "_rebuild_tensor"): _Function(Unpickler._tensor),
    ("torch._utils", "_rebuild_tensor_v2"): _Function(Unpickler._tensor),
    ("torch._utils", "_rebuild_parameter"): _Function(Unpickler._parameter),
    ("torch._utils", "_rebuild_parameter_with_state"): _Function(Unpickler._parameter),
    ("torch.storage", "UntypedStorage"): StorageType("uint8"),
    **{("torch", name): StorageType(dtype) for name, dtype in _STORAGE_DTYPES.items()},
    **{("torch.cuda", name): StorageType(dtype) for name, dtype in _STORAGE_DTYPES.items()},
    **{(m, name): _INERT for m, names in _INERT_NAMES.items() for name in names.split()},
}
