"""What recipes share once they know their family's tensors: from the parts of a model to the model.

A recipe says for each slot of the file what computes its values, as codes with scales or as floats.
The file is packed from that, and the evaluation in numpy takes the same values as dense matrices.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Union

import numpy as np
import numpy.typing as npt

from bitm_converter.checkpoint import Checkpoint, LazyTensor, read_json
from bitm_converter.errors import (
    CheckpointError,
    OptionError,
    ShapeError,
    UnknownTensorError,
    VocabularyError,
)
from bitm_converter.packing import (
    Coded,
    Codes,
    FloatFormat,
    Packed,
    is_two_valued,
    pack_floats,
    pack_instead,
    pack_matrix,
    pack_vector,
)
from bitm_converter.reference import Array, Ids, Network, Outputs, evaluate_network
from bitm_converter.vocabulary import Vocabulary, read_vocabulary
from bitm_formats import Config, Head, ModelFile, Quantizer, Slot, SlotKind, Tensor, slots

from .base import Alternative, Conversion, Evaluate, Options, Progress, Row, Section, provenance
from .settings import Settings
from .skeleton import DECODER_WEIGHT, Skeleton
from .storage import TABLES, WORD_TABLES, Storage, alternatives

Floats = npt.NDArray[np.float32]
Values = Union[Codes, Floats]


@dataclass(frozen=True)
class Part:
    """What goes into one slot: `compute` makes it from `sources`, the first being the main one.

    `instead`, by the user's wish, makes of floats what the model computes with in their place.
    """

    sources: tuple[LazyTensor, ...]
    compute: Callable[[], Values]
    instead: Callable[[Floats], Coded | Floats] | None = None

    @classmethod
    def as_it_is(cls, tensor: LazyTensor) -> Part:
        """A tensor that the model uses as the checkpoint has it."""
        return cls((tensor,), lambda: read_finite(tensor))

    def values(self) -> Coded | Floats:
        """What the model computes with."""
        return self.in_place_of(self.compute())

    def in_place_of(self, computed: Values) -> Coded | Floats:
        """What the model computes with in place of the computed values, or these themselves."""
        if self.instead is None or not isinstance(computed, np.ndarray):
            return computed
        return self.instead(computed)


@dataclass(frozen=True)
class Draft:
    """A model before it is packed.

    `parts` are the tensors by slot; without one for `mlm.decoder.weight`, a masked LM takes the
    word embeddings. `accounted` are names of the checkpoint that belong to the model though no part
    has them for a source. `unused` are patterns of names that the family's forward pass ignores,
    with the reason. `metadata` comes in addition to what every file says of its source. `is_plain`
    tells that it is a plain BERT, whose floats may be rounded beside bits, or be binarized.
    """

    family: str
    config: Config
    parts: Mapping[str, Part]
    quantizers: dict[str, Quantizer] = field(default_factory=dict)
    accounted: Collection[str] = ()
    unused: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    is_plain: bool = False

    @property
    def always_type_zero(self) -> bool:
        """Whether the family's forward pass gives every token type 0."""
        return self.metadata.get("token_type_ids") == "zero"


def task_settings(checkpoint: Checkpoint, settings: Settings) -> Settings:
    """Settings whose labels are those of the classifier that is there.

    Scripts that fine-tune a model for a task of GLUE save the configuration of the model they began
    with: its labels do not count when their number is another. One output is a regression (STS-B).
    """
    if "classifier.weight" not in checkpoint:
        return settings
    n_labels = checkpoint["classifier.weight"].shape[0]
    names = settings.values.get("id2label")
    if not isinstance(names, dict) or len(names) != n_labels:
        settings = settings.updated(id2label=None)
    if n_labels == 1 and settings.text("problem_type") is None:
        settings = settings.updated(problem_type="regression")
    return settings.updated(num_labels=None)


