"""libbitm through cffi: the only file that touches `ffi`.

Arrays are C-contiguous numpy arrays of the stated dtype; every failure of the library becomes a
`BitmError`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from bitm._cdef import ffi
from bitm.errors import BitmError, error_class

Int32s = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float32]
Spans = npt.NDArray[np.int64]

ACTIVATIONS = {"auto": 0, "int8": 1, "int16": 2, "float32": 3, "int11": 4}
OUTPUT_LOGITS, OUTPUT_HIDDEN_STATES = 0, 1
PREDICTION = np.dtype([("score", np.float32), ("token", np.int32)])


def _open_library() -> Any:
    name = {"win32": "bitm.dll", "darwin": "libbitm.dylib"}.get(sys.platform, "libbitm.so")
    for folder in _library_folders():
        path = os.path.join(folder, name)
        if os.path.exists(path):
            return ffi.dlopen(path)
    raise ImportError(f"bitm: {name} is not beside {__file__}: is the package built?")


def _library_folders() -> list[str]:
    """Beside this file in a wheel; in site-packages/bitm for an editable install."""
    here = os.path.dirname(os.path.realpath(__file__))
    return [here, *(os.path.join(entry, "bitm") for entry in sys.path if entry)]


lib = _open_library()


def version() -> str:
    """Returns the version of the library."""
    return _string(lib.bitm_version())


def why_no_gpu() -> str:
    """Returns in one line why no GPU can be used; "" where one can."""
    error = ffi.new("bitm_error *")
    return "" if lib.bitm_device_probe(ffi.NULL, error) == 0 else _string(error.message)


def describe_device(name: str) -> str:
    """Returns in one line what a device is: "cpu", or a GPU and what it multiplies with.

    Raises:
        DeviceError: `name` ("cpu", "auto", "cuda", "cuda:N") cannot be used.
    """
    error = ffi.new("bitm_error *")
    _check(lib.bitm_device_probe(name.encode(), error), error)
    return _string(error.message)


def _string(pointer: Any) -> str:
    return str(ffi.string(pointer).decode())


def _check(status: int, error: Any) -> None:
    if status == 0:
        return
    name = _string(lib.bitm_status_name(status))
    message = ffi.string(error.message).decode(errors="replace")
    raise error_class(name)(message, status, name)


def _in_characters(spans: npt.NDArray[np.uintp], data: bytes) -> Spans:
    """Converts places in bytes of UTF-8 to places in characters."""
    begins_character = (np.frombuffer(data, np.uint8) & 0xC0) != 0x80
    n_before = np.zeros(len(data) + 1, np.int64)
    np.cumsum(begins_character, out=n_before[1:])
    return n_before[spans]


def _utf8(text: str) -> bytes:
    """Encodes a text; lone surrogates, which UTF-8 has not, are refused by the library."""
    return text.encode("utf-8", "surrogatepass")


def _options(kind: str, **fields: object) -> Any:
    options = ffi.new(f"{kind} *", fields)
    options.struct_size = ffi.sizeof(kind)
    return options


def _fields(pointer: Any) -> dict[str, int]:
    """The numbers of a struct, but for its size."""
    fields = ffi.typeof(pointer).item.fields
    return {name: getattr(pointer, name) for name, _ in fields if name != "struct_size"}


def _int32s(array: Int32s | None) -> Any:
    return ffi.NULL if array is None else ffi.from_buffer("int32_t[]", array)


class Library:
    """An opened model file: what is in it, its tokenizer, its kernels."""

    def __init__(self, path: str, kernels: str | None = None, device: str = "cpu") -> None:
        """Opens the file.

        Raises:
            FormatError: it is not a sound .bitm file.
            BitmError: it cannot be read.
            InputError, UnsupportedError: `kernels` ("op=variant,...") cannot be had.
            DeviceError: `device` ("cpu", "auto", "cuda", "cuda:N") cannot be used.
        """
        error, handle = ffi.new("bitm_error *"), ffi.new("bitm_model **")
        forced = ffi.NULL if kernels is None else ffi.new("char[]", kernels.encode())
        chosen = ffi.new("char[]", device.encode())
        options = _options("bitm_model_options", kernels=forced, device=chosen)
        _check(lib.bitm_model_open(_path_bytes(path), options, handle, error), error)
        self.handle = handle[0]
        self.properties = self._properties()
        self.device = _string(lib.bitm_model_device(self.handle))

    def close(self) -> None:
        """Frees the model; its sessions must be gone."""
        lib.bitm_model_close(self.handle)
        self.handle = ffi.NULL

    def verify(self) -> None:
        """Reads all data and checks it; raises FormatError."""
        error = ffi.new("bitm_error *")
        _check(lib.bitm_model_verify(self.handle, error), error)

    def _properties(self) -> dict[str, int]:
        error = ffi.new("bitm_error *")
        properties = _options("bitm_model_properties")
        _check(lib.bitm_model_info(self.handle, properties, error), error)
        return _fields(properties)

    def metadata(self) -> dict[str, str]:
        """Returns the metadata of the file."""
        entry, found = ffi.new("bitm_metadata *"), {}
        while lib.bitm_model_next_metadata(self.handle, entry):
            key = ffi.buffer(entry.key, entry.n_key_bytes)[:].decode()
            found[key] = ffi.buffer(entry.value, entry.n_value_bytes)[:].decode()
        return found

    def kernels(self) -> list[dict[str, Any]]:
        """Returns every kernel of the library: op, variant, available here, chosen, modes."""
        return list(_list_kernels(self.handle))

    def tokenize(self, text: str) -> Int32s:
        """Returns the ids of a text, [CLS] and [SEP] included: int32 [n]."""
        return self._tokenize(_utf8(text), None)

    def encode(self, text: str) -> tuple[Int32s, Spans]:
        """Returns the ids of a text, and which of its characters [begin, end) each comes from.

        Returns:
            int32 [n], [CLS] and [SEP] included, and int64 [n, 2], (0, 0) for these two.
        """
        data = _utf8(text)
        spans = np.empty((len(data) + 2, 2), np.uintp)
        ids = self._tokenize(data, spans)
        return ids, _in_characters(spans[: len(ids)], data)

    def _tokenize(self, data: bytes, spans: npt.NDArray[np.uintp] | None) -> Int32s:
        error, n_ids = ffi.new("bitm_error *"), ffi.new("size_t *")
        # A token covers at least one byte, and two are added: this is always enough.
        ids: Int32s = np.empty(len(data) + 2, np.int32)
        room = ffi.NULL if spans is None else ffi.from_buffer("bitm_span[]", spans)
        status = lib.bitm_tokenize(
            self.handle, data, len(data), _int32s(ids), room, len(ids), n_ids, error
        )
        _check(status, error)
        n: int = n_ids[0]
        assert n <= len(ids), "a token covers at least one byte"
        found: Int32s = ids[:n].copy()
        return found

    def decode(self, ids: Int32s, skip_special_tokens: bool = False) -> str:
        """Returns the text of ids, as transformers' `decode` does."""
        return self.decode_rows(ids, [len(ids)], skip_special_tokens)[0]

    def decode_rows(
        self, ids: Int32s, ends: list[int], skip_special_tokens: bool = False
    ) -> list[str]:
        """Returns the text of every row of ids; row r ends before ids[ends[r]]."""
        error, text_ends = ffi.new("bitm_error *"), ffi.new("size_t[]", len(ends))
        arguments = (self.handle, _int32s(ids), ends, len(ends), skip_special_tokens)
        room = 16 * len(ids) + 16
        while True:
            text = ffi.new("char[]", room)
            _check(lib.bitm_decode_rows(*arguments, text, room, text_ends, error), error)
            offsets = [0, *text_ends]
            if offsets[-1] < room:
                data = ffi.buffer(text, offsets[-1])[:]
                return [data[a:b].decode() for a, b in zip(offsets, offsets[1:])]
            room = offsets[-1] + 1

    def spellings(self, ids: Int32s) -> list[str]:
        """Returns the text of each id alone."""
        return self.decode_rows(ids, list(range(1, len(ids) + 1)))

    def token_id(self, token: str) -> int:
        """Returns the id of a token, -1 where the vocabulary has none of that spelling."""
        data = _utf8(token)
        return int(lib.bitm_token_id(self.handle, data, len(data)))


