"""The tokenizer of a model file against transformers' BertTokenizer, text by text.

The truth is the pinned `transformers` and `tokenizers`.  `tests/native/test_tokenizer.c` has the
small cases by hand; here are real text, every code point, and random Unicode.
"""

from __future__ import annotations

import random
import subprocess
import sys
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from transformers import BertTokenizer

from bitm._native import Library

TokenizerModel = Callable[[Sequence[str], bool, bool], Path]  # (tokens, lowercase, strip_accents)

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"
SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
CODE_POINTS = [*range(0xD800), *range(0xE000, 0x110000)]
N_RANDOM_TEXTS = 50_000
SEED = 20240229

# Both ways of each of the normalizer's switches.
CASES = pytest.mark.parametrize(
    ("lowercase", "strip_accents"),
    [(True, True), (True, False), (False, True), (False, False)],
    ids=["uncased", "uncased-accents", "cased-stripped", "cased"],
)

# Where random words are drawn from: a script or block a word, so that its rules meet.
BLOCKS = [
    (0x20, 0x7F),  # ASCII, four times as likely
    (0x20, 0x7F),
    (0x20, 0x7F),
    (0x20, 0x7F),
    (0x00, 0x20),  # controls
    (0x80, 0xA0),
    (0xA0, 0x250),  # Latin
    (0x370, 0x590),  # Greek, Cyrillic, Armenian
    (0x590, 0x780),  # Hebrew, Arabic, Syriac
    (0x8D0, 0x1000),  # scripts of India and South-East Asia
    (0x1100, 0x1200),  # Hangul jamo
    (0x1E00, 0x2070),  # Latin and Greek with accents, punctuation
    (0x3000, 0x3100),  # kana
    (0xAC00, 0xD7A4),  # Hangul syllables
    (0x4E00, 0x5000),  # ideographs
    (0xF900, 0xFB00),  # and their compatibility forms
    (0xE000, 0xF900),  # private use
    (0xFE00, 0x10000),  # presentation forms, specials
    (0x10400, 0x10450),  # Deseret, which has case
    (0x1D150, 0x1D1D0),  # musical symbols, which decompose
    (0x1E900, 0x1E950),  # Adlam
    (0x1F300, 0x1F700),  # emoji
    (0x20000, 0x2FA20),  # more ideographs
    (0x00, 0xD800),
    (0xE000, 0x110000),
]
MARKS = [c for c in CODE_POINTS if unicodedata.combining(chr(c))]


def assert_same_tokens(
    model_path: Path,
    tokens: Sequence[str],
    lowercase: bool,
    strip_accents: bool,
    texts: Sequence[str],
) -> None:
    """Fail with the first text of which the model file and BertTokenizer make different tokens.

    Tokens differ by their ids, or by the characters of the text that they are said to come from.
    """
    reference = BertTokenizer(
        vocab={token: i for i, token in enumerate(tokens)},
        do_lower_case=lowercase,
        strip_accents=strip_accents,
    )
    n_different = 0
    first = ""
    library = Library(str(model_path))
    for start in range(0, len(texts), 1000):
        batch = texts[start : start + 1000]
        encodings = reference.backend_tokenizer.encode_batch(batch)
        for text, encoding in zip(batch, encodings):
            expected = list(zip(encoding.ids, *zip(*encoding.offsets)))
            ids, spans = library.encode(text)
            found = list(zip(ids.tolist(), *spans.T.tolist()))
            if found != expected:
                first = first or f"{text!a}: expected {expected}, found {found}"
                n_different += 1
    library.close()
    assert n_different == 0, f"{n_different} of {len(texts)} texts differ; the first: {first}"


def visible_tokens() -> list[str]:
    """Return a vocabulary in which what normalization makes of a text can be seen.

    That is each code point of most scripts as a word and as a continuation.  Left out, to keep the
    model small: most ideographs and Hangul syllables, private use, and the blocks without letters.
    """
    blocks = [(0x21, 0x3400), (0x4E00, 0x4E80), (0xA490, 0xAC80), (0xF900, 0xFB00)]
    blocks += [(0xFB00, 0x12000), (0x1D000, 0x1D300), (0x1DF00, 0x1E960), (0x20000, 0x20040)]
    characters = [chr(c) for first, end in blocks for c in range(first, end)]
    return [*SPECIAL_TOKENS, *characters, *(f"##{character}" for character in characters)]


def small_checkpoint_tokens() -> list[str]:
    """Return a real vocabulary of 16,384 tokens; skip the test where it is absent."""
    path = SHARED / "checkpoints" / "w1-small-en" / "vocab.txt"
    if not path.exists():
        pytest.skip(f"{path} is absent")
    return path.read_text(encoding="utf-8").rstrip("\n").split("\n")


def random_word(generator: random.Random) -> str:
    """Return a word of one block, sometimes with marks, sometimes about as long as words may be."""
    first, end = generator.choice(BLOCKS)
    length = generator.choice([1, 1, 2, 3, 5, 8, 12])
    if generator.random() < 0.03:
        length = generator.randrange(90, 130)
    with_marks = generator.random() < 0.4
    characters = []
    for _ in range(length):
        characters.append(chr(generator.randrange(first, end)))
        if with_marks:
            n_marks = generator.choice([0, 0, 1, 3])
            characters += map(chr, generator.choices(MARKS, k=n_marks))
    return "".join(characters)


