"""Plain BERT as transformers saves it, whose matrices may have been trained to two values.

Nothing but the weights is binary here: activations are floats, and the forward pass is BERT's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from bitm_formats import Config, Head, ModelFile, Tensor

from bitm_converter import reference
from bitm_converter.checkpoint import Checkpoint, LazyTensor, read_json
from bitm_converter.errors import CheckpointError, UnknownTensorError, VocabularyError
from bitm_converter.packing import FloatFormat, Packed, pack_matrix, pack_vector
from bitm_converter.vocabulary import Vocabulary, read_vocabulary

from .base import Conversion, Options, Part, Progress, Row, provenance
from .settings import Settings
from .skeleton import DECODER_WEIGHT, Skeleton

NAME = "hf"

_WORDS = "embeddings.word.weight"
_TABLES = (
    _WORDS,
    "embeddings.position.weight",
    "embeddings.token_type.weight",
    DECODER_WEIGHT,
)


def recognizes(checkpoint: Checkpoint) -> bool:
    """Any checkpoint: what is no plain BERT is refused by the name of a tensor."""
    return True


def convert(
    checkpoint: Checkpoint, options: Options, progress: Progress | None = None
) -> Conversion:
    """Makes the model of a BERT, BertFor{MaskedLM, PreTraining, SequenceClassification,
    TokenClassification, QuestionAnswering}.

    Raises ConversionError: an unknown, missing or misshapen tensor, an impossible configuration,
    no vocabulary for a masked LM.
    """
    settings = Settings.of(checkpoint, options.config)
    skeleton = Skeleton.of(checkpoint, settings)
    ignored = _refuse_unknown(checkpoint, skeleton, options.ignore)
    vocabulary = _find_vocabulary(checkpoint, options, skeleton.config)
    config = skeleton.config
    notes = [f"left out: {name}" for name in ignored]
    if vocabulary is not None:
        config = replace(config, **vocabulary.config_fields())
        notes += vocabulary.notes
    elif options.use_vocab:
        notes.append("no vocabulary found: the file takes token ids, not text")

    packed = _pack_all(checkpoint, skeleton, options, progress)
    tensors = {slot: part.tensor for slot, part in packed.items() if part is not None}
    rows = [_row(checkpoint, skeleton, slot, packed[slot]) for slot in skeleton.sources]
    if tied := _decoder_note(skeleton, settings, tensors):
        notes.append(tied)

    metadata = provenance(checkpoint, NAME, settings)
    metadata.update({f"label.{n}": label for n, label in enumerate(skeleton.labels)})
    tokens = None if vocabulary is None else [token.encode() for token in vocabulary.tokens]
    model = ModelFile(config, tensors, {}, tokens, metadata)
    weights = _reader(checkpoint, skeleton.body)
    return Conversion(model, rows, partial(reference.evaluate, weights, config), notes)


def _refuse_unknown(
    checkpoint: Checkpoint, skeleton: Skeleton, patterns: tuple[str, ...]
) -> list[str]:
    """Returns the names that nothing accounts for but the user lets go."""
    accounted = skeleton.accounted_names()
    strangers = [name for name in checkpoint if name not in accounted]
    refused = [
        name for name in strangers if not any(fnmatchcase(name, pattern) for pattern in patterns)
    ]
    if refused:
        more = f", nor are {len(refused) - 1} others" if len(refused) > 1 else ""
        problem = f"is no part of this model{more}; --ignore NAME leaves it out"
        raise UnknownTensorError(checkpoint.path, problem, tensor=refused[0])
    return strangers


def _find_vocabulary(checkpoint: Checkpoint, options: Options, config: Config) -> Vocabulary | None:
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


# Tensors


def _pack_all(
    checkpoint: Checkpoint, skeleton: Skeleton, options: Options, progress: Progress | None
) -> dict[str, Packed | None]:
    """Packs every slot's tensor; None for a decoder that is the word embeddings.

    The tables come last: how they are kept depends on what the encoder was found to be.
    """
    matrices: FloatFormat = "exact" if options.matrices == "auto" else options.matrices
    tables: FloatFormat = "exact" if options.embeddings == "auto" else options.embeddings
    packed: dict[str, Packed | None] = {}
    for n, slot in enumerate(sorted(skeleton.sources, key=_TABLES.__contains__)):
        if progress is not None:
            progress(n, len(skeleton.sources), slot)
        if slot == DECODER_WEIGHT and _is_tied(checkpoint, skeleton):
            packed[slot] = None
            continue
        values = _read_finite(checkpoint[skeleton.sources[slot]])
        if values.ndim == 1:
            packed[slot] = pack_vector(values)
        else:
            part = pack_matrix(values, tables if slot in _TABLES else matrices)
            packed[slot] = part
            if options.embeddings == "auto" and _part(slot) == "encoder" and part.is_one_bit:
                tables = "fp16"
    return packed


def _is_tied(checkpoint: Checkpoint, skeleton: Skeleton) -> bool:
    decoder = checkpoint.get(skeleton.sources[DECODER_WEIGHT])
    words = checkpoint[skeleton.sources[_WORDS]]
    if decoder is None or decoder.same_data(words):
        return True
    return np.array_equal(decoder.read(), words.read())


def _read_finite(tensor: LazyTensor) -> npt.NDArray[np.float32]:
    with np.errstate(over="ignore"):
        values = tensor.read().astype(np.float32, copy=False)
    if not np.isfinite(values).all():
        problem = "expected finite numbers, found NaN or one beyond float32"
        raise CheckpointError(tensor.path, problem, tensor=tensor.name)
    return values


def _decoder_note(
    skeleton: Skeleton, settings: Settings, tensors: Mapping[str, Tensor]
) -> str | None:
    if DECODER_WEIGHT in tensors and settings.values.get("tie_word_embeddings") is not False:
        return (
            f"{skeleton.sources[DECODER_WEIGHT]} differs from the word embeddings, "
            "so it is stored beside them"
        )
    return None


def _row(checkpoint: Checkpoint, skeleton: Skeleton, slot: str, packed: Packed | None) -> Row:
    source = skeleton.sources[slot]
    tensor = checkpoint.get(source)
    words = checkpoint[skeleton.sources[_WORDS]]
    is_shared = slot == DECODER_WEIGHT and tensor is not None and tensor.same_data(words)
    return Row(
        slot=slot,
        source=source,
        part=_part(slot),
        shape=skeleton.shapes[slot],
        found=packed.found if packed else "the word embeddings",
        stored=packed.stored if packed else "tied",
        bytes_before=0 if tensor is None or is_shared else tensor.nbytes,
        data_bytes=packed.tensor.data.nbytes if packed else 0,
        scale_bytes=packed.tensor.nbytes - packed.tensor.data.nbytes if packed else 0,
        is_one_bit=packed is not None and packed.is_one_bit,
        rounding=packed.rounding if packed else 0.0,
    )


def _part(slot: str) -> Part:
    if slot in _TABLES:
        return "embeddings"
    return "encoder" if slot.startswith("layers.") else "other"


def _reader(checkpoint: Checkpoint, body: str) -> reference.Weights:
    """Reads a checkpoint by the names of transformers' BertFor... classes."""

    def read(name: str) -> npt.NDArray[Any] | None:
        is_bare = not body and name.startswith("bert.")
        tensor = checkpoint.get(name[len("bert.") :] if is_bare else name)
        return None if tensor is None else tensor.read()

    return read
