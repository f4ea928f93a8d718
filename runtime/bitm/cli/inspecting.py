"""`bitm info`, `verify` and `kernels`: what a file is, and what runs it."""

from __future__ import annotations

import argparse
import contextlib
import zlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from bitm.cli.arguments import ACTIVATIONS
from bitm.cli.models import (
    MASKED_LM_HEADS,
    VERIFY_STEP,
    VERIFY_TOKENS,
    fixed_ids,
    forced_as,
    open_model,
)
from bitm.cli.terminal import clipped, print_json, print_text, printable, row, size

if TYPE_CHECKING:
    from bitm.model import Model

# Numbers of formats/SPEC.md 3.2.
HEADS = (
    "none",
    "masked LM",
    "masked LM and next sentence",
    "sequence classifier",
    "token classifier",
    "question answering",
)
PROBLEMS = ("", ", regression", ", one label", ", several labels", ", one logit")

# How many of a file's labels are shown to people.
LABELS_MOST = 16

# ---- info ----


def _encoder(info: Mapping[str, Any]) -> str:
    each = ""
    if info["encoder_weights"] > 0:
        each = f" ({info['encoder_bytes'] * 8 / info['encoder_weights']:.2f} bits each)"
    return (
        f"{info['encoder_weights'] / 1e6:.1f} M weights in {size(info['encoder_bytes'])}{each}: "
        f"{info['one_bit_matrices']} one-bit, {info['ternary_matrices']} ternary, "
        f"{info['float_matrices']} float matrices"
    )


def _tokenizer(info: Mapping[str, Any]) -> str:
    if info["n_tokens"] == 0:
        return "none: the model takes token ids"
    special = "".join(
        f", {name.upper()} {info[f'{name}_id']}"
        for name in ("cls", "sep", "pad", "mask")
        if info[f"{name}_id"] >= 0
    )
    return f"WordPiece, {info['n_tokens']} tokens: unknown {info['unk_id']}{special}"


def _labels(info: Mapping[str, Any]) -> str:
    """Labels without a name are called as transformers calls them."""
    n = info["n_labels"]
    names = [
        clipped(info["metadata"].get(f"label.{i}", f"LABEL_{i}"))
        for i in range(min(n, LABELS_MOST))
    ]
    return f"{n}: {', '.join(names)}{', ...' if n > LABELS_MOST else ''}"


def _name(names: tuple[str, ...], number: int, other: str) -> str:
    return names[number] if number < len(names) else other


def _in_file(info: Mapping[str, Any]) -> str:
    lines = [
        row("file", f"{printable(info['path'])}, {size(info['file_bytes'])}"),
        row(
            "network",
            f"{info['n_layers']} layers, hidden size {info['hidden_size']}, "
            f"{info['n_heads']} heads of {info['head_size']}, "
            f"intermediate size {info['intermediate_size']}",
        ),
        row(
            "input",
            f"at most {info['max_positions']} tokens, ids below {info['vocab_size']}, "
            f"{info['n_token_types']} token types",
        ),
        row("head", _name(HEADS, info["head"], "unknown") + _name(PROBLEMS, info["problem"], "")),
    ]
    if info["n_labels"] > 0:
        lines.append(row("labels", _labels(info)))
    lines += [
        row("encoder", _encoder(info)),
        row("embeddings", size(info["embedding_bytes"])),
        row("tokenizer", _tokenizer(info)),
    ]
    lines += [
        row(clipped(key), clipped(value))
        for key, value in info["metadata"].items()
        if not key.startswith("label.")
    ]
    return "".join(lines)


def _runs_it(info: Mapping[str, Any]) -> str:
    where = " where the file defines none" if info["quantizes_activations"] else ""
    length = min(128, info["max_positions"])
    return "".join(
        [
            row("activations", info["activations"] + where),
            row("device", info["device"]),
            row("threads", str(info["threads"])),
            row("memory", f"{size(info['model_bytes'])} beside the file"),
            row("session memory", f"{size(info['session_bytes_1x128'])} for 1 x {length} tokens"),
            row("kernels", forced_as(info["kernels"])),
            row("bitm", info["version"]),
        ]
    )


