"""Plain BERT as transformers saves it, whose matrices may have been trained to two values.

Nothing but the weights is binary here: activations are floats, and the forward pass is BERT's own.
What is float can be binarized on the way, without training (`--binarize`, see naive.py).
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from bitm_converter.checkpoint import Checkpoint
from bitm_converter.errors import OptionError
from bitm_converter.naive import Binarization

from .assembly import Draft, Part, build, is_tied, report_row
from .base import Conversion, Options, Progress, Row
from .settings import Settings
from .skeleton import DECODER_WEIGHT, Skeleton

NAME = "hf"

_WORDS = "embeddings.word.weight"


def recognizes(checkpoint: Checkpoint) -> bool:
    """Any checkpoint: what is no plain BERT is refused by the name of a tensor."""
    return True


def convert(
    checkpoint: Checkpoint, options: Options, progress: Progress | None = None
) -> Conversion:
    """Makes the model of a BERT, BertFor{MaskedLM, PreTraining, SequenceClassification,
    TokenClassification, QuestionAnswering}.

    Raises ConversionError: an unknown, missing or misshapen tensor, an impossible configuration,
    no vocabulary for a masked LM, nothing to binarize.
    """
    settings = Settings.of(checkpoint, options.config)
    skeleton = Skeleton.of(checkpoint, settings)
    metadata = skeleton.label_metadata()
    notes = []
    parts = {
        slot: Part.as_it_is(checkpoint[name])
        for slot, name in skeleton.sources.items()
        if slot != DECODER_WEIGHT or not is_tied(checkpoint, skeleton)
    }
    if DECODER_WEIGHT in parts and settings.values.get("tie_word_embeddings") is not False:
        notes.append(
            f"{skeleton.sources[DECODER_WEIGHT]} differs from the word embeddings, "
            "so it is stored beside them"
        )
    if options.binarize is not None:
        notes += _binarize(parts, checkpoint, skeleton, options.binarize)
        metadata["source.binarized"] = options.binarize.name
    draft = Draft(
        NAME,
        skeleton.config,
        parts,
        accounted=skeleton.accounted_names(),
        metadata=metadata,
        notes=notes,
        is_plain=True,
    )
    conversion = build(checkpoint, options, settings, draft, progress)
    if DECODER_WEIGHT in skeleton.sources and DECODER_WEIGHT not in parts:
        conversion.rows.append(_tied_decoder(checkpoint, skeleton))
    return conversion


def _tied_decoder(checkpoint: Checkpoint, skeleton: Skeleton) -> Row:
    """The report's line for a decoder that is the word embeddings."""
    source = skeleton.sources[DECODER_WEIGHT]
    decoder = checkpoint.get(source)
    has_own_data = decoder is not None and not decoder.same_data(
        checkpoint[skeleton.sources[_WORDS]]
    )
    bytes_before = decoder.nbytes if decoder is not None and has_own_data else 0
    return report_row(DECODER_WEIGHT, source, skeleton.shapes[DECODER_WEIGHT], None, bytes_before)


# Naive binarization


def _binarize(
    parts: dict[str, Part], checkpoint: Checkpoint, skeleton: Skeleton, wish: Binarization
) -> list[str]:
    """Has parts binarized and returns notes on it.

    A decoder that is the word embeddings gets a part of its own where only one of the two is to be
    binarized. Raises OptionError for a component of which the model has no matrix.
    """
    for component in wish.components:
        if not any(wish.covers(slot, component) for slot in skeleton.sources):
            problem = f"--components {component}: the model has no matrix that belongs to it"
            raise OptionError(checkpoint.path, problem)
    notes = []
    is_tied = DECODER_WEIGHT in skeleton.sources and DECODER_WEIGHT not in parts
    if is_tied and wish.covers(_WORDS) != wish.covers(DECODER_WEIGHT):
        parts[DECODER_WEIGHT] = parts[_WORDS]
        binary, latent = "word embeddings", "decoder"
        if wish.covers(DECODER_WEIGHT):
            binary, latent = latent, binary
        notes.append(
            f"the decoder and the word embeddings were one table: the {binary} are binarized, "
            f"the {latent} keep its floats, so there are two now"
        )
    covered = [slot for slot in parts if wish.covers(slot)]
    for slot in covered:
        binarize = partial(wish.binarize, slot, n_heads=skeleton.config.n_heads)
        parts[slot] = replace(parts[slot], instead=binarize)
    notes.append(
        f"binarized without training ({wish.name}): {len(covered)} matrices; a model that was not "
        "trained for it loses most of its accuracy"
    )
    return notes
