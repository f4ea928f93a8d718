"""Makes a 1-bit masked LM of a float one, which stays its teacher.

python binarize_masked_lm.py bert-base-uncased texts.txt 1-bit-bert --steps 20000
bitm-convert 1-bit-bert model.bitm

`texts.txt` has a text a line: as many as can be had, of the kind that the model will see.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer, DataCollatorForLanguageModeling

from bitm_converter.training import Distillation, binarize_model, save


def main(argv: Sequence[str] | None = None) -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="a masked LM of BERT: a folder, or a name on a hub")
    parser.add_argument("texts", type=Path)
    parser.add_argument("result", type=Path)
    parser.add_argument("--activations", default="int8", help="int8, int4, int2, sign or float")
    parser.add_argument("--steps", type=int, default=20000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--rate", type=float, default=2e-4)
    args = parser.parse_args(argv)

    tokenizer = AutoTokenizer.from_pretrained(args.model)
    teacher = AutoModelForMaskedLM.from_pretrained(args.model).eval()
    student = AutoModelForMaskedLM.from_pretrained(args.model).train()
    binarize_model(student, activations=args.activations)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    teacher.to(device)
    student.to(device)

    texts = args.texts.read_text(encoding="utf-8").splitlines()
    rows = [tokenizer(text, truncation=True, max_length=args.length) for text in texts if text]
    mask = DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.2)
    optimizer = torch.optim.AdamW(student.parameters(), lr=args.rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.rate, args.steps)
    distillation = Distillation()
    for step in range(args.steps):
        chosen = torch.randint(len(rows), (args.batch,)).tolist()
        batch = mask([rows[n] for n in chosen]).to(device)
        output = student(**batch, output_hidden_states=True)
        with torch.no_grad():
            goal = teacher(**batch, output_hidden_states=True)
        loss = distillation(
            output.logits,
            goal.logits,
            batch["labels"],
            output.hidden_states[1:],
            goal.hidden_states[1:],
        )
        loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 100 == 0:
            print(f"step {step}: loss {loss.item():.3f}", flush=True)
    save(student, args.result, tokenizer)


if __name__ == "__main__":
    main()