def random_texts(n_texts: int, seed: int) -> Iterator[str]:
    """Yield texts of up to seven words, special tokens and what looks like them."""
    generator = random.Random(seed)
    look_alikes = [*SPECIAL_TOKENS, "[mask]", "[MASK", "[[CLS]]", "##a", "[UNK]]"]
    spaces = ["", " ", " ", "  ", "\t", "\n", "\u00a0", "\u3000"]
    for _ in range(n_texts):
        parts = []
        for _ in range(generator.randrange(8)):
            special = generator.random() < 0.15
            parts.append(generator.choice(look_alikes) if special else random_word(generator))
            parts.append(generator.choice(spaces))
        yield "".join(parts)


@CASES
def test_random_unicode(
    tokenizer_model: TokenizerModel, lowercase: bool, strip_accents: bool
) -> None:
    tokens = visible_tokens()
    path = tokenizer_model(tokens, lowercase, strip_accents)
    texts = list(random_texts(N_RANDOM_TEXTS, SEED))
    assert_same_tokens(path, tokens, lowercase, strip_accents, texts)


@CASES
def test_every_code_point(
    tokenizer_model: TokenizerModel, lowercase: bool, strip_accents: bool
) -> None:
    """Within a word, and between two marks whose order it may change."""
    tokens = visible_tokens()
    path = tokenizer_model(tokens, lowercase, strip_accents)
    texts = [
        " ".join(f"a{chr(c)}b 1\u1dfb{chr(c)}\u302e" for c in CODE_POINTS[start : start + 32])
        for start in range(0, len(CODE_POINTS), 32)
    ]
    assert_same_tokens(path, tokens, lowercase, strip_accents, texts)


@CASES
@pytest.mark.parametrize(
    "corpus",
    ["ptb/ptb.valid.txt", "wikitext-2/wiki.valid.tokens.txt"],
    ids=["ptb", "wikitext-2"],
)
def test_real_text(
    tokenizer_model: TokenizerModel, corpus: str, lowercase: bool, strip_accents: bool
) -> None:
    corpus_path = SHARED / "data" / corpus
    if not corpus_path.exists():
        pytest.skip(f"{corpus_path} is absent")
    tokens = small_checkpoint_tokens()
    path = tokenizer_model(tokens, lowercase, strip_accents)
    texts = corpus_path.read_text(encoding="utf-8").split("\n")
    assert_same_tokens(path, tokens, lowercase, strip_accents, texts)


@CASES
def test_greedy_matching(
    tokenizer_model: TokenizerModel, lowercase: bool, strip_accents: bool
) -> None:
    """Random pieces over few letters, some twice, some empty: most words split in several ways."""
    generator = random.Random(SEED)
    tokens = list(SPECIAL_TOKENS)
    for _ in range(60):
        piece = "".join(generator.choices("aé中", k=generator.choice([0, 1, 1, 2, 3, 7, 30])))
        tokens.append(generator.choice(["", "##"]) + piece)
    path = tokenizer_model(tokens, lowercase, strip_accents)
    texts = [
        "".join(generator.choices("aéAÉ中 ", k=generator.choice([1, 3, 9, 40, 100, 200])))
        for _ in range(5000)
    ]
    assert_same_tokens(path, tokens, lowercase, strip_accents, texts)


@pytest.mark.parametrize("character", ["a", "é", "\uac01", "\u0130", "\U0001d160"])
def test_longest_words(tokenizer_model: TokenizerModel, character: str) -> None:
    """A word may have 100 code points, counted after normalization."""
    tokens = visible_tokens()
    lengths = [33, 34, 49, 50, 51, 99, 100, 101, 5000]
    texts = [f"b {character * n}.{'a' * 99}{character}" for n in lengths]
    for lowercase, strip_accents in [(True, True), (True, False), (False, False)]:
        path = tokenizer_model(tokens, lowercase, strip_accents)
        assert_same_tokens(path, tokens, lowercase, strip_accents, texts)


@pytest.mark.parametrize("skip_special_tokens", [False, True])
def test_ids_to_text(tokenizer_model: TokenizerModel, skip_special_tokens: bool) -> None:
    """Rows of ids, some empty, with all that a decoder cleans; also of tokens with spaces."""
    generator = random.Random(SEED)
    tokens = [*SPECIAL_TOKENS, "it", "##s", "do", "not", "n't", "'m", "'s", "'ve", "'re", *".?!,'"]
    tokens += ["##.", "n'tn't", "中", "do not", "a ' b", "x .y ?", " ,", "z" * 100, "\0 .", ""]
    path = tokenizer_model(tokens, True, True)
    reference = BertTokenizer(vocab={token: i for i, token in enumerate(tokens)})
    rows = [
        generator.choices(range(len(tokens)), k=generator.choice([0, 1, 2, 5, 30]))
        for _ in range(2000)
    ]
    ends = np.cumsum([len(row) for row in rows]).tolist()
    library = Library(str(path))
    found = library.decode_rows(np.concatenate(rows).astype(np.int32), ends, skip_special_tokens)
    alone = [library.decode(np.array(row, np.int32), skip_special_tokens) for row in rows]
    library.close()
    expected = [reference.decode(row, skip_special_tokens=skip_special_tokens) for row in rows]
    assert found == expected
    assert alone == expected


def test_unicode_tables_are_current() -> None:
    command = [sys.executable, str(ROOT / "native/tools/make_unicode_tables.py"), "--check"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
