"""Evaluates a checkpoint in numpy, plainly: SPEC.md section 4 on matrices of floats.

`--verify` holds a written file against this. It is on purpose a second way through the checkpoint:
a recipe gives it what its family computes with, as dense matrices by the names of the slots, so it
knows neither codes, scales and layouts nor how they are packed, and a mistake there shows.

Shapes: B sequences, S tokens of the longest one, N real tokens of all sequences, one after the
other; H is the hidden size.
"""

# numpy's operators are typed as Any:
# mypy: disable-error-code="no-any-return"

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Optional

import numpy as np
import numpy.typing as npt

from bitm_formats import (
    Activation,
    Config,
    ConfigFlag,
    Head,
    Normalizer,
    Pooler,
    Quantizer,
    QuantizerKind,
    Scope,
)

Array = npt.NDArray[Any]
# Gives a tensor by its name, None for one that is not there.
Weights = Callable[[str], Optional[npt.NDArray[Any]]]
Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Network:
    """What there is to run: the configuration, dense weights by slot, quantizers by place.

    `weights` gives vectors and matrices of any float type by the names of SPEC.md section 4
    (`layers.0.query.weight`, `.bias`, `.shift`, `.rms.gain`, `.second.weight`, ...), without
    `.scale` and `.offset`; it is asked once for each tensor in a run, so it may compute them. None
    for an optional tensor means that there is none; for `mlm.decoder.weight`, that it is the word
    embeddings.
    """

    config: Config
    weights: Weights
    quantizers: Mapping[str, Quantizer] = field(default_factory=dict)


@dataclass(frozen=True)
class Outputs:
    """What a model gives for ids [B, S].

    `hidden_states` has n_layers + 1 arrays [B, S, H], the embeddings first. `logits` is [B, S, V]
    for a masked LM, [B, C] for a classifier, [B, S, C] for a token classifier and question
    answering, None without a head. Where the mask is 0, all is 0.
    """

    hidden_states: list[Array]
    logits: Array | None


def evaluate_network(
    network: Network,
    input_ids: Ids,
    attention_mask: Ids,
    token_type_ids: Ids,
    given_states: Sequence[Array] | None = None,
) -> Outputs:
    """Runs a network on ids, masks and types [B, S], each sequence for itself.

    Tokens whose mask is 0 take no part in anything; each sequence needs one whose mask is not 0.
    With `given_states`, n_layers + 1 arrays [B, S, H] of another program, every layer and the head
    begin with what that program had before them: then each shows its own differences alone.
    Weights-only models are computed in float64. Where activations are quantized it is float32, as
    in the families' own code: what is a zero there, by rounding, is one here too.
    Raises KeyError for a weight that the configuration asks for and `network` lacks.
    """
    is_real = attention_mask != 0
    run = _Run(network, [int(n) for n in is_real.sum(axis=1)])

    def unpack(x: Array) -> Array:
        padded = np.zeros((*is_real.shape, x.shape[-1]), x.dtype)
        padded[is_real] = x
        return padded

    positions = np.broadcast_to(np.arange(is_real.shape[1]), is_real.shape)
    given = None if given_states is None else [x[is_real] for x in given_states]
    states = [run.embeddings(input_ids[is_real], positions[is_real], token_type_ids[is_real])]
    for n in range(network.config.n_layers):
        states.append(run.layer(n, states[-1] if given is None else given[n]))
    logits = run.logits(states[-1] if given is None else given[-1])
    if logits is not None and network.config.head != Head.CLASSIFIER:
        logits = unpack(logits)
    return Outputs([unpack(x) for x in states], logits)


