"""`Model`: a .bitm file that answers."""

from __future__ import annotations

import contextlib
import os
import threading
import warnings
import weakref
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from bitm import _native
from bitm._arrays import IntArray, int_array, pad, padding_mask
from bitm._filling import describe, mask_positions
from bitm._native import Floats, Int32s, Library, Session
from bitm.errors import InputError
from bitm.tasks import Tasks

if TYPE_CHECKING:
    from pathlib import Path

_models: weakref.WeakSet[Model] = weakref.WeakSet()


def demo_path() -> Path:
    """Where the demo model is: the package is always a folder, as its library is a file of it."""
    from pathlib import Path  # 8 ms, which opening a model has no need of

    return Path(__file__).parent / "data/demo.bitm"


class Model(Tasks):
    """A model file, opened: immutable, safe to share between threads, picklable, safe after fork.

    Every thread that runs at the same time gets a session (working memory and worker threads) of
    its own; sessions are kept and used again.

    Args:
        path: the .bitm file.
        threads: threads of one run; None: as many as this process may use CPUs.
        device: "cpu", "cuda", "cuda:N" for GPU number N, or "auto": the first GPU where the package
            has the library for it and it can run the model, otherwise the CPU.
        activations: arithmetic of activations where the file leaves it open: "int8" (attention
            included), "int16" (inputs of linears alone; close to float32 at integer speed), "int11"
            (as int16, of fewer codes, which most processors multiply faster), "float32", or "auto":
            the fastest that keeps the answers of float32, int11.
        kernels: "op=variant,..." forces kernels, for measurements. A GPU has one choice,
            "attention=tensor": attention on its tensor cores, faster, with a bound on its error
            instead of the CPU's bits (docs/cuda.md).

    Raises:
        FormatError: the file is not a sound .bitm file.
        UnsupportedError: the file asks for something that this version or machine does not run.
        InputError: an argument is wrong.
        DeviceError: the GPU that is asked for cannot be used.
        BitmError: the file cannot be read, or memory or threads are refused.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        threads: int | None = None,
        device: str = "auto",
        activations: str = "auto",
        kernels: str | None = None,
    ) -> None:
        if activations not in _native.ACTIVATIONS:
            choices = ", ".join(_native.ACTIVATIONS)
            raise InputError(f"activations is {activations!r}, expected one of {choices}")
        if threads is not None and threads < 1:
            raise InputError(f"threads is {threads}, expected at least 1")
        self._arguments = (os.fspath(path), threads, device, activations, kernels)
        self._activations = activations
        self._threads = threads or 0
        self._library = Library(os.fspath(path), kernels, device)
        self._lock = threading.Lock()
        self._idle: list[Session] = []
        self._n_running = 0
        self._closed = False
        _models.add(self)

    @classmethod
    def demo(
        cls,
        threads: int | None = None,
        device: str = "auto",
        activations: str = "auto",
        kernels: str | None = None,
    ) -> Model:
        """Opens the model that comes with the package: an uncased English 1-bit masked LM.

        MODEL_CARD.md says what it was made of and what it is worth. Arguments and errors are those
        of the class.
        """
        return cls(demo_path(), threads, device, activations, kernels)

    # ---- Life ----

    def close(self) -> None:
        """Frees the model, as soon as runs in other threads have ended.  May be called again."""
        with self._lock:
            self._closed = True
            self._free_when_unused()

    def _free_when_unused(self) -> None:
        """Under the lock."""
        while self._idle:
            self._idle.pop().free()
        if self._n_running == 0 and self._library.handle:
            self._library.close()

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        # Without the attribute, __init__ failed before there was anything to free.
        if hasattr(self, "_closed"):
            self.close()

    def __reduce__(self) -> tuple[type[Model], tuple[Any, ...]]:
        return Model, self._arguments

    def __repr__(self) -> str:
        return f"Model({self._arguments[0]!r})"

    @contextlib.contextmanager
    def _use(self) -> Iterator[Library]:
        """Keeps the library open while it is used."""
        with self._lock:
            if self._closed:
                raise InputError(f"{self!r} is closed")
            self._n_running += 1
        try:
            yield self._library
        finally:
            with self._lock:
                self._n_running -= 1
                if self._closed:
                    self._free_when_unused()

    @contextlib.contextmanager
    def _session(self, n_sequences: int, length: int) -> Iterator[Session]:
        """Lends a session that has room for the batch."""
        with self._use() as library:
            session = self._idle_session(n_sequences, length)
            if session is None:
                max_batch, max_length = self._room(n_sequences, length)
                session = Session(library, max_batch, max_length, self._threads, self._activations)
            try:
                yield session
            finally:
                with self._lock:
                    self._idle.append(session)

    def _idle_session(self, n_sequences: int, length: int) -> Session | None:
        """Takes the newest idle session if it has the room; frees it if it has not."""
        with self._lock:
            if not self._idle:
                return None
            session = self._idle.pop()
        if session.max_batch >= n_sequences and session.max_length >= length:
            return session
        session.free()
        return None

    def _room(self, n_sequences: int, length: int) -> tuple[int, int]:
        """Rounds up, so that a session of a growing input is not made anew at every length."""
        most = self._library.properties["max_positions"]
        if length > most:
            raise InputError(
                f"sequences of {length} tokens, but the model has {most} positions", 60, "TOO_LONG"
            )
        # The memory of a session does not grow with max_batch beyond what is run at once.
        return (1 if n_sequences == 1 else 2**31), min(most, 1 << (length - 1).bit_length())

    # ---- What is in it ----

    @property
    def info(self) -> dict[str, Any]:
        """What is in the file and what runs it.

        Sizes are in bytes; `kernels` maps each operation that the model runs to the variant chosen
        for this machine.
        """
        mode = "int11" if self._activations == "auto" else self._activations
        with self._use() as library:
            chosen = {
                kernel["op"]: kernel["variant"]
                for kernel in library.kernels()
                if mode in kernel["modes"]
            }
            length = min(128, library.properties["max_positions"])
            memory = Session.memory(library, 1, length, self._threads, self._activations)
            return {
                "path": self._arguments[0],
                **library.properties,
                "session_bytes_1x128": memory,
                "activations": mode,
                "device": library.device,
                "threads": self._threads or self._default_threads(),
                "kernels": chosen,
                "metadata": library.metadata(),
                "version": _native.version(),
            }

    def _default_threads(self) -> int:
        with self._session(1, 1) as session:
            return session.threads

    def verify(self) -> None:
        """Reads the whole file and checks it (formats/SPEC.md section 5, step 13).

        Raises:
            FormatError: the data are damaged.
        """
        with self._use() as library:
            library.verify()

    # ---- Text ----

    def tokenize(self, text: str) -> list[int]:
        """Returns the ids of a text, [CLS] and [SEP] included, as transformers' BertTokenizer does.

        Raises:
            InputError: the file carries no vocabulary, or the text has lone surrogates.
        """
        with self._use() as library:
            return cast("list[int]", library.tokenize(text).tolist())

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        """Returns the text of ids, as transformers' `decode` does.

        Raises:
            InputError: the file carries no vocabulary, or an id is none of its tokens.
        """
        with self._use() as library:
            return library.decode(np.asarray(ids, np.int32), skip_special_tokens)

    def fill_mask(
        self,
        text: str | Sequence[str],
        top_k: int = 5,
        targets: str | Sequence[str] | None = None,
    ) -> list[Any]:
        """Fills the mask tokens of a text, as the transformers fill-mask pipeline does.

        Args:
            text: a text with at least one mask token, or a list of such texts.
            top_k: how many predictions for each mask.
            targets: words to choose from; a word that is no token counts by its first piece.

        Returns:
            For one mask a list of {"score", "token", "token_str", "sequence"}, best first; for
            several masks a list of such lists; for a list of texts a list of these.  Scores are
            probabilities over the whole vocabulary.

        Raises:
            InputError: a text has no mask or is too long, or an argument is wrong.
        """
        if isinstance(text, str):
            return self._fill_masks([text], top_k, targets)[0]
        return self._fill_masks(list(text), top_k, targets)

    def _fill_masks(
        self, texts: list[str], top_k: int, targets: str | Sequence[str] | None
    ) -> list[list[Any]]:
        if top_k < 1:
            raise InputError(f"top_k is {top_k}, expected at least 1")
        if not texts:
            return []
        with self._use() as library:
            target_ids = None if targets is None else self._target_ids(library, targets)
            most = library.properties["vocab_size"] if target_ids is None else len(target_ids)
            encoded = [library.tokenize(text) for text in texts]
            positions = mask_positions(encoded, library.properties["mask_id"])
            # What answers leave out; runs do by the mask, also where the vocabulary has none: -1.
            input_ids = pad(encoded, library.properties["pad_id"])
            with self._session(*input_ids.shape) as session:
                best = session.top_k(
                    input_ids, padding_mask(encoded), positions, min(top_k, most), target_ids
                )
            return describe(library, input_ids, positions, best)

    @staticmethod
    def _target_ids(library: Library, targets: str | Sequence[str]) -> Int32s:
        found = set()
        for target in [targets] if isinstance(targets, str) else targets:
            token = library.token_id(target)
            if token < 0:
                ids = library.tokenize(target)
                special = [library.properties["cls_id"], library.properties["sep_id"]]
                pieces = ids[special[0] >= 0 : len(ids) - (special[1] >= 0)]
                if len(pieces) == 0:
                    warnings.warn(f"target {target!r} has no token: left out", stacklevel=4)
                    continue
                token = int(pieces[0])
                used = library.decode(pieces[:1])
                warnings.warn(f"target {target!r} is no token: {used!r} is used", stacklevel=4)
            found.add(token)
        if not found:
            raise InputError("targets: none of them has a token")
        return np.array(sorted(found), np.int32)

    # ---- Arrays ----

    def logits(
        self,
        input_ids: IntArray,
        attention_mask: IntArray | None = None,
        token_type_ids: IntArray | None = None,
        positions: IntArray | None = None,
    ) -> Floats:
        """Returns the logits of the model's head.

        Args:
            input_ids: ints [B, S].
            attention_mask: ints [B, S], 0 where padding; None: no padding.
            token_type_ids: ints [B, S]; None: all 0.
            positions: ints [B, P]: masked-LM logits at these tokens alone; -1: none there.

        Returns:
            float32: masked LM [B, S, V], or [B, P, V] with positions; sequence classifier [B, C];
            token classifier [B, S, C]; question answering [B, S, 2] (start, end).  0 at padding.

        Raises:
            InputError: shapes differ, an id or a position is out of range, S is more than the
                model's positions, or the model has no head.
        """
        ids, mask, types = self._arrays(input_ids, attention_mask, token_type_ids)
        properties = self._library.properties
        n_sequences, length = ids.shape
        head, n_labels = properties["head"], properties["n_labels"]
        chosen = None
        if positions is not None:
            if head not in (1, 2):
                raise InputError("positions are for models with a masked-LM head")
            chosen = int_array(positions, "positions")
            if chosen.shape[0] != n_sequences:
                raise InputError(
                    f"positions has {chosen.shape[0]} rows, input_ids has {n_sequences}"
                )
        rows = length if chosen is None else chosen.shape[1]
        shape = {
            1: (n_sequences, rows, properties["vocab_size"]),
            2: (n_sequences, rows, properties["vocab_size"]),
            3: (n_sequences, n_labels),
        }.get(head, (n_sequences, length, n_labels))
        output = np.empty(shape, np.float32)
        with self._session(n_sequences, length) as session:
            session.run(ids, mask, types, chosen, output)
        return output

    def hidden_states(
        self,
        input_ids: IntArray,
        attention_mask: IntArray | None = None,
        token_type_ids: IntArray | None = None,
        layer: int = -1,
    ) -> Floats:
        """Returns the hidden states after a layer, float32 [B, S, H]; 0 at padding.

        Args:
            input_ids: ints [B, S].
            attention_mask: ints [B, S], 0 where padding; None: no padding.
            token_type_ids: ints [B, S]; None: all 0.
            layer: 0 for the embeddings, N after layer N, -1 after the last.

        Raises:
            InputError: as for `logits`, or there is no such layer.
        """
        ids, mask, types = self._arrays(input_ids, attention_mask, token_type_ids)
        output = np.empty((*ids.shape, self._library.properties["hidden_size"]), np.float32)
        with self._session(*ids.shape) as session:
            session.run(
                ids, mask, types, None, output, kind=_native.OUTPUT_HIDDEN_STATES, layer=layer
            )
        return output

    @staticmethod
    def _arrays(
        input_ids: IntArray, attention_mask: IntArray | None, token_type_ids: IntArray | None
    ) -> tuple[Int32s, Int32s | None, Int32s | None]:
        ids = int_array(input_ids, "input_ids")
        others = []
        for name, array in (("attention_mask", attention_mask), ("token_type_ids", token_type_ids)):
            checked = None if array is None else int_array(array, name)
            if checked is not None and checked.shape != ids.shape:
                raise InputError(
                    f"{name} has shape {list(checked.shape)}, input_ids has {list(ids.shape)}"
                )
            others.append(checked)
        return ids, others[0], others[1]


def _after_fork_in_child() -> None:
    """Threads that held a lock do not exist in the child; their sessions are lost to it."""
    for model in list(_models):
        model._lock = threading.Lock()
        model._n_running = 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
