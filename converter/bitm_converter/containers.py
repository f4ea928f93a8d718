"""The files that checkpoints come in: torch's zip, its older sequence of pickles, safetensors.

Opening reads only the tables; a tensor's bytes are read when asked for, one tensor at a time. No
number in a file is trusted: every place is checked to lie inside the file before anything is read
or allocated.

Sources: the pickles and their persistent ids are as `torch.serialization` writes them, its zip is
stored (uncompressed) throughout, and safetensors follows its published format: an 8-byte
little-endian header length, a JSON header, data that the tensors cover from end to end.
"""

from __future__ import annotations

import io
import json
import math
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .errors import CheckpointError
from .unpickler import MAX_ELEMENTS, MAX_RANK, Storage, StoredTensor, Unpickler

Container = Literal["zip", "legacy", "safetensors"]

MAX_PICKLE_BYTES = 16 * 2**20
MAX_JSON_BYTES = 16 * 2**20

# How each dtype lies in the file. A bfloat16, unknown to numpy, is the upper half of a float32.
_STORED_AS: dict[str, np.dtype[Any]] = {
    "float16": np.dtype("<f2"),
    "bfloat16": np.dtype("<u2"),
    "float32": np.dtype("<f4"),
    "float64": np.dtype("<f8"),
    "int8": np.dtype("i1"),
    "int16": np.dtype("<i2"),
    "int32": np.dtype("<i4"),
    "int64": np.dtype("<i8"),
    "uint8": np.dtype("u1"),
    "bool": np.dtype("u1"),
}


