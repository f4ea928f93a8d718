"""What can be wrong with a `.bitm` file."""

from __future__ import annotations

from enum import IntEnum


class Status(IntEnum):
    """Statuses of section 5 of SPEC.md; the numbers are those of `bitm_status` in `bitm.h`."""

    FILE_MAGIC = 20
    FILE_VERSION = 21
    FILE_FEATURE = 22
    FILE_TRUNCATED = 23
    FILE_TRAILING = 24
    FILE_HEADER = 25
    FILE_HEADER_CHECKSUM = 26
    FILE_TABLES_CHECKSUM = 27
    FILE_LIMIT = 28
    FILE_SECTION = 29
    FILE_CONFIG = 30
    FILE_NAME = 31
    FILE_TENSOR_ORDER = 32
    FILE_TENSOR_DTYPE = 33
    FILE_TENSOR_SHAPE = 34
    FILE_TENSOR_PLACE = 35
    FILE_TENSOR_MISSING = 36
    FILE_TENSOR_UNKNOWN = 37
    FILE_QUANTIZER = 38
    FILE_VOCABULARY = 39
    FILE_METADATA = 40
    FILE_TENSOR_CHECKSUM = 41
    FILE_PADDING = 42
    FILE_VALUE = 43
    FILE_RESERVED = 44
    FILE_TENSOR_LAYOUT = 45


class FormatError(ValueError):
    """A file, or a model about to be written, breaks a rule of SPEC.md.

    `status` is the rule's status as a name ("FILE_MAGIC"), `number` its number in `bitm.h`. The
    message says where, what was expected and what was found.
    """

    def __init__(self, status: Status, message: str) -> None:
        super().__init__(message)
        self._status = status

    @property
    def status(self) -> str:
        """The name of the broken rule's status."""
        return self._status.name

    @property
    def number(self) -> int:
        """The number of that status."""
        return int(self._status)

    def within(self, place: str) -> FormatError:
        """The same error, its message opened by the place (a path) where it was found."""
        return FormatError(self._status, f"{place}: {self}")
