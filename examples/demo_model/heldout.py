"""Masked texts to evaluate on, as BERT masks them: the same in training and in the runtime.

python heldout.py vocab.txt wiki_valid.txt ptb.valid.txt heldout.npz

Wikipedia is cut into windows of 62 tokens; the Penn Treebank has a sentence a line, of which the
first 62 tokens count. Of the tokens that are not special, 15 % are to be predicted: 8 in 10 of them
are replaced by [MASK], 1 in 10 by a random token, 1 in 10 stays.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from corpus import CLS, MASK, PAD, SEP, VOCABULARY_SIZE

Ints = npt.NDArray[np.int64]
LENGTH = 64
SHARE = 0.15
N_RANKED = 32


def windows(ids: list[int]) -> list[list[int]]:
    """Full windows of a text."""
    size = LENGTH - 2
    return [ids[n : n + size] for n in range(0, len(ids) - size + 1, size)]


def masked(texts: list[list[int]], seed: int) -> dict[str, Ints]:
    """`ids` [n, LENGTH], and `places` in all of them with their `targets` [masks]."""
    rng = np.random.default_rng(seed)
    ids = np.full((len(texts), LENGTH), PAD)
    for row, text in zip(ids, texts):
        row[: min(len(text), LENGTH - 2) + 2] = [CLS, *text[: LENGTH - 2], SEP]
    places = np.flatnonzero((ids > MASK) & (rng.random(ids.shape) < SHARE))
    targets = ids.flat[places]
    fate = rng.random(len(places))
    others = rng.integers(MASK + 1, VOCABULARY_SIZE, len(places))
    ids.flat[places] = np.where(fate < 0.8, MASK, np.where(fate < 0.9, others, targets))
    return {"ids": ids, "places": places, "targets": targets}


def scores(logits: torch.Tensor, targets: torch.Tensor) -> tuple[float, float, float]:
    """Sums of cross-entropy in nats, of right answers and of reciprocal ranks within N_RANKED."""
    logits = logits.float()
    own = logits.gather(1, targets[:, None])
    rank = (logits > own).sum(1) + 1
    reciprocal = torch.where(rank <= N_RANKED, 1 / rank, 0)
    loss = (logits.logsumexp(1) - own[:, 0]).sum()
    return float(loss), float((rank == 1).sum()), float(reciprocal.sum())


@torch.no_grad()  # type: ignore[untyped-decorator]
def evaluate(
    network: Any, data: dict[str, Ints], device: str, n_rows: int | None = None
) -> dict[str, float]:
    """Cross-entropy, accuracy and mean reciprocal rank of a `PackedBert`, on the first rows."""
    ids, places, targets = data["ids"][:n_rows], data["places"], data["targets"]
    sums, n, batch = np.zeros(3), 0, 256
    for first in range(0, len(ids), batch):
        rows = torch.from_numpy(ids[first : first + batch]).to(device)
        here = (places >= first * LENGTH) & (places < (first + len(rows)) * LENGTH)
        if not here.any():
            continue
        local = torch.from_numpy(places[here] - first * LENGTH).to(device)
        logits = network.logits(network.states(rows)[-1], local)
        sums += scores(logits, torch.from_numpy(targets[here]).to(device))
        n += int(here.sum())
    loss, right, reciprocal = (sums / n).tolist()
    return {"cross_entropy": loss, "accuracy": right, "mrr": reciprocal, "masks": n}


def main() -> None:
    """See the module's text."""
    from tokenizers import BertWordPieceTokenizer

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("vocabulary", "wikipedia", "treebank", "heldout"):
        parser.add_argument(name, type=Path)
    args = parser.parse_args()
    tokenizer = BertWordPieceTokenizer(str(args.vocabulary), lowercase=True)

    def encode(text: str) -> list[int]:
        ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    wikipedia = windows(encode(args.wikipedia.read_text(encoding="utf-8")))
    lines = args.treebank.read_text(encoding="utf-8").splitlines()
    treebank = [encode(line.replace("<unk>", "[UNK]").replace(" n't", "n't")) for line in lines]
    arrays = {}
    for name, texts in {"wikipedia": wikipedia, "treebank": treebank}.items():
        for key, values in masked(texts, seed=0).items():
            arrays[f"{name}.{key}"] = values.astype(np.int32)
        print(f"{name}: {len(texts)} texts, {len(arrays[f'{name}.places'])} masks")
    np.savez_compressed(args.heldout, **arrays)  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