@dataclass(frozen=True)
class LazyTensor:
    """A tensor that still lies in its file.

    `dtype` is its name ("float16", "bfloat16", "float32", "float64", "int64", "uint8", ...),
    `byte_offset` the place of its first element in the file, `strides` count elements.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    path: Path
    byte_offset: int
    strides: tuple[int, ...]

    def read(self) -> NDArray[Any]:
        """Returns the values as a contiguous array of this shape and dtype (bfloat16 as float32).

        Raises CheckpointError if the file has become shorter or unreadable since it was opened.
        """
        stored_as = _STORED_AS[self.dtype]
        if 0 in self.shape:
            flat = np.empty(0, stored_as)
        else:
            span = 1 + sum((n - 1) * stride for n, stride in zip(self.shape, self.strides))
            flat = self._read_span(span, stored_as)
        # A dimension of 1 may carry any stride; 0 keeps it from overflowing.
        steps = [
            stride * stored_as.itemsize if n > 1 else 0
            for n, stride in zip(self.shape, self.strides)
        ]
        view = np.lib.stride_tricks.as_strided(flat, self.shape, steps)
        values = np.asarray(view, dtype=stored_as.newbyteorder("="), order="C")
        if self.dtype == "bfloat16":
            widened = values.astype(np.uint32)
            widened <<= 16
            return widened.view(np.float32)
        if self.dtype == "bool":
            return values.astype(np.bool_)
        return values

    @property
    def nbytes(self) -> int:
        """Bytes of the elements, as stored."""
        return math.prod(self.shape) * _STORED_AS[self.dtype].itemsize

    def same_data(self, other: LazyTensor) -> bool:
        """Whether both names refer to the same elements of one file, as tied weights do."""
        mine = (self.path, self.byte_offset, self.dtype, self.shape, self.strides)
        return mine == (other.path, other.byte_offset, other.dtype, other.shape, other.strides)

    def _read_span(self, count: int, stored_as: np.dtype[Any]) -> NDArray[Any]:
        try:
            flat: NDArray[Any] = np.fromfile(
                self.path, dtype=stored_as, count=count, offset=self.byte_offset
            )
        except (OSError, ValueError) as error:
            raise CheckpointError(self.path, f"cannot be read: {error}", tensor=self.name) from None
        if flat.size != count:
            problem = f"expected {count} elements at byte {self.byte_offset}, found {flat.size}"
            raise CheckpointError(self.path, problem, tensor=self.name)
        return flat


@dataclass(frozen=True)
class Contents:
    """What one file, or all shards of an index, hold; names as in the file."""

    tensors: dict[str, LazyTensor]
    files: tuple[Path, ...]
    container: Container
    wrapper: str | None = None


def read_container(path: Path) -> Contents:
    """Reads the tables of one file, of the kind that its content shows. Raises CheckpointError."""
    with path.open("rb") as file:
        head = file.read(512)
    # safetensors first: it begins with a length, whose first byte may be any other kind's.
    if is_safetensors(head):
        return _read_safetensors(path)
    if head.startswith(b"PK\x03\x04"):
        return _read_zip(path)
    if head.startswith(b"\x80"):
        return _read_legacy(path)
    raise CheckpointError(path, f"is not a PyTorch or safetensors checkpoint but {_describe(head)}")


def is_safetensors(head: bytes) -> bool:
    """Whether a file begins with a header length below 4 GiB and a JSON object."""
    return head[4:9] == b"\0\0\0\0{"


def _describe(head: bytes) -> str:
    if not head:
        return "an empty file"
    if head.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer; fetch the file itself with `git lfs pull`"
    if head.startswith(b"\x89HDF"):
        return "an HDF5 file (Keras/TensorFlow)"
    if head.startswith((b"GGUF", b"\x1f\x8b")):
        return "a GGUF or gzip file"
    if head[257:262] == b"ustar":
        return "a tar file (torch before 0.2, or an archive to unpack)"
    if all(byte in b"\t\n\r" or 32 <= byte < 127 for byte in head):
        return f"a text file beginning {head[:40].decode('ascii')!r}"
    return f"a file beginning with bytes {head[:8].hex(' ')}"


def parse_json(path: Path, data: bytes) -> dict[str, Any]:
    """Returns the JSON object in `data`; `path` is for the CheckpointError that it may raise."""

    def without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            raise ValueError("a key appears twice")
        return result

    try:
        parsed = json.loads(data.decode("utf-8"), object_pairs_hook=without_duplicates)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(path, f"not valid JSON: {error}") from None
    if not isinstance(parsed, dict):
        raise CheckpointError(path, f"expected a JSON object, found {type(parsed).__name__}")
    return parsed


# The zip container: <prefix>/data.pkl, <prefix>/data/<storage key>, <prefix>/byteorder


def _read_zip(path: Path) -> Contents:
    archive = _StoredZip(path)
    pickles = [name for name in archive.entries if name.partition("/")[2] == "data.pkl"]
    if len(pickles) != 1:
        raise CheckpointError(path, "is a zip file, but not one that torch.save wrote: no data.pkl")
    prefix = pickles[0][: -len("data.pkl")]
    if prefix + "constants.pkl" in archive.entries:
        raise CheckpointError(path, "is a TorchScript archive; save model.state_dict() instead")
    if prefix + "byteorder" in archive.entries:
        order = archive.read(prefix + "byteorder", limit=16)
        if order != b"little":
            raise CheckpointError(path, f"byte order: expected little, found {order!r}")
    unpickler = Unpickler(io.BytesIO(archive.read(pickles[0], limit=MAX_PICKLE_BYTES)), path)
    root = unpickler.load()
    places: dict[str, int] = {}
    for storage in unpickler.storages.values():
        name = f"{prefix}data/{storage.key}"
        if name not in archive.entries:
            raise CheckpointError(path, f"storage '{storage.key}' is not in the zip")
        places[storage.key], available = archive.locate(name)
        _check_storage_bytes(path, storage, available)
    return _from_pickle(path, "zip", root, places)


# All that zipfile raises for a file that it cannot make sense of.
_DAMAGED_ZIP = (zipfile.BadZipFile, struct.error, ValueError, NotImplementedError, OverflowError)


class _StoredZip:
    """A zip whose entries are stored plainly. Names are looked up, nothing is unpacked to a path.

    `_LOCAL_HEADER` holds a signature, the length of the name and that of the extra field.
    """

    _LOCAL_HEADER = struct.Struct("<4s22xHH")
    _ENCRYPTED = 0x1

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file_bytes = path.stat().st_size
        self.entries: dict[str, zipfile.ZipInfo] = {}
        try:
            with zipfile.ZipFile(path) as archive:
                infos = archive.infolist()
        except _DAMAGED_ZIP as error:
            raise CheckpointError(path, f"a damaged or truncated zip file: {error}") from None
        for info in infos:
            if info.filename in self.entries:
                raise CheckpointError(path, f"two zip entries are named '{info.filename}'")
            self.entries[info.filename] = info

    def locate(self, name: str) -> tuple[int, int]:
        """Returns where an entry's bytes begin and how many there are, all inside the file."""
        entry = self.entries[name]
        size = entry.file_size
        stored = entry.compress_type == zipfile.ZIP_STORED and entry.compress_size == size
        if not stored or entry.flag_bits & self._ENCRYPTED:
            problem = f"zip entry '{name}' is compressed or encrypted, expected plain"
            raise CheckpointError(self.path, problem)
        header = b""
        if 0 <= entry.header_offset < self.file_bytes:
            header = self._read_at(entry.header_offset, self._LOCAL_HEADER.size)
        if len(header) < self._LOCAL_HEADER.size or not header.startswith(b"PK\x03\x04"):
            raise CheckpointError(self.path, f"zip entry '{name}' is not where the table says")
        _, name_bytes, extra_bytes = self._LOCAL_HEADER.unpack(header)
        begin = entry.header_offset + self._LOCAL_HEADER.size + name_bytes + extra_bytes
        if begin + size > self.file_bytes:
            problem = (
                f"zip entry '{name}' ends at byte {begin + size} of a file of {self.file_bytes}"
            )
            raise CheckpointError(self.path, problem)
        return begin, size

    def read(self, name: str, limit: int) -> bytes:
        """Returns an entry's bytes, at most `limit` of them."""
        begin, size = self.locate(name)
        if size > limit:
            problem = f"zip entry '{name}': expected at most {limit} bytes, found {size}"
            raise CheckpointError(self.path, problem)
        return self._read_at(begin, size)

    def _read_at(self, offset: int, size: int) -> bytes:
        with self.path.open("rb") as file:
            file.seek(offset)
            return file.read(size)