def build(
    checkpoint: Checkpoint,
    options: Options,
    settings: Settings,
    draft: Draft,
    progress: Progress | None = None,
) -> Conversion:
    """Packs a draft. Raises ConversionError: an unknown or misshapen tensor, no vocabulary for a
    masked LM, a wish to binarize what is no plain BERT."""
    if options.binarize is not None and not draft.is_plain:
        problem = f"--binarize is for a float BERT, but this is a binarized one ({draft.family})"
        raise OptionError(checkpoint.path, problem)
    notes = [*draft.notes, *_account(checkpoint, options, draft)]
    vocabulary = find_vocabulary(checkpoint, options, draft.config)
    config, tokens = draft.config, None
    if vocabulary is not None:
        config = replace(config, **vocabulary.config_fields())
        tokens = [token.encode() for token in vocabulary.tokens]
    notes += vocabulary_notes(vocabulary, options)

    by_name = {slot.name: slot for slot in slots(config, draft.parts)}
    storage = Storage.chosen(options, draft.is_plain and _has_bits(draft.parts))
    parts = {name: _stored(part, by_name[name], storage) for name, part in draft.parts.items()}
    tensors: dict[str, Tensor] = {}
    rows: list[Row] = []
    others: list[Alternative] = []
    counted: set[tuple[Path, int]] = set()
    for n, (name, part) in enumerate(parts.items()):
        if progress is not None:
            progress(n, len(parts), name)
        computed = part.compute()
        _check_shape(part.sources[0], computed.shape, by_name[name].shape)
        packed = _pack(computed, part.in_place_of(computed), by_name[name], storage)
        tensors[name] = packed.tensor
        new = [tensor for tensor in part.sources if _place(tensor) not in counted]
        counted.update(map(_place, new))
        before = sum(tensor.nbytes for tensor in new)
        rows.append(report_row(name, part.sources[0].name, computed.shape, packed, before))
        if name in WORD_TABLES and isinstance(computed, np.ndarray) and not is_two_valued(computed):
            others += alternatives(name, computed, packed)

    metadata = {**provenance(checkpoint, draft.family, settings), **draft.metadata}
    if storage.name_of_words and any(draft.parts[other.slot].instead is None for other in others):
        metadata["source.embeddings"] = storage.name_of_words
    model = ModelFile(config, tensors, draft.quantizers, tokens, metadata)
    evaluate = _evaluation(replace(draft, parts=parts))
    return Conversion(model, rows, evaluate, notes, others)


def _has_bits(parts: Mapping[str, Part]) -> bool:
    """Whether a matrix of the encoder is 1-bit; they are read until one is."""
    for name, part in parts.items():
        if section(name) == "encoder" and name.endswith(".weight"):
            values = part.values()
            if isinstance(values, Codes) or (
                isinstance(values, np.ndarray) and is_two_valued(values)
            ):
                return True
    return False


def _stored(part: Part, slot: Slot, storage: Storage) -> Part:
    """A part whose floats are stored as the user wishes."""
    return part if part.instead else replace(part, instead=partial(storage.instead, slot))


def _place(tensor: LazyTensor) -> tuple[Path, int]:
    """Where a tensor lies; names of one place are one tensor."""
    return tensor.path, tensor.byte_offset


def _pack(computed: Values, values: Coded | Floats, slot: Slot, storage: Storage) -> Packed:
    """Packs the values that a model computes with in place of those that were computed."""
    if not isinstance(values, np.ndarray):
        # Codes that a recipe computed, or what is instead of floats.
        return pack_instead(computed, values) if isinstance(computed, np.ndarray) else values.pack()
    if values.ndim == 1:
        return pack_vector(values)
    form = storage.format_of(slot.name)
    floats: FloatFormat = "exact" if form == "int8" or form == "bit1" else form
    if slot.kind == SlotKind.FLOAT_MATRIX:
        return pack_floats(values, floats)
    return pack_matrix(values, floats)


def _check_shape(source: LazyTensor, found: tuple[int, ...], expected: tuple[int, ...]) -> None:
    if found != expected:
        problem = f"expected shape {expected} by the other tensors, found {found}"
        raise ShapeError(source.path, problem, tensor=source.name)


def _evaluation(draft: Draft) -> Evaluate:
    """Runs the draft's values as dense matrices."""

    def weights(slot: str) -> Array | None:
        if slot not in draft.parts:
            return None
        values = draft.parts[slot].values()
        return values if isinstance(values, np.ndarray) else values.dense()

    network = Network(draft.config, weights, draft.quantizers)

    def evaluate(
        input_ids: Ids,
        attention_mask: Ids,
        token_type_ids: Ids,
        given_states: Sequence[Array] | None = None,
    ) -> Outputs:
        types = np.zeros_like(token_type_ids) if draft.always_type_zero else token_type_ids
        return evaluate_network(network, input_ids, attention_mask, types, given_states)

    return evaluate


