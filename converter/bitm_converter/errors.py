"""What can go wrong while a checkpoint is converted.

Every error is one line that says which file, which tensor, what was expected and what was found.
Text from the file (tensor names, global names) can hold anything, so a message is made printable
and kept short before it is shown.
"""

from __future__ import annotations

from pathlib import Path

_LONGEST_MESSAGE = 600


class ConversionError(Exception):
    """Base of all errors of the converter; `code` is a stable name for programs."""

    code = "conversion"

    def __init__(self, path: str | Path, problem: str, *, tensor: str | None = None) -> None:
        self.path = Path(path)
        self.tensor = tensor
        where = f"{path}: " if tensor is None else f"{path}: tensor '{tensor}': "
        super().__init__(_one_line(where + problem))


class CheckpointError(ConversionError):
    """The file is not a checkpoint that can be read: wrong kind, truncated, inconsistent."""

    code = "checkpoint"


class UnsafePickleError(CheckpointError):
    """The file's pickle asks for something other than tensors and plain containers."""

    code = "unsafe_pickle"


class ShapeError(ConversionError):
    """A tensor or a setting of the configuration has a size that does not fit the model."""

    code = "shape"


class MissingError(ConversionError):
    """Something that the model needs is not in the checkpoint."""

    code = "missing"


class UnknownTensorError(ConversionError):
    """The checkpoint holds a tensor that no part of the model accounts for."""

    code = "unknown_tensor"


class ConfigError(ConversionError):
    """The configuration asks for something that a BERT of this kind does not have."""

    code = "config"


class OptionError(ConversionError):
    """The user asks for something that this checkpoint does not allow."""

    code = "option"


class VocabularyError(ConversionError):
    """The vocabulary is absent, unreadable, or not one that WordPiece can use."""

    code = "vocabulary"


class OutputError(ConversionError):
    """The file to be written cannot be: its place is taken by something else."""

    code = "output"


class VerificationError(ConversionError):
    """The written file does not give what the checkpoint gives."""

    code = "verification"


def _one_line(text: str) -> str:
    printable = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    if len(printable) <= _LONGEST_MESSAGE:
        return printable
    return printable[: _LONGEST_MESSAGE - 3] + "..."
