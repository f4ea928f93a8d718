"""What an evaluation finds, in the shape that it is printed, saved and reported in."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bitm.evaluation.cost import Memory, Operations
from bitm.evaluation.statistics import Estimate


@dataclass(frozen=True)
class TaskRun:
    """What a task's module gives: metrics, and how much the model ran for them.

    `n_tokens` are those that the model read, `n_cut` the sequences that were too long, `details`
    what the report tells beside the metrics.
    """

    metrics: dict[str, Estimate]
    n_sequences: int
    n_tokens: int
    n_cut: int
    seconds: float
    details: dict[str, Any]


@dataclass(frozen=True)
class Result:
    """One model on one file.

    Attributes:
        name: of the model, short.
        path: its file.
        task: "masked LM", "classification", "entities" or "answers".
        activations, threads, kernels: what ran it.
        data: path, format, sentences; tokens, unknown tokens.
        settings: protocol, seed, length, batch.
        metrics: with their confidence intervals.
        sequences, tokens, cut, seconds: what ran, and the model's time for it.
        file_bytes, model_bytes, session_bytes: of the file, of the model in memory beside it, and
            of a session for 1 x 128 tokens.
        peak_bytes: of the process while it evaluated; None where the system does not tell.
        memory, operations: see cost.py.
        details: what the report tells beside the metrics.
    """

    name: str
    path: str
    task: str
    activations: str
    threads: int
    kernels: dict[str, str]
    data: dict[str, Any]
    settings: dict[str, Any]
    metrics: dict[str, Estimate]
    sequences: int
    tokens: int
    cut: int
    seconds: float
    file_bytes: int
    model_bytes: int
    session_bytes: int
    peak_bytes: int | None
    memory: Memory
    operations: Operations
    details: dict[str, Any]

    @property
    def ms_per_sequence(self) -> float:
        """Milliseconds of the model for a sequence."""
        return self.seconds / self.sequences * 1e3

    @property
    def tokens_per_second(self) -> float:
        """Tokens that the model read in a second."""
        return self.tokens / self.seconds

    def as_json(self) -> dict[str, Any]:
        """Returns the result as JSON takes it; NaN is null."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        fields["ms_per_sequence"] = self.ms_per_sequence
        fields["tokens_per_second"] = self.tokens_per_second
        document: dict[str, Any] = plain(fields)
        return document


def plain(value: Any) -> Any:
    """Turns dataclasses into dictionaries, and NaN into None."""
    if isinstance(value, Estimate):
        return {name: plain(getattr(value, name)) for name in ("value", "low", "high")}
    if dataclasses.is_dataclass(value):
        names = [field.name for field in dataclasses.fields(value)]
        return {name: plain(getattr(value, name)) for name in names}
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
