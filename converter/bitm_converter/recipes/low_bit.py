"""What BiT, BinaryBERT and BiPFT share: latent weights of a bit or two, and learned quantizers.

All three keep latent float weights and make of them, in every forward pass, signs (or three values)
times a mean magnitude. Their activations are quantized where a linear reads them, and in attention;
how is written in the checkpoint as clip values, one or two numbers for each place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

import numpy as np

from bitm_converter.checkpoint import Checkpoint, LazyTensor
from bitm_converter.errors import CheckpointError, ConfigError, MissingError, ShapeError
from bitm_converter.packing import Codes
from bitm_formats import Layout, Quantizer, QuantizerKind, Scope

from .assembly import Floats, Part, Values, read_finite
from .settings import Settings
from .skeleton import DECODER_WEIGHT, Skeleton

# The eps of every LayerNorm of these families, whatever config.json says.
LAYER_NORM_EPS = 1e-12
# The number of bits that stands for floats.
FLOAT_BITS = 32

_LEAST_STEP = np.float32(1e-5)
_WORDS = "embeddings.word"
_QUANTIZED_LINEARS = ("query", "key", "value", "attention_output", "intermediate", "output")
_OPERANDS = ("query", "key", "value")
_PROBABILITIES_CLIP = "clip_attn"


# Makes the values that the network multiplies by of latent weights [rows, columns].
Rule = Callable[[Floats], Values]


class RuleByLayout(Protocol):
    """A rule for scales of the tensor or of rows."""

    def __call__(self, weights: Floats, layout: Layout) -> Values:
        """The values of latent weights [rows, columns]."""


def floats(weight: Floats) -> Values:
    """Latent weights that are used as they are."""
    return weight


# Quantizers of activations


class Activations(Protocol):
    """How a family makes a quantizer of clip values."""

    def quantizer(self, clip: LazyTensor, signed: bool) -> Quantizer:
        """Raises ShapeError or CheckpointError for values that are no clip."""


@dataclass(frozen=True)
class LearnedSteps:
    """A learned step a, at least 1e-5 ("elastic" of BiT, "lsq" of BinaryBERT).

    Signed: one bit is a sgn(z), n bits are a clamp(round(z / a), -2^(n-1), 2^(n-1) - 1). Unsigned:
    one bit is a clamp(round(z / a), 0, 1); n bits count from the least z of the scope.
    """

    bits: int
    scope: Scope = Scope.SEQUENCE

    def quantizer(self, clip: LazyTensor, signed: bool) -> Quantizer:
        """As Activations says."""
        step = float(np.maximum(_clip_values(clip, 1)[0], _LEAST_STEP))
        half = 2 ** (self.bits - 1)
        if signed and self.bits == 1:
            return Quantizer(QuantizerKind.SIGN, Scope.STATIC, -1, 1, step)
        if signed:
            return Quantizer(QuantizerKind.INT, Scope.STATIC, -half, half - 1, step)
        if self.bits == 1:
            return Quantizer(QuantizerKind.INT, Scope.STATIC, 0, 1, step)
        return Quantizer(QuantizerKind.INT_MIN, self.scope, 0, 2 * half - 1, step)


@dataclass(frozen=True)
class Uniform:
    """A learned pair to clip to, then codes over the extent of the scope's values.

    Signed: from -max |z| to max |z|. Unsigned: from min z to max z + 1e-8.
    """

    bits: int
    scope: Scope

    def quantizer(self, clip: LazyTensor, signed: bool) -> Quantizer:
        """As Activations says."""
        lo, hi = (float(value) for value in _clip_values(clip, 2))
        if lo > hi:
            problem = f"expected a pair in ascending order, found [{lo}, {hi}]"
            raise CheckpointError(clip.path, problem, tensor=clip.name)
        half = 2 ** (self.bits - 1)
        if signed:
            kind = QuantizerKind.DYN_SYM
            return Quantizer(kind, self.scope, -half, half - 1, clip=(lo, hi))
        kind = QuantizerKind.DYN_ASYM
        return Quantizer(kind, self.scope, 0, 2 * half - 1, eps=1e-8, clip=(lo, hi))


def _clip_values(clip: LazyTensor, n: int) -> Floats:
    if clip.shape not in ([(), (1,)] if n == 1 else [(n,)]):
        expected = "one step" if n == 1 else "a pair"
        problem = f"expected {expected}, found shape {clip.shape}"
        raise ShapeError(clip.path, problem, tensor=clip.name)
    return read_finite(clip).reshape(n)


# Settings


def bits_of(settings: Settings, key: str, *allowed: int) -> int:
    """A number of bits, which config.json must state."""
    bits = settings.integer(key)
    if bits not in allowed:
        *others, last = (str(n) for n in allowed)
        expected = f"{', '.join(others)} or {last}" if others else last
        raise ConfigError(settings.path, f"'{key}': expected {expected}, found {bits}")
    return bits


def weight_rules(settings: Settings, rule: RuleByLayout) -> tuple[Rule, Rule]:
    """The rules of linears and of word embeddings: unless config.json says otherwise, a linear has
    one scale, word embeddings have one for each row."""
    of_linears = Layout.TENSOR if settings.flag("weight_layerwise", True) else Layout.ROW
    of_words = Layout.TENSOR if settings.flag("embed_layerwise", False) else Layout.ROW
    return partial(rule, layout=of_linears), partial(rule, layout=of_words)


def require_activation(settings: Settings) -> None:
    """Refuses a configuration without the activation function, of which the families differ."""
    if settings.text("hidden_act") is None:
        problem = "'hidden_act' is needed and cannot be read off the tensors: give it by --config"
        raise MissingError(settings.path, problem)


# Models


@dataclass(frozen=True)
class Scheme:
    """How a family computes.

    `weights` and `words` make the matrices of linears and of word embeddings. `activations` is None
    where activations are floats. `signed_output` says whether the codes of what the linear `output`
    reads, behind the activation function, have signs; `signed_probabilities` likewise, None where
    probabilities stay floats. `has_shift`: inputs of linears are shifted by `move.bias` first.
    `branches` are the endings of the names of modules whose values are added.
    """

    weights: Rule
    words: Rule
    activations: Activations | None
    signed_output: bool
    signed_probabilities: bool | None
    has_shift: bool = False
    branches: tuple[str, ...] = ("",)

    @property
    def unused(self) -> dict[str, str]:
        """Patterns of clip values that clip nothing, and why."""
        if self.activations is None:
            names = ("*.input_clip_val", "*.attention.self.clip_*")
            return dict.fromkeys(names, "activations are floats")
        if self.signed_probabilities is None:
            return {f"*.attention.self.{_PROBABILITIES_CLIP}": "probabilities are floats"}
        return {}


@dataclass
class Parts:
    """What `assembly.Draft` takes: parts by slot, quantizers by place, names accounted for."""

    parts: dict[str, Part] = field(default_factory=dict)
    quantizers: dict[str, Quantizer] = field(default_factory=dict)
    accounted: set[str] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)


def collect(checkpoint: Checkpoint, skeleton: Skeleton, scheme: Scheme) -> Parts:
    """The parts of a model whose skeleton is a plain BERT's.

    The names of `skeleton` are those without the endings of branches. Raises MissingError and
    ShapeError.
    """
    collector = _Collector(checkpoint, skeleton, scheme)
    for slot, name in skeleton.sources.items():
        place, _, leaf = slot.rpartition(".")
        if place == _WORDS:
            collector.add_words(place, name)
        elif _is_quantized(place):
            if leaf == "weight":
                collector.add_linear(place, name)
        elif slot == DECODER_WEIGHT and name not in checkpoint:
            # Tied to the latent word embeddings, not to their bits.
            collector.add_plain(slot, skeleton.sources[f"{_WORDS}.weight"])
        else:
            collector.add_plain(slot, name)
    for n in range(skeleton.config.n_layers):
        collector.add_attention(n)
    collector.add_notes()
    return collector.result


def _is_quantized(place: str) -> bool:
    name = place.rpartition(".")[2]
    return place == "pooler" or (place.startswith("layers.") and name in _QUANTIZED_LINEARS)


class _Collector:
    """Goes through a checkpoint once for each kind of part."""

    def __init__(self, checkpoint: Checkpoint, skeleton: Skeleton, scheme: Scheme) -> None:
        self.result = Parts(accounted=skeleton.accounted_names())
        self._checkpoint, self._skeleton, self._scheme = checkpoint, skeleton, scheme
        self._untrained_steps: list[str] = []

    def add_plain(self, slot: str, name: str) -> None:
        """A tensor that is used as it is."""
        self.result.parts[slot] = Part.as_it_is(self._checkpoint[name])

    def add_words(self, place: str, name: str) -> None:
        """The word embeddings, a table for each branch."""
        for table, stem in self._branches(place, name):
            weight = self._take(f"{stem}.weight", self._skeleton.shapes[f"{place}.weight"])
            self._add_weight(table, weight, self._scheme.words)

    def add_linear(self, place: str, name: str) -> None:
        """A linear, its biases, shifts and quantizers, of each branch."""
        shape = self._skeleton.shapes[f"{place}.weight"]
        rows, columns = shape
        scheme = self._scheme
        signed = scheme.signed_output or not place.endswith(".output")
        for branch, stem in self._branches(place, name):
            weight = self._take(f"{stem}.weight", shape)
            bias = self._take(f"{stem}.bias", (rows,))
            self._add_weight(branch, weight, scheme.weights)
            self.result.parts[f"{branch}.bias"] = Part.as_it_is(bias)
            if scheme.activations is not None:
                self._add_quantizer(branch, f"{stem}.input_clip_val", signed)
            if scheme.has_shift:
                shift = self._take(f"{stem}.move.bias", (columns,))
                self._add_shift(branch, weight, bias, shift)

    def add_attention(self, n: int) -> None:
        """The quantizers of queries, keys, values and probabilities of layer n."""
        if self._scheme.activations is None:
            return
        place = f"layers.{n}.attention"
        stem = f"{self._skeleton.body}encoder.layer.{n}.attention.self"
        for operand in _OPERANDS:
            self._add_quantizer(f"{place}.{operand}", f"{stem}.clip_{operand}", signed=True)
        signed = self._scheme.signed_probabilities
        if signed is not None:
            self._add_quantizer(f"{place}.probabilities", f"{stem}.{_PROBABILITIES_CLIP}", signed)

    def add_notes(self) -> None:
        """What the user should know of the quantizers that were found."""
        notes = self.result.notes
        if self._untrained_steps:
            notes.append(
                f"{len(self._untrained_steps)} learned steps are exactly 1.0, as before training: "
                "the published code would replace them by what the first batch suggests, the file "
                f"keeps them (the first is {self._untrained_steps[0]})"
            )
        if any(q.scope != Scope.STATIC for q in self.result.quantizers.values()):
            notes.append(
                "some quantizers follow the extremes of their values: the file answers as the "
                "published code does for one sequence at a time without padding"
            )

    def _branches(self, place: str, name: str) -> Iterable[tuple[str, str]]:
        """The place in the file and the stem in the checkpoint of each branch."""
        stem = name.rpartition(".")[0]
        places = (place, f"{place}.second")
        return zip(places, (stem + ending for ending in self._scheme.branches))

    def _add_weight(self, place: str, weight: LazyTensor, rule: Rule) -> None:
        self.result.parts[f"{place}.weight"] = Part((weight,), lambda: rule(read_finite(weight)))

    def _add_quantizer(self, place: str, name: str, signed: bool) -> None:
        activations = self._scheme.activations
        assert activations is not None
        quantizer = activations.quantizer(self._take(name), signed)
        if isinstance(activations, LearnedSteps) and quantizer.step == 1:
            self._untrained_steps.append(name)
        self.result.quantizers[place] = quantizer

    def _add_shift(
        self, place: str, weight: LazyTensor, bias: LazyTensor, shift: LazyTensor
    ) -> None:
        """A quantizer takes the shift; floats have it in the bias: W (x + t) = W x + W t."""
        if self._scheme.activations is not None:
            self.result.parts[f"{place}.shift"] = Part.as_it_is(shift)
            return

        def folded() -> Floats:
            values = self._scheme.weights(read_finite(weight))
            matrix = values.dense() if isinstance(values, Codes) else values
            moved = matrix.astype(np.float64) @ read_finite(shift)
            return (read_finite(bias) + moved).astype(np.float32)

        self.result.parts[f"{place}.bias"] = Part((bias, shift), folded)

    def _take(self, name: str, shape: tuple[int, ...] | None = None) -> LazyTensor:
        """A tensor that must be there, of this shape if one is given."""
        tensor = self._checkpoint.get(name)
        if tensor is None:
            raise MissingError(self._checkpoint.path, "is needed but not there", tensor=name)
        self.result.accounted.add(name)
        if shape is not None and tensor.shape != shape:
            problem = f"expected shape {shape}, found {tensor.shape}"
            raise ShapeError(self._checkpoint.path, problem, tensor=name)
        return tensor
