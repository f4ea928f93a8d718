"""The text that the demo model learns from: its vocabulary, its tokens, rows to train on.

python corpus.py vocabulary vocab.txt wiki_train.part*.txt.bz2
python corpus.py tokenize vocab.txt parts/ wiki_train.part*.txt.bz2     # parts/part1.xz, ...
python corpus.py pack vocab.txt parts/part1.xz rows1        # rows1-1.npy, ...

The text is one paragraph a line with an empty line between articles, plain or bz2. Its tokens are
kept as streams of uint16 that are small enough to be carried to another machine: an article
begins with [CLS], a sentence ends with [SEP]. `pack` cuts a stream into passages and
sentences and packs these into rows of 128, so that no position is wasted and the model meets short
sentences as well as long passages.
"""

from __future__ import annotations

import argparse
import bz2
import lzma
import re
import string
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.uint16]
Ints = npt.NDArray[np.int64]

VOCABULARY_SIZE = 14336
SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
PAD, UNK, CLS, SEP, MASK = range(5)
ROW_LENGTH = 128

# Behind a full stop that ends neither an initial nor a common title, before a capital or a digit.
_SENTENCE_END = re.compile(
    r"""(?:(?<=[.!?])|(?<=[.!?]["')\]]))(?<![ .(][A-Z]\.)(?<!\bMr\.)(?<!\bDr\.)"""
    r"""(?<!\bSt\.)(?<!\bMrs\.)(?<!\bvs\.)\s+(?=["'(\[]?[A-Z0-9])"""
)

# What articles are cut into, and how many of them: passages of a whole row, of half a row, and
# sentences (0).
PIECES = {ROW_LENGTH - 2: 0.45, ROW_LENGTH // 2 - 2: 0.20, 0: 0.35}
# How many sentences lose their punctuation, as in what people type into a search box.
WITHOUT_PUNCTUATION = 0.2
SHORTEST = 3


def read_lines(paths: Iterable[Path]) -> Iterator[str]:
    """Lines of files, plain or bz2, without their ends."""
    for path in paths:
        opener = bz2.open if path.suffix == ".bz2" else open
        with opener(path, "rt", encoding="utf-8") as file:
            for line in file:
                yield line.rstrip("\n")


# Vocabulary


def train_vocabulary(paths: list[Path], size: int = VOCABULARY_SIZE) -> list[str]:
    """The tokens of an uncased WordPiece vocabulary, in the order of their ids."""
    from tokenizers import BertWordPieceTokenizer

    tokenizer = BertWordPieceTokenizer(lowercase=True)
    tokenizer.train_from_iterator(
        (line for line in read_lines(paths) if line),
        vocab_size=size,
        limit_alphabet=300,
        special_tokens=SPECIAL_TOKENS,
        show_progress=False,
    )
    return sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().__getitem__)


# Tokens


def tokenize(paths: list[Path], vocabulary: Path) -> Iterator[Ids]:
    """The stream of tokens, a few hundred articles at a time."""
    from tokenizers import BertWordPieceTokenizer

    tokenizer = BertWordPieceTokenizer(str(vocabulary), lowercase=True)
    sentences: list[str] = []
    begins_article: list[bool] = []
    is_new = True
    for line in read_lines(paths):
        if not line:
            is_new = True
            if len(sentences) > 20_000:
                yield _encode(tokenizer, sentences, begins_article)
                sentences, begins_article = [], []
            continue
        for sentence in _SENTENCE_END.split(line):
            sentences.append(sentence)
            begins_article.append(is_new)
            is_new = False
    yield _encode(tokenizer, sentences, begins_article)


def _encode(tokenizer: Any, sentences: list[str], begins_article: list[bool]) -> Ids:
    encodings = tokenizer.encode_batch(sentences, add_special_tokens=False)
    ids: list[int] = []
    for encoding, begins in zip(encodings, begins_article):
        if begins:
            ids.append(CLS)
        ids += encoding.ids
        ids.append(SEP)
    return np.array(ids, np.uint16)


def compress(stream: Ids) -> bytes:
    """A stream as an xz file; LZMA is told that values have two bytes."""
    filters: list[dict[str, int]] = [
        {"id": lzma.FILTER_LZMA2, "preset": 9, "dict_size": 1 << 26, "lp": 1, "lc": 3, "pb": 1}
    ]
    return lzma.compress(stream.astype("<u2").tobytes(), filters=filters)


def decompress(path: Path) -> Ids:
    """The stream in an xz file."""
    return np.frombuffer(lzma.decompress(path.read_bytes()), "<u2")


# Rows


