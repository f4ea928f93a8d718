"""bitmaps in PyTorch, from its formulas: 1-bit weights with learned scales, all else as in BERT.

Every scale is a parameter that no weight decides; some are negative.
"""

# mypy: disable-error-code="misc, no-any-return"

from __future__ import annotations

from typing import Any

from families.low_bit import Family, Model, Module, Sizes, Tensor, nn, torch
from families.masked_lm import Predictions


def sign(values: Tensor) -> Tensor:
    """+1 for 0 and -0 as well."""
    return torch.where(values >= 0, 1.0, -1.0)


def per_row(scales: Tensor, rows: int) -> Tensor:
    """The scale of each row, the rows in as many groups as there are scales."""
    return scales.repeat_interleave(rows // len(scales))


class Linear(Module):
    """With `n` scales, one for each group of rows, and as many for the bias."""

    def __init__(self, columns: int, rows: int, n: int = 1, offsets: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(rows, columns))
        self.bias = nn.Parameter(torch.zeros(rows))
        self.alpha_w = nn.Parameter(torch.zeros(n))
        self.alpha_b = nn.Parameter(torch.zeros(n))
        if offsets:
            self.gamma_w = nn.Parameter(torch.zeros(n))

    def forward(self, x: Tensor) -> Tensor:
        rows = len(self.weight)
        weight = per_row(self.alpha_w, rows)[:, None] * sign(self.weight)
        if hasattr(self, "gamma_w"):
            weight = weight + per_row(self.gamma_w, rows)[:, None]
        return x @ weight.T + per_row(self.alpha_b, rows) * sign(self.bias)


class Embedding(Module):
    """`layout` is that of its scales: column, row or table."""

    def __init__(self, rows: int, columns: int, layout: str, offsets: bool = False) -> None:
        super().__init__()
        n = {"column": columns, "row": rows, "table": 1}[layout]
        self.layout = layout
        self.weight = nn.Parameter(torch.zeros(rows, columns))
        self.alpha_w = nn.Parameter(torch.zeros(n))
        if offsets:
            self.gamma_w = nn.Parameter(torch.zeros(n))

    def forward(self, ids: Tensor) -> Tensor:
        def spread(scales: Tensor) -> Tensor:
            return scales[:, None] if self.layout == "row" else scales[None, :]

        table = spread(self.alpha_w) * sign(self.weight)
        if hasattr(self, "gamma_w"):
            table = table + spread(self.gamma_w)
        return table[ids]


class Bitmaps(Family):
    """`revision` "head" is the last one, "may" that of 2020-05-21: plain embeddings and pooler."""

    def __init__(
        self,
        head: str = "binary_classifier",
        revision: str = "head",
        layout: str = "column",
        offsets: bool = False,
        activation: str = "gelu",
        sizes: Sizes = Sizes(hidden=192, attention=192, inner=200, words=331),  # noqa: B008
    ) -> None:
        super().__init__(sizes, activation, head, n_labels=1)
        self.revision, self.layout, self.offsets = revision, layout, offsets

    def linear(self, columns: int, rows: int, signed: bool) -> Any:
        return Linear(columns, rows, offsets=self.offsets)

    def words(self) -> Any:
        return Embedding(self.sizes.words, self.sizes.hidden, self.layout, self.offsets)

    def add_attention(self, module: Any) -> None:
        for name in ("query", "key", "value"):
            columns, rows = self.sizes.hidden, self.sizes.attention
            module.add_module(name, Linear(columns, rows, self.sizes.heads, self.offsets))

    def quantize(self, module: Any, name: str, z: Tensor) -> Tensor:
        return z

    def model(self) -> Any:
        """A model without trained parameters."""
        return MaskedLm(self) if self.head == "cls" else Classifier(self)


class _WithRevision(Model):
    def __init__(self, family: Bitmaps) -> None:
        super().__init__(family)
        sizes, embeddings = family.sizes, self.bert.embeddings
        if family.revision == "head":
            types = Embedding(sizes.types, sizes.hidden, family.layout, family.offsets)
            embeddings.token_type_embeddings = types
        else:
            embeddings.word_embeddings = nn.Embedding(sizes.words, sizes.hidden)
            self.bert.pooler.dense = nn.Linear(sizes.hidden, sizes.hidden)


class Classifier(_WithRevision):
    """One logit. In the last revision it is binarized, and there are no token types."""

    def add_head(self) -> None:
        family: Any = self.family
        self.is_last = family.revision == "head"
        self.binary_classifier = (Linear if self.is_last else nn.Linear)(family.sizes.hidden, 1)

    def forward(self, ids: Tensor, types: Tensor) -> Tensor:
        if self.is_last:
            types = torch.zeros_like(types)
        return self.binary_classifier(self.bert.pooler(self.hidden_states(ids, types)[-1]))[0]


class MaskedLm(_WithRevision):
    """Its decoder is the latent word embeddings, floats."""

    def __init__(self, family: Bitmaps) -> None:
        super().__init__(family)
        self.cls.predictions.tie(self.bert.embeddings.word_embeddings.weight)

    def add_head(self) -> None:
        self.cls = nn.Module()
        self.cls.predictions = Predictions(self.family)

    def forward(self, ids: Tensor, types: Tensor) -> Tensor:
        return self.cls.predictions(self.hidden_states(ids, types)[-1])


def set_scales(model: Any, seed: int) -> None:
    """Scales that are not mean magnitudes, a third of them negative, and offsets."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            size = 0.02 if name.endswith("gamma_w") else 0.08
            if "alpha_" in name or "gamma_" in name:
                noise = torch.rand(parameter.shape, generator=generator)
                parameter.copy_(size * (0.5 + noise))
                parameter.view(-1)[::3] *= -1