def run_info(arguments: argparse.Namespace) -> None:
    """Prints what is in a file and what runs it."""
    with open_model(arguments) as model:
        info = model.info
    if arguments.json:
        print_json(info)
    else:
        print_text(f"{_in_file(info)}\n{_runs_it(info)}")


# ---- verify ----


def _hash(model: Model, info: Mapping[str, Any], n_tokens: int) -> str:
    """CRC-32 of the model's answer to the fixed input, as little-endian float32."""
    import numpy as np

    ids = fixed_ids((1, n_tokens), info["vocab_size"])
    if info["head"] == 0:
        output = model.hidden_states(ids)
    elif info["head"] in MASKED_LM_HEADS:
        output = model.logits(ids, positions=np.arange(0, n_tokens, VERIFY_STEP)[np.newaxis])
    else:
        output = model.logits(ids)
    return f"{zlib.crc32(output.astype('<f4').tobytes()):08x}"


def run_verify(arguments: argparse.Namespace) -> None:
    """Checks all data of a file, and prints a hash of its answers in each mode."""
    modes = ACTIVATIONS[1:] if arguments.activations == "auto" else (arguments.activations,)
    hashes: dict[str, str] = {}
    for mode in modes:
        with open_model(arguments, mode) as model:
            if not hashes:
                model.verify()
                info = model.info
                n_tokens = min(VERIFY_TOKENS, info["max_positions"])
            hashes[mode] = _hash(model, info, n_tokens)
    masked_lm = f"logits of every {VERIFY_STEP}th token"
    what = {0: "hidden states", **dict.fromkeys(MASKED_LM_HEADS, masked_lm)}
    output = what.get(info["head"], "logits")
    if arguments.json:
        print_json(
            {
                "path": info["path"],
                "file_bytes": info["file_bytes"],
                "n_tokens": n_tokens,
                "output": output,
                "crc32": hashes,
                "version": info["version"],
            }
        )
        return
    print_text(
        row("file", f"{printable(info['path'])}, {size(info['file_bytes'])}: sound")
        + row("hashed", f"{output}, from {n_tokens} tokens")
        + "".join(row(mode, hash_) for mode, hash_ in hashes.items())
    )


# ---- kernels ----


def _device_without_model(name: str) -> str:
    """Returns what a device is; "cpu" for "auto" where no GPU can be used."""
    from bitm._native import describe_device
    from bitm.errors import DeviceError

    try:
        return describe_device(name)
    except DeviceError:
        if name != "auto":
            raise
        return "cpu"


def run_kernels(arguments: argparse.Namespace) -> None:
    """Lists those of the CPU unless --device asks for a GPU, which runs none of them."""
    from bitm._native import Library, default_kernels

    if arguments.model is None:
        device = _device_without_model(arguments.device)
        kernels = default_kernels()
    else:
        model = Library(arguments.model, arguments.kernels, arguments.device)
        with contextlib.closing(model) as library:
            device = library.device
            kernels = library.kernels()
    if device != "cpu":
        if arguments.json:
            print_json({"device": device})
        else:
            print_text(row("device", device))
        return
    if arguments.json:
        print_json({"kernels": kernels})
        return
    rows = [("op", "variant", "available", "chosen", "runs with activations")]
    for kernel in kernels:
        available, chosen = ("yes" if kernel[key] else "no" for key in ("available", "chosen"))
        modes = ",".join(kernel["modes"]) or "-"
        rows.append((kernel["op"], kernel["variant"], available, chosen, modes))
    print_text("".join("{:<16} {:<16} {:<10} {:<7} {}\n".format(*row) for row in rows))
