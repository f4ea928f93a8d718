"""From the scores of tokens to entities, as the transformers token-classification pipeline does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from bitm._native import Floats

Entity = dict[str, Any]

STRATEGIES = ("none", "simple", "first", "average", "max")

# What the library's WordPiece decoder takes out of every token that it adds, in its order.
_CLEANING = (
    (" .", "."),
    (" ?", "?"),
    (" !", "!"),
    (" ,", ","),
    (" ' ", "'"),
    (" n't", "n't"),
    (" 'm", "'m"),
    (" do not", " don't"),
    (" 's", "'s"),
    (" 've", "'ve"),
    (" 're", "'re"),
)


class Token(NamedTuple):
    """A token of the text.

    Attributes:
        word: its spelling, or the text itself where the vocabulary does not know it.
        scores: float32 [C], probabilities of the labels.
        place: in the sequence.
        start, end: its characters in the text.
        is_subword: it goes on with the word of the token before it.
    """

    word: str
    scores: Floats
    place: int
    start: int
    end: int
    is_subword: bool


def entities(
    tokens: Sequence[Token], labels: Sequence[str], strategy: str, ignored: Sequence[str]
) -> list[Entity]:
    """Returns what the tokens are, without the ignored labels.

    With the strategy "none" an entity is a token; with "simple" neighbours of one tag are joined;
    the others first settle on one label for each word: that of its first token, of its token with
    the highest score, or of the average over its tokens.
    """
    if strategy in ("none", "simple"):
        single = [_of_token(token, labels) for token in tokens]
    else:
        single = [_of_word(word, labels, strategy) for word in _words(tokens)]
    if strategy == "none":
        return [entity for entity in single if entity["entity"] not in ignored]
    return [group for group in _join(single) if group["entity_group"] not in ignored]


def _of_token(token: Token, labels: Sequence[str]) -> Entity:
    best = int(token.scores.argmax())
    return {
        "entity": labels[best],
        "score": float(token.scores[best]),
        "index": token.place,
        "word": token.word,
        "start": token.start,
        "end": token.end,
    }


def _words(tokens: Sequence[Token]) -> list[list[Token]]:
    words: list[list[Token]] = []
    for token in tokens:
        if words and token.is_subword:
            words[-1].append(token)
        else:
            words.append([token])
    return words


def _of_word(word: Sequence[Token], labels: Sequence[str], strategy: str) -> Entity:
    if strategy == "first":
        scores = word[0].scores
    elif strategy == "max":
        scores = max(word, key=lambda token: float(token.scores.max())).scores
    else:
        scores = np.mean([token.scores for token in word], axis=0)
    best = int(scores.argmax())
    return {
        "entity": labels[best],
        "score": float(scores[best]),
        "word": decode([token.word for token in word]),
        "start": word[0].start,
        "end": word[-1].end,
    }


def _join(single: Sequence[Entity]) -> list[Entity]:
    """Joins neighbours of the same tag; "B-" begins a new entity."""
    groups: list[list[Entity]] = []
    for entity in single:
        begins, tag = _tag(entity["entity"])
        if groups and not begins and tag == _tag(groups[-1][-1]["entity"])[1]:
            groups[-1].append(entity)
        else:
            groups.append([entity])
    return [
        {
            "entity_group": group[0]["entity"].split("-", 1)[-1],
            "score": float(np.mean([entity["score"] for entity in group], dtype=np.float32)),
            "word": decode([entity["word"] for entity in group]),
            "start": group[0]["start"],
            "end": group[-1]["end"],
        }
        for group in groups
    ]


def _tag(label: str) -> tuple[bool, str]:
    """Splits "B-PER" and "I-PER"; a label without these counts as the latter."""
    return label.startswith("B-"), label[2:] if label.startswith(("B-", "I-")) else label


def decode(words: Sequence[str]) -> str:
    """Joins spellings of tokens to text, as the library's decoder does."""
    text = ""
    for i, word in enumerate(words):
        part = word
        if i > 0:
            part = word[2:] if word.startswith("##") else f" {word}"
        for pattern, replacement in _CLEANING:
            part = part.replace(pattern, replacement)
        text += part
    return text
