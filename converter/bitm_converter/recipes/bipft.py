"""BiPFT (2024): 1-bit weights and activations, binary pretraining with float estimators.

Formulas, beside those of BiT with one bit (families share recipes/low_bit.py), x a layer's input:
    every linear, also `output`, reads signs;  activation functions in layers are GELU
    score_ij = (q_i k_j + qm_i kp_j + qp_i km_j + qp_i kp_j) / sqrt(d)
    c_i = sum over j of p_ij (v_j + vp_j),  qm, qp, km, kp [r] and vp [1] float linears of x
    pooled = tanh(norm(linear(x)) + x) of the first token
    with `improve_linear`: y = linear(x) + U V x for query, key, value and attention's output
The pooler's LayerNorm has the eps of config.json, all others 1e-12. The masked LM is a float one
with the activation function of config.json and the latent word embeddings for a decoder.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np

from bitm_converter.binarize import signs
from bitm_converter.checkpoint import Checkpoint, LazyTensor
from bitm_converter.errors import CheckpointError, MissingError, ShapeError
from bitm_formats import Activation, Config, Head, Layout, Pooler

from .assembly import Draft, Floats, Part, build, read_finite, task_settings
from .base import Conversion, Options, Progress
from .low_bit import (
    LAYER_NORM_EPS,
    LearnedSteps,
    Parts,
    Scheme,
    collect,
    require_activation,
    weight_rules,
)
from .settings import Settings
from .skeleton import Skeleton

NAME = "bipft"

_ESTIMATORS = {
    "q_p": "low_rank.query_p",
    "q_m": "low_rank.query_m",
    "k_p": "low_rank.key_p",
    "k_m": "low_rank.key_m",
}
_VALUE_TERM = "v_p"
_PRODUCTS = {
    "lora_q": "query",
    "lora_k": "key",
    "lora_v": "value",
    "lora_o": "attention_output",
}
_PUBLISHED_HEADS = 12
_UNUSED = {"*.sa.weight": "PReLUs that the forward pass does not call"}


def recognizes(checkpoint: Checkpoint) -> bool:
    """By the estimator of values."""
    return any(name.endswith(f".{_VALUE_TERM}.weight") for name in checkpoint)


def convert(
    checkpoint: Checkpoint, options: Options, progress: Progress | None = None
) -> Conversion:
    """Makes the model of a classifier, a regression (STS-B), or pretraining's masked LM.

    Raises ConversionError: an unknown, missing or misshapen tensor, a configuration that asks for
    other than one bit or for `half_binary`.
    """
    settings = task_settings(checkpoint, Settings.of(checkpoint, options.config))
    skeleton = Skeleton.of(checkpoint, settings)
    found = collect(checkpoint, skeleton, _scheme(settings))
    config = _config(skeleton.config, settings)
    layers = _Layers(checkpoint, skeleton)
    rank = settings.integer("lora_rank", layers.find(0, "q_p.weight").shape[0])
    is_improved = settings.flag("improve_linear", _has_products(checkpoint))
    for n in range(config.n_layers):
        _add_estimators(found, layers, n, (rank, config.hidden_size))
        if is_improved:
            _add_products(found, layers, n, config)
    if config.pooler == Pooler.NORM_SKIP:
        _add_pooler_norm(found, checkpoint, f"{skeleton.body}pooler.LayerNorm")
    draft = Draft(
        NAME,
        replace(config, score_rank=rank, value_term=1),
        found.parts,
        found.quantizers,
        found.accounted,
        _UNUSED,
        skeleton.label_metadata(),
        [*found.notes, *_notes(config, is_improved)],
    )
    return build(checkpoint, options, settings, draft, progress)


def _scheme(settings: Settings) -> Scheme:
    settings.require("half_binary", False)
    settings.require("weight_bits", 1)
    settings.require("input_bits", 1)
    settings.require("weight_quant_method", "bwn")
    settings.require("input_quant_method", "elastic")
    settings.require("sym_quant_qkvo", True)
    settings.require("not_quantize_attention", False)
    weights, words = weight_rules(settings, partial(signs, centre=Layout.TENSOR))
    return Scheme(
        weights,
        words,
        LearnedSteps(bits=1),
        signed_output=True,
        signed_probabilities=False,
        has_shift=True,
    )


def _config(config: Config, settings: Settings) -> Config:
    is_masked_lm = config.head in (Head.MASKED_LM, Head.MASKED_LM_NEXT_SENTENCE)
    if is_masked_lm:
        require_activation(settings)
    has_pooler = config.pooler != Pooler.NONE
    return replace(
        config,
        hidden_activation=Activation.GELU,
        layer_norm_eps=LAYER_NORM_EPS,
        head_norm_eps=LAYER_NORM_EPS if is_masked_lm else 0.0,
        pooler=Pooler.NORM_SKIP if has_pooler else Pooler.NONE,
        pooler_norm_eps=settings.number("layer_norm_eps", LAYER_NORM_EPS) if has_pooler else 0.0,
    )


def _notes(config: Config, is_improved: bool) -> list[str]:
    notes = []
    if config.n_heads != _PUBLISHED_HEADS:
        notes.append(
            f"the published code adds the value term to {_PUBLISHED_HEADS} heads, whatever their "
            f"number: here all {config.n_heads} heads have it"
        )
    if is_improved:
        notes.append(
            "improve_linear: the products of small matrices are multiplied out to float matrices "
            "of full size"
        )
    return notes


class _Layers:
    """The tensors of layers by the last parts of their names."""

    def __init__(self, checkpoint: Checkpoint, skeleton: Skeleton) -> None:
        self._checkpoint = checkpoint
        self._stem = f"{skeleton.body}encoder.layer."

    def find(self, n: int, leaf: str, shape: tuple[int, ...] | None = None) -> LazyTensor:
        """The one tensor of layer n whose name ends with this."""
        layer = f"{self._stem}{n}."
        found = [
            name
            for name in self._checkpoint
            if name.startswith(layer) and name.endswith(f".{leaf}")
        ]
        if not found:
            problem = "is needed but not there"
            raise MissingError(self._checkpoint.path, problem, tensor=f"{layer}*.{leaf}")
        if len(found) > 1:
            problem = f"expected one such name, found {len(found)}"
            raise CheckpointError(self._checkpoint.path, problem, tensor=f"{layer}*.{leaf}")
        tensor = self._checkpoint[found[0]]
        if shape is not None and tensor.shape != shape:
            problem = f"expected shape {shape}, found {tensor.shape}"
            raise ShapeError(self._checkpoint.path, problem, tensor=tensor.name)
        return tensor


def _add_estimators(found: Parts, layers: _Layers, n: int, shape: tuple[int, int]) -> None:
    """The float terms of scores and values in layer n."""
    for name, slot in _ESTIMATORS.items():
        place = f"layers.{n}.{slot}"
        found.parts[f"{place}.weight"] = Part.as_it_is(layers.find(n, f"{name}.weight", shape))
        found.parts[f"{place}.bias"] = Part.as_it_is(layers.find(n, f"{name}.bias", shape[:1]))
    place, hidden_size = f"layers.{n}.value_term", shape[1]
    weight = layers.find(n, f"{_VALUE_TERM}.weight", (1, hidden_size))
    found.parts[f"{place}.weight"] = Part.as_it_is(weight)
    found.parts[f"{place}.bias"] = Part.as_it_is(layers.find(n, f"{_VALUE_TERM}.bias", (1,)))


def _has_products(checkpoint: Checkpoint) -> bool:
    return any(name.endswith(".lora_q.lora.0.weight") for name in checkpoint)


def _add_products(found: Parts, layers: _Layers, n: int, config: Config) -> None:
    """The products of two small matrices beside linears of layer n, each a float second branch."""
    for name, linear in _PRODUCTS.items():
        first = layers.find(n, f"{name}.lora.0.weight")
        second = layers.find(n, f"{name}.lora.1.weight")
        sizes = (config.hidden_size, config.attention_size)
        columns, rows = sizes[::-1] if linear == "attention_output" else sizes
        rank = first.shape[0]
        for tensor, shape in ((first, (rank, columns)), (second, (rows, rank))):
            if tensor.shape != shape:
                problem = f"expected shape {shape}, found {tensor.shape}"
                raise ShapeError(tensor.path, problem, tensor=tensor.name)
        found.parts[f"layers.{n}.{linear}.second.weight"] = Part(
            (second, first), partial(_product, second, first)
        )


def _product(left: LazyTensor, right: LazyTensor) -> Floats:
    product = read_finite(left).astype(np.float64) @ read_finite(right)
    return product.astype(np.float32)


def _add_pooler_norm(found: Parts, checkpoint: Checkpoint, stem: str) -> None:
    for slot, leaf in (("gain", "weight"), ("bias", "bias")):
        name = f"{stem}.{leaf}"
        if name not in checkpoint:
            raise MissingError(checkpoint.path, "is needed but not there", tensor=name)
        found.parts[f"pooler.norm.{slot}"] = Part.as_it_is(checkpoint[name])