class _Run:
    """The layers of SPEC.md section 4 on packed sequences [N, H]."""

    def __init__(self, network: Network, lengths: Sequence[int]) -> None:
        self._config = network.config
        self._weights = network.weights
        self._quantizers = network.quantizers
        self._float = np.float32 if network.quantizers else np.float64
        ends = np.cumsum(lengths)
        self._sequences = [slice(end - n, end) for end, n in zip(ends, lengths)]

    def embeddings(self, ids: Ids, positions: Ids, types: Ids) -> Array:
        """The states [N, H] before the first layer."""
        x = self._tensor("embeddings.word.weight")[ids]
        second = self._optional("embeddings.word.second.weight")
        if second is not None:
            x = x + second[ids]
        x = x + self._tensor("embeddings.position.weight")[positions]
        x = x + self._tensor("embeddings.token_type.weight")[types]
        return self._norm("embeddings.norm", x, self._config.layer_norm_eps)

    def layer(self, n: int, x: Array) -> Array:
        """The states [N, H] after layer n of those before it."""
        name, eps = f"layers.{n}", self._config.layer_norm_eps
        x = x.astype(self._float)
        attended = self._linear(f"{name}.attention_output", self._attention(name, x))
        a = self._norm(f"{name}.attention_norm", attended + x, eps)
        activation = _ACTIVATIONS[Activation(self._config.hidden_activation)]
        inner = activation(self._linear(f"{name}.intermediate", a))
        return self._norm(f"{name}.output_norm", self._linear(f"{name}.output", inner) + a, eps)

    def logits(self, x: Array) -> Array | None:
        """The head's answer to the last states [N, H]: [N, ...], or [B, C] of a classifier."""
        config = self._config
        x = x.astype(self._float)
        if config.head in (Head.MASKED_LM, Head.MASKED_LM_NEXT_SENTENCE):
            x = _ACTIVATIONS[Activation(config.head_activation)](self._linear("mlm.transform", x))
            return self._decode(self._norm("mlm.norm", x, config.head_norm_eps))
        if config.head == Head.CLASSIFIER:
            first = x[[sequence.start for sequence in self._sequences]]
            rows = [slice(n, n + 1) for n in range(len(first))]
            return self._linear("classifier", self._pooled(first, rows), rows)
        if config.head in (Head.TOKEN_CLASSIFIER, Head.QUESTION_ANSWERING):
            return self._linear("classifier", x)
        return None

    def _attention(self, name: str, x: Array) -> Array:
        """What each token takes from the values of its sequence: [N, H] to [N, A]."""
        query, key, value = (self._operand(name, x, part) for part in ("query", "key", "value"))
        terms = None
        if self._config.score_rank:
            terms = [
                self._linear(f"{name}.low_rank.{term}", x)
                for term in ("query_p", "query_m", "key_p", "key_m")
            ]
        if self._config.value_term:
            value = value + self._linear(f"{name}.value_term", x)[:, None]
        quantizer = self._quantizers.get(f"{name}.attention.probabilities")
        context = np.empty_like(query)
        for own in self._sequences:
            scores = np.einsum("ihd,jhd->hij", query[own], key[own])
            if terms is not None:
                query_p, query_m, key_p, key_m = (term[own] for term in terms)
                scores = scores + query_m @ key_p.T + query_p @ key_m.T + query_p @ key_p.T
            p = self._probabilities(quantizer, scores * self._config.score_scale)
            context[own] = np.einsum("hij,jhd->ihd", p, value[own])
        return context.reshape(len(x), -1)

    def _operand(self, name: str, x: Array, part: str) -> Array:
        """Query, key or value, quantized: [N, heads, head size]."""
        quantizer = self._quantizers.get(f"{name}.attention.{part}")
        z = self._quantized(quantizer, self._linear(f"{name}.{part}", x), self._sequences)
        return z.reshape(len(x), self._config.n_heads, self._config.head_size)

    def _probabilities(self, quantizer: Quantizer | None, scores: Array) -> Array:
        """Scores [heads, S, S] of one sequence, normalized over the last axis and quantized."""
        p = scores
        if self._config.attention_normalizer == Normalizer.SOFTMAX:
            weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
            p = weights / weights.sum(axis=-1, keepdims=True)
        if quantizer is None:
            return p
        axes = (0, 1, 2) if quantizer.scope == Scope.SEQUENCE else (1, 2)
        counts_zero = bool(self._config.flags & ConfigFlag.PROBABILITY_MIN_ZERO)
        return quantize(quantizer, p, axes, counts_zero)

    def _pooled(self, first: Array, rows: Sequence[slice]) -> Array:
        x = self._linear("pooler", first, rows)
        if self._config.pooler == Pooler.NORM_SKIP:
            x = self._norm("pooler.norm", x, self._config.pooler_norm_eps) + first
        return np.tanh(x)

    def _decode(self, x: Array) -> Array:
        weight = self._optional("mlm.decoder.weight")
        if weight is None:
            weight = self._tensor("embeddings.word.weight")
            second = self._optional("embeddings.word.second.weight")
            weight = weight if second is None else weight + second
        return self._branch("mlm.decoder", weight, x, self._sequences)

    def _norm(self, name: str, x: Array, eps: float) -> Array:
        centred = x - x.mean(axis=-1, keepdims=True)
        variance = (centred**2).mean(axis=-1, keepdims=True)
        gain, bias = self._tensor(f"{name}.gain"), self._tensor(f"{name}.bias")
        return gain * (centred / np.sqrt(variance + eps)) + bias

    def _linear(self, name: str, x: Array, sequences: Sequence[slice] | None = None) -> Array:
        """The sum over one or two branches; `sequences` are the rows of x of each sequence."""
        own = self._sequences if sequences is None else sequences
        y = self._branch(name, self._tensor(f"{name}.weight"), x, own)
        second = self._optional(f"{name}.second.weight")
        return y if second is None else y + self._branch(f"{name}.second", second, x, own)

    def _branch(self, name: str, weight: Array, x: Array, sequences: Sequence[slice]) -> Array:
        """W Q(x) + bias."""
        gain = self._optional(f"{name}.rms.gain")
        if gain is not None:
            mean_square = (x**2).mean(axis=-1, keepdims=True)
            x = x / np.sqrt(mean_square + self._config.rms_norm_eps) * gain
        shift, bias = self._optional(f"{name}.shift"), self._optional(f"{name}.bias")
        z = x if shift is None else x + shift
        y = self._quantized(self._quantizers.get(name), z, sequences) @ weight.T
        return y if bias is None else y + bias

    def _quantized(
        self, quantizer: Quantizer | None, z: Array, sequences: Sequence[slice]
    ) -> Array:
        if quantizer is None:
            return z
        if quantizer.scope == Scope.SEQUENCE:
            return np.concatenate([quantize(quantizer, z[own], (0, 1)) for own in sequences])
        return quantize(quantizer, z, (1,))

    def _optional(self, name: str) -> Array | None:
        values = self._weights(name)
        return None if values is None else values.astype(self._float)

    def _tensor(self, name: str) -> Array:
        values = self._optional(name)
        if values is None:
            raise KeyError(name)
        return values


