"""BinaryBERT in PyTorch, from its formulas: split and unsplit, 8 bits "uniform" and 4 bits "lsq".

Only what the class of the family adds to families/low_bit.py is here.
"""

# mypy: disable-error-code="misc, no-any-return"

from __future__ import annotations

from typing import Any

from families.low_bit import Family, Model, Module, Sizes, Tensor, nn, randomize, torch


def statistics(z: Tensor, by_token: bool) -> tuple[Tensor, Tensor]:
    """Least and greatest values: of all, or of a token [S, n], of a head [A, S, S]."""
    if not by_token:
        return z.min(), z.max()
    axes = tuple(range(1, z.dim()))
    return z.amin(axes, keepdim=True), z.amax(axes, keepdim=True)


def uniform(z: Tensor, clip: Tensor, bits: int, signed: bool, by_token: bool) -> Tensor:
    """Codes of `bits` bits over the extent of the clipped values."""
    z = torch.minimum(torch.maximum(z, clip[0].float()), clip[1].float())
    least, greatest = statistics(z, by_token)
    if signed:
        scale = (2 ** (bits - 1) - 1) / torch.maximum(least.abs(), greatest.abs())
        return torch.round(z * scale) / scale
    extent = greatest - least + 1e-8
    n = 2**bits - 1
    return torch.round((z - least) / extent * n) / n * extent + least


def lsq(z: Tensor, step: Tensor, bits: int, signed: bool, by_token: bool) -> Tensor:
    """Codes of `bits` bits times a learned step; unsigned ones begin at the least value."""
    a = torch.clamp(step.float(), min=1e-5)
    if signed:
        return a * torch.clamp(torch.round(z / a), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    least, _ = statistics(z, by_token)
    return a * torch.clamp(torch.round((z - least) / a), 0, 2**bits - 1) + least


QUANTIZERS = {"uniform": uniform, "lsq": lsq}


def binary(weight: Tensor, by_row: bool) -> Tensor:
    """Signs (0 for 0) times the mean magnitude."""
    magnitude = weight.abs().mean(1, keepdim=True) if by_row else weight.abs().mean()
    return torch.sign(weight) * magnitude


def ternary(weight: Tensor, by_row: bool) -> Tensor:
    """Ternary weight networks; a row of zeros stays zeros."""
    size = weight.abs()
    threshold = 0.7 * (size.mean(1, keepdim=True) if by_row else size.mean())
    kept = size > threshold
    axes = (1,) if by_row else (0, 1)
    count = kept.sum(axes, keepdim=True).clamp(min=1)
    return torch.sign(weight) * kept * (size * kept).sum(axes, keepdim=True) / count


WEIGHTS = {1: binary, 2: ternary}


class Linear(Module):
    def __init__(self, family: BinaryBert, columns: int, rows: int, signed: bool) -> None:
        super().__init__()
        self.family, self.signed = family, signed
        self.weight = nn.Parameter(torch.zeros(rows, columns))
        self.bias = nn.Parameter(torch.zeros(rows, dtype=family.float_type))
        if family.input_bits < 32:
            self.input_clip_val = family.clip()

    def forward(self, x: Tensor) -> Tensor:
        if self.family.input_bits < 32:
            # A hidden state is a token's row [S, n].
            x = self.family.quantize_with(x, self.input_clip_val, self.signed)
        weight = WEIGHTS[self.family.weight_bits](self.weight, by_row=False)
        return x @ weight.T + self.bias.float()


class Words(Module):
    def __init__(self, family: BinaryBert, rows: int, columns: int) -> None:
        super().__init__()
        self.family = family
        self.weight = nn.Parameter(torch.zeros(rows, columns))

    def forward(self, ids: Tensor) -> Tensor:
        return WEIGHTS[self.family.weight_bits](self.weight, by_row=True)[ids]


class BinaryBert(Family):
    """`method` is "uniform" or "lsq"; in a `split` model each matrix is a sum of two."""

    def __init__(
        self,
        method: str = "uniform",
        input_bits: int = 8,
        split: bool = True,
        weight_bits: int = 1,
        sizes: Sizes = Sizes(),  # noqa: B008
        head: str = "classifier",
        n_labels: int = 3,
        wide: bool = False,
        **changes: Any,
    ) -> None:
        self.settings = {
            **sizes.settings(),
            "model_type": "bert",
            "layer_norm_eps": 1e-3,  # not read: 1e-12 is hard-coded
            "hidden_act": "gelu" if method == "uniform" else "relu",
            "weight_bits": weight_bits,
            "input_bits": input_bits,
            "weight_quant_method": "bwn" if weight_bits == 1 else "twn",
            "input_quant_method": method,
            "input_layerwise": True,
            "num_labels": n_labels,
            **changes,
        }
        if sizes.attention != sizes.hidden:
            self.settings["dyna_hidden_size"] = sizes.attention
        super().__init__(sizes, self.settings["hidden_act"], head, n_labels)
        self.method, self.input_bits, self.weight_bits = method, input_bits, weight_bits
        self.branches = ("_1", "_2") if split else ("",)
        self.float_type = torch.float64 if wide else torch.float32

    def clip(self) -> Any:
        shape = (2,) if self.method == "uniform" else ()
        return nn.Parameter(torch.ones(shape, dtype=self.float_type))

    def quantize_with(self, z: Tensor, clip: Tensor, signed: bool) -> Tensor:
        by_token = not self.settings["input_layerwise"]
        return QUANTIZERS[self.method](z, clip, self.input_bits, signed, by_token)

    def linear(self, columns: int, rows: int, signed: bool) -> Any:
        return Linear(self, columns, rows, signed)

    def words(self) -> Any:
        return Words(self, self.sizes.words, self.sizes.hidden)

    def add_attention(self, module: Any) -> None:
        if self.input_bits < 32:
            for name in ("query", "key", "value", "attn"):
                module.register_parameter(f"clip_{name}", self.clip())

    def quantize(self, module: Any, name: str, z: Tensor) -> Tensor:
        if self.input_bits == 32:
            return z
        clip = getattr(module, f"clip_{name}")
        if name == "attn":
            return self.quantize_with(z, clip, signed=False)
        # Of queries, keys and values a token is one row of all heads.
        heads, length, size = z.shape
        rows = z.transpose(0, 1).reshape(length, -1)
        rows = self.quantize_with(rows, clip, signed=True)
        return rows.view(length, heads, size).transpose(0, 1)

    def model(self, seed: int) -> Any:
        """A model of random weights whose clip values are the branches' own."""
        model = Model(self).eval()
        randomize(model, seed)
        sizes = {"input_clip_val": 1.0, "query": 1.1, "key": 0.9, "value": 0.8, "attn": 0.25}
        share = {4: 0.2, 8: 0.02, 2: 0.5}.get(self.input_bits, 1.0)
        with torch.no_grad():
            for n, (name, parameter) in enumerate(model.named_parameters()):
                if "clip" not in name:
                    continue
                size = sizes[name.rpartition(".clip_")[2].rpartition(".")[2]] * (1 + n % 13 / 40)
                if self.method == "uniform":  # some clip, others leave the values' own extent
                    pair = [-1.2, 1.4] if n % 3 == 0 else [-6.0, 7.0]
                    parameter.copy_(torch.tensor(pair) * size)
                else:
                    parameter.fill_(size * share)
        return model
