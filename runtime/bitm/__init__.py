"""bitm: a runtime for 1-bit BERT.

>>> from bitm import Model
>>> Model("model.bitm").fill_mask("Paris is the [MASK] of France.")  # doctest: +SKIP
"""

from __future__ import annotations

from bitm._native import version
from bitm.errors import (
    BitmError,
    DeviceError,
    FormatError,
    InputError,
    UnsupportedError,
)
from bitm.model import Model

__all__ = [
    "BitmError",
    "DeviceError",
    "FormatError",
    "InputError",
    "Model",
    "UnsupportedError",
]

__version__ = version()
