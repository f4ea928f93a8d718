"""Trains the demo model: a float BERT, then its 1-bit student, each in a given time.

python train.py --data data/ --out run/ --minutes 7 15

`data/` holds rows*.npy (corpus.py) and heldout.npz (heldout.py). Phases: `teacher` (float), `w1a8`
(1-bit weights, int8 activations, begins as the teacher) and `w1a1` (sign activations, begins as the
w1a8 model); both learn from the teacher. `--minutes` says how long each takes, all that it does
included; a phase of 0 minutes is loaded, one with more goes on from what is there. Every two
minutes the state is saved. Rows that appear in `data/` later are used from the next epoch on.

On several GPUs: torchrun --nproc-per-node 2 train.py ..., where `--rows` are those of each.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import BertConfig, BertForMaskedLM

from bitm_converter.training import (
    binarize_model,
    hidden_state_loss,
    processes,
    soft_cross_entropy,
)
from bitm_converter.training.loop import optimizers, train
from bitm_converter.training.modules import Activations, Scales, set_hardness
from bitm_converter.training.packed import PackedBert
from corpus import CLS, MASK, PAD, ROW_LENGTH, VOCABULARY_SIZE
from heldout import evaluate
from state import load_state, save_state

HELDOUT_KEYS = ("ids", "places", "targets")
PHASES = ("teacher", "w1a8", "w1a1")
# Learning rates of the matrices (Muon), and of all else (AdamW).
RATES = {"teacher": (2e-3, 1e-3), "w1a8": (3e-3, 1e-3), "w1a1": (3e-3, 1e-3)}
ACTIVATIONS: dict[str, Activations] = {"w1a8": "int8", "w1a1": "sign"}
MASKED_SHARE = 0.2
SAVE_SECONDS = 120
LOG_SECONDS = 10
# Texts of each kind for the evaluation on the way, and rows of the batch to try things with.
FEW_TEXTS = 1500
FEW_ROWS = 32


class Corpus:
    """Rows of tokens on the device, in a new order every epoch, masked as BERT does it."""

    def __init__(self, folder: Path, batch: int, device: str) -> None:
        self._folder, self._batch, self._device = folder, batch, device
        self._files: list[Path] = []
        self._rows = torch.empty(0)
        self._order = torch.empty(0)
        self._place = 0
        self.epochs = 0

    def next(self, n_rows: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Masked ids [rows, ROW_LENGTH], the places to predict [P] and their tokens [P].

        Of a whole batch, if not told how many rows.
        """
        n_rows = n_rows or self._batch
        if self._place + n_rows > len(self._order):
            self._begin_epoch()
        chosen = self._order[self._place : self._place + n_rows]
        self._place += n_rows
        ids = self._rows[chosen].to(torch.int64) & 0xFFFF
        n_places = int(MASKED_SHARE * ids.numel())
        keys = torch.rand(ids.shape, device=self._device).masked_fill(ids <= MASK, 2.0)
        places = keys.flatten().topk(n_places, largest=False, sorted=False).indices
        targets = ids.flatten()[places]
        fate = torch.rand(n_places, device=self._device)
        others = torch.randint(MASK + 1, VOCABULARY_SIZE, (n_places,), device=self._device)
        others = torch.where(fate < 0.9, others, targets)
        ids.view(-1)[places] = torch.where(fate < 0.8, MASK, others)
        return ids, places, targets

    def _begin_epoch(self) -> None:
        while not (files := sorted(self._folder.glob("rows*.npy"))):
            time.sleep(0.5)
        if files != self._files:
            rows = np.concatenate([np.load(file) for file in files])
            self._rows = torch.from_numpy(rows.view(np.int16)).to(self._device)
            self._files = files
            log(f"{len(files)} files, {len(rows)} rows, {rows.size / 1e6:.1f} M tokens")
        self._order = torch.randperm(len(self._rows), device=self._device)
        self._place = 0
        self.epochs += 1


def log(text: str) -> None:
    """A line with the time."""
    print(time.strftime("%H:%M:%S"), text, flush=True)


def new_model(layers: int, hidden: int) -> Any:
    """A BERT of random weights."""
    config = BertConfig(
        vocab_size=VOCABULARY_SIZE,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        intermediate_size=4 * hidden,
        max_position_embeddings=ROW_LENGTH,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        layer_norm_eps=1e-12,
        pad_token_id=PAD,
    )
    return BertForMaskedLM(config)


