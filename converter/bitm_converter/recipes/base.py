"""What every recipe takes and gives."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from bitm_formats import ModelFile

from bitm_converter import __version__
from bitm_converter.checkpoint import Checkpoint
from bitm_converter.reference import Ids, Outputs

from .settings import Settings

# Called with the steps that are done, the number of all steps, and what is worked on.
Progress = Callable[[int, int, str], None]
FloatChoice = Literal["auto", "fp16", "fp32"]
Part = Literal["encoder", "embeddings", "other"]


@dataclass(frozen=True)
class Options:
    """What the user chose.

    `config` and `vocab` are files that take the place of those beside the checkpoint. `lowercase`
    overrides the tokenizer's settings. `ignore` are patterns of names to leave out, as of
    `fnmatch`.

    The two float formats are for matrices that are not two-valued: `embeddings` for the tables and
    the decoder, `matrices` for all others. `auto` means the smaller format that keeps every value,
    but for the embeddings of a 1-bit encoder fp16. In models whose encoder is float, rounding the
    embeddings alone was measured to move hidden states by 0.001 to 0.002 and logits by up to 0.005.
    """

    config: Path | None = None
    vocab: Path | None = None
    use_vocab: bool = True
    lowercase: bool | None = None
    embeddings: FloatChoice = "auto"
    matrices: FloatChoice = "auto"
    ignore: tuple[str, ...] = ()


@dataclass(frozen=True)
class Row:
    """One tensor's line in the report.

    `slot` is its name in the file, `source` that in the checkpoint. `bytes_before` is what it took
    there, 0 if another name has the same data; `scale_bytes` are those of scales and offsets in
    the file, `data_bytes` all others. `rounding` is the largest change of a value.
    """

    slot: str
    source: str
    part: Part
    shape: tuple[int, ...]
    found: str
    stored: str
    bytes_before: int
    data_bytes: int
    scale_bytes: int
    is_one_bit: bool
    rounding: float

    @property
    def bytes_after(self) -> int:
        """What the tensor takes in the file, without padding."""
        return self.data_bytes + self.scale_bytes


@dataclass(frozen=True)
class Conversion:
    """A model ready to be written, what to report of it, and the checkpoint's own answer.

    `evaluate` takes ids, masks and types [B, S] and runs the checkpoint, not the model.
    """

    model: ModelFile
    rows: list[Row]
    evaluate: Callable[[Ids, Ids, Ids], Outputs]
    notes: list[str] = field(default_factory=list)


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
