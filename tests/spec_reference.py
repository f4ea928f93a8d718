"""SPEC.md section 4 in numpy and float64, without regard for speed: what the runtime is held against."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from bitm_formats import ModelFile

Array = npt.NDArray[Any]

_erf = np.vectorize(math.erf, otypes=[np.float64])


def activation(number: int, x: Array) -> Array:
    """The activation functions of SPEC.md 3.2."""
    functions = {
        1: lambda: x / 2 * (1 + _erf(x / math.sqrt(2))),
        2: lambda: x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
        3: lambda: np.maximum(x, 0),
        4: lambda: x / (1 + np.exp(-x)),
        5: lambda: x * np.tanh(np.log1p(np.exp(x))),
    }
    return functions[number]()


class Reference:
    """One file, its matrices as floats."""

    def __init__(self, model: ModelFile) -> None:
        self.config = model.config
        self.tensors = {
            name: tensor.to_float32().astype(np.float64) for name, tensor in model.tensors.items()
        }

    def linear(self, name: str, x: Array) -> Array:
        """The sum over the branches of W x + bias."""
        total = np.zeros(())
        for branch in (name, f"{name}.second"):
            if f"{branch}.weight" in self.tensors:
                bias = self.tensors.get(f"{branch}.bias", np.zeros(()))
                total = total + x @ self.tensors[f"{branch}.weight"].T + bias
        return total

    def norm(self, name: str, x: Array, eps: float) -> Array:
        """Layer normalization with the biased variance."""
        centred = x - x.mean(-1, keepdims=True)
        variance = (centred**2).mean(-1, keepdims=True)
        gain, bias = self.tensors[f"{name}.gain"], self.tensors[f"{name}.bias"]
        return gain * centred / np.sqrt(variance + eps) + bias

    def attention(self, n: int, x: Array) -> Array:
        """Softmax attention over all tokens of the sequence [S, H]."""
        c = self.config
        query, key, value = (
            self.linear(f"layers.{n}.{part}", x).reshape(-1, c.n_heads, c.head_size)
            for part in ("query", "key", "value")
        )
        scores = c.score_scale * np.einsum("ihd,jhd->hij", query, key)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        return np.einsum("hij,jhd->ihd", weights, value).reshape(len(x), -1)

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
        """Masked-LM logits [S, V] of one sequence."""
        c = self.config
        x = self.linear("mlm.transform", self.hidden_states(ids, types)[-1])
        x = self.norm("mlm.norm", activation(c.head_activation, x), c.head_norm_eps)
        if "mlm.decoder.weight" in self.tensors:
            return self.linear("mlm.decoder", x)
        table = self.tensors["embeddings.word.weight"]
        table = table + self.tensors.get("embeddings.word.second.weight", 0.0)
        return x @ table.T + self.tensors["mlm.decoder.bias"]