# The legacy container: five pickles (magic, protocol, system, object, storage keys), then the
# storages in the order of the keys, each an 8-byte element count and its elements

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001


def _read_legacy(path: Path) -> Contents:
    file_bytes = path.stat().st_size
    with path.open("rb") as file:
        stream = io.BytesIO(file.read(MAX_PICKLE_BYTES))
        if not _equals(Unpickler(stream, path).load(), _LEGACY_MAGIC):
            raise CheckpointError(path, "is a pickle, but not one that torch.save wrote")
        if not _equals(Unpickler(stream, path).load(), _LEGACY_PROTOCOL):
            raise CheckpointError(path, f"expected torch.save's protocol {_LEGACY_PROTOCOL}")
        system = Unpickler(stream, path).load()
        if type(system) is not dict or system.get("little_endian") is not True:
            raise CheckpointError(path, "byte order: expected little, found big or none")
        unpickler = Unpickler(stream, path)
        root = unpickler.load()
        keys = Unpickler(stream, path).load()
        if type(keys) is not list or any(type(key) is not str for key in keys):
            raise CheckpointError(path, "the list of storages is not a list of names")

        places: dict[str, int] = {}
        position = stream.tell()
        for key in keys:
            storage = unpickler.storages.get(key)
            if storage is None or key in places:
                raise CheckpointError(path, f"storage '{key}' is listed twice or used by no tensor")
            file.seek(position)
            count = int.from_bytes(file.read(8), "little")
            if count != storage.count:
                problem = f"storage '{key}': expected {storage.count} elements, found {count}"
                raise CheckpointError(path, problem)
            places[key] = position + 8
            _check_storage_bytes(path, storage, file_bytes - places[key])
            position = places[key] + storage.count * _STORED_AS[storage.dtype].itemsize
    for key in unpickler.storages:
        if key not in places:
            raise CheckpointError(path, f"storage '{key}' is not in the file")
    return _from_pickle(path, "legacy", root, places)


def _equals(value: object, expected: int) -> bool:
    """Compares without asking a nested object from the file to compare itself."""
    return type(value) is int and value == expected


def _check_storage_bytes(path: Path, storage: Storage, available: int) -> None:
    needed = storage.count * _STORED_AS[storage.dtype].itemsize
    if needed > available:
        problem = (
            f"storage '{storage.key}': expected {needed} bytes "
            f"({storage.count} {storage.dtype}), found {max(available, 0)}"
        )
        raise CheckpointError(path, problem)


# From the unpickled object to its state dict

_WRAPPERS = ("state_dict", "model_state_dict", "model", "module")


def _from_pickle(path: Path, kind: Container, root: object, places: dict[str, int]) -> Contents:
    state, wrapper = _unwrap(path, root)
    tensors: dict[str, LazyTensor] = {}
    for name, stored in state.items():
        dtype = stored.storage.dtype
        start = places[stored.storage.key] + stored.offset * _STORED_AS[dtype].itemsize
        tensors[name] = LazyTensor(name, dtype, stored.shape, path, start, stored.strides)
    return Contents(tensors, (path,), kind, wrapper)


