"""config.json as transformers writes it: typed look-ups whose errors name the file and the key."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitm_converter.checkpoint import Checkpoint, read_json
from bitm_converter.errors import ConfigError, MissingError


@dataclass(frozen=True)
class Settings:
    """The configuration of a checkpoint; `path` is where it lies, or where it was looked for.

    A key whose value is null counts as absent.
    """

    path: Path
    values: Mapping[str, Any]

    @classmethod
    def of(cls, checkpoint: Checkpoint, path: Path | None) -> Settings:
        """What lies at `path`, or else beside the checkpoint. Raises CheckpointError."""
        if path is not None:
            return cls(path, read_json(path))
        directory = checkpoint.path if checkpoint.path.is_dir() else checkpoint.path.parent
        return cls(directory / "config.json", checkpoint.config or {})

    def updated(self, **values: object) -> Settings:
        """The same with other values; None for one that shall count as absent."""
        return Settings(self.path, {**self.values, **values})

    def integer(self, key: str, default: int | None = None) -> int:
        """A number of at least 1. Raises MissingError if absent without a default."""
        value = self._get(key, default)
        if type(value) is not int or value < 1:
            raise self._wrong(key, "a whole number of at least 1")
        return value

    def number(self, key: str, default: float) -> float:
        """A finite number of at least 0."""
        value = self._get(key, default)
        if type(value) not in (int, float) or not (math.isfinite(value) and value >= 0):
            raise self._wrong(key, "a number of at least 0")
        return float(value)

    def text(self, key: str) -> str | None:
        """A string, or None if absent."""
        value = self.values.get(key)
        if value is not None and not isinstance(value, str):
            raise self._wrong(key, "a string")
        return value

    def flag(self, key: str, default: bool) -> bool:
        """True or false, which training scripts also write as 1 or 0."""
        value = self._get(key, default)
        if value not in (True, False):
            raise self._wrong(key, "true or false")
        return bool(value)

    def require(self, key: str, *allowed: object) -> None:
        """Refuses a value that is neither absent nor allowed."""
        value = self.values.get(key)
        if value is not None and value not in allowed:
            raise self._wrong(key, " or ".join(map(repr, allowed)))

    def choice(self, key: str, choices: Mapping[str, int], default: str) -> int:
        """The choice that a string names."""
        name = self.text(key) or default
        if name not in choices:
            raise self._wrong(key, f"one of {', '.join(choices)}")
        return choices[name]

    def _get(self, key: str, default: object) -> Any:
        value = self.values.get(key)
        if value is not None:
            return value
        if default is None:
            problem = f"'{key}' is needed and cannot be read off the tensors: give it by --config"
            raise MissingError(self.path, problem)
        return default

    def _wrong(self, key: str, expected: str) -> ConfigError:
        found = repr(self.values.get(key))
        return ConfigError(self.path, f"'{key}': expected {expected}, found {found}")
