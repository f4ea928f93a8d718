"""BiT in PyTorch, from its formulas: learned steps behind a shift, signs about the mean.

Only what the class of the family adds to families/low_bit.py is here.
"""

# mypy: disable-error-code="misc, no-any-return"

from __future__ import annotations

from typing import Any

from families.low_bit import (
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


def elastic(z: Tensor, step: Tensor, bits: int, signed: bool) -> Tensor:
    """Codes of `bits` bits times a learned step; the minimum is that of the whole tensor."""
    if bits == 32:
        return z
    a = torch.clamp(step, min=1e-5)
    if signed and bits == 1:
        return a * torch.sign(z)
    if signed:
        return a * torch.clamp(torch.round(z / a), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    least = torch.zeros(()) if bits == 1 else z.min()
    return a * torch.clamp(torch.round((z - least) / a), 0, 2**bits - 1) + least


def centred(weight: Tensor, by_row: bool) -> Tensor:
    """Signs about the mean of the whole matrix, times the mean magnitude."""
    magnitude = weight.abs().mean(1, keepdim=True) if by_row else weight.abs().mean()
    return torch.sign(weight - weight.mean()) * magnitude


class LearnedBias(Module):
    def __init__(self, n: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(n))


class Linear(Module):
    def __init__(self, family: Any, columns: int, rows: int, signed: bool) -> None:
        super().__init__()
        self.family, self.signed = family, signed
        self.weight = nn.Parameter(torch.zeros(rows, columns))
        self.bias = nn.Parameter(torch.zeros(rows))
        self.move = LearnedBias(columns)
        self.input_clip_val = nn.Parameter(torch.tensor(1.0))

    def forward(self, x: Tensor) -> Tensor:
        x = elastic(x + self.move.bias, self.input_clip_val, self.family.input_bits, self.signed)
        weight = self.weight
        if self.family.weight_bits == 1:
            weight = centred(weight, by_row=not self.family.settings["weight_layerwise"])
        return x @ weight.T + self.bias


class Words(Module):
    def __init__(self, family: Any, rows: int, columns: int) -> None:
        super().__init__()
        self.family = family
        self.weight = nn.Parameter(torch.zeros(rows, columns))

    def forward(self, ids: Tensor) -> Tensor:
        if self.family.weight_bits == 32:
            return self.weight[ids]
        return centred(self.weight, by_row=not self.family.settings["embed_layerwise"])[ids]


class Bit(Family):
    """`settings` is config.json; changes to it change the arithmetic."""

    def __init__(
        self,
        input_bits: int = 1,
        sizes: Sizes = Sizes(),  # noqa: B008
        head: str = "classifier",
        n_labels: int = 3,
        **changes: Any,
    ) -> None:
        self.settings = {
            **sizes.settings(),
            "model_type": "bert",
            "layer_norm_eps": 1e-3,  # not read: 1e-12 is hard-coded
            "hidden_act": "relu",
            "weight_bits": 1,
            "input_bits": input_bits,
            "weight_quant_method": "bwn",
            "input_quant_method": "elastic",
            "weight_layerwise": True,
            "embed_layerwise": False,
            "input_layerwise": True,
            "sym_quant_qkvo": True,
            "sym_quant_ffn_attn": False,
            "not_quantize_attention": False,
            "num_labels": n_labels,
            **changes,
        }
        super().__init__(sizes, self.settings["hidden_act"], head, n_labels)
        self.input_bits = input_bits
        self.weight_bits = self.settings["weight_bits"]

    def linear(self, columns: int, rows: int, signed: bool) -> Any:
        return Linear(self, columns, rows, signed or self.settings["sym_quant_ffn_attn"])

    def words(self) -> Any:
        return Words(self, self.sizes.words, self.sizes.hidden)

    def add_attention(self, module: Any) -> None:
        for name in ("q", "k", "v"):
            module.add_module(f"move_{name}", LearnedBias(self.sizes.hidden))
        if self.input_bits < 32:
            for name in ("query", "key", "value", "attn"):
                module.register_parameter(f"clip_{name}", nn.Parameter(torch.tensor(1.0)))

    def quantize(self, module: Any, name: str, z: Tensor) -> Tensor:
        if self.input_bits == 32 or (name == "attn" and self.settings["not_quantize_attention"]):
            return z
        signed = name != "attn" or self.settings["sym_quant_ffn_attn"]
        return elastic(z, getattr(module, f"clip_{name}"), self.input_bits, signed)

    def model(self, seed: int) -> Any:
        """A model of random weights; some weights equal their matrix's mean."""
        model = Model(self).eval()
        randomize(model, seed)
        set_steps(model, self.input_bits)
        place_on_the_mean(model.bert.encoder.layer[0].intermediate.dense.weight)
        place_on_the_mean(model.bert.embeddings.word_embeddings.weight)
        return model


def set_steps(model: Any, bits: int) -> None:
    """Steps that spread values of the models' size over the codes; one is below the least step."""
    share = {1: 1.0, 2: 0.7, 4: 0.2, 8: 0.02}.get(bits, 1.0)
    sizes = {"input_clip_val": 0.8, "query": 0.7, "key": 0.6, "value": 0.5, "attn": 0.13}
    with torch.no_grad():
        for n, (name, parameter) in enumerate(model.named_parameters()):
            if "clip" in name:
                parameter.fill_(sizes[name.rpartition(".clip_")[2].rpartition(".")[2]] * share)
                parameter.mul_(1 + 0.01 * (n % 17))
        if bits < 32:
            model.bert.encoder.layer[-1].attention.self.clip_key.fill_(-0.3)
