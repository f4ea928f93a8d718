"""`bitm fill-mask`, `classify` and `embed`: what a model makes of texts."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from bitm.cli.models import open_model
from bitm.cli.terminal import complain, print_json, print_text, printable


def _lines_of_input() -> Iterator[str]:
    """The texts on standard input, one a line; empty lines are none."""
    from bitm.errors import BitmError

    try:
        if sys.stdin is None:  # the program was started without one
            raise OSError
        for line in sys.stdin.buffer:
            text = line.removesuffix(b"\n").removesuffix(b"\r")
            if text:
                yield text.decode("utf-8", "surrogateescape")
    except OSError:
        raise BitmError("cannot read standard input", 3, "IO") from None


def _run_texts(
    arguments: argparse.Namespace,
    key: str,
    run: Callable[[str], Any],
    show: Callable[[Any], str],
    has_headers: bool = True,
) -> None:
    """Prints what `run` makes of each text, or one JSON document with that under `key`."""
    from bitm.errors import BitmError

    results = []
    for number, text in enumerate(arguments.texts or _lines_of_input()):
        try:
            result = run(text)
        except BitmError as error:
            if len(arguments.texts) == 1:
                raise
            message = f"text {number + 1}: {error}"
            raise BitmError(message, error.code, error.name) from None
        if arguments.json:
            results.append({"text": text, key: result})
            continue
        header = ""
        if has_headers and len(arguments.texts) != 1:
            header = ("\n" if number > 0 else "") + f"{printable(text)}\n"
        print_text(header + show(result))
    if arguments.json:
        print_json({"results": results})


# ---- fill-mask ----


def _predictions(masks: list[list[dict[str, Any]]]) -> str:
    lines = []
    for number, predictions in enumerate(masks, start=1):
        if len(masks) > 1:
            lines.append(f"mask {number} of {len(masks)}:\n")
        for p in predictions:
            token, sequence = printable(p["token_str"]), printable(p["sequence"])
            lines.append(f"{p['score']:.4f}  {token:<16}  {sequence}\n")
    return "".join(lines)


def run_fill_mask(arguments: argparse.Namespace) -> None:
    """Prints the best tokens for the masks of each text."""
    targets = None if arguments.targets is None else arguments.targets.split(",")
    with open_model(arguments) as model, warnings.catch_warnings():
        warnings.simplefilter("default")  # once for each target
        warnings.showwarning = lambda message, *_: complain(": warning: ", str(message))

        def fill(text: str) -> list[Any]:
            filled = model.fill_mask(text, arguments.top_k, targets)
            return filled if isinstance(filled[0], list) else [filled]

        _run_texts(arguments, "masks", fill, _predictions)


# ---- classify, embed ----


def _labels_of_text(labels: list[dict[str, Any]]) -> str:
    return "".join(f"{entry['score']:.4f}  {printable(entry['label'])}\n" for entry in labels)


def run_classify(arguments: argparse.Namespace) -> None:
    """Prints the labels of each text, best first."""
    with open_model(arguments) as model:

        def classify(text: str) -> Any:
            return model.classify(text, top_k=arguments.top_k)

        _run_texts(arguments, "labels", classify, _labels_of_text)


def _numbers(vector: list[float]) -> str:
    return " ".join(f"{x:.9g}" for x in vector) + "\n"


def run_embed(arguments: argparse.Namespace) -> None:
    """Prints the embedding of each text, a line of numbers."""
    with open_model(arguments) as model:

        def embed(text: str) -> Any:
            return model.embed(text, pooling=arguments.pooling)[0].tolist()

        _run_texts(arguments, "vector", embed, _numbers, has_headers=False)
