"""`bitm bench`, `bitm eval`, and the memory that a command needs."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from bitm.cli.arguments import ACTIVATIONS
from bitm.cli.models import (
    CLASSIFIER_HEAD,
    MASKED_LM_HEADS,
    VERIFY_STEP,
    VERIFY_TOKENS,
    fixed_ids,
    forced_as,
    open_model,
)
from bitm.cli.terminal import print_json, print_text, printable, version

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from bitm.model import Model

# ---- bench ----


def _time(run: Callable[[], object], warmup: int, repeat: int, n_tokens: int) -> dict[str, float]:
    import numpy as np

    for _ in range(warmup):
        run()
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        run()
        times.append((time.perf_counter() - start) * 1e3)
    median = float(np.median(times))
    return {
        "median_ms": median,
        "min_ms": min(times),
        "max_ms": max(times),
        "tokens_per_second": n_tokens / median * 1e3,
    }


def _subjects(
    model: Model, info: Mapping[str, Any], ids: npt.NDArray[np.int64], positions: str
) -> dict[str, Callable[[], object]]:
    """What is timed."""
    import numpy as np

    subjects: dict[str, Callable[[], object]] = {"encoder": lambda: model.hidden_states(ids)}
    if positions == "none" or info["head"] == 0:
        return subjects
    if info["head"] not in MASKED_LM_HEADS:
        subjects["encoder and head"] = lambda: model.logits(ids)
    elif positions == "all":
        subjects["encoder and masked LM at all positions"] = lambda: model.logits(ids)
    else:
        middle = np.full((len(ids), 1), ids.shape[1] // 2)
        subjects["encoder and masked LM at one position"] = lambda: model.logits(
            ids, positions=middle
        )
    return subjects


def _bench_text(document: Mapping[str, Any]) -> str:
    head = [
        ("file", printable(document["path"])),
        (
            "input",
            f"{document['batch']} x {document['length']} tokens, {document['repeat']} runs",
        ),
        ("activations", document["activations"]),
        ("device", document["device"]),
        ("threads", document["threads"]),
        ("kernels", forced_as(document["kernels"])),
    ]
    columns = ("median ms", "min ms", "max ms", "tokens/s")
    lines = [f"{name:<12} {value}\n" for name, value in head]
    lines.append(f"\n{'':<40}" + "".join(f" {column:>10}" for column in columns) + "\n")
    lines += [
        f"{run['what']:<40} {run['median_ms']:10.3f} {run['min_ms']:10.3f} {run['max_ms']:10.3f} "
        f"{run['tokens_per_second']:10.0f}\n"
        for run in document["runs"]
    ]
    return "".join(lines)


def run_bench(arguments: argparse.Namespace) -> None:
    """Prints how long a run takes."""
    with open_model(arguments) as model:
        info = model.info
        length = arguments.length or min(64, info["max_positions"])
        ids = fixed_ids((arguments.batch, length), info["vocab_size"])
        runs = [
            {"what": what, **_time(run, arguments.warmup, arguments.repeat, ids.size)}
            for what, run in _subjects(model, info, ids, arguments.positions).items()
        ]
    document = {
        "path": info["path"],
        "batch": arguments.batch,
        "length": length,
        "warmup": arguments.warmup,
        "repeat": arguments.repeat,
        "threads": info["threads"],
        "activations": info["activations"],
        "device": info["device"],
        "kernels": info["kernels"],
        "runs": runs,
        "version": info["version"],
    }
    if arguments.json:
        print_json(document)
    else:
        print_text(_bench_text(document))


# ---- Memory ----


# More than the program in C takes with the C library, its stack and texts: see tools/memory.c.
PROGRAM_BYTES = 5 << 20


def _need(
    command: str, arguments: argparse.Namespace, properties: Mapping[str, int]
) -> tuple[int, int, int]:
    """What the command in C asks of a session: batch, length; and the bytes of its results."""
    most, vocab_size = properties["max_positions"], properties["vocab_size"]
    hidden_size, n_labels = properties["hidden_size"], properties["n_labels"]
    head = properties["head"]
    if command == "info":
        return 1, min(128, most), 0
    if command == "bench":
        batch = arguments.batch
        length = arguments.length or min(64, most)
        n_floats = batch * length * hidden_size
        if head != 0 and arguments.positions != "none":
            one = head == CLASSIFIER_HEAD or (
                head in MASKED_LM_HEADS and arguments.positions == "one"
            )
            width = vocab_size if head in MASKED_LM_HEADS else n_labels
            n_floats = max(n_floats, (batch if one else batch * length) * width)
        return batch, length, 4 * n_floats + 4 * batch * (length + 1) + 8 * arguments.repeat
    if command != "verify":
        return 1, most, 4 * (most * hidden_size + n_labels)
    length = min(VERIFY_TOKENS, most)
    if head in MASKED_LM_HEADS:
        return 1, length, 4 * -(-length // VERIFY_STEP) * vocab_size
    n_rows = 1 if head == CLASSIFIER_HEAD else length
    return 1, length, 4 * n_rows * (hidden_size if head == 0 else n_labels)


def tell_memory(command: str, arguments: argparse.Namespace) -> None:
    """Prints the memory that a command of the program in C needs, before anything is taken."""
    from bitm._native import measure

    def measured(batch: int, length: int, mode: str) -> tuple[dict[str, int], dict[str, int]]:
        return measure(
            arguments.model, arguments.kernels, batch, length, arguments.threads or 0, mode
        )

    _, properties = measured(1, 1, arguments.activations)
    batch, length, result_bytes = _need(command, arguments, properties)
    every = command == "verify" and arguments.activations == "auto"
    modes = ACTIVATIONS[1:] if every else (arguments.activations,)
    found = [measured(batch, length, mode)[0] for mode in modes]
    memory = max(found, key=lambda each: each["session_bytes"])
    parts = {
        "file": (memory["file_bytes"], "mapped: the system reads what is used"),
        "model": (memory["model_bytes"], "tables, and weights as the kernels want them"),
        "session": (memory["session_bytes"], "all that a run works on"),
        "stack": (memory["stack_bytes"], "of further threads"),
        "result": (result_bytes, "before they are printed"),
        "program": (PROGRAM_BYTES, "at most: the program in C itself, and texts"),
    }
    parts["total"] = (sum(n_bytes for n_bytes, _ in parts.values()), "all of this")
    if arguments.json:
        document = {"path": arguments.model, "batch": batch, "length": length}
        document["threads"] = memory["n_threads"]
        document.update({f"{name}_bytes": n_bytes for name, (n_bytes, _) in parts.items()})
        print_json({**document, "version": version()})
        return
    size = f"{batch} x {length} tokens, {memory['n_threads']} threads"
    rows = "".join(f"{name:<10} {n:14} bytes  {what}\n" for name, (n, what) in parts.items())
    print_text(f"memory of {printable(arguments.model)} for {size}\n{rows}")


# ---- eval ----


def run_eval(arguments: argparse.Namespace) -> None:
    """Prints how good a model is."""
    from bitm.evaluation.command import run

    text, document = run(arguments)
    if arguments.json:
        print_json(document)
    else:
        print_text("".join(f"{printable(line)}\n" for line in text.splitlines()))
