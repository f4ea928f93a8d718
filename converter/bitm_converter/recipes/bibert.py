"""BiBERT (2022): 1-bit weights, embeddings and activations, attention without softmax.

Formulas, for every linear of the encoder, the pooler and the word embeddings, sgn(0) = 0:
    B = sgn(W - mean of its row),  s = mean of abs(W) of its row,  y = s (B sgn(x)) + bias
    p_ij = 1 if sgn(q_i) . sgn(k_j) > 0 else 0,  c_i = sum over j of p_ij sgn(v_j)
The classifier, position and token type embeddings and norms are floats. The checkpoint holds W.

With weight_bits 2 (TWN): t = 0.7 mean of abs(W), B = sgn(W) where abs(W) > t, else 0, and s the
mean of abs(W) where B is not 0; one t and s for a linear, a pair for each row of the embeddings.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np

from bitm_converter.binarize import signs, ternary
from bitm_converter.checkpoint import Checkpoint, LazyTensor
from bitm_converter.errors import CheckpointError
from bitm_converter.packing import Codes
from bitm_formats import Head, Layout, Normalizer, Quantizer, QuantizerKind, Scope

from .assembly import Draft, Part, build, read_finite, task_settings
from .base import Conversion, Options, Progress
from .settings import Settings
from .skeleton import Skeleton

NAME = "bibert"

_SIGN = Quantizer(QuantizerKind.SIGN, Scope.STATIC, -1, 1)
_POSITIVE = Quantizer(QuantizerKind.BOOL, Scope.STATIC, 0, 1)

_WORDS = "embeddings.word.weight"
_UNUSED = dict.fromkeys(
    (
        "*.weight_clip_val",
        "*.act_clip_val",
        "*.scale",
        "*.attention.self.clip_*",
        "*.output.gate",
    ),
    "BiBERT's forward pass does not use them",
)


def recognizes(checkpoint: Checkpoint) -> bool:
    """By the clipping values that its linears carry, though nothing uses them."""
    return any(name.endswith(".act_clip_val") for name in checkpoint)


def convert(
    checkpoint: Checkpoint, options: Options, progress: Progress | None = None
) -> Conversion:
    """Makes the model of a classifier, of question answering or of a body alone.

    Raises ConversionError: an unknown, missing or misshapen tensor, an impossible configuration,
    activations that are not of one bit.
    """
    settings = task_settings(checkpoint, Settings.of(checkpoint, options.config))
    # The code calls GELU whatever the configuration says.
    settings = settings.updated(hidden_act="gelu")
    settings.require("quantize_act", True)
    settings.require("input_bits", 1)
    settings.require("weight_bits", 1, 2)
    skeleton = Skeleton.of(checkpoint, settings)
    if skeleton.config.head not in (Head.NONE, Head.CLASSIFIER, Head.QUESTION_ANSWERING):
        found = Head(skeleton.config.head).name.lower().replace("_", " ")
        problem = f"expected a classifier or question answering, found a {found}"
        raise CheckpointError(checkpoint.path, problem)

    is_ternary = settings.values.get("weight_bits") == 2
    parts = {slot: Part.as_it_is(checkpoint[name]) for slot, name in skeleton.sources.items()}
    latent = {
        f"{place}.weight": checkpoint[skeleton.sources[f"{place}.weight"]]
        for place in ("embeddings.word", *skeleton.encoder_linears())
    }
    for slot, tensor in latent.items():
        parts[slot] = Part((tensor,), partial(_codes, tensor, slot == _WORDS, is_ternary))
    draft = Draft(
        family=NAME,
        config=replace(skeleton.config, attention_normalizer=Normalizer.NONE),
        parts=parts,
        quantizers=_quantizers(skeleton),
        accounted=skeleton.accounted_names(),
        unused=_UNUSED,
        metadata=skeleton.label_metadata(),
        notes=_notes(list(latent.values())),
    )
    return build(checkpoint, options, settings, draft, progress)


def _codes(tensor: LazyTensor, is_table: bool, is_ternary: bool) -> Codes:
    weights = read_finite(tensor)
    if is_ternary:
        return ternary(weights, Layout.ROW if is_table else Layout.TENSOR)
    return signs(weights, Layout.ROW, centre=Layout.ROW)


def _quantizers(skeleton: Skeleton) -> dict[str, Quantizer]:
    quantizers = dict.fromkeys(skeleton.encoder_linears(), _SIGN)
    for n in range(skeleton.config.n_layers):
        attention = f"layers.{n}.attention"
        for operand in ("query", "key", "value"):
            quantizers[f"{attention}.{operand}"] = _SIGN
        quantizers[f"{attention}.probabilities"] = _POSITIVE
    return quantizers


def _notes(latent: list[LazyTensor]) -> list[str]:
    """A word on weights that are latent no more."""
    if all(np.isin(read_finite(tensor), (-1, 0, 1)).all() for tensor in latent):
        return [
            "all weights are -1, 0 or 1, as in the folder quant/ that BiBERT writes: they lack "
            "means and scales, so this is not the trained model; convert the folder above it"
        ]
    return []