def cut(stream: Ids, punctuation: Ids, rng: np.random.Generator) -> list[Ids]:
    """Cuts every article of a stream into pieces of one kind, as PIECES says, in random order.

    Pieces have between SHORTEST and ROW_LENGTH - 2 tokens, and no marks of boundaries.
    """
    is_mark = (stream == CLS) | (stream == SEP)
    tokens = stream[~is_mark]
    n_before = np.cumsum(~is_mark)
    sentence_ends = n_before[stream == SEP]
    article_starts = np.append(n_before[stream == CLS], len(tokens))
    sizes = rng.choice(list(PIECES), p=list(PIECES.values()), size=len(article_starts))
    found = []
    for start, stop, size in zip(article_starts[:-1], article_starts[1:], sizes):
        if size:
            found += [tokens[n : min(n + size, stop)] for n in range(start, stop, size)]
            continue
        first, last = np.searchsorted(sentence_ends, [start, stop], "right")
        for sentence in np.split(tokens[start:stop], sentence_ends[first : last - 1] - start):
            if rng.random() < WITHOUT_PUNCTUATION:
                sentence = sentence[~np.isin(sentence, punctuation)]
            found.append(sentence[: ROW_LENGTH - 2])
    found = [piece for piece in found if len(piece) >= SHORTEST]
    return [found[n] for n in rng.permutation(len(found))]


def pack(pieces: list[Ids]) -> Ids:
    """Packs pieces into rows [rows, ROW_LENGTH], each between [CLS] and [SEP], padded behind.

    A row begins with the next piece, whatever its length; then come the longest that still fit.
    """
    waiting: list[list[int]] = [[] for _ in range(ROW_LENGTH + 1)]
    for n in reversed(range(len(pieces))):
        waiting[len(pieces[n]) + 2].append(n)
    used = np.zeros(len(pieces), bool)
    rows = []
    for n in range(len(pieces)):
        if used[n]:
            continue
        row = np.full(ROW_LENGTH, PAD, np.uint16)
        place, chosen = 0, n
        while True:
            piece = pieces[chosen]
            row[place] = CLS
            row[place + 1 : place + 1 + len(piece)] = piece
            row[place + 1 + len(piece)] = SEP
            place += len(piece) + 2
            used[chosen] = True
            found = _longest(waiting, ROW_LENGTH - place, used)
            if found is None:
                break
            chosen = found
        rows.append(row)
    return np.stack(rows)


def _longest(waiting: list[list[int]], room: int, used: npt.NDArray[np.bool_]) -> int | None:
    """Takes the longest piece that fits into the room; `waiting` has the pieces by length."""
    for length in range(room, SHORTEST + 1, -1):
        queue = waiting[length]
        while queue:
            n = queue.pop()
            if not used[n]:
                return n
    return None


def punctuation_of(vocabulary: Path) -> Ids:
    """The ids of tokens that are punctuation."""
    words = vocabulary.read_text(encoding="utf-8").splitlines()
    return np.array([n for n, word in enumerate(words) if word in string.punctuation], np.uint16)


# Command line


def main() -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("vocabulary")
    command.add_argument("vocabulary", type=Path)
    command.add_argument("texts", type=Path, nargs="+")
    command = commands.add_parser("tokenize")
    command.add_argument("vocabulary", type=Path)
    command.add_argument("streams", type=Path, help="a folder")
    command.add_argument("texts", type=Path, nargs="+")
    command.add_argument("--parts", type=int, default=2)
    command = commands.add_parser("pack")
    command.add_argument("vocabulary", type=Path)
    command.add_argument("stream", type=Path)
    command.add_argument("rows", type=Path)
    command.add_argument("--files", type=int, default=8)
    command.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.command == "vocabulary":
        words = train_vocabulary(args.texts)
        args.vocabulary.write_text("\n".join(words) + "\n", encoding="utf-8")
    elif args.command == "tokenize":
        stream = np.concatenate(list(tokenize(args.texts, args.vocabulary)))
        write_parts(stream, args.streams, args.parts)
    else:
        write_rows(decompress(args.stream), args.vocabulary, args.rows, args.files, args.seed)


def split_articles(stream: Ids, n: int) -> list[Ids]:
    """Splits a stream between articles into n streams of about one size."""
    starts = np.flatnonzero(stream == CLS)
    return np.split(stream, [starts[len(starts) * k // n] for k in range(1, n)])


def write_parts(stream: Ids, folder: Path, n_parts: int) -> None:
    """Writes a stream as so many parts of about one size, which begin with an article."""
    folder.mkdir(parents=True, exist_ok=True)
    for n, part in enumerate(split_articles(stream, n_parts), 1):
        path = folder / f"part{n}.xz"
        path.write_bytes(compress(part))
        print(f"{path}: {len(part)} values, {path.stat().st_size} bytes", flush=True)


def write_rows(stream: Ids, vocabulary: Path, stem: Path, n_files: int, seed: int) -> None:
    """Writes rows as stem-1.npy, ...: each file appears as soon as it is complete."""
    rng = np.random.default_rng(seed)
    punctuation = punctuation_of(vocabulary)
    for n, part in enumerate(split_articles(stream, n_files), 1):
        rows = pack(cut(part, punctuation, rng))
        path = stem.with_name(f"{stem.name}-{n}.npy")
        unfinished = path.with_name(f"unfinished-{path.name}")
        np.save(unfinished, rows)
        unfinished.replace(path)
        print(f"{path}: {len(rows)} rows, {(rows == PAD).mean():.1%} padding", flush=True)


if __name__ == "__main__":
    main()
