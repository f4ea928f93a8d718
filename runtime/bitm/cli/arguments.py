"""The words of the command line."""

from __future__ import annotations

import argparse
import os
import re
from functools import partial
from typing import NoReturn

ACTIVATIONS = ("auto", "int8", "int16", "float32", "int11")
POSITIONS = ("one", "all", "none")
POOLINGS = ("mean", "cls", "max")
# Of `eval`; written here too so that other commands need not import it.
TEXT_FORMATS = ("auto", "lines", "ptb", "wikitext")
PROTOCOLS = ("bert", "original", "mask", "pseudo")


class UsageError(Exception):
    """The words of the command line make no sense."""


class _Parser(argparse.ArgumentParser):
    """One command's words.  Help and exit are not its business."""

    def __init__(self) -> None:
        super().__init__(add_help=False, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        raise UsageError(message)

    def number(self, name: str, least: int, most: int, default: int | None) -> None:
        def read(text: str) -> int:
            if re.fullmatch("[0-9]{1,9}", text) and least <= int(text) <= most:
                return int(text)
            raise argparse.ArgumentTypeError(f"expected {least} to {most}, found '{text}'")

        self.add_argument(name, type=read, default=default)

    def choice(self, name: str, choices: tuple[str, ...], default: str) -> None:
        self.add_argument(name, type=partial(_one_of, choices), default=default)

    def device(self, default: str) -> None:
        def read(text: str) -> str:
            if re.fullmatch("auto|cpu|cuda(:[0-9]{1,3})?", text):
                return text
            expected = "expected auto, cpu, cuda or cuda:N"
            raise argparse.ArgumentTypeError(f"{expected}, found '{text}'")

        self.add_argument("--device", type=read, default=default)

    def choices(self, name: str, choices: tuple[str, ...], default: str) -> None:
        def read(text: str) -> list[str]:
            return [_one_of(choices, word) for word in text.split(",")]

        self.add_argument(name, type=read, default=[default])


def _one_of(choices: tuple[str, ...], text: str) -> str:
    if text in choices:
        return text
    expected = f"{', '.join(choices[:-1])} or {choices[-1]}"
    raise argparse.ArgumentTypeError(f"expected {expected}, found '{text}'")


def _parser(command: str) -> _Parser:
    parser = _Parser()
    parser.add_argument("model", nargs="?" if command in ("fill-mask", "kernels") else None)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--kernels")
    parser.device("cpu" if command == "kernels" else "auto")
    if command != "kernels":
        parser.number("--threads", 1, 1024, None)
    if command == "eval":
        _add_evaluation(parser)
    elif command != "kernels":
        parser.choice("--activations", ACTIVATIONS, "auto")
        parser.add_argument("--memory", action="store_true")
    if command in ("fill-mask", "classify", "embed"):
        parser.add_argument("texts", nargs="*")
    if command in ("fill-mask", "classify"):
        parser.number("--top-k", 1, 1000000, 5)
    if command == "fill-mask":
        parser.add_argument("--targets")
    if command == "embed":
        parser.choice("--pooling", POOLINGS, "mean")
    if command == "bench":
        parser.number("--batch", 1, 65536, 1)
        parser.number("--length", 1, 65536, None)
        parser.number("--repeat", 1, 1000000, 20)
        parser.number("--warmup", 0, 1000000, 3)
        parser.choice("--positions", POSITIONS, "one")
    return parser


def _add_evaluation(parser: _Parser) -> None:
    parser.add_argument("--data", required=True)
    parser.choice("--format", TEXT_FORMATS, "auto")
    parser.choice("--protocol", PROTOCOLS, "bert")
    parser.number("--length", 3, 65536, None)
    parser.number("--batch", 1, 65536, 128)
    parser.number("--seed", 0, 999999999, 0)
    parser.number("--repeat", 1, 1000, 1)
    parser.number("--limit", 1, 999999999, None)
    parser.choices("--activations", ACTIVATIONS, "auto")
    parser.add_argument("--compare", nargs="+", action="extend", default=[])
    for name in ("--report", "--plots"):
        parser.add_argument(name)


def parse(command: str, words: list[str]) -> argparse.Namespace:
    """Reads the words after a command; raises UsageError."""
    arguments = _parser(command).parse_intermixed_args(words)
    if command == "kernels" and arguments.model is None and arguments.kernels is not None:
        raise UsageError("argument --kernels: needs a model")
    if getattr(arguments, "memory", False) and arguments.device.startswith("cuda"):
        raise UsageError("argument --memory: tells of the CPU alone")
    if command == "fill-mask" and not _is_path(arguments.model):
        from bitm.model import demo_path

        arguments.texts = [text for text in (arguments.model, *arguments.texts) if text is not None]
        arguments.model = str(demo_path())
    return arguments


def _is_path(word: str | None) -> bool:
    """Whether a word means a model's path where it could as well be a text."""
    return word is not None and (word.endswith(".bitm") or os.path.exists(word))  # noqa: PTH110
