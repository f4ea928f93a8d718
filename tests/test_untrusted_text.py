"""Text from strangers: long, broken, full of masks."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bitm import BitmError, Model, _native
from bitm._cdef import ffi


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Iterator[Model]:
    with Model(tiny_model, threads=1) as opened:
        yield opened


def seconds(model: Model, text: str) -> float:
    begin = time.process_time()
    model.tokenize(text)
    return time.process_time() - begin


@pytest.mark.parametrize(
    "unit",
    ["a b. ", "a", "\0", "\u4e2d", "e\u0301", "[MASK] ", "[MASK", "# ", "\u00a0", "\U0001f600"],
)
def test_tokenizing_takes_time_in_proportion(model: Model, unit: str) -> None:
    """Ten times the text: about ten times as long, up to 10 MB."""
    short, long = (unit * (n // len(unit.encode())) for n in (1_000_000, 10_000_000))
    seconds(model, short)
    assert seconds(model, long) < 40 * max(seconds(model, short), 0.005)


@pytest.mark.parametrize("text", ["[MASK] " * 100_000, "a " * 100_000 + "[MASK]", "a" * 10_000_000])
def test_texts_of_too_many_tokens_are_refused(model: Model, text: str) -> None:
    with pytest.raises(BitmError) as caught:
        model.fill_mask(text + " [MASK]" * 50)
    assert caught.value.name == "TOO_LONG"
    assert len(str(caught.value)) < 300


def test_nul_is_text(model: Model) -> None:
    assert model.fill_mask("a\0b [MASK]") == model.fill_mask("ab [MASK]")


@pytest.mark.parametrize("text", ["\ud800", "a \udfff b [MASK]", "\ud83d [MASK]"])
def test_lone_surrogates_are_refused(model: Model, text: str) -> None:
    with pytest.raises(BitmError) as caught:
        model.tokenize(text)
    assert caught.value.name == "TEXT"


@pytest.mark.parametrize(
    "data",
    [
        b"\x80",  # a continuation byte alone
        b"a\xff",
        b"\xc3",  # cut short
        b"\xe4\xb8",
        b"\xc0\xaf",  # overlong
        b"\xe0\x80\xaf",
        b"\xed\xa0\x80",  # a surrogate
        b"\xf4\x90\x80\x80",  # beyond U+10FFFF
        b"\xf8\x88\x80\x80\x80",
    ],
)
def test_bytes_that_are_no_text(tiny_model: Path, data: bytes) -> None:
    """At the boundary of C, where any bytes can come; alone, and at the end of a long text."""
    library = _native.Library(str(tiny_model))
    error, n_ids = ffi.new("bitm_error *"), ffi.new("size_t *")
    for text in (data, b"word " * 1000 + data):
        status = _native.lib.bitm_tokenize(
            library.handle, text, len(text), ffi.NULL, ffi.NULL, 0, n_ids, error
        )
        assert ffi.string(_native.lib.bitm_status_name(status)) == b"TEXT"
        assert b"byte" in ffi.string(error.message)
    library.close()
