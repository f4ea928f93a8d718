"""The errors of the runtime, one class a kind, all of them `BitmError`."""

from __future__ import annotations


class BitmError(RuntimeError):
    """A request that bitm cannot serve.

    Attributes:
        code: number of the status, as in `native/include/bitm.h`; it never changes.
        name: its name there without the prefix, such as ``"FILE_MAGIC"``.
    """

    def __init__(self, message: str, code: int = 1, name: str = "ARGUMENT") -> None:
        super().__init__(message)
        self.code = code
        self.name = name

    def __reduce__(self) -> tuple[type[BitmError], tuple[str, int, str]]:
        return type(self), (str(self), self.code, self.name)


class FormatError(BitmError, ValueError):
    """A file that is not a sound .bitm file (statuses FILE_...)."""


class InputError(BitmError, ValueError):
    """A text, an id, a position or an argument that the model cannot take."""


class UnsupportedError(BitmError):
    """A legal request that this build or this machine cannot serve."""


class DeviceError(BitmError):
    """A device that is not there or has failed."""


def error_class(name: str) -> type[BitmError]:
    """Returns the class for the status of this name."""
    if name.startswith("FILE_"):
        return FormatError
    if name == "UNSUPPORTED":
        return UnsupportedError
    if name == "DEVICE":
        return DeviceError
    if name in ("IO", "NO_MEMORY", "BUSY", "INTERNAL"):
        return BitmError
    return InputError