def _path_bytes(path: str) -> bytes:
    # The library takes UTF-8 on Windows, and the system's own bytes elsewhere.
    return path.encode() if sys.platform == "win32" else path.encode(errors="surrogateescape")


def _list_kernels(handle: Any) -> Iterator[dict[str, Any]]:
    n = lib.bitm_kernels(handle, ffi.NULL, 0)
    kernels = ffi.new("bitm_kernel[]", n)
    lib.bitm_kernels(handle, kernels, n)
    for kernel in kernels:
        yield {
            "op": _string(kernel.op),
            "variant": _string(kernel.variant),
            "available": bool(kernel.available),
            "chosen": bool(kernel.chosen),
            "modes": [name for name, mode in ACTIVATIONS.items() if kernel.modes >> mode & 1],
        }


def default_kernels() -> list[dict[str, Any]]:
    """Returns the kernels of the library, with those that a model takes by default."""
    return list(_list_kernels(ffi.NULL))


class Session:
    """The working memory and threads of one caller at a time."""

    def __init__(
        self, library: Library, max_batch: int, max_length: int, threads: int, activations: str
    ) -> None:
        """Takes the memory and starts the threads; raises BitmError."""
        error, handle = ffi.new("bitm_error *"), ffi.new("bitm_session **")
        options = self._session_options(max_batch, max_length, threads, activations)
        _check(lib.bitm_session_create(library.handle, options, handle, error), error)
        self.handle = handle[0]
        self.max_batch = max_batch
        self.max_length = max_length

    @staticmethod
    def _session_options(max_batch: int, max_length: int, threads: int, activations: str) -> Any:
        return _options(
            "bitm_session_options",
            max_batch=max_batch,
            max_length=max_length,
            n_threads=threads,
            activations=ACTIVATIONS[activations],
        )

    @classmethod
    def memory(
        cls, library: Library, max_batch: int, max_length: int, threads: int, activations: str
    ) -> int:
        """Returns the bytes that such a session takes."""
        error, n_bytes = ffi.new("bitm_error *"), ffi.new("size_t *")
        options = cls._session_options(max_batch, max_length, threads, activations)
        _check(lib.bitm_session_bytes(library.handle, options, n_bytes, error), error)
        return int(n_bytes[0])

    @property
    def threads(self) -> int:
        """The threads that compute, the caller's included."""
        return int(lib.bitm_session_threads(self.handle))

    def free(self) -> None:
        """Ends the threads and frees the memory."""
        lib.bitm_session_free(self.handle)
        self.handle = ffi.NULL

    def run(
        self,
        input_ids: Int32s,
        attention_mask: Int32s | None,
        token_type_ids: Int32s | None,
        positions: Int32s | None,
        output: Floats,
        kind: int = OUTPUT_LOGITS,
        layer: int = -1,
    ) -> None:
        """Runs a batch [B, S] into `output` (see bitm_run)."""
        error = ffi.new("bitm_error *")
        batch = self._batch(input_ids, attention_mask, token_type_ids, positions)
        batch.output = kind
        batch.layer = layer
        _check(
            lib.bitm_run(self.handle, batch, _floats(output), output.size, error),
            error,
        )

    def top_k(
        self,
        input_ids: Int32s,
        attention_mask: Int32s | None,
        positions: Int32s,
        top_k: int,
        targets: Int32s | None,
    ) -> npt.NDArray[Any]:
        """Returns the best tokens, PREDICTION [B, P, top_k] (see bitm_run_top_k)."""
        error = ffi.new("bitm_error *")
        batch = self._batch(input_ids, attention_mask, None, positions)
        predictions = np.empty((*positions.shape, top_k), PREDICTION)
        n_targets = 0 if targets is None else len(targets)
        room = ffi.from_buffer("bitm_prediction[]", predictions)
        status = lib.bitm_run_top_k(
            self.handle, batch, top_k, _int32s(targets), n_targets, room, predictions.size, error
        )
        _check(status, error)
        return predictions

    @staticmethod
    def _batch(
        input_ids: Int32s,
        attention_mask: Int32s | None,
        token_type_ids: Int32s | None,
        positions: Int32s | None,
    ) -> Any:
        n_sequences, length = input_ids.shape
        return _options(
            "bitm_batch",
            n_sequences=n_sequences,
            length=length,
            n_positions=0 if positions is None else positions.shape[1],
            input_ids=_int32s(input_ids),
            attention_mask=_int32s(attention_mask),
            token_type_ids=_int32s(token_type_ids),
            positions=_int32s(positions),
        )


