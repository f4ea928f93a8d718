"""Any bytes as a checkpoint: the readers give tensors or a ConversionError, and nothing else.

    python tests/fuzz/fuzz_unpickler.py -max_total_time=1800 build/found tests/fuzz/corpus/pickles

Needs atheris (dependency group `fuzz`); test_checkpoint.py does the same with fixed seeds.
"""

from __future__ import annotations

import io
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["bitm_converter"]):
    from bitm_converter.checkpoint import open_checkpoint
    from bitm_converter.errors import ConversionError
    from bitm_converter.unpickler import Unpickler

FOLDER = tempfile.TemporaryDirectory(prefix="fuzz")


def check_message(err: ConversionError) -> None:
    """A message is one line that a terminal can show."""
    if not str(err).isprintable():
        raise AssertionError(repr(err))


def test_one_input(data: bytes) -> None:
    """As the pickle inside of a checkpoint, and as a whole file."""
    path = Path(FOLDER.name) / "m.pt"
    try:
        Unpickler(io.BytesIO(data), path).load()
    except ConversionError as err:
        check_message(err)
    path.write_bytes(data)
    try:
        for tensor in open_checkpoint(path).values():
            assert tensor.read().shape == tensor.shape
    except ConversionError as err:
        check_message(err)


if __name__ == "__main__":
    atheris.Setup(sys.argv, test_one_input)
    atheris.Fuzz()
