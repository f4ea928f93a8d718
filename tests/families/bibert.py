"""BiBERT in PyTorch, from its formulas: 1-bit weights and activations, no softmax."""

# mypy: disable-error-code="misc, no-any-return"

from __future__ import annotations

import math
from typing import Any

from families.low_bit import Family, Model, Module, SelfAttention, Sizes, Tensor, nn, torch


def sign_about_mean(weight: Tensor) -> Tensor:
    """Row by row: the sign about the mean, times the mean magnitude of what was not centred."""
    centred = weight - weight.mean(1, keepdim=True)
    return torch.sign(centred) * weight.abs().mean(1, keepdim=True)


def ternary_by_row(weight: Tensor) -> Tensor:
    return torch.stack([ternary(row) for row in weight])


def ternary(weight: Tensor) -> Tensor:
    """Ternary weight networks, one threshold and one scale."""
    kept = weight.abs() > 0.7 * weight.abs().mean()
    return torch.sign(weight) * kept * weight.abs()[kept].mean()


LINEARS = {1: sign_about_mean, 2: ternary}
TABLES = {1: sign_about_mean, 2: ternary_by_row}


class Linear(Module):
    def __init__(self, columns: int, rows: int, weight_bits: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(rows, columns))
        self.bias = nn.Parameter(torch.zeros(rows))
        self.weight_clip_val = nn.Parameter(torch.tensor([-2.5, 2.5]))  # these three are not used
        self.act_clip_val = nn.Parameter(torch.tensor([-2.5, 2.5]))
        self.scale = nn.Parameter(torch.tensor(0.7))
        self.weight_bits = weight_bits

    def forward(self, x: Tensor) -> Tensor:
        return torch.sign(x) @ LINEARS[self.weight_bits](self.weight).T + self.bias


class Words(Module):
    def __init__(self, rows: int, columns: int, weight_bits: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(rows, columns))
        self.weight_clip_val = nn.Parameter(torch.tensor([-2.5, 2.5]))
        self.weight_bits = weight_bits

    def forward(self, ids: Tensor) -> Tensor:
        return TABLES[self.weight_bits](self.weight)[ids]


class BiAttention(SelfAttention):
    """Signs of queries, keys and values; a token takes the values of the keys it agrees with."""

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (
            torch.sign(self.call(name, x).view(len(x), self.family.sizes.heads, -1).transpose(0, 1))
            for name in ("query", "key", "value")
        )
        scores = query @ key.transpose(1, 2) / math.sqrt(query.shape[-1])
        context = (scores > 0).float() @ value
        return context.transpose(0, 1).reshape(len(x), -1)


class BiBert(Family):
    def __init__(
        self,
        head: str = "classifier",
        n_labels: int = 3,
        weight_bits: int = 1,
        sizes: Sizes = Sizes(),  # noqa: B008
        **changes: Any,
    ) -> None:
        super().__init__(sizes, "gelu", head, n_labels)
        self.weight_bits = weight_bits
        self.eps = 1e-3
        self.settings = {
            **sizes.settings(),
            "model_type": "bert",
            "layer_norm_eps": self.eps,
            "hidden_act": "relu",  # not read: GELU is hard-coded
            "quantize_act": True,
            "weight_bits": weight_bits,
            "embedding_bits": 2,  # not read
            "input_bits": 1,
            "clip_val": 2.5,
            # Those of the model that the training began with.
            "id2label": {"0": "LABEL_0", "1": "LABEL_1"},
            **changes,
        }

    def linear(self, columns: int, rows: int, signed: bool) -> Any:
        return Linear(columns, rows, self.weight_bits)

    def words(self) -> Any:
        return Words(self.sizes.words, self.sizes.hidden, self.weight_bits)

    def add_attention(self, module: Any) -> None:
        for name in ("query", "key", "value", "attn"):
            parameter = nn.Parameter(torch.tensor([-2.5, 2.5]))
            module.register_parameter(f"clip_{name}", parameter)

    def model(self) -> Model:
        """A model without trained parameters."""
        model = Model(self)
        for layer in model.bert.encoder.layer:
            layer.attention.self = BiAttention(self)
            for output in (layer.attention.output, layer.output):
                output.gate = nn.Parameter(torch.tensor(0.3))
        return model
