"""BitNet b1.58 in PyTorch, from its formulas, in each form that transformers keeps it in."""

# mypy: disable-error-code="misc, no-any-return"

from __future__ import annotations

from typing import Any

from families.low_bit import Family, Model, Module, Sizes, Tensor, nn, torch
from families.masked_lm import Predictions

# Linear class and mode by the name of a form.
FORMS = {
    "latent": ("autobitlinear", "online"),
    "packed": ("bitlinear", "offline"),
    "packed, scaled bias": ("autobitlinear", "offline"),
}


def pack(codes: Tensor) -> Tensor:
    """Ternary [rows, columns] to bytes: row j R + r of 4 R rows in bits 2j, 2j + 1 of row r."""
    n_packed = -(-len(codes) // 4)
    padded = torch.zeros(4 * n_packed, codes.shape[1], dtype=torch.uint8)
    padded[: len(codes)] = (codes + 1).to(torch.uint8)
    first, second, third, fourth = padded.split(n_packed)
    return first | second << 2 | third << 4 | fourth << 6


class RmsNorm(Module):
    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return x / torch.sqrt((x * x).mean(-1, keepdim=True) + self.eps) * self.weight


class Linear(Module):
    def __init__(self, family: BitNet, columns: int, rows: int) -> None:
        super().__init__()
        self.form = family.form
        self.weight = nn.Parameter(torch.zeros(rows, columns))
        self.bias = nn.Parameter(torch.zeros(rows))
        if family.rms_norm_eps:
            self.rms_norm = RmsNorm(columns, family.rms_norm_eps)

    def ternary(self) -> tuple[Tensor, Tensor]:
        """The codes and their scale."""
        scale = self.weight.abs().mean().clamp(min=1e-5)
        return torch.clamp(torch.round(self.weight / scale), -1, 1), scale

    def forward(self, x: Tensor) -> Tensor:
        if hasattr(self, "rms_norm"):
            x = self.rms_norm(x)
        k = 127 / x.abs().amax(-1, keepdim=True).clamp(min=1e-5)
        x = torch.clamp(torch.round(x * k), -128, 127) / k
        codes, scale = self.ternary()
        if self.form == "packed, scaled bias":
            return (x @ codes.T + self.bias) * scale
        return x @ (scale * codes).T + self.bias


class BitNet(Family):
    """`converted_head`: the classifier is one of BitNet's linears too."""

    def __init__(
        self,
        form: str = "latent",
        head: str = "classifier",
        rms_norm_eps: float = 0.0,
        converted_head: bool = False,
        sizes: Sizes = Sizes(inner=203),  # noqa: B008
    ) -> None:
        super().__init__(sizes, "gelu", head, n_labels=3)
        self.form, self.rms_norm_eps, self.converted_head = form, rms_norm_eps, converted_head
        self.eps = 1e-3
        linear_class, mode = FORMS[form]
        quantization: dict[str, Any] = {
            "quant_method": "bitnet",
            "linear_class": linear_class,
            "quantization_mode": mode,
            "modules_to_not_convert": None,
        }
        if rms_norm_eps:
            quantization |= {"use_rms_norm": True, "rms_norm_eps": rms_norm_eps}
        self.settings = {
            **sizes.settings(),
            "model_type": "bert",
            "layer_norm_eps": self.eps,
            "hidden_act": "gelu",
            "id2label": {str(n): f"label {n}" for n in range(3)},
            "quantization_config": quantization,
        }

    def linear(self, columns: int, rows: int, signed: bool) -> Any:
        return Linear(self, columns, rows)

    def words(self) -> Any:
        return nn.Embedding(self.sizes.words, self.sizes.hidden)

    def add_attention(self, module: Any) -> None:
        pass

    def quantize(self, module: Any, name: str, z: Tensor) -> Tensor:
        return z

    def model(self) -> Any:
        """A model without trained parameters."""
        if self.head == "cls":
            return MaskedLm(self)
        model = Model(self)
        if self.converted_head:
            model.classifier = Linear(self, self.sizes.hidden, self.n_labels)
        return model


class MaskedLm(Model):
    """The head's linear is one of BitNet's, its decoder is not."""

    def add_head(self) -> None:
        family: Any = self.family
        hidden = family.sizes.hidden
        self.cls = nn.Module()
        self.cls.predictions = Predictions(family)
        self.cls.predictions.transform.dense = Linear(family, hidden, hidden)
        self.cls.predictions.tie(self.bert.embeddings.word_embeddings.weight)

    def forward(self, ids: Tensor, types: Tensor) -> Tensor:
        return self.cls.predictions(self.hidden_states(ids, types)[-1])


def stored_state(model: Any) -> dict[str, Tensor]:
    """The state dict in the model's form; tied tensors stay tied."""
    state = dict(model.state_dict(keep_vars=True))
    for stem, module in model.named_modules():
        if isinstance(module, Linear) and module.form != "latent":
            codes, scale = module.ternary()
            state[f"{stem}.weight"] = pack(codes)
            kept = 1 / scale if module.form == "packed" else scale
            state[f"{stem}.weight_scale"] = kept.detach().reshape(1)
    return {name: values.detach() for name, values in state.items()}
