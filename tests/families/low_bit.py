"""BERT in PyTorch with the parts exchanged that BiT, BinaryBERT and BiPFT change.

Written from the families' formulas. A module takes one sequence without padding, ids and types [S];
the parameters have the names of the families' checkpoints. A `Family` says what linears, word
embeddings and attention's quantizers are.
"""

# mypy: disable-error-code="misc, no-any-return"

from __future__ import annotations

import json
import math
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
nn = torch.nn
Module: Any = nn.Module
Tensor = Any
torch.set_num_threads(1)  # on matrices this small, threads only wait for each other


@dataclass(frozen=True)
class Sizes:
    """Awkward ones; `attention` is that of query, key and value."""

    hidden: int = 96
    attention: int = 96
    heads: int = 3
    inner: int = 200
    layers: int = 2
    words: int = 997
    positions: int = 64
    types: int = 2

    def settings(self) -> dict[str, Any]:
        """Their names in config.json."""
        return {
            "hidden_size": self.hidden,
            "num_attention_heads": self.heads,
            "intermediate_size": self.inner,
            "num_hidden_layers": self.layers,
            "vocab_size": self.words,
            "max_position_embeddings": self.positions,
            "type_vocab_size": self.types,
        }


class Family:
    """A family's arithmetic; `branches` are the endings of its modules' names."""

    branches: tuple[str, ...] = ("",)
    eps = 1e-12

    def __init__(self, sizes: Sizes, activation: str, head: str, n_labels: int) -> None:
        self.sizes, self.head, self.n_labels = sizes, head, n_labels
        self.activation = activation

    def linear(self, columns: int, rows: int, signed: bool) -> Any:
        """One branch of a quantized linear."""
        raise NotImplementedError

    def words(self) -> Any:
        """One branch of the word embeddings."""
        raise NotImplementedError

    def add_attention(self, module: Any) -> None:
        """Gives self-attention its further parameters."""
        raise NotImplementedError

    def quantize(self, module: Any, name: str, z: Tensor) -> Tensor:
        """Quantizes query, key, value [A, S, d] or attn [A, S, S]."""
        raise NotImplementedError

    def score_terms(self, module: Any, x: Tensor) -> Tensor:
        """What is added to the products of queries and keys, for the layer's input x."""
        return torch.zeros(())

    def value_terms(self, module: Any, x: Tensor) -> Tensor:
        """What is added to the quantized values."""
        return torch.zeros(())

    def add_pooler(self, module: Any) -> None:
        """Gives the pooler its further parameters."""

    def pool(self, y: Tensor, module: Any, first: Tensor) -> Tensor:
        """The pooler's output for its linear's output y and its input."""
        return torch.tanh(y)


ACTIVATIONS = {"gelu": nn.functional.gelu, "relu": torch.relu}


class Block(Module):
    """A module whose linears may have branches."""

    def __init__(self, family: Family) -> None:
        super().__init__()
        self.family = family

    def add_linear(self, name: str, columns: int, rows: int, signed: bool = True) -> None:
        for branch in self.family.branches:
            self.add_module(name + branch, self.family.linear(columns, rows, signed))

    def call(self, name: str, x: Tensor) -> Tensor:
        return sum(getattr(self, name + branch)(x) for branch in self.family.branches)


class Embeddings(Block):
    def __init__(self, family: Family) -> None:
        super().__init__(family)
        sizes = family.sizes
        for branch in family.branches:
            self.add_module(f"word_embeddings{branch}", family.words())
        self.position_embeddings = nn.Embedding(sizes.positions, sizes.hidden)
        self.token_type_embeddings = nn.Embedding(sizes.types, sizes.hidden)
        self.LayerNorm = nn.LayerNorm(sizes.hidden, eps=family.eps)
        self.register_buffer("position_ids", torch.arange(sizes.positions)[None])

    def forward(self, ids: Tensor, types: Tensor) -> Tensor:
        x = self.call("word_embeddings", ids) + self.token_type_embeddings(types)
        return self.LayerNorm(x + self.position_embeddings.weight[: len(ids)])


class SelfAttention(Block):
    def __init__(self, family: Family) -> None:
        super().__init__(family)
        sizes = family.sizes
        for name in ("query", "key", "value"):
            self.add_linear(name, sizes.hidden, sizes.attention)
        family.add_attention(self)

    def forward(self, x: Tensor) -> Tensor:
        heads = self.family.sizes.heads
        query, key, value = (
            self.family.quantize(
                self, name, self.call(name, x).view(len(x), heads, -1).transpose(0, 1)
            )
            for name in ("query", "key", "value")
        )
        scores = query @ key.transpose(1, 2) + self.family.score_terms(self, x)
        scores = torch.softmax(scores / math.sqrt(query.shape[-1]), -1)
        probabilities = self.family.quantize(self, "attn", scores)
        context = probabilities @ (value + self.family.value_terms(self, x))
        return context.transpose(0, 1).reshape(len(x), -1)


