"""Fine-tunes a BERT to label texts, then makes it 1-bit and trains on, with transformers' Trainer.

python binarize_classifier.py bert-base-uncased train.tsv 1-bit-classifier
bitm-convert 1-bit-classifier model.bitm

`train.tsv` has a label (0, 1, ...), a tab and a text in each line.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
)

from bitm_converter.training import binarize_model, save


def train(model: Any, rows: list[Any], tokenizer: Any, epochs: float, rate: float) -> None:
    """Trains in place."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            num_train_epochs=epochs,
            learning_rate=rate,
            per_device_train_batch_size=32,
            save_strategy="no",
            report_to=[],
        )
        collator = DataCollatorWithPadding(tokenizer)
        Trainer(model, arguments, train_dataset=rows, data_collator=collator).train()


def main(argv: Sequence[str] | None = None) -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="a BERT: a folder, or a name on a hub")
    parser.add_argument("table", type=Path)
    parser.add_argument("result", type=Path)
    parser.add_argument("--activations", default="int8", help="int8, int4, int2, sign or float")
    parser.add_argument("--epochs", type=float, default=3.0, help="of each of the two trainings")
    args = parser.parse_args(argv)

    tokenizer = AutoTokenizer.from_pretrained(args.model)
    lines = args.table.read_text(encoding="utf-8").splitlines()
    pairs = [line.split("\t", 1) for line in lines]
    rows = [{**tokenizer(text, truncation=True), "labels": int(label)} for label, text in pairs]
    n_labels = 1 + max(row["labels"] for row in rows)
    model = AutoModelForSequenceClassification.from_pretrained(args.model, num_labels=n_labels)
    train(model, rows, tokenizer, args.epochs, 3e-5)
    binarize_model(model, activations=args.activations)
    train(model, rows, tokenizer, args.epochs, 1e-4)
    save(model, args.result, tokenizer)


if __name__ == "__main__":
    main()
