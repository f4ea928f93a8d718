"""What every recipe takes and gives."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from bitm_converter import __version__
from bitm_converter.checkpoint import Checkpoint
from bitm_converter.naive import Binarization
from bitm_converter.packing import Loss
from bitm_converter.reference import Array, Ids, Outputs
from bitm_formats import Layout, ModelFile

from .settings import Settings

# Called with the steps that are done, the number of all steps, and what is worked on.
Progress = Callable[[int, int, str], None]
TableChoice = Literal["auto", "fp16", "fp32", "int8", "bit1"]
MatrixChoice = Literal["auto", "fp16", "fp32", "int8"]
SchemeChoice = Literal["stored", "absmean"]
Section = Literal["encoder", "embeddings", "other"]


@dataclass(frozen=True)
class Options:
    """What the user chose.

    `config` and `vocab` are files that take the place of those beside the checkpoint. `lowercase`
    overrides the tokenizer's settings. `ignore` are patterns of names to leave out, as of
    `fnmatch`. `scheme` is where bitmaps' scales come from: the checkpoint, or the mean of
    magnitudes, as in its first revision.

    The formats are for matrices that are not two-valued: `embeddings` for the tables and the
    decoder, `matrices` for all others; `storage.py` has the rules. `table_layout` (TENSOR, ROW or
    COLUMN) is that of 1-bit tables' scales. `binarize` is what to make binary of a plain BERT.
    """

    config: Path | None = None
    vocab: Path | None = None
    use_vocab: bool = True
    lowercase: bool | None = None
    embeddings: TableChoice = "auto"
    table_layout: Layout = Layout.COLUMN
    matrices: MatrixChoice = "auto"
    binarize: Binarization | None = None
    ignore: tuple[str, ...] = ()
    scheme: SchemeChoice = "stored"


@dataclass(frozen=True)
class Row:
    """One tensor's line in the report.

    `slot` is its name in the file, `source` that in the checkpoint. `bytes_before` is what it took
    there, 0 if another name has the same data; `scale_bytes` are those of scales and offsets in
    the file, `data_bytes` all others. `rounding` and `loss` are as in `Packed`.
    """

    slot: str
    source: str
    part: Section
    shape: tuple[int, ...]
    found: str
    stored: str
    bytes_before: int
    data_bytes: int
    scale_bytes: int
    is_one_bit: bool
    rounding: float
    loss: Loss | None

    @property
    def bytes_after(self) -> int:
        """What the tensor takes in the file, without padding."""
        return self.data_bytes + self.scale_bytes


@dataclass(frozen=True)
class Alternative:
    """What a large float table takes in one format, and what it loses there."""

    slot: str
    stored: str
    n_bytes: int
    loss: Loss | None
    is_chosen: bool


class Evaluate(Protocol):
    """Runs a checkpoint in numpy: see `reference.evaluate_network`."""

    def __call__(
        self,
        input_ids: Ids,
        attention_mask: Ids,
        token_type_ids: Ids,
        given_states: Sequence[Array] | None = None,
    ) -> Outputs:
        """Takes ids, masks and types [B, S]."""


@dataclass(frozen=True)
class Conversion:
    """A model ready to be written, what to report of it, and the checkpoint's own answer.

    `evaluate` runs the checkpoint, not the model.
    """

    model: ModelFile
    rows: list[Row]
    evaluate: Evaluate
    notes: list[str] = field(default_factory=list)
    alternatives: list[Alternative] = field(default_factory=list)


def provenance(checkpoint: Checkpoint, family: str, settings: Settings) -> dict[str, str]:
    """The metadata that say where a model comes from (SPEC.md, section 3.6)."""
    first = checkpoint.files[0]
    metadata = {
        "source.family": family,
        "source.file": first.name,
        "source.sha256": _sha256(first),
        "source.writer": f"bitm-convert {__version__}",
    }
    for key in ("name", "license", "description"):
        value = settings.text(key)
        if value:
            metadata[f"model.{key}"] = value
    return metadata


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
