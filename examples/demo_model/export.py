"""Writes a trained state as a Hugging Face checkpoint: one that bitm-convert reads.

python export.py run/w1a8 vocab.txt w1a8-checkpoint
bitm-convert w1a8-checkpoint demo.bitm --embeddings int8
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from transformers import BertTokenizer

from bitm_converter.training import binarize_model, save
from state import load_state
from train import ACTIVATIONS, new_model


def trained(state: Path, layers: int, hidden: int) -> Any:
    """The model in a folder of `train.py --out`, which bears the name of its phase."""
    model = new_model(layers, hidden)
    if state.name in ACTIVATIONS:
        binarize_model(model, activations=ACTIVATIONS[state.name])
    load_state(state, model)
    return model.eval()


def main() -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("state", type=Path)
    parser.add_argument("vocabulary", type=Path)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--hidden", type=int, default=512)
    args = parser.parse_args()
    words = args.vocabulary.read_text(encoding="utf-8").splitlines()
    tokenizer = BertTokenizer(vocab={word: n for n, word in enumerate(words)}, do_lower_case=True)
    save(trained(args.state, args.layers, args.hidden), args.checkpoint, tokenizer)


if __name__ == "__main__":
    main()
