"""Keeps the weights of a model in training in few small files, to be carried between machines."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from bitm_converter.training import binary_linears

PART_BYTES = 14 << 20


def save_state(directory: Path, model: nn.Module, facts: dict[str, Any]) -> None:
    """Writes part*.npz and facts.json; whoever sees the directory sees all of it.

    Matrices are kept as fp16, vectors as fp32. Of latent weights of 1-bit linears, a byte is kept
    for each, by row: their signs are exact, and of their sizes enough to train on.
    """
    latent = {f"{name}.weight" for name, _ in binary_linears(model)}
    arrays: dict[str, np.ndarray] = {}
    seen: set[int] = set()
    for name, tensor in model.state_dict().items():
        if tensor.data_ptr() in seen:
            continue
        seen.add(tensor.data_ptr())
        values = tensor.detach().float()
        if name in latent:
            greatest = values.abs().amax(1, keepdim=True).clamp(min=1e-12)
            codes = (values / greatest * 127).round()
            codes = torch.where(codes == 0, torch.where(values >= 0, 1.0, -1.0), codes)
            arrays[f"{name}:codes"] = codes.to(torch.int8).cpu().numpy()
            arrays[f"{name}:steps"] = (greatest / 127).cpu().numpy()
        else:
            arrays[name] = (values.half() if values.ndim == 2 else values).cpu().numpy()
    new, old = (
        directory.with_name(directory.name + ".new"),
        directory.with_name(directory.name + ".old"),
    )
    for path in (new, old):
        shutil.rmtree(path, ignore_errors=True)
    new.mkdir(parents=True)
    for n, part in enumerate(_parts(arrays), 1):
        np.savez(new / f"part{n}.npz", **part)  # type: ignore[arg-type]
    (new / "facts.json").write_text(json.dumps(facts, indent=1) + "\n")
    if directory.exists():
        directory.rename(old)
    new.rename(directory)
    shutil.rmtree(old, ignore_errors=True)


def load_state(directory: Path, model: nn.Module) -> dict[str, Any]:
    """Reads what `save_state` wrote into a model of the same structure; returns the facts."""
    state: dict[str, torch.Tensor] = {}
    for path in sorted(directory.glob("part*.npz")):
        with np.load(path) as part:
            arrays = {name: part[name] for name in part.files}
        for name, values in arrays.items():
            stem, _, kind = name.partition(":")
            if kind == "codes":
                values = values.astype(np.float32) * arrays[f"{stem}:steps"]
            elif kind == "steps":
                continue
            state[stem] = torch.from_numpy(values.astype(np.float32))
    missing, unexpected = model.load_state_dict(state, strict=False)
    tied = {"cls.predictions.decoder.weight", "cls.predictions.decoder.bias"}
    if unexpected or not set(missing) <= tied:
        raise ValueError(f"{directory}: missing {missing}, unexpected {unexpected}")
    facts: dict[str, Any] = json.loads((directory / "facts.json").read_text())
    return facts


def _parts(arrays: dict[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
    """Groups of arrays; codes stay with their steps."""
    parts: list[dict[str, np.ndarray]] = [{}]
    size = 0
    for name, values in arrays.items():
        if size + values.nbytes > PART_BYTES and size and not name.endswith(":steps"):
            parts.append({})
            size = 0
        parts[-1][name] = values
        size += values.nbytes
    return parts
