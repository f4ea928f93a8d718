"""Linears with 1-bit weights that can be trained, whose forward pass is the runtime's.

Each keeps latent float weights W, of which the forward pass sees the signs alone:
    y = s sgn(W) Q(x) + b,  sgn(0) = 1
s is a scale for each row, Q a quantizer of the activations. Neither sgn nor rounding has a useful
derivative, so the backward pass takes them for the identity: the straight-through estimator
(Bengio et al. 2013; for weights Courbariaux et al. 2016). Attention between linears that take
codes of 8 bits multiplies codes too: see `attention`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.models.bert.modeling_bert import BertSelfAttention

from bitm_converter.naive import COMPONENTS

from .attention import Int8SelfAttention
from .rounding import byte_codes, straight_through

Weights = Literal["w1"]
Activations = Literal["float", "int8", "int4", "int2", "sign"]
Scales = Literal["learned", "mean"]

# The linears of a layer: their names among the file's slots, and among transformers' modules.
LAYER_LINEARS = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "attention_output": "attention.output.dense",
    "intermediate": "intermediate.dense",
    "output": "output.dense",
}
# What reads the activation function's values, which are hardly ever negative.
_UNSIGNED = "output"

_STEP_BITS = {"int4": 4, "int2": 2, "sign": 1}
_LEAST_STEP = 1e-5


class TokenInt8(nn.Module):
    """One byte an activation, scaled by token: what the runtime's mode `int8` makes of the
    inputs of linears.

    With m the largest magnitude of the token's vector: round(x 127 / m) m / 127.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Takes and gives [..., n], in float32 whatever autocast says."""
        with torch.no_grad():
            wide = x.float()
            codes, step = byte_codes(wide, wide.abs().amax(-1, keepdim=True))
        return straight_through(x, (codes * step).to(x.dtype))


class LearnedStep(nn.Module):
    """Activations of 1, 2 or 4 bits: codes times a learned step, behind a learned shift.

    With z = x + shift and a = step: signed, one bit is a sgn(z), n bits are
    a clamp(round(z / a), -2^(n-1), 2^(n-1) - 1); unsigned, a clamp(round(z / a), 0, 2^n - 1).
    As in BiT's elastic binarization (Liu et al. 2022) and LSQ (Esser et al. 2020): the gradient
    reaches z where it is not clipped, or `margin` steps further, and the step through both. The
    step is set by the first batch that is trained on. In training, `hardness` below 1 makes the
    codes softer: so much of the way from z / a, clipped, to the code.
    """

    def __init__(self, n_inputs: int, bits: int, signed: bool, margin: float = 0.0) -> None:
        super().__init__()
        self.bits, self.signed, self.margin = bits, signed, margin
        self.step = nn.Parameter(torch.ones(()))
        self.shift = nn.Parameter(torch.zeros(n_inputs))
        self.register_buffer("hardness", torch.ones(()), persistent=False)
        self._is_set = False
        self.register_load_state_dict_post_hook(_mark_as_set)

    @property
    def code_range(self) -> tuple[int, int]:
        """The least and the greatest code."""
        if self.signed and self.bits == 1:
            return -1, 1
        half = 2 ** (self.bits - 1)
        return (-half, half - 1) if self.signed else (0, 2 * half - 1)

    def forward(self, x: Tensor) -> Tensor:
        """Takes and gives [..., n_inputs]."""
        z = x.float() + self.shift
        if self.training and not self._is_set:
            self.set_step(z)
        step = self.step.clamp(min=_LEAST_STEP)
        ratio = z / step
        lo, hi = self.code_range
        inside = ratio.clamp(lo - self.margin, hi + self.margin)
        if self.bits == 1 and self.signed:
            codes = torch.sign(ratio)
        else:
            codes = torch.round(ratio.clamp(lo, hi))
        if self.training:
            codes = torch.lerp(inside.detach(), codes, self.hardness.to(codes.dtype))
        return (step * straight_through(inside, codes)).to(x.dtype)

    @torch.no_grad()
    def set_step(self, z: Tensor) -> None:
        """The step with which one bit has the mean magnitude of z, and more bits reach further."""
        _, hi = self.code_range
        # An unsigned bit is set above half its step.
        spread = 1.0 if self.bits == 1 and self.signed else 2.0
        self.step.copy_(spread * z.float().abs().mean() / hi**0.5)
        self._is_set = True


def set_hardness(model: nn.Module, hardness: float) -> None:
    """How hard learned steps are in training, from 0 to 1: for binarization bit by bit."""
    for module in model.modules():
        if isinstance(module, LearnedStep):
            module.hardness.fill_(hardness)