def _unwrap(path: Path, root: object) -> tuple[dict[str, StoredTensor], str | None]:
    """Finds the state dict: what a wrapper key holds if that has tensors, else the object itself.

    Wrappers come first because training scripts also store a loss or a metric as a tensor beside
    the state dict.
    """
    state = root
    wrapper = None
    if type(root) is dict:
        inner = [key for key in _WRAPPERS if _holds_tensors(root.get(key))]
        if len(inner) > 1:
            raise CheckpointError(path, f"holds several models: {', '.join(inner)}")
        if inner:
            wrapper = inner[0]
            state = root[wrapper]
    if type(state) is dict:
        tensors = {name: value for name, value in state.items() if type(value) is StoredTensor}
        if tensors:
            return tensors, wrapper
    found = type(root).__name__
    if type(root) is dict:
        found = f"a dictionary with the keys {', '.join(list(root)[:10]) or '(none)'}"
    raise CheckpointError(path, f"expected a state dict (names and tensors), found {found}")


def _holds_tensors(value: object) -> bool:
    return type(value) is dict and any(type(item) is StoredTensor for item in value.values())


# safetensors

_SAFETENSORS_DTYPES = {
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
    "I8": "int8",
    "I16": "int16",
    "I32": "int32",
    "I64": "int64",
    "U8": "uint8",
    "BOOL": "bool",
}


def _read_safetensors(path: Path) -> Contents:
    file_bytes = path.stat().st_size
    with path.open("rb") as file:
        header_bytes = int.from_bytes(file.read(8), "little")
        if header_bytes > min(MAX_JSON_BYTES, file_bytes - 8):
            raise CheckpointError(path, f"a header of {header_bytes} bytes does not fit the file")
        header = parse_json(path, file.read(header_bytes))
    header.pop("__metadata__", None)
    data_start = 8 + header_bytes
    tensors: dict[str, LazyTensor] = {}
    extents: list[tuple[int, int, str]] = []
    for name, entry in header.items():
        dtype, shape, begin, end = _safetensors_entry(path, name, entry)
        extents.append((begin, end, name))
        strides = tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))
        tensors[name] = LazyTensor(name, dtype, shape, path, data_start + begin, strides)
    covered = 0
    for begin, end, name in sorted(extents):
        if begin != covered:
            problem = f"expected its data to begin at byte {covered}, found {begin}"
            raise CheckpointError(path, problem, tensor=name)
        covered = end
    if data_start + covered != file_bytes:
        problem = f"expected a file of {data_start + covered} bytes, found {file_bytes}"
        raise CheckpointError(path, problem)
    if not tensors:
        raise CheckpointError(path, "holds no tensors")
    return Contents(tensors, (path,), "safetensors")


def _safetensors_entry(
    path: Path, name: str, entry: object
) -> tuple[str, tuple[int, ...], int, int]:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError(path, "expected dtype, shape and data_offsets", tensor=name)
    stored_dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(stored_dtype, str) or stored_dtype not in _SAFETENSORS_DTYPES:
        found = stored_dtype if isinstance(stored_dtype, str) else type(stored_dtype).__name__
        problem = f"dtype: expected one of {', '.join(_SAFETENSORS_DTYPES)}, found {found}"
        raise CheckpointError(path, problem, tensor=name)
    dtype = _SAFETENSORS_DTYPES[stored_dtype]
    if not _are_sizes(shape) or not _are_sizes(offsets) or len(offsets) != 2:
        raise CheckpointError(path, "shape or data_offsets are not sizes", tensor=name)
    if len(shape) > MAX_RANK or math.prod(max(n, 1) for n in shape) > MAX_ELEMENTS:
        raise CheckpointError(path, f"shape {shape} is too large", tensor=name)
    begin, end = offsets
    needed = math.prod(shape) * _STORED_AS[dtype].itemsize
    if end - begin != needed:
        problem = f"shape {shape} of {dtype} needs {needed} bytes, found {end - begin}"
        raise CheckpointError(path, problem, tensor=name)
    return dtype, tuple(shape), begin, end


def _are_sizes(value: object) -> bool:
    return isinstance(value, list) and all(type(n) is int and n >= 0 for n in value)
