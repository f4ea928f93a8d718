"""Text on its way to a terminal."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping

# How much of a file's own texts is shown to people.
TEXT_MOST = 200


# Controls, line separators, and characters that turn the direction of what follows; and lone
# surrogates, which stand for bytes that are no UTF-8.
_ESCAPED = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


def printable(text: str) -> str:
    """Returns the text with everything escaped that a terminal would obey instead of showing."""

    def escape(match: re.Match[str]) -> str:
        code = ord(match.group())
        if code >= 0xDC80:  # surrogateescape: a byte
            code -= 0xDC00
            return f"\\x{code:02x}"
        return f"\\x{code:02x}" if code < 0x80 else f"\\u{code:04x}"

    return _ESCAPED.sub(escape, text)


def clipped(text: str) -> str:
    """Returns the text as printable, cut where it is long."""
    cut = "..." if len(text) > TEXT_MOST else ""
    return printable(text[:TEXT_MOST]) + cut


def size(n_bytes: int) -> str:
    """Returns a number of bytes for people."""
    if n_bytes < 1000:
        return f"{n_bytes} bytes"
    return f"{n_bytes / 1e3:.1f} kB" if n_bytes < 1000000 else f"{n_bytes / 1e6:.1f} MB"


def row(name: str, value: str) -> str:
    """Returns a line of a list of names and values."""
    return f"{name:<16} {value}\n"


class OutputError(Exception):
    """Standard output takes no more."""


def print_text(text: str) -> None:
    """Prints as UTF-8, whatever the locale is, without a change to line ends."""
    if sys.stdout is None:
        raise OutputError
    try:
        sys.stdout.buffer.write(text.encode())
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        raise
    except OSError:
        raise OutputError from None


def version() -> str:
    """Returns the version of bitm."""
    from bitm import __version__

    return __version__


def print_json(document: Mapping[str, object]) -> None:
    """Prints a document for machines."""
    print_text(json.dumps(document, indent=2) + "\n")


def complain(kind: str, text: str) -> None:
    """Tells on standard error what is wrong."""
    print(f"bitm{kind}{printable(text)}", file=sys.stderr)
