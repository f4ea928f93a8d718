"""BiT (2022): 1-bit weights; activations of 1, 2, 4 or 8 bits with learned steps, or floats.

Formulas, for every linear of the encoder, the pooler and the word embeddings, sgn(0) = 0:
    B = sgn(W - mean of the whole W),  m = mean of abs(W), of the tensor or of each row
    y = m B Q(x + move) + bias,  an embedding is a row of m B
    q, k, v, p are quantized, p = softmax(q k / sqrt(d)), c = p v
Q is signed but for the input of `output` and for p. With 32 bits there is no Q, but still `move`.
LayerNorms have the eps 1e-12. The checkpoint holds W, the steps (clip values) and `move`.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from bitm_converter.binarize import signs
from bitm_converter.checkpoint import Checkpoint
from bitm_formats import Layout

from .assembly import Draft, build, task_settings
from .base import Conversion, Options, Progress
from .low_bit import (
    FLOAT_BITS,
    LAYER_NORM_EPS,
    LearnedSteps,
    Rule,
    Scheme,
    bits_of,
    collect,
    floats,
    require_activation,
    weight_rules,
)
from .settings import Settings
from .skeleton import Skeleton

NAME = "bit"

_SHIFTS = tuple(f".{linear}.move.bias" for linear in ("query", "key", "value", "dense"))
_UNUSED = {
    "*.attention.self.move_[qkv].bias": "the forward pass computes with them and drops the result"
}


def recognizes(checkpoint: Checkpoint) -> bool:
    """By the learned shifts of linears' inputs."""
    return any(name.endswith(_SHIFTS) for name in checkpoint)


def convert(
    checkpoint: Checkpoint, options: Options, progress: Progress | None = None
) -> Conversion:
    """Makes the model of a classifier, a regression (STS-B) or question answering.

    Raises ConversionError: an unknown, missing or misshapen tensor; a configuration that lacks the
    numbers of bits or the activation function, or asks for a method that BiT does not train with.
    """
    settings = task_settings(checkpoint, Settings.of(checkpoint, options.config))
    require_activation(settings)
    skeleton = Skeleton.of(checkpoint, settings)
    scheme = _scheme(settings)
    found = collect(checkpoint, skeleton, scheme)
    draft = Draft(
        NAME,
        replace(skeleton.config, layer_norm_eps=LAYER_NORM_EPS),
        found.parts,
        found.quantizers,
        found.accounted,
        {**_UNUSED, **scheme.unused},
        skeleton.label_metadata(),
        found.notes,
    )
    return build(checkpoint, options, settings, draft, progress)


def _scheme(settings: Settings) -> Scheme:
    weight_bits = bits_of(settings, "weight_bits", 1, FLOAT_BITS)
    weights: Rule = floats
    words: Rule = floats
    if weight_bits == 1:
        settings.require("weight_quant_method", "bwn")
        weights, words = weight_rules(settings, partial(signs, centre=Layout.TENSOR))
    input_bits = bits_of(settings, "input_bits", *range(1, 9), FLOAT_BITS)
    if input_bits < FLOAT_BITS:
        settings.require("input_quant_method", "elastic")
        settings.require("input_layerwise", True)
        settings.require("sym_quant_qkvo", True)
    signed = settings.flag("sym_quant_ffn_attn", False)
    keeps_probabilities = settings.flag("not_quantize_attention", False)
    return Scheme(
        weights,
        words,
        activations=LearnedSteps(input_bits) if input_bits < FLOAT_BITS else None,
        signed_output=signed,
        signed_probabilities=None if keeps_probabilities else signed,
        has_shift=True,
    )