def _mark_as_set(module: nn.Module, incompatible_keys: Any) -> None:
    module._is_set = True


class BinaryLinear(nn.Linear):
    """A linear of 1-bit weights, made of a float one whose parameters it takes over.

    `scale` is a parameter, one value a row, or None: the mean of abs(W) in each row, as it changes.
    """

    def __init__(self, linear: nn.Linear, quantizer: nn.Module, scales: Scales = "learned") -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self.quantizer = quantizer
        self.scale: nn.Parameter | None = None
        if scales == "learned":
            self.scale = nn.Parameter(self.weight.detach().abs().mean(1))

    def binary_weight(self) -> Tensor:
        """What the forward pass multiplies by, [out, in]: two values in every row."""
        latent = self.weight
        signs = torch.where(latent >= 0, 1.0, -1.0).to(latent.dtype)
        scale = latent.detach().abs().mean(1) if self.scale is None else self.scale
        return scale[:, None] * straight_through(latent, signs)

    def forward(self, x: Tensor) -> Tensor:
        """Takes [..., in], gives [..., out]."""
        return functional.linear(self.quantizer(x), self.binary_weight(), self.bias)


def binarize_model(
    model: nn.Module,
    weights: Weights = "w1",
    activations: Activations = "int8",
    components: Collection[str] = ("layers",),
    scales: Scales = "learned",
    margin: float = 0.0,
) -> nn.Module:
    """Swaps linears of a BERT of transformers, of any head, for trainable 1-bit ones, in place.

    `weights` is "w1", one bit and a scale for each row. `activations` is "float", "int8" (scaled by
    token) or one of "int4", "int2", "sign" (learned steps, with `margin`: see `LearnedStep`).
    With "int8", attention multiplies codes too in layers whose query, key and value are binary.
    `components` are "layers", "layers-except-attention" or "layers-except-ffn". Linears that are
    binary already keep their weights and get the quantizer that is asked for. Raises ValueError for
    another choice, or if the model has no BERT encoder.
    """
    if weights != "w1":
        raise ValueError(f"weights: expected 'w1', found {weights!r}")
    chosen: set[str] = set()
    for component in components:
        if component not in COMPONENTS or not COMPONENTS[component] & LAYER_LINEARS.keys():
            expected = ", ".join(n for n, c in COMPONENTS.items() if c & LAYER_LINEARS.keys())
            raise ValueError(f"components: expected some of {expected}, found {component!r}")
        chosen |= COMPONENTS[component]
    for layer in _encoder_layers(model):
        for slot, path in LAYER_LINEARS.items():
            if slot not in chosen:
                continue
            parent_path, _, name = path.rpartition(".")
            parent = layer.get_submodule(parent_path)
            linear = getattr(parent, name)
            quantizer = _quantizer(activations, linear.in_features, slot != _UNSIGNED, margin)
            quantizer.to(linear.weight.device)
            if isinstance(linear, BinaryLinear):
                linear.quantizer = quantizer
            else:
                setattr(parent, name, BinaryLinear(linear, quantizer, scales))
        _choose_attention(layer.attention.self)
    return model


def binary_linears(model: nn.Module) -> Iterator[tuple[str, BinaryLinear]]:
    """The 1-bit linears of a model and their names."""
    for name, module in model.named_modules():
        if isinstance(module, BinaryLinear):
            yield name, module


def _encoder_layers(model: nn.Module) -> nn.ModuleList:
    body = getattr(model, "bert", model)
    layers = getattr(getattr(body, "encoder", None), "layer", None)
    if not isinstance(layers, nn.ModuleList):
        raise ValueError(f"expected a BERT of transformers, found {type(model).__name__}")
    return layers


def _choose_attention(block: Any) -> None:
    """Codes where the three linears take them, as the runtime chooses (bitm_attention_form_of)."""
    linears = (block.query, block.key, block.value)
    quantizers = [getattr(linear, "quantizer", None) for linear in linears]
    takes_bytes = all(isinstance(quantizer, TokenInt8) for quantizer in quantizers)
    if takes_bytes:
        block.__class__ = Int8SelfAttention
    elif isinstance(block, Int8SelfAttention):
        block.__class__ = BertSelfAttention


def _quantizer(activations: str, n_inputs: int, signed: bool, margin: float) -> nn.Module:
    if activations == "float":
        return nn.Identity()
    if activations == "int8":
        return TokenInt8()
    if activations in _STEP_BITS:
        return LearnedStep(n_inputs, _STEP_BITS[activations], signed, margin)
    expected = ", ".join(("float", "int8", *_STEP_BITS))
    raise ValueError(f"activations: expected one of {expected}, found {activations!r}")
