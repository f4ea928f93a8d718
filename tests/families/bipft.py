"""BiPFT in PyTorch, from its formulas: BiT's signs with float estimators beside attention.

Only what the class of the family adds to families/low_bit.py and families/bit.py is here.
"""

# mypy: disable-error-code="misc, no-any-return"

from __future__ import annotations

from typing import Any

from families.bit import Linear, Words, elastic, set_steps
from families.low_bit import (
    ACTIVATIONS,
    Family,
    Model,
    Module,
    Sizes,
    Tensor,
    nn,
    place_on_the_mean,
    randomize,
    torch,
)

ESTIMATORS = ("q_p", "q_m", "k_p", "k_m")


class Branched(Linear):
    """BiT's linear with the unused PReLU of fine-tuned checkpoints."""

    def __init__(self, family: Any, columns: int, rows: int, signed: bool) -> None:
        super().__init__(family, columns, rows, signed)
        self.sa = nn.PReLU(columns)


class Products(Module):
    """A product of two small matrices, without biases."""

    def __init__(self, columns: int, rows: int, rank: int) -> None:
        super().__init__()
        self.lora = nn.Sequential(
            nn.Linear(columns, rank, bias=False), nn.Linear(rank, rows, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.lora(x)


class Transform(Module):
    def __init__(self, family: Any) -> None:
        super().__init__()
        hidden = family.sizes.hidden
        self.activation = ACTIVATIONS[family.settings["hidden_act"]]
        self.dense = nn.Linear(hidden, hidden)
        self.LayerNorm = nn.LayerNorm(hidden, eps=1e-12)

    def forward(self, x: Tensor) -> Tensor:
        return self.LayerNorm(self.activation(self.dense(x)))


class Predictions(Module):
    """The masked LM; its decoder is the latent word embeddings."""

    def __init__(self, family: Any, words: Any) -> None:
        super().__init__()
        self.transform = Transform(family)
        self.decoder = nn.Linear(family.sizes.hidden, family.sizes.words, bias=False)
        self.decoder.weight = words
        self.bias = nn.Parameter(torch.zeros(family.sizes.words))

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.transform(x)) + self.bias


class Pretraining(Model):
    def add_head(self) -> None:
        self.cls = Module()
        words = self.bert.embeddings.word_embeddings.weight
        self.cls.predictions = Predictions(self.family, words)
        self.cls.seq_relationship = nn.Linear(self.family.sizes.hidden, 2)

    def forward(self, ids: Tensor, types: Tensor) -> Tensor:
        """Logits [S, V]."""
        return self.cls.predictions(self.hidden_states(ids, types)[-1])


class BiPft(Family):
    """`head` is "classifier" or "cls" (masked LM and next sentence)."""

    input_bits, weight_bits = 1, 1

    def __init__(
        self,
        sizes: Sizes = Sizes(),  # noqa: B008
        head: str = "classifier",
        n_labels: int = 2,
        rank: int = 1,
        lora_rank: int = 0,
        **changes: Any,
    ) -> None:
        self.settings = {
            **sizes.settings(),
            "model_type": "bert",
            "layer_norm_eps": 1e-3,  # the pooler's alone: elsewhere 1e-12 is hard-coded
            "hidden_act": "relu",  # the masked LM's alone: elsewhere GELU is hard-coded
            "weight_bits": 1,
            "input_bits": 1,
            "weight_layerwise": True,
            "embed_layerwise": False,
            "lora_rank": rank,
            "improve_linear": lora_rank > 0,
            "num_labels": n_labels,
            **changes,
        }
        super().__init__(sizes, "gelu", head, n_labels)
        self.rank, self.lora_rank = rank, lora_rank

    def linear(self, columns: int, rows: int, signed: bool) -> Any:
        return Branched(self, columns, rows, signed=True)

    def words(self) -> Any:
        return Words(self, self.sizes.words, self.sizes.hidden)

    def add_attention(self, module: Any) -> None:
        hidden = self.sizes.hidden
        for name in ESTIMATORS:
            module.add_module(name, nn.Linear(hidden, self.rank))
        module.v_p = nn.Linear(hidden, 1)
        for name in ("query", "key", "value", "attn"):
            module.register_parameter(f"clip_{name}", nn.Parameter(torch.tensor(1.0)))

    def quantize(self, module: Any, name: str, z: Tensor) -> Tensor:
        return elastic(z, getattr(module, f"clip_{name}"), 1, signed=name != "attn")

    def score_terms(self, module: Any, x: Tensor) -> Tensor:
        q_p, q_m, k_p, k_m = (getattr(module, name)(x) for name in ESTIMATORS)
        return q_m @ k_p.T + q_p @ k_m.T + q_p @ k_p.T

    def value_terms(self, module: Any, x: Tensor) -> Tensor:
        return module.v_p(x)

    def add_pooler(self, module: Any) -> None:
        module.LayerNorm = nn.LayerNorm(self.sizes.hidden, eps=self.settings["layer_norm_eps"])

    def pool(self, y: Tensor, module: Any, first: Tensor) -> Tensor:
        return torch.tanh(module.LayerNorm(y) + first)

    def model(self, seed: int) -> Any:
        """A model of random weights; some weights equal their matrix's mean."""
        model = (Pretraining if self.head == "cls" else Model)(self).eval()
        if self.lora_rank:
            for layer in model.bert.encoder.layer:
                self.add_products(layer.attention)
        randomize(model, seed)
        set_steps(model, bits=1)
        place_on_the_mean(model.bert.encoder.layer[0].intermediate.dense.weight)
        place_on_the_mean(model.bert.embeddings.word_embeddings.weight)
        return model

    def add_products(self, attention: Any) -> None:
        """Products beside query, key, value and the output of attention."""
        hidden, block = self.sizes.hidden, attention.self
        for name in ("query", "key", "value"):
            products = Products(hidden, hidden, self.lora_rank)
            block.add_module(f"lora_{name[0]}", products)
            getattr(block, name).register_forward_hook(adder(products))
        attention.output.lora_o = Products(hidden, hidden, self.lora_rank)
        attention.output.dense.register_forward_hook(adder(attention.output.lora_o))


def adder(products: Any) -> Any:
    """A hook that adds products of a linear's input to its output."""
    return lambda module, inputs, output: output + products(inputs[0])