def quantize(
    quantizer: Quantizer, z: Array, axes: tuple[int, ...], counts_zero: bool = False
) -> Array:
    """The values of SPEC.md section 3.4; `axes` are those of z that one scope spans.

    `counts_zero` lets a zero that is not in z, a masked probability, count for the least value.
    """
    step, hi = quantizer.step, quantizer.hi
    if quantizer.clip is not None:
        z = np.clip(z, *quantizer.clip)
    if quantizer.kind == QuantizerKind.SIGN:
        return step * np.sign(z)
    if quantizer.kind == QuantizerKind.BOOL:
        return (z > 0).astype(z.dtype)
    if quantizer.kind == QuantizerKind.INT:
        return step * np.clip(np.round(z / step), quantizer.lo, hi)
    if quantizer.kind == QuantizerKind.DYN_SYM:
        greatest = np.maximum(np.abs(z).max(axes, keepdims=True), quantizer.eps)
        k = hi / np.where(greatest > 0, greatest, 1)
        return np.clip(np.round(z * k), quantizer.lo, hi) / k
    least = z.min(axes, keepdims=True)
    if counts_zero:
        least = np.minimum(least, 0)
    if quantizer.kind == QuantizerKind.INT_MIN:
        return step * np.clip(np.round((z - least) / step), 0, hi) + least
    r = z.max(axes, keepdims=True) - least + quantizer.eps
    return np.round((z - least) / np.where(r > 0, r, 1) * hi) / hi * r + least


# Activation functions

_ERF_STEP = 1 / 64
_ERF_END = 6.0  # erf is 1 beyond, in float64
_ERF_NODES = np.arange(0.0, _ERF_END + _ERF_STEP, _ERF_STEP)
_ERF_VALUES = np.array([math.erf(node) for node in _ERF_NODES])


def erf(x: Array) -> Array:
    """The error function in float64, to about 1e-15.

    Taylor's series about the nearest node of a table of math.erf; its derivatives are
    erf'(a) = 2 / sqrt(pi) exp(-a^2) times Hermite polynomials.
    """
    magnitude = np.minimum(np.abs(x), _ERF_END)
    node = np.rint(magnitude / _ERF_STEP).astype(np.intp)
    a = _ERF_NODES[node]
    d = magnitude - a
    slope = 2 / math.sqrt(math.pi) * np.exp(-a * a)
    series = (
        1
        - d * a
        + d**2 * (4 * a**2 - 2) / 6
        - d**3 * (8 * a**3 - 12 * a) / 24
        + d**4 * (16 * a**4 - 48 * a**2 + 12) / 120
        - d**5 * (32 * a**5 - 160 * a**3 + 120 * a) / 720
    )
    return np.copysign(_ERF_VALUES[node] + slope * d * series, x)


def _gelu(x: Array) -> Array:
    return x / 2 * (1 + erf(x / math.sqrt(2)).astype(x.dtype))


def _gelu_tanh(x: Array) -> Array:
    return x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def _relu(x: Array) -> Array:
    return np.maximum(x, 0)


def _swish(x: Array) -> Array:
    return x / 2 * (1 + np.tanh(x / 2))  # the logistic function, without overflow


def _mish(x: Array) -> Array:
    return x * np.tanh(np.logaddexp(0, x))


_ACTIVATIONS: dict[Activation, Callable[[Array], Array]] = {
    Activation.GELU: _gelu,
    Activation.GELU_TANH: _gelu_tanh,
    Activation.RELU: _relu,
    Activation.SWISH: _swish,
    Activation.MISH: _mish,
}