class Phase:
    """One model in training: a teacher of its own accord, a student with its teacher."""

    def __init__(self, name: str, model: Any, teacher: Any, args: argparse.Namespace) -> None:
        self._name, self._model, self._args = name, model, args
        dtype = torch.bfloat16 if args.device == "cuda" else torch.float32
        self._network = PackedBert(model, CLS, PAD, dtype)
        self._teacher = None if teacher is None else PackedBert(teacher, CLS, PAD, dtype)
        self._losses: list[Any] = [functional.cross_entropy, soft_cross_entropy, hidden_state_loss]
        self._last_log = self._last_save = time.monotonic()
        self._last_steps = 0
        self._hardness = 1.0

    def run(self, end: float, corpus: Corpus, lr: float, vector_lr: float) -> None:
        """Trains until the clock `time.monotonic` says `end`, then saves and evaluates."""
        self._corpus = corpus
        self._model.train()
        n_parameters = sum(p.numel() for p in self._model.parameters())
        log(f"{self._name}: {n_parameters} parameters, rates {lr} and {vector_lr}")
        self._warm_up()
        processes.copy_from_first(self._model)
        stages = optimizers(self._model, lr, vector_lr, of_matrices=self._args.optimizer)
        seconds = end - time.monotonic()
        if seconds <= 0:
            raise RuntimeError(f"{self._name}: its minutes were over before it began")
        n_steps = train(self._loss, stages, seconds, self._report)
        if self._args.rank == 0:
            self._save({"steps": n_steps, "finished": True, **self._evaluate(None)})

    def _warm_up(self) -> None:
        """Runs once without being compiled, as learned steps need, then compiles if that works."""
        self._loss(0.0, FEW_ROWS).backward()
        if self._args.compile:
            begin = time.monotonic()
            plain = list(self._losses)
            networks = [n for n in (self._network, self._teacher) if n is not None]
            try:
                for network in networks:
                    network.compile()
                self._losses = [torch.compile(loss, dynamic=False) for loss in plain]
                self._loss(0.0).backward()
                log(f"compiled in {time.monotonic() - begin:.0f} s")
            except Exception as error:
                log(f"NOT COMPILED, goes on without: {type(error).__name__}: {error!s:.2000}")
                for network in networks:
                    network.interpret()
                self._losses = plain
        self._model.zero_grad(set_to_none=True)

    def _loss(self, progress: float, n_rows: int | None = None) -> Tensor:
        self._harden(progress)
        ids, places, targets = self._corpus.next(n_rows)
        cross_entropy, soft, of_states = self._losses
        on_gpu = self._args.device == "cuda"
        with torch.autocast(self._args.device, torch.bfloat16, enabled=on_gpu):
            states = self._network.states(ids)
            logits = self._network.logits(states[-1], places)
            labels_loss = cross_entropy(logits.float(), targets)
            if self._teacher is None:
                return labels_loss
            with torch.no_grad():
                teacher_states = self._teacher.states(ids)
                teacher_logits = self._teacher.logits(teacher_states[-1], places)
            share = self._args.labels
            loss = share * labels_loss + (1 - share) * soft(logits, teacher_logits)
            if progress < self._args.states_until:
                weight = 1 - progress / self._args.states_until
                loss = loss + weight * of_states(states[1:], teacher_states[1:])
            return loss

    def _harden(self, progress: float) -> None:
        gradual = self._args.gradual
        hardness = 1.0 if progress >= gradual else progress / gradual
        if hardness != self._hardness:
            set_hardness(self._model, hardness)
            self._hardness = hardness

    def _report(self, n_steps: int, progress: float, loss: float) -> None:
        now = time.monotonic()
        if self._args.rank > 0:
            return
        if now - self._last_log > LOG_SECONDS:
            n_rows = self._args.rows * self._args.processes
            n_tokens = (n_steps - self._last_steps) * n_rows * ROW_LENGTH
            rate = n_tokens / (now - self._last_log) / 1e6
            log(
                f"{self._name} {progress:5.1%} step {n_steps} loss {loss:.3f} "
                f"{rate:.3f} M tokens/s, epoch {self._corpus.epochs}"
            )
            self._last_log, self._last_steps = now, n_steps
        if now - self._last_save > SAVE_SECONDS:
            self._save({"steps": n_steps, "finished": False, **self._evaluate(FEW_TEXTS)})
            self._last_save = time.monotonic()

    def _evaluate(self, n_texts: int | None) -> dict[str, Any]:
        exact = PackedBert(self._model.eval(), CLS, PAD, torch.float32)
        scores = {
            name: evaluate(exact, texts, self._args.device, n_texts)
            for name, texts in self._args.heldout.items()
        }
        for name, values in scores.items():
            log(f"{self._name} {name}: " + ", ".join(f"{k} {v:.4g}" for k, v in values.items()))
        self._model.train()
        return scores

    def _save(self, facts: dict[str, Any]) -> None:
        save_state(self._args.out / self._name, self._model, facts)