class Output(Block):
    """A linear, the residual and its norm."""

    def __init__(self, family: Family, columns: int, signed: bool) -> None:
        super().__init__(family)
        self.add_linear("dense", columns, family.sizes.hidden, signed)
        self.LayerNorm = nn.LayerNorm(family.sizes.hidden, eps=family.eps)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return self.LayerNorm(self.call("dense", x) + residual)


class Attention(Module):
    def __init__(self, family: Family) -> None:
        super().__init__()
        self.self = SelfAttention(family)
        self.output = Output(family, family.sizes.attention, signed=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.output(self.self(x), x)


class Intermediate(Block):
    def __init__(self, family: Family) -> None:
        super().__init__(family)
        self.add_linear("dense", family.sizes.hidden, family.sizes.inner)

    def forward(self, x: Tensor) -> Tensor:
        return ACTIVATIONS[self.family.activation](self.call("dense", x))


class Layer(Module):
    def __init__(self, family: Family) -> None:
        super().__init__()
        self.attention = Attention(family)
        self.intermediate = Intermediate(family)
        self.output = Output(family, family.sizes.inner, signed=False)

    def forward(self, x: Tensor) -> Tensor:
        a = self.attention(x)
        return self.output(self.intermediate(a), a)


class Encoder(Module):
    def __init__(self, family: Family) -> None:
        super().__init__()
        self.layer = nn.ModuleList(Layer(family) for _ in range(family.sizes.layers))

    def forward(self, x: Tensor) -> list[Tensor]:
        states = [x]
        for layer in self.layer:
            states.append(layer(states[-1]))
        return states


class Pooler(Block):
    def __init__(self, family: Family) -> None:
        super().__init__(family)
        self.add_linear("dense", family.sizes.hidden, family.sizes.hidden)
        family.add_pooler(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.family.pool(self.call("dense", x[:1]), self, x[:1])


class Body(Module):
    def __init__(self, family: Family) -> None:
        super().__init__()
        self.embeddings = Embeddings(family)
        self.encoder = Encoder(family)
        self.pooler = Pooler(family)


class Model(Module):
    """The body with the head `classifier` or `qa_outputs`."""

    def __init__(self, family: Family) -> None:
        super().__init__()
        self.family = family
        self.bert = Body(family)
        self.add_head()

    def add_head(self) -> None:
        linear = nn.Linear(self.family.sizes.hidden, self.family.n_labels)
        self.add_module(self.family.head, linear)

    def hidden_states(self, ids: Tensor, types: Tensor) -> list[Tensor]:
        """Arrays [S, H], the embeddings first."""
        return self.bert.encoder(self.bert.embeddings(ids, types))

    def forward(self, ids: Tensor, types: Tensor) -> Tensor:
        """Logits [C] of a classifier, [S, 2] for question answering."""
        x = self.hidden_states(ids, types)[-1]
        if self.family.head == "qa_outputs":
            return self.qa_outputs(x)
        return self.classifier(self.bert.pooler(x))[0]


# Parameters


def randomize(model: Any, seed: int) -> None:
    """Gives every parameter values that tell the formulas apart.

    Some weights of every matrix are 0 and -0.0, biases and shifts are not 0, scores are large
    enough to matter, and clip values are left to the family.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(shape: Any) -> Tensor:
        return torch.randn(shape, generator=generator)

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "clip" in name:
                continue
            if name.endswith("LayerNorm.weight"):
                parameter.copy_(1 + 0.2 * normal(parameter.shape))
            elif parameter.dim() == 2:
                parameter.copy_(0.05 * normal(parameter.shape) + 0.01)
                parameter.view(-1)[::131] = 0.0
                parameter.view(-1)[1::131] = -0.0
                if ".query" in name or ".key" in name:
                    parameter.mul_(3)
            else:
                parameter.copy_(0.2 * normal(parameter.shape))


def place_on_the_mean(weight: Tensor) -> None:
    """Makes a matrix whose mean is exact in float32, and which some of its weights equal."""
    with torch.no_grad():
        whole = torch.round(weight * 64)
        excess = int((whole - 1).sum())
        flat = whole.view(-1)
        flat[: abs(excess)] -= math.copysign(1, excess)
        weight.copy_(whole / 64)
    assert (weight == weight.mean()).any()


# Files


def state_of(model: Any) -> dict[str, Tensor]:
    """The state dict, of tensors that are their own."""
    return OrderedDict((name, value.clone()) for name, value in model.state_dict().items())


def save(
    folder: Path, state: dict[str, Tensor], settings: dict[str, Any], container: str = "zip"
) -> Path:
    """Writes pytorch_model.bin and config.json; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    prefix = "module." if "prefixed" in container else ""
    content: Any = OrderedDict((prefix + name, value) for name, value in state.items())
    if "wrapped" in container:
        content = {"epoch": 3, "model_state_dict": content, "loss": torch.tensor(0.5)}
    torch.save(
        content,
        folder / "pytorch_model.bin",
        _use_new_zipfile_serialization="legacy" not in container,
    )
    (folder / "config.json").write_text(json.dumps(settings))
    return folder
