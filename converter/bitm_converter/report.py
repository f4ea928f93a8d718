"""What the user is told of a conversion: a table of tensors, the totals, and the same as JSON."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from bitm_formats import Head

from .packing import Loss
from .recipes import Conversion
from .recipes.base import Alternative, Row
from .verify import LOGITS, Verification

_LAYER = re.compile(r"layers\.(\d+)\.(.+)")


@dataclass(frozen=True)
class Report:
    """A finished conversion; `checkpoint_bytes` and `file_bytes` are the sizes of the files."""

    conversion: Conversion
    family: str
    checkpoint_bytes: int
    file_bytes: int
    verification: Verification | None = None

    def as_text(self, every_tensor: bool = False) -> str:
        """The table and the totals; like layers share a line unless `every_tensor` is asked for."""
        rows = self.conversion.rows
        lines = [_cells(row.slot, 1, row) for row in rows] if every_tensor else _grouped(rows)
        if all(row.loss is None for row in rows):
            lines = [line[: -len(_LOSS_TITLES)] for line in lines]
        titles = (*_TITLES, *_LOSS_TITLES)[: len(lines[0])]
        text = [*_aligned([titles, *lines]), "", *self._totals()]
        text += _choices(self.conversion.alternatives)
        text += [f"note: {note}" for note in self.conversion.notes]
        if self.verification is not None:
            text += _verdict(self.verification, every_output=every_tensor)
        return "\n".join(text)

    def as_json(self) -> dict[str, Any]:
        """Everything, of plain dictionaries, lists, strings and numbers."""
        model = self.conversion.model
        result: dict[str, Any] = {
            "family": self.family,
            "head": Head(model.config.head).name.lower(),
            "config": {name: _plain(value) for name, value in asdict(model.config).items()},
            "metadata": model.metadata,
            "n_tokens": len(model.vocabulary or ()),
            "tensors": [
                {**asdict(row), "bytes_after": row.bytes_after} for row in self.conversion.rows
            ],
            "totals": {
                **{part: _part_totals(self._of(part)) for part in _PARTS},
                "encoder_matrices": _part_totals(self._encoder_matrices()),
                "checkpoint_bytes": self.checkpoint_bytes,
                "file_bytes": self.file_bytes,
            },
            "alternatives": [asdict(other) for other in self.conversion.alternatives],
            "notes": self.conversion.notes,
        }
        if self.verification is not None:
            result["verification"] = {
                "passed": self.verification.passed,
                "n_tokens": self.verification.n_tokens,
                "share_of_sequences": self.verification.share,
                "differences": [asdict(d) for d in self.verification.differences],
            }
        return result

    def _of(self, part: str) -> list[Row]:
        return [row for row in self.conversion.rows if row.part == part]

    def _encoder_matrices(self) -> list[Row]:
        return [row for row in self._of("encoder") if len(row.shape) == 2]

    def _totals(self) -> list[str]:
        matrices = self._encoder_matrices()
        n_weights = sum(row.shape[0] * row.shape[1] for row in matrices)
        n_bits = sum(row.is_one_bit for row in matrices)
        scale_bytes = sum(row.scale_bytes for row in matrices)
        found = f"{n_weights:,} weights, {n_bits} of {len(matrices)} matrices 1-bit"
        if scale_bytes:
            found += f", {_megabytes(scale_bytes)} of it scales"
        vectors = [row for row in self._of("encoder") if len(row.shape) == 1]
        others = [*vectors, *self._of("other")]
        rest = self.file_bytes - sum(row.bytes_after for row in self.conversion.rows)
        ratio = self.checkpoint_bytes / self.file_bytes
        return _aligned(
            [
                _total("encoder matrices", matrices, found),
                _total("embeddings, decoder", self._of("embeddings")),
                _total("all other tensors", others),
                ("vocabulary, tables, padding", "", "", _megabytes(rest), ""),
                (
                    "file",
                    _megabytes(self.checkpoint_bytes),
                    "->",
                    _megabytes(self.file_bytes),
                    f"{ratio:.1f} times smaller" if ratio >= 1.05 else "",
                ),
            ]
        )


_PARTS = ("encoder", "embeddings", "other")
_TITLES = ("tensor", "shape", "found", "stored", "bytes before", "bytes after")
_LOSS_TITLES = ("relative error", "largest error")
_RIGHT_ALIGNED = re.compile(r"bytes.*|.* error|[\d,]+|[\d.]+ MB|[\d.]+(e[-+]\d+)?")


def _grouped(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """A line for each kind of matrix, its layers together, and one for all vectors."""
    groups: dict[tuple[object, ...], list[Row]] = {}
    for row in rows:
        match = _LAYER.fullmatch(row.slot)
        stem = match[2] if match else row.slot
        is_vector = len(row.shape) == 1
        key = () if is_vector else (bool(match), stem, row.shape, row.found, row.stored)
        groups.setdefault(key, []).append(row)
    vectors = groups.pop((), [])
    lines = [_cells(_group_name(group), len(group), *group) for group in groups.values()]
    if vectors:
        lines.append(_cells(f"{len(vectors)} vectors (biases, norms)", 1, *vectors))
    return lines


def _group_name(rows: Sequence[Row]) -> str:
    if len(rows) == 1:
        return rows[0].slot
    matches = [match for row in rows if (match := _LAYER.fullmatch(row.slot))]
    return f"layers.{_ranges(int(match[1]) for match in matches)}.{matches[0][2]}"


def _ranges(numbers: Iterable[int]) -> str:
    """0, 1, 2, 5 as "0-2,5"."""
    ranges: list[list[int]] = []
    for n in sorted(numbers):
        if ranges and n == ranges[-1][1] + 1:
            ranges[-1][1] = n
        else:
            ranges.append([n, n])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in ranges)


def _cells(name: str, count: int, *rows: Row) -> tuple[str, ...]:
    first = rows[0]
    is_matrix = len(first.shape) == 2
    shape = " x ".join(map(str, first.shape)) if is_matrix or len(rows) == 1 else ""
    return (
        name,
        f"{count} of {shape}" if count > 1 else shape,
        first.found,
        first.stored,
        f"{sum(row.bytes_before for row in rows):,}",
        f"{sum(row.bytes_after for row in rows):,}",
        *_losses([row.loss for row in rows if row.loss is not None]),
    )


def _losses(losses: Sequence[Loss]) -> tuple[str, str]:
    """The worst of them under _LOSS_TITLES, nothing without any."""
    if not losses:
        return "", ""
    relative = max(loss.relative for loss in losses)
    return f"{relative:.3g}", f"{max(loss.greatest for loss in losses):.3g}"


def _choices(alternatives: Sequence[Alternative]) -> list[str]:
    """A table for each float table of words: its bytes and its loss in every format."""
    text = []
    for slot in dict.fromkeys(other.slot for other in alternatives):
        lines: list[tuple[str, ...]] = [(f"choices for {slot}", "bytes", *_LOSS_TITLES)]
        for other in alternatives:
            if other.slot == slot:
                name = f"{'*' if other.is_chosen else ' '} {other.stored}"
                losses = _losses([other.loss] if other.loss is not None else [])
                lines.append((name, f"{other.n_bytes:,}", *losses))
        text += ["", *_aligned(lines)]
    return [*text, ""] if text else []


def _total(title: str, rows: Sequence[Row], remark: str = "") -> tuple[str, ...]:
    before = sum(row.bytes_before for row in rows)
    after = sum(row.bytes_after for row in rows)
    return (title, _megabytes(before), "->", _megabytes(after), remark)


def _part_totals(rows: Sequence[Row]) -> dict[str, int]:
    return {
        "bytes_before": sum(row.bytes_before for row in rows),
        "bytes_after": sum(row.bytes_after for row in rows),
        "scale_bytes": sum(row.scale_bytes for row in rows),
        "n_tensors": len(rows),
        "n_one_bit": sum(row.is_one_bit for row in rows),
    }


def _megabytes(n: int) -> str:
    return f"{n / 1e6:.2f} MB"


def _aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    """Columns of equal width, numbers to the right."""
    widths = [max(len(line[n]) for line in lines) for n in range(len(lines[0]))]
    return [
        "  ".join(
            cell.rjust(width) if _RIGHT_ALIGNED.fullmatch(cell) else cell.ljust(width)
            for cell, width in zip(line, widths)
        ).rstrip()
        for line in lines
    ]


def _plain(value: object) -> object:
    return int(value) if isinstance(value, int) else value


def _verdict(verification: Verification, every_output: bool) -> list[str]:
    """The worst layer and the logits; every layer on request."""
    logits = [d for d in verification.differences if d.output == LOGITS]
    layers = [d for d in verification.differences if d.output != LOGITS]
    shown = [*(layers if every_output else [max(layers, key=lambda d: d.worst / d.limit)]), *logits]
    verdict = "ok" if verification.passed else "FAILED"
    n_tokens = verification.n_tokens
    of_best = ""
    if verification.share < 1:
        of_best = f" (the {verification.share:.0%} of sequences that agree best)"
    return [
        f"verify: {verdict}: worst difference from the checkpoint on {n_tokens} tokens{of_best}:",
        *(f"  {d.output}: {d.worst:.1e} (allowed {d.limit:.1e})" for d in shown),
    ]
