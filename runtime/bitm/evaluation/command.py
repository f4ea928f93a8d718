"""The command `bitm eval`: its words, and what it does with them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bitm.errors import BitmError, InputError
from bitm.evaluation import tables
from bitm.evaluation.evaluate import Evaluation, Settings, compare, evaluate
from bitm.evaluation.result import plain
from bitm.model import Model

_BAR_WIDTH = 30


class Bar:
    """A progress bar on standard error, if that is a terminal; it leaves nothing behind."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._is_shown = sys.stderr is not None and sys.stderr.isatty()
        self._shown = ""

    def __call__(self, done: int, total: int) -> None:
        """Shows so many steps of all of them."""
        n_full = done * _BAR_WIDTH // total
        text = f"{self._title} [{'#' * n_full:<{_BAR_WIDTH}}] {done}/{total}"
        if self._is_shown and text != self._shown:
            self._write(f"\r{text}")
            self._shown = text

    def clear(self) -> None:
        """Removes the bar."""
        if self._shown:
            self._write(f"\r{'':<{len(self._shown)}}\r")

    @staticmethod
    def _write(text: str) -> None:
        print(text, end="", file=sys.stderr, flush=True)


def run(arguments: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """Evaluates what the words ask for; returns the table and the JSON document.

    Raises:
        BitmError: as `evaluate` does; --report or --plots without matplotlib; a file that cannot be
            written.
    """
    if arguments.report or arguments.plots:
        from bitm.evaluation import plots

        plots.require()  # before minutes of work
    settings = Settings(
        data=Path(arguments.data),
        format=arguments.format,
        protocol=arguments.protocol,
        length=arguments.length,
        batch=arguments.batch,
        seed=arguments.seed,
        repeat=arguments.repeat,
        limit=arguments.limit,
    )
    evaluations = [
        _evaluate(arguments, path, mode, settings)
        for path in [arguments.model, *arguments.compare]
        for mode in arguments.activations
    ]
    results = [evaluation.result for evaluation in evaluations]
    if len({result.task for result in results}) > 1:
        found = ", ".join(f"{result.name}: {result.task}" for result in results)
        raise InputError(f"models of different tasks cannot be compared: {found}")
    compared = [compare(evaluations[0], other) for other in evaluations[1:]]
    _write_files(arguments, evaluations, compared)
    document = {
        "results": [result.as_json() for result in results],
        "comparisons": [None if each is None else plain(each) for each in compared],
    }
    return tables.as_text(results, compared), document


def _evaluate(
    arguments: argparse.Namespace, path: str, mode: str, settings: Settings
) -> Evaluation:
    name = Path(path).name
    bar = Bar(f"{name} {mode}" if len(arguments.activations) > 1 else name)
    try:
        with Model(
            path,
            threads=arguments.threads,
            device=arguments.device,
            activations=mode,
            kernels=arguments.kernels,
        ) as model:
            return evaluate(model, settings, name, bar)
    except BitmError as error:
        message = str(error)
        if path not in message and str(settings.data) not in message:
            message = f"{path}: {message}"
        raise type(error)(message, error.code, error.name) from None
    finally:
        bar.clear()


def _write_files(
    arguments: argparse.Namespace, evaluations: Sequence[Evaluation], compared: Sequence[Any]
) -> None:
    if not arguments.report and not arguments.plots:
        return
    from bitm.evaluation import plots, report

    results = [evaluation.result for evaluation in evaluations]
    images = plots.draw(results)
    try:
        if arguments.plots:
            folder = Path(arguments.plots)
            folder.mkdir(parents=True, exist_ok=True)
            for name, png in images.items():
                report.write_whole(folder / f"{name}.png", png)
        if arguments.report:
            page = report.page(results, compared, images)
            report.write_whole(Path(arguments.report), page.encode())
    except OSError as error:
        raise BitmError(f"{error.filename}: {error.strerror}", 3, "IO") from None
