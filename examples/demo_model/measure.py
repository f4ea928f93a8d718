"""Measures .bitm files in the runtime, on the masked texts that the training is measured on.

python measure.py heldout.npz demo.bitm --activations int8 int16 --state run/w1a8

With `--state`, what the training framework makes of the same texts comes first. `--sentences` takes
a file of sentences and expected words with a tab between, and counts expected words among the first
five.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bitm import Model
from bitm_converter.training.packed import PackedBert
from corpus import CLS, PAD
from export import trained
from heldout import evaluate

TOP_K = 5
KEYS = ("ids", "places", "targets")


class InRuntime:
    """A model file with the face that `heldout.evaluate` expects."""

    def __init__(self, model: Model) -> None:
        self._model = model

    def states(self, ids: Tensor) -> list[Tensor]:
        """The ids themselves: the runtime goes from ids to logits in one call."""
        return [ids]

    def logits(self, ids: Tensor, places: Tensor) -> Tensor:
        """Logits [P, V] at places [P], counted through the rows of ids [R, L]."""
        rows, columns = np.divmod(places.numpy(), ids.shape[1])
        number = np.arange(len(rows)) - np.searchsorted(rows, rows)
        positions = np.zeros((len(ids), number.max() + 1), np.int64)
        positions[rows, number] = columns
        mask = (ids != PAD).to(torch.int64).numpy()
        logits = self._model.logits(ids.numpy(), attention_mask=mask, positions=positions)
        return torch.from_numpy(logits[rows, number])


def found(model: Model, sentences: Path) -> list[dict[str, Any]]:
    """Each sentence, its expected word, and the first words that the model has for it."""
    lines = sentences.read_text(encoding="utf-8").splitlines()
    pairs = [line.split("\t") for line in lines]
    return [
        {
            "sentence": text,
            "expected": word,
            "found": [entry["token_str"] for entry in model.fill_mask(text, top_k=TOP_K)],
        }
        for text, word in pairs
    ]


def show(name: str, results: dict[str, Any]) -> None:
    """Prints a line of JSON."""
    print(json.dumps({"model": name, **results}), flush=True)


def main() -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("heldout", type=Path)
    parser.add_argument("models", type=Path, nargs="*")
    parser.add_argument("--activations", nargs="+", default=["auto"])
    parser.add_argument("--state", type=Path)
    parser.add_argument("--texts", type=int, help="so many of each kind (default: all)")
    parser.add_argument("--sentences", type=Path)
    args = parser.parse_args()
    with np.load(args.heldout) as arrays:
        texts = {
            name: {key: arrays[f"{name}.{key}"].astype(np.int64) for key in KEYS}
            for name in ("wikipedia", "treebank")
        }

    def scores(network: Any) -> dict[str, Any]:
        return {name: evaluate(network, data, "cpu", args.texts) for name, data in texts.items()}

    if args.state is not None:
        network = PackedBert(trained(args.state, 8, 512), CLS, PAD, torch.float32)
        show(str(args.state), scores(network))
    for path in args.models:
        for activations in args.activations:
            with Model(path, activations=activations) as model:
                show(f"{path.name} {activations}", scores(InRuntime(model)))
                if args.sentences is not None:
                    answers = found(model, args.sentences)
                    right = sum(answer["expected"] in answer["found"] for answer in answers)
                    show(f"{path.name} {activations}", {"sentences": answers, "right": right})


if __name__ == "__main__":
    main()
