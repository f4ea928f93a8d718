"""BinaryBERT (2021): 1-bit weights split in two, or not; and its ternary stage.

Formulas, for every linear of the encoder, the pooler and the word embeddings, sgn(0) = 0:
    1 bit:   B = sgn(W),  m = mean of abs(W), of the tensor (linears) or of each row (embeddings)
    2 bits:  t = 0.7 mean of abs(W),  B = sgn(W) where abs(W) > t, else 0,  m = mean of abs(W) there
    y = the sum over one or two branches of m B Q(x) + bias, each with W, bias and Q of its own
    q, k, v, p are quantized, p = softmax(q k / sqrt(d)), c = p v
Q ("uniform" or "lsq") is signed but for the input of `output` and for p. LayerNorms have the eps
1e-12. In a model of half width (DynaBERT) attention is narrower than the hidden states.
"""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np

from bitm_converter.binarize import signs, ternary
from bitm_converter.checkpoint import Checkpoint
from bitm_formats import Scope

from .assembly import Draft, build, read_finite, task_settings
from .base import Conversion, Options, Progress
from .low_bit import (
    FLOAT_BITS,
    LAYER_NORM_EPS,
    Activations,
    LearnedSteps,
    Rule,
    Scheme,
    Uniform,
    bits_of,
    collect,
    require_activation,
    weight_rules,
)
from .settings import Settings
from .skeleton import Skeleton

NAME = "binarybert"

_BINARY_METHODS, _TERNARY_METHOD = ("bwn", "laq"), "twn"
_BRANCHES = ("_1", "_2")
_SPLIT_WORDS = "word_embeddings_1.weight"
_FIRST_BRANCH = re.compile(r"(.*(?:word_embeddings|query|key|value|dense))_1\.(\w+)")
_FIRST_QUERY = "encoder.layer.0.attention.self.query.weight"


def recognizes(checkpoint: Checkpoint) -> bool:
    """By embeddings in two parts, or clipping values of linears' inputs.

    A model that is not split and has float activations leaves no trace in its names: then by what
    its configuration calls the method of its weights.
    """
    if (checkpoint.config or {}).get("weight_quant_method") in (*_BINARY_METHODS, _TERNARY_METHOD):
        return True
    return any(name.endswith((_SPLIT_WORDS, ".input_clip_val")) for name in checkpoint)


def convert(
    checkpoint: Checkpoint, options: Options, progress: Progress | None = None
) -> Conversion:
    """Makes the model of a classifier, a regression (STS-B) or question answering.

    Raises ConversionError: an unknown, missing or misshapen tensor; a configuration that lacks the
    numbers of bits or the activation function, or asks for a method that is not BinaryBERT's.
    """
    settings = task_settings(checkpoint, Settings.of(checkpoint, options.config))
    require_activation(settings)
    is_split = any(name.endswith(_SPLIT_WORDS) for name in checkpoint)
    first_branch = _first_branch(checkpoint) if is_split else checkpoint
    skeleton = Skeleton.of(first_branch, settings, _attention_size(first_branch, settings))
    scheme = _scheme(settings, checkpoint, is_split)
    found = collect(first_branch, skeleton, scheme)
    notes = found.notes if is_split else [*found.notes, *_zero_rows(checkpoint, skeleton, settings)]
    draft = Draft(
        NAME,
        replace(skeleton.config, layer_norm_eps=LAYER_NORM_EPS),
        found.parts,
        found.quantizers,
        found.accounted,
        scheme.unused,
        skeleton.label_metadata(),
        notes,
    )
    return build(checkpoint, options, settings, draft, progress)


def _first_branch(checkpoint: Checkpoint) -> Checkpoint:
    """The same with the first branches also under the names that an unsplit model gives them."""
    plain = {}
    for name, tensor in checkpoint.tensors.items():
        if match := _FIRST_BRANCH.fullmatch(name):
            plain[f"{match[1]}.{match[2]}"] = tensor
    return replace(checkpoint, tensors={**checkpoint.tensors, **plain})


def _attention_size(checkpoint: Checkpoint, settings: Settings) -> int | None:
    """The rows of query, key and value: `dyna_hidden_size`, or what the first query has."""
    rows = [tensor.shape[0] for name, tensor in checkpoint.items() if name.endswith(_FIRST_QUERY)]
    return settings.integer("dyna_hidden_size", rows[0]) if rows else None


def _scheme(settings: Settings, checkpoint: Checkpoint, is_split: bool) -> Scheme:
    weights, words = _weight_rules(settings, is_split)
    settings.require("sym_quant_qkvo", True)
    settings.require("not_quantize_attention", False)
    signed = settings.flag("sym_quant_ffn_attn", False)
    return Scheme(
        weights,
        words,
        _activations(settings, checkpoint),
        signed_output=signed,
        signed_probabilities=signed,
        branches=_BRANCHES if is_split else ("",),
    )


def _weight_rules(settings: Settings, is_split: bool) -> tuple[Rule, Rule]:
    """Only binary weights are split, so that a split checkpoint need not say so."""
    if is_split:
        settings.require("weight_bits", 1)
        settings = settings.updated(weight_bits=1)
    if bits_of(settings, "weight_bits", 1, 2) == 1:
        settings.require("weight_quant_method", *_BINARY_METHODS)
        return weight_rules(settings, signs)
    settings.require("weight_quant_method", _TERNARY_METHOD)
    return weight_rules(settings, ternary)


def _activations(settings: Settings, checkpoint: Checkpoint) -> Activations | None:
    """By config.json; a method that it does not name shows in the shape of clip values."""
    bits = bits_of(settings, "input_bits", *range(2, 9), FLOAT_BITS)
    if bits == FLOAT_BITS:
        return None
    is_uniform = any(
        name.endswith(".input_clip_val") and tensor.shape == (2,)
        for name, tensor in checkpoint.items()
    )
    settings.require("input_quant_method", "uniform" if is_uniform else "lsq")
    scope = Scope.SEQUENCE if settings.flag("input_layerwise", True) else Scope.TOKEN
    return Uniform(bits, scope) if is_uniform else LearnedSteps(bits, scope)


def _zero_rows(checkpoint: Checkpoint, skeleton: Skeleton, settings: Settings) -> list[str]:
    """A note on ternary rows of zeros, of whose scale the published code makes NaN."""
    if settings.integer("weight_bits") != 2 or settings.flag("embed_layerwise", False):
        return []
    name = skeleton.sources["embeddings.word.weight"]
    n_rows = int((~np.any(read_finite(checkpoint[name]), axis=1)).sum())
    if n_rows == 0:
        return []
    return [
        f"{name}: {n_rows} rows are all zeros, of which the published code makes NaN (0 / 0): the "
        "file has zeros there"
    ]
