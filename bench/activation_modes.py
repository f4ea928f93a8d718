"""Measures what the activation modes cost a weights-only masked LM: the reason for `auto`.

python bench/activation_modes.py small.bitm wiki_valid.txt

Asks the same masks with float32, int16, int11 and int8 activations (`bitm eval` with several
--activations prints more of it). `auto` is the fastest mode whose cross-entropy is within 0.2 % of
that of float32 and whose best token is the same for 99 % of the masks.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from bitm import Model
from bitm.evaluation import Evaluation, Settings, compare, evaluate
from bitm.evaluation.command import Bar
from machine import provenance, write_results

MODES = ("float32", "int16", "int11", "int8")  # the first is what the others are held against


def measure(path: Path, mode: str, settings: Settings) -> Evaluation:
    """Evaluates a model in one mode."""
    bar = Bar(mode)
    with Model(path, activations=mode) as model:
        evaluation = evaluate(model, settings, progress=bar)
    bar.clear()
    return evaluation


def summary(evaluation: Evaluation, reference: Evaluation) -> dict[str, Any]:
    """What the table tells of a mode."""
    compared = compare(reference, evaluation)
    assert compared is not None, "all modes are asked the same"
    metrics = evaluation.result.metrics
    return {
        "cross_entropy": metrics["cross_entropy"].value,
        "cross_entropy_difference": compared["cross_entropy_difference"].value,
        "accuracy": metrics["accuracy"].value,
        "seconds": evaluation.result.seconds,
        "agreement": compared["agreement"].value,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--limit", type=int, default=400, help="sentences or paragraphs")
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--output", type=Path, help="write the results as JSON")
    arguments = parser.parse_args()
    settings = Settings(arguments.text, length=arguments.length, limit=arguments.limit)
    evaluations = {mode: measure(arguments.model, mode, settings) for mode in MODES}
    reference = evaluations[MODES[0]]
    results = {mode: summary(each, reference) for mode, each in evaluations.items()}
    n_masks = reference.result.details["masks"]
    print(f"{'mode':8}  cross-entropy  accuracy  same best token  seconds  ({n_masks} masks)")
    for mode, result in results.items():
        print(
            f"{mode:8}  {result['cross_entropy']:13.4f}  {result['accuracy']:8.4f}"
            f"  {result['agreement']:15.4f}  {result['seconds']:7.1f}"
        )
    if arguments.output:
        document = {
            **provenance("python bench/activation_modes.py"),
            "model": arguments.model.name,
            "masks": n_masks,
            "modes": results,
        }
        write_results(arguments.output, document)


if __name__ == "__main__":
    main()