def _account(checkpoint: Checkpoint, options: Options, draft: Draft) -> list[str]:
    """Refuses strangers; returns notes on what is left out."""
    accounted = {source.name for part in draft.parts.values() for source in part.sources}
    accounted.update(draft.accounted)
    notes = []
    for pattern, reason in draft.unused.items():
        names = [name for name in checkpoint if fnmatchcase(name, pattern)]
        left_out = [name for name in names if name not in accounted]
        accounted.update(left_out)
        if left_out:
            notes.append(f"left out: {len(left_out)} tensors {pattern}: {reason}")
    strangers = refuse_unknown(checkpoint, accounted, options.ignore)
    return [*notes, *(f"left out: {name}" for name in strangers)]


def refuse_unknown(
    checkpoint: Checkpoint, accounted: Collection[str], patterns: tuple[str, ...]
) -> list[str]:
    """Returns the names that nothing accounts for but the user lets go."""
    strangers = [name for name in checkpoint if name not in accounted]
    refused = [
        name for name in strangers if not any(fnmatchcase(name, pattern) for pattern in patterns)
    ]
    if refused:
        more = f", nor are {len(refused) - 1} others" if len(refused) > 1 else ""
        problem = f"is no part of this model{more}; --ignore NAME leaves it out"
        raise UnknownTensorError(checkpoint.path, problem, tensor=refused[0])
    return strangers


def find_vocabulary(checkpoint: Checkpoint, options: Options, config: Config) -> Vocabulary | None:
    """The vocabulary that the user named or that lies beside the checkpoint.

    Raises VocabularyError for one that cannot be used, or if a masked LM has none.
    """
    if not options.use_vocab:
        return None
    path = options.vocab or checkpoint.vocab_path or checkpoint.tokenizer_path
    if path is None:
        if config.head in (Head.MASKED_LM, Head.MASKED_LM_NEXT_SENTENCE):
            problem = (
                "a masked LM needs its vocabulary: expected vocab.txt or tokenizer.json beside it, "
                "found neither; --vocab FILE names it, --no-vocab does without text"
            )
            raise VocabularyError(checkpoint.path, problem)
        return None
    settings = checkpoint.tokenizer_config or {}
    beside = path.parent / "tokenizer_config.json"
    if path == options.vocab and beside.is_file():
        settings = read_json(beside)
    return read_vocabulary(path, settings, options.lowercase, config)


def vocabulary_notes(vocabulary: Vocabulary | None, options: Options) -> list[str]:
    """What the user is told of the vocabulary, or of its absence."""
    if vocabulary is not None:
        return vocabulary.notes
    if options.use_vocab:
        return ["no vocabulary found: the file takes token ids, not text"]
    return []


def is_tied(checkpoint: Checkpoint, skeleton: Skeleton) -> bool:
    """Whether the decoder of a masked LM is the word embeddings, or equal to them."""
    decoder = checkpoint.get(skeleton.sources[DECODER_WEIGHT])
    words = checkpoint[skeleton.sources["embeddings.word.weight"]]
    if decoder is None or decoder.same_data(words):
        return True
    return np.array_equal(decoder.read(), words.read())


def read_finite(tensor: LazyTensor) -> Floats:
    """A tensor's values as float32. Raises CheckpointError for what is not finite there."""
    with np.errstate(over="ignore"):
        values: Floats = tensor.read().astype(np.float32, copy=False)
    if not np.isfinite(values).all():
        problem = "expected finite numbers, found NaN or one beyond float32"
        raise CheckpointError(tensor.path, problem, tensor=tensor.name)
    return values


def report_row(
    slot: str, source: str, shape: tuple[int, ...], packed: Packed | None, bytes_before: int
) -> Row:
    """The report's line for a tensor; `packed` is None for a decoder that is the word
    embeddings."""
    data_bytes = packed.tensor.data.nbytes if packed else 0
    return Row(
        slot=slot,
        source=source,
        part=section(slot),
        shape=shape,
        found=packed.found if packed else "the word embeddings",
        stored=packed.stored if packed else "tied",
        bytes_before=bytes_before,
        data_bytes=data_bytes,
        scale_bytes=packed.tensor.nbytes - data_bytes if packed else 0,
        is_one_bit=packed is not None and packed.is_one_bit,
        rounding=packed.rounding if packed else 0.0,
        loss=packed.loss if packed else None,
    )


def section(slot: str) -> Section:
    """The section of the report to which a slot belongs."""
    if slot in TABLES:
        return "embeddings"
    return "encoder" if slot.startswith("layers.") else "other"
