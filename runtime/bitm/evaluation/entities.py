"""Entity F1 of a token classifier on words with tags, such as CoNLL-2003."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bitm.errors import InputError
from bitm.evaluation.masked_lm import Progress
from bitm.evaluation.result import TaskRun
from bitm.evaluation.statistics import ratio
from bitm.evaluation.texts import read_utf8
from bitm.model import Model

Entity = tuple[str, int, int]  # type, first word, word after the last

_DOCUMENT = "-DOCSTART-"
_OUTSIDE = "O"
N_MISTAKES = 8


@dataclass(frozen=True)
class Tagged:
    """The words of a sentence and their tags: B-TYPE, I-TYPE or O."""

    words: list[str]
    tags: list[str]


def read_tagged(path: Path) -> list[Tagged]:
    """Reads CoNLL columns: a word a line, first its spelling, last its tag; blank lines between.

    Raises:
        InputError: it is none of that.
        BitmError: it cannot be read.
    """
    sentences: list[Tagged] = []
    words: list[str] = []
    tags: list[str] = []
    for number, line in enumerate([*read_utf8(path).split("\n"), ""], start=1):
        cells = line.split()
        if cells and cells[0] != _DOCUMENT:
            if len(cells) < 2 or not (cells[-1] == _OUTSIDE or cells[-1][:2] in ("B-", "I-")):
                raise InputError(
                    f"{path}: line {number} is {line[:80]!r}, expected a word and, last, a tag: "
                    "O, B-TYPE or I-TYPE"
                )
            words.append(cells[0])
            tags.append(cells[-1])
        elif words:
            sentences.append(Tagged(words, tags))
            words, tags = [], []
    if not sentences:
        raise InputError(f"{path}: no words with tags")
    return sentences


def entities(tags: Sequence[str]) -> Iterator[Entity]:
    """Yields the entities of a sentence by the rules of CoNLL's script, conlleval.

    An entity begins at B-TYPE, and at I-TYPE after O or another type; it ends before O, B-TYPE
    and another type.
    """
    begin, type_ = 0, ""
    for i, tag in enumerate([*tags, _OUTSIDE]):
        prefix, _, next_type = tag.partition("-")
        if type_ and (prefix != "I" or next_type != type_):
            yield type_, begin, i
            type_ = ""
        if not type_ and prefix in ("B", "I"):
            begin, type_ = i, next_type


def evaluate(
    model: Model, sentences: Sequence[Tagged], length: int, batch: int, progress: Progress | None
) -> TaskRun:
    """Tags all sentences; a word's tag is that of its first token.

    Words beyond `length` tokens of a sentence count as O, and so do words without a token.
    Raises InputError where the model has labels that are no tags.
    """
    info = model.info
    for i in range(info["n_labels"]):
        name = info["metadata"].get(f"label.{i}", f"LABEL_{i}")
        if name != _OUTSIDE and name[:2] not in ("B-", "I-"):
            raise InputError(f"the model has the label {name!r}, expected O, B-TYPE or I-TYPE")
    found: list[list[str]] = []
    seconds, n_tokens, n_cut = 0.0, 0, 0
    for begin in range(0, len(sentences), batch):
        group = sentences[begin : begin + batch]
        texts, lengths = zip(*(_cut(model, sentence.words, length) for sentence in group))
        n_tokens += sum(lengths)
        n_cut += sum(
            len(text.split(" ")) < len(sentence.words) for text, sentence in zip(texts, group)
        )
        start = time.perf_counter()
        tokens = model.tag(list(texts), ignore_labels=())
        seconds += time.perf_counter() - start
        found += [_tags_of_words(sentence.words, of) for sentence, of in zip(group, tokens)]
        if progress is not None:
            progress(begin + len(group), len(sentences))
    metrics, by_type = score([sentence.tags for sentence in sentences], found)
    return TaskRun(
        metrics=metrics,
        n_sequences=len(sentences),
        n_tokens=n_tokens,
        n_cut=n_cut,
        seconds=seconds,
        details={"types": by_type, "mistakes": _mistakes(sentences, found)},
    )


def score(
    truth: Sequence[Sequence[str]], found: Sequence[Sequence[str]]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Compares tags of sentences: metrics over all types, and F1 of every type."""
    true_entities = [set(entities(tags)) for tags in truth]
    found_entities = [set(entities(tags)) for tags in found]
    n_true = [len(each) for each in true_entities]
    n_found = [len(each) for each in found_entities]
    n_right = [len(a & b) for a, b in zip(true_entities, found_entities)]
    words_right = [sum(a == b for a, b in zip(*tags)) for tags in zip(truth, found)]
    metrics = {
        "f1": ratio(2 * np.array(n_right), np.array(n_true) + np.array(n_found)),
        "precision": ratio(n_right, n_found),
        "recall": ratio(n_right, n_true),
        "tag_accuracy": ratio(words_right, [len(tags) for tags in truth]),
    }
    counts = {
        name: Counter(entity[0] for each in of for entity in each)
        for name, of in (
            ("true", true_entities),
            ("predicted", found_entities),
            ("right", [a & b for a, b in zip(true_entities, found_entities)]),
        )
    }
    types = sorted(set(counts["true"]) | set(counts["predicted"]))
    return metrics, [
        {
            "type": type_,
            **{name: counts[name][type_] for name in counts},
            "f1": 2 * counts["right"][type_] / (counts["true"][type_] + counts["predicted"][type_]),
        }
        for type_ in types
    ]


def _cut(model: Model, words: Sequence[str], length: int) -> tuple[str, int]:
    """The words that fit in so many tokens, as a text, and its tokens."""
    n = len(words)
    while True:
        text = " ".join(words[:n])
        n_tokens = len(model.tokenize(text))
        if n_tokens <= length or n == 1:
            return text, n_tokens
        n -= 1


def _tags_of_words(words: Sequence[str], tokens: Sequence[dict[str, Any]]) -> list[str]:
    first_tokens = {token["start"]: token["entity"] for token in reversed(tokens)}
    tags, start = [], 0
    for word in words:
        tags.append(first_tokens.get(start, _OUTSIDE))
        start += len(word) + 1
    return tags


def _mistakes(sentences: Sequence[Tagged], found: Sequence[Sequence[str]]) -> list[dict[str, Any]]:
    """The sentences with most wrong tags."""
    n_wrong = [sum(a != b for a, b in zip(s.tags, tags)) for s, tags in zip(sentences, found)]
    order = np.argsort(-np.array(n_wrong), kind="stable")[:N_MISTAKES].tolist()
    return [
        {
            "text": " ".join(sentences[i].words),
            "true": _named(sentences[i].words, sentences[i].tags),
            "predicted": _named(sentences[i].words, found[i]),
        }
        for i in order
        if n_wrong[i] > 0
    ]


def _named(words: Sequence[str], tags: Sequence[str]) -> str:
    spans = [f"{' '.join(words[begin:end])} ({type_})" for type_, begin, end in entities(tags)]
    return ", ".join(spans) or "nothing"