def parse_arguments() -> argparse.Namespace:
    """The command line; the texts to evaluate on are read too."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--models", type=Path, help="has the phases of 0 minutes (default: --out)")
    parser.add_argument("--minutes", type=float, nargs="+", required=True, help="of each phase")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--rows", type=int, default=1024, help="in a batch, of 128 tokens")
    parser.add_argument("--rates", type=float, default=1.0, help="factor of the learning rates")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--no-compile", dest="compile", action="store_false")
    students = parser.add_argument_group("how students learn")
    students.add_argument(
        "--start", choices=("teacher", "w1a8"), default="w1a8", help="what w1a1 begins as"
    )
    students.add_argument(
        "--teacher", choices=("teacher", "w1a8"), default="teacher", help="whom w1a1 learns from"
    )
    students.add_argument(
        "--labels",
        type=float,
        default=0.1,
        help="weight of the labels; the rest is that of the teacher's logits",
    )
    students.add_argument(
        "--states-until",
        type=float,
        default=0.6,
        help="share of the time until which the teacher's hidden states count, less and less",
    )
    students.add_argument(
        "--gradual",
        type=float,
        default=0.0,
        help="share of the time in which sign activations become hard",
    )
    students.add_argument(
        "--margin",
        type=float,
        default=0.0,
        help="steps beyond the codes where gradients still pass",
    )
    students.add_argument(
        "--scales",
        choices=("learned", "mean"),
        default="learned",
        help="of rows, if trained here",
    )
    students.add_argument("--optimizer", choices=("muon", "adamw"), default="muon")
    args = parser.parse_args()
    args.models = args.models or args.out
    args.rank, args.processes = processes.begin(args.device)
    with np.load(args.data / "heldout.npz") as arrays:
        args.heldout = {
            name: {key: arrays[f"{name}.{key}"].astype(np.int64) for key in HELDOUT_KEYS}
            for name in ("wikipedia", "treebank")
        }
    return args


def main() -> None:
    """See the module's text."""
    args = parse_arguments()
    torch.manual_seed(args.rank)
    corpus = Corpus(args.data, args.rows, args.device)
    end = time.monotonic()
    models: dict[str, Any] = {"teacher": None}
    for name, minutes in zip(PHASES, args.minutes):
        start, teacher = models["teacher"], models["teacher"]
        if name == "w1a1":
            start, teacher = models[args.start], models[args.teacher]
        model = model_for(name, start, minutes, args)
        end += 60 * minutes
        rates = tuple(args.rates * rate for rate in RATES[name])
        while minutes:
            try:
                Phase(name, model, teacher, args).run(end, corpus, *rates)
                break
            except FloatingPointError as error:
                rates = (rates[0] / 2, rates[1] / 2)
                log(f"{name}: {error}; again from what was saved, at rates {rates}")
                model = model_for(name, start, minutes, args)
        models[name] = model.requires_grad_(False)
    processes.end()
    log("done")


def model_for(name: str, start: Any, minutes: float, args: argparse.Namespace) -> Any:
    """A new model for a phase, which begins as another, or the one that was saved in it."""
    if start is None:
        model = new_model(args.layers, args.hidden).to(args.device)
    else:
        model = copy.deepcopy(start).requires_grad_(True)
        scales: Scales = args.scales if minutes else "learned"
        binarize_model(model, "w1", ACTIVATIONS[name], scales=scales, margin=args.margin)
    folder = (args.out if minutes else args.models) / name
    if (folder / "facts.json").exists():
        facts = load_state(folder, model)
        log(f"{name}: loaded, {json.dumps(facts)}")
    return model


if __name__ == "__main__":
    main()
