"""SPEC.md section 4 in numpy and float64, without regard for speed: what the runtime must give."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from bitm_formats import ModelFile, Quantizer, QuantizerKind, Scope

Array = Any  # of floats or ids; shapes stand in the docstrings

_erf = np.vectorize(math.erf, otypes=[np.float64])


def activation(number: int, x: Array) -> Array:
    """The activation functions of SPEC.md 3.2."""
    functions: dict[int, Callable[[], Array]] = {
        1: lambda: x / 2 * (1 + _erf(x / math.sqrt(2))),
        2: lambda: x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
        3: lambda: np.maximum(x, 0),
        4: lambda: x / (1 + np.exp(-x)),
        5: lambda: x * np.tanh(np.log1p(np.exp(x))),
    }
    return functions[number]()


def quantized(q: Quantizer | None, z: Array, axes: tuple[int, ...]) -> Array:
    """The values of SPEC.md 3.4; `axes` are those of one scope of the quantizer in z."""
    if q is None:
        return z
    if q.clip is not None:
        z = np.clip(z, *q.clip)
    least, greatest = z.min(axes, keepdims=True), z.max(axes, keepdims=True)
    if q.kind == QuantizerKind.SIGN:
        return q.step * np.sign(z)
    if q.kind == QuantizerKind.BOOL:
        return (z > 0).astype(float)
    if q.kind == QuantizerKind.INT:
        return q.step * np.clip(np.round(z / q.step), q.lo, q.hi)
    if q.kind == QuantizerKind.INT_MIN:
        return q.step * np.clip(np.round((z - least) / q.step), 0, q.hi) + least
    if q.kind == QuantizerKind.DYN_SYM:
        k = q.hi / np.maximum(np.maximum(abs(least), abs(greatest)), q.eps)
        return np.clip(np.round(z * k), q.lo, q.hi) / k
    r = greatest - least + q.eps
    return np.round((z - least) / r * q.hi) / q.hi * r + least


class Reference:
    """One file, its matrices as floats."""

    def __init__(self, model: ModelFile) -> None:
        self.config = model.config
        self.quantizers = model.quantizers
        self.tensors = {
            name: tensor.to_float32().astype(np.float64) for name, tensor in model.tensors.items()
        }

    def linear(self, name: str, x: Array) -> Array:
        """The sum over the branches of W Q(x) + bias."""
        total = np.zeros(())
        for branch in (name, f"{name}.second"):
            if f"{branch}.weight" in self.tensors:
                total = total + self.branch(branch, self.tensors[f"{branch}.weight"], x)
        return total

    def branch(self, name: str, weight: Array, x: Array) -> Array:
        """W Q(x) + bias, x [S, columns]."""
        if f"{name}.rms.gain" in self.tensors:
            mean_square = (x**2).mean(-1, keepdims=True)
            x = x / np.sqrt(mean_square + self.config.rms_norm_eps)
            x = x * self.tensors[f"{name}.rms.gain"]
        z = x + self.tensors.get(f"{name}.shift", 0.0)
        q = self.quantizers.get(name)
        axes = (0, 1) if q is not None and q.scope == Scope.SEQUENCE else (1,)
        return quantized(q, z, axes) @ weight.T + self.tensors.get(f"{name}.bias", 0.0)

    def norm(self, name: str, x: Array, eps: float) -> Array:
        """Layer normalization with the biased variance."""
        centred = x - x.mean(-1, keepdims=True)
        variance = (centred**2).mean(-1, keepdims=True)
        gain, bias = self.tensors[f"{name}.gain"], self.tensors[f"{name}.bias"]
        return gain * centred / np.sqrt(variance + eps) + bias

    def attention(self, n: int, x: Array) -> Array:
        """Attention over all tokens of the sequence [S, H] -> [S, A]."""
        c = self.config
        layer = f"layers.{n}"
        operands = []
        for part in ("query", "key", "value"):
            q = self.quantizers.get(f"{layer}.attention.{part}")
            axes = (0, 1) if q is not None and q.scope == Scope.SEQUENCE else (1,)
            z = quantized(q, self.linear(f"{layer}.{part}", x), axes)
            operands.append(z.reshape(-1, c.n_heads, c.head_size))
        query, key, value = operands
        scores = np.einsum("ihd,jhd->hij", query, key)
        if c.score_rank:
            query_p, query_m, key_p, key_m = (
                self.linear(f"{layer}.low_rank.{term}", x)
                for term in ("query_p", "query_m", "key_p", "key_m")
            )
            scores = scores + query_m @ key_p.T + query_p @ key_m.T + query_p @ key_p.T
        scores = c.score_scale * scores
        if c.attention_normalizer == 1:
            scores = np.exp(scores - scores.max(-1, keepdims=True))
            scores /= scores.sum(-1, keepdims=True)
        q = self.quantizers.get(f"{layer}.attention.probabilities")
        by_sequence = q is not None and q.scope == Scope.SEQUENCE
        p = quantized(q, scores, (0, 1, 2) if by_sequence else (1, 2))
        if c.value_term:
            value = value + self.linear(f"{layer}.value_term", x)[:, None]
        return np.einsum("hij,jhd->ihd", p, value).reshape(len(x), -1)

    def hidden_states(self, ids: Array, types: Array | None = None) -> list[Array]:
        """Hidden states [S, H] after 0 ... n_layers layers, of one sequence without padding."""
        c = self.config
        t = self.tensors
        word = t["embeddings.word.weight"][ids]
        if "embeddings.word.second.weight" in t:
            word = word + t["embeddings.word.second.weight"][ids]
        types = np.zeros(len(ids), int) if types is None else types
        x = word + t["embeddings.token_type.weight"][types]
        x = x + t["embeddings.position.weight"][: len(ids)]
        states = [self.norm("embeddings.norm", x, c.layer_norm_eps)]
        for n in range(c.n_layers):
            x = states[-1]
            attended = self.linear(f"layers.{n}.attention_output", self.attention(n, x))
            x = self.norm(f"layers.{n}.attention_norm", attended + x, c.layer_norm_eps)
            inner = activation(c.hidden_activation, self.linear(f"layers.{n}.intermediate", x))
            output = self.linear(f"layers.{n}.output", inner)
            states.append(self.norm(f"layers.{n}.output_norm", output + x, c.layer_norm_eps))
        return states

    def logits(self, ids: Array, types: Array | None = None) -> Array:
        """Logits of one sequence: masked LM [S, V], classifier [C], tokens [S, C]."""
        c = self.config
        x = self.hidden_states(ids, types)[-1]
        if c.head == 3:
            return self.linear("classifier", self.pooled(x[:1]))[0]
        if c.head in (4, 5):
            return self.linear("classifier", x)
        x = activation(c.head_activation, self.linear("mlm.transform", x))
        x = self.norm("mlm.norm", x, c.head_norm_eps)
        table = self.tensors.get("mlm.decoder.weight")
        if table is None:
            table = self.tensors["embeddings.word.weight"]
            table = table + self.tensors.get("embeddings.word.second.weight", 0.0)
        return self.branch("mlm.decoder", table, x)

    def pooled(self, first: Array) -> Array:
        """The pooler's output for first tokens [B, H]."""
        x = self.linear("pooler", first)
        if self.config.pooler == 2:
            x = self.norm("pooler.norm", x, self.config.pooler_norm_eps) + first
        return np.tanh(x)
