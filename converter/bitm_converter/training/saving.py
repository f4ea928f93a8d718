"""Writes a trained 1-bit model as a checkpoint that bitm-convert reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from .modules import LearnedStep, binary_linears


def save(model: Any, directory: str | Path, tokenizer: Any = None) -> None:
    """Writes config.json, model.safetensors and, if given, the tokenizer's files.

    Weights are written as the forward pass sees them, two values in every row, so that with
    activations "float" and "int8" the checkpoint is a plain BERT that transformers runs too.
    Learned steps and shifts are written beside them; config.json says how many bits they have.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    config = {**model.config.to_dict(), "architectures": [type(model).__name__]}
    bits = {
        linear.quantizer.bits
        for _, linear in binary_linears(model)
        if isinstance(linear.quantizer, LearnedStep)
    }
    if len(bits) > 1:
        raise ValueError(f"expected learned steps of one number of bits, found {sorted(bits)}")
    if bits:
        config["quantization_config"] = {"quant_method": "bitm", "activation_bits": bits.pop()}
    save_file(binary_state(model), directory / "model.safetensors", {"format": "pt"})
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    if tokenizer is not None:
        tokenizer.save_pretrained(directory)
        words = tokenizer.get_vocab()
        lines = "\n".join(sorted(words, key=words.__getitem__)) + "\n"
        (directory / "vocab.txt").write_text(lines, encoding="utf-8")


@torch.no_grad()
def binary_state(model: nn.Module) -> dict[str, Tensor]:
    """The tensors of a checkpoint: binary weights for latent ones, tied tensors once."""
    state = model.state_dict()
    for name, linear in binary_linears(model):
        state[f"{name}.weight"] = linear.binary_weight()
        state.pop(f"{name}.scale", None)
    once: dict[tuple[int, int], str] = {}
    for name, tensor in list(state.items()):
        place = (tensor.data_ptr(), tensor.numel())
        if once.setdefault(place, name) != name and tensor.numel():
            del state[name]
    return {name: tensor.float().contiguous() for name, tensor in state.items()}
