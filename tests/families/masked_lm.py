"""The head of a masked LM in PyTorch, as transformers names its parameters."""

# mypy: disable-error-code="misc"

from __future__ import annotations

from families.low_bit import ACTIVATIONS, Family, Module, Tensor, nn, torch


class Predictions(Module):
    """`cls.predictions`: a linear, the activation, a norm, and a decoder tied to a table."""

    def __init__(self, family: Family) -> None:
        super().__init__()
        hidden, words = family.sizes.hidden, family.sizes.words
        self.bias = nn.Parameter(torch.zeros(words))
        self.transform = nn.Module()
        self.transform.dense = nn.Linear(hidden, hidden)
        self.transform.LayerNorm = nn.LayerNorm(hidden, eps=family.eps)
        self.decoder = nn.Linear(hidden, words)
        self.decoder.bias = self.bias
        self.activation = ACTIVATIONS[family.activation]

    def tie(self, table: Tensor) -> None:
        """Makes the decoder decode with a table of embeddings [words, hidden]."""
        self.decoder.weight = table

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation(self.transform.dense(x))
        return self.decoder(self.transform.LayerNorm(x))