def _floats(array: Floats) -> Any:
    return ffi.from_buffer("float[]", array)


def softmax(logits: Floats) -> Floats:
    """Returns the softmax over the last axis of [..., n], the same bits on every machine."""
    scores = np.array(logits, np.float32, order="C")
    error = ffi.new("bitm_error *")
    n_columns = scores.shape[-1]
    n_rows = scores.size // n_columns
    _check(lib.bitm_softmax(_floats(scores), n_rows, n_columns, error), error)
    return scores


def sigmoid(logits: Floats) -> Floats:
    """Returns 1 / (1 + exp(-x)) of every element, the same bits on every machine."""
    scores = np.array(logits, np.float32, order="C")
    error = ffi.new("bitm_error *")
    _check(lib.bitm_sigmoid(_floats(scores), scores.size, error), error)
    return scores


def measure(
    path: str,
    kernels: str | None,
    max_batch: int,
    max_length: int,
    threads: int,
    activations: str,
) -> tuple[dict[str, int], dict[str, int]]:
    """Returns the memory that a file and a session of it would take, and the file's properties.

    Raises:
        BitmError: as Library and Session would.
    """
    error, memory = ffi.new("bitm_error *"), _options("bitm_memory")
    forced = ffi.NULL if kernels is None else ffi.new("char[]", kernels.encode())
    model_options = _options("bitm_model_options", kernels=forced)
    session_options = Session._session_options(max_batch, max_length, threads, activations)
    properties = _options("bitm_model_properties")
    status = lib.bitm_memory_measure(
        _path_bytes(path), model_options, session_options, properties, memory, error
    )
    _check(status, error)
    return _fields(memory), _fields(properties)


def open_memory(data: bytes, verify: bool) -> None:
    """Opens a file that lies in memory, verifies it if asked to, and closes it again.

    Raises:
        BitmError: what the library says of it.
    """
    room = np.zeros(len(data) + 64, np.uint8)
    aligned = room[-room.ctypes.data % 64 :][: len(data)]
    aligned[:] = np.frombuffer(data, np.uint8)
    error, handle = ffi.new("bitm_error *"), ffi.new("bitm_model **")
    bytes_ = ffi.from_buffer("char[]", aligned) if len(data) else ffi.cast("char *", 64)
    _check(lib.bitm_model_open_memory(bytes_, len(data), ffi.NULL, handle, error), error)
    try:
        if verify:
            _check(lib.bitm_model_verify(handle[0], error), error)
    finally:
        lib.bitm_model_close(handle[0])


__all__ = [
    "ACTIVATIONS",
    "OUTPUT_HIDDEN_STATES",
    "OUTPUT_LOGITS",
    "PREDICTION",
    "BitmError",
    "Library",
    "Session",
    "default_kernels",
    "measure",
    "open_memory",
    "sigmoid",
    "softmax",
    "version",
]
