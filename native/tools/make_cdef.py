"""Makes runtime/bitm/_cdef.py from native/include/bitm.h (cffi, out-of-line ABI mode).

`python native/tools/make_cdef.py` writes it, with `--check` it says by its exit status whether the
committed file is current.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from cffi import FFI

ROOT = Path(__file__).resolve().parents[2]
HEADER = ROOT / "native/include/bitm.h"
TARGET = ROOT / "runtime/bitm/_cdef.py"


def declarations() -> str:
    """Returns what lies between the header's marks, without the export macro."""
    text = HEADER.read_text()
    begin = text.index("/* cffi: begin")
    end = text.index("/* cffi: end")
    return text[begin:end].replace("BITM_API ", "")


def generate() -> str:
    ffi = FFI()
    ffi.cdef(declarations())
    ffi.set_source("bitm._cdef", None)
    with tempfile.TemporaryDirectory() as folder:
        return Path(ffi.compile(tmpdir=folder)).read_text()


def main() -> int:
    text = generate()
    if "--check" in sys.argv[1:]:
        if TARGET.read_text() == text:
            return 0
        print(f"{TARGET.relative_to(ROOT)} is not what {HEADER.relative_to(ROOT)} says: make gen")
        return 1
    TARGET.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
