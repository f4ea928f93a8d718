"""Sentences to evaluate on, from text files.

Unknown words of the tokenized corpora are kept as UNKNOWN; they become the model's unknown token.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from pathlib import Path

from bitm.errors import BitmError, InputError

FORMATS = ("auto", "lines", "ptb", "wikitext")
UNKNOWN = "<unk>"


@dataclass(frozen=True)
class Text:
    """The sentences of a file, and the format that they were read in."""

    path: str
    format: str
    sentences: list[str]


def read_text(path: Path, format_: str = "auto") -> Text:
    """Reads the sentences of a file.

    Formats:
        lines: a sentence or paragraph a line, as it is; empty lines are none.
        ptb: Penn Treebank tokens in Mikolov's form (`join_treebank_tokens`).
        wikitext: WikiText's tokens (`join_wikitext_tokens`), without headings.
        auto: what the text looks like.

    Raises:
        InputError: it is no UTF-8 or has no sentence.
        BitmError: it cannot be read.
    """
    lines = read_utf8(path).split("\n")
    if format_ == "auto":
        format_ = _detect(lines)
    if format_ == "wikitext":
        lines = [line for line in lines if not _HEADING.fullmatch(line.strip())]
    clean = {"ptb": join_treebank_tokens, "wikitext": join_wikitext_tokens}.get(format_, str.strip)
    sentences = [sentence for sentence in map(clean, lines) if sentence]
    if not sentences:
        raise InputError(f"{path}: no sentence, expected one a line")
    return Text(str(path), format_, sentences)


def read_utf8(path: Path) -> str:
    """Returns the content of a file; raises InputError where it is no UTF-8, BitmError for I/O."""
    try:
        return path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n")
    except OSError as error:
        raise BitmError(f"{path}: {error.strerror}", 3, "IO") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: byte {error.start} is no UTF-8") from None


def _detect(lines: list[str]) -> str:
    """WikiText has " @-@ "; the Treebank has unknown words and never a capital but N, a number."""
    if any(_WIKITEXT_JOINT.search(line) for line in lines):
        return "wikitext"
    has_unknown = any(UNKNOWN in line for line in lines)
    is_lowercase = all(line.replace("N", "n").islower() for line in lines[:100] if line.strip())
    return "ptb" if has_unknown and is_lowercase else "lines"


# ---- Penn Treebank ----

_SPELLINGS = {
    "``": '"',
    "''": '"',
    "-lrb-": "(",
    "-rrb-": ")",
    "-lsb-": "[",
    "-rsb-": "]",
    "-lcb-": "{",
    "-rcb-": "}",
}
_JOINS_NEXT = re.compile(r"[$#`(\[{]+")
# Punctuation, closing brackets, what begins with an apostrophe ('s, 'll), n't, and na of gon na.
_JOINS_PREVIOUS = re.compile(r"[.,:;!?%)\]}]+|'.*|n't|na")


def join_treebank_tokens(line: str) -> str:
    """Turns Treebank tokens into text as people write it: "do n't" into "don't".

    The rules are those of the original project, which took them from AllenNLP: contractions and
    punctuation join the word before them, currency signs and opening brackets the one after.
    Numbers stay "N".
    """
    text, joins_next = "", True  # nothing precedes the first token
    for token in line.split():
        spelling, joins_previous, next_joins = _written(token)
        text += spelling if joins_next or joins_previous else f" {spelling}"
        joins_next = next_joins
    return text


@functools.lru_cache(maxsize=1 << 16)
def _written(token: str) -> tuple[str, bool, bool]:
    """How a Treebank token is spelt, and whether it joins the word before it and that after it."""
    spelling = _SPELLINGS.get(token.lower(), token)
    joins_previous = token == "''" or bool(_JOINS_PREVIOUS.fullmatch(spelling))
    joins_next = token == "``" or bool(_JOINS_NEXT.fullmatch(spelling))
    return spelling, joins_previous, joins_next


# ---- WikiText ----

_HEADING = re.compile(r"(= )+.*( =)+")
_WIKITEXT_JOINT = re.compile(r" @([-,.])@ ")


def join_wikitext_tokens(line: str) -> str:
    """Turns WikiText's tokens into text: "7 @.@ 2 kg ( 1" into "7.2 kg (1"."""
    text = _WIKITEXT_JOINT.sub(r"\1", line.strip())
    text = re.sub(r" ([.,:;!?%)\]}]|n't|'(?:s|re|ve|ll|d|m)\b)", r"\1", text)
    return re.sub(r"([(\[{$\u00a3\u20ac]) ", r"\1", text)
