"""Make native/src/unicode_tables.h, what the tokenizer has to know of every code point.

The truth is the `tokenizers` library itself, asked about each code point, and not Python's
`unicodedata`: the library mixes several versions of Unicode (its categories are older than its
decompositions), and bitm has to give the library's answers.

    python native/tools/make_unicode_tables.py            # write the header
    python native/tools/make_unicode_tables.py --check    # exit 1 when the committed one is stale
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from tokenizers import normalizers, pre_tokenizers

HEADER = Path(__file__).resolve().parent.parent / "src" / "unicode_tables.h"

# A byte of traits per code point: bits 0-2 its kind, in the order of bitm_char_kind in text.h; then
# two flags; bits 5-7 the rank of its class among those of the combining marks that strip_accents
# leaves (0: no mark).  A mark that is dropped has no flags: bits 3-7 are its place between ranks.
KINDS = ("PLAIN", "REMOVED", "SPACE", "PUNCTUATION", "CJK", "MARK", "MARK_STARTER")
PLAIN, REMOVED, SPACE, PUNCTUATION, CJK, MARK, MARK_STARTER = range(len(KINDS))
KIND_MASK = 0x07
DECOMPOSES = 0x08
HAS_LOWERCASE = 0x10
RANK_SHIFT = 5
MAX_RANK = 7
PLACE_SHIFT = 3

BLOCK_SHIFT = 7
LAST_OF_DECOMPOSITION = 0x80000000

CODE_POINTS = [*range(0xD800), *range(0xE000, 0x110000)]
HANGUL = range(0xAC00, 0xAC00 + 19 * 21 * 28)
DOTTED_CAPITAL_I = 0x130  # the one code point that two replace in lower case
HIGHEST_MARK = "\u0345"  # of combining class 240, the highest that Unicode gives out


HEADER_BEGIN = """\
/* Made by native/tools/make_unicode_tables.py from the answers of the tokenizers library; do not
 * edit.  {n_bytes} bytes of data; included by text.c alone, which says how they are read. */
#ifndef BITM_UNICODE_TABLES_H
#define BITM_UNICODE_TABLES_H

#include "text.h"

/* clang-format off */
"""


def bert_normalizer(
    clean_text: bool = False,
    handle_chinese_chars: bool = False,
    strip_accents: bool = False,
    lowercase: bool = False,
) -> normalizers.BertNormalizer:
    """Return the library's normalizer with only the named steps switched on."""
    return normalizers.BertNormalizer(
        clean_text=clean_text,
        handle_chinese_chars=handle_chinese_chars,
        strip_accents=strip_accents,
        lowercase=lowercase,
    )


def changes(normalizer: normalizers.Normalizer) -> dict[int, str]:
    """Return what the normalizer makes of each code point that it does not leave alone."""
    results = ((c, normalizer.normalize_str(chr(c))) for c in CODE_POINTS)
    return {c: result for c, result in results if result != chr(c)}


def hangul_jamo(syllable: int) -> str:
    """Return the decomposition that text.c computes (The Unicode Standard, section 3.12)."""
    index = syllable - HANGUL.start
    jamo = [0x1100 + index // 588, 0x1161 + index % 588 // 28]
    if index % 28:
        jamo.append(0x11A7 + index % 28)
    return "".join(map(chr, jamo))


def probe_kinds(stripped: dict[int, str], order: dict[int, int]) -> dict[int, int]:
    """Return the kind of every code point that is not plain."""
    kinds: dict[int, int] = {}
    for c, result in changes(bert_normalizer(clean_text=True)).items():
        assert result in ("", " "), f"U+{c:04X}: cleaning makes {result!r}"
        kinds[c] = REMOVED if result == "" else SPACE
    for c, result in changes(bert_normalizer(handle_chinese_chars=True)).items():
        assert result == f" {chr(c)} ", f"U+{c:04X}: spacing makes {result!r}"
        assert c not in kinds, f"U+{c:04X}: an ideograph that cleaning changes"
        kinds[c] = CJK

    split = pre_tokenizers.BertPreTokenizer().pre_tokenize_str
    for c in CODE_POINTS:
        words = [word for word, _ in split(f"a{chr(c)}b")]
        if words == ["a", "b"]:  # the pre-tokenizer's white space is among what cleaning handles
            assert c == 0x20 or kinds[c] in (REMOVED, SPACE), f"U+{c:04X} splits words"
            kinds.setdefault(c, SPACE)
        elif words != [f"a{chr(c)}b"]:
            assert words == ["a", chr(c), "b"], f"U+{c:04X}: splits words into {words}"
            assert c not in kinds, f"U+{c:04X}: punctuation that earlier steps change"
            kinds[c] = PUNCTUATION

    # Among the marks that are dropped, one of class 0 still keeps those around it in their order.
    first, last = chr(min(order, key=order.__getitem__)), chr(max(order, key=order.__getitem__))
    strip = bert_normalizer(strip_accents=True)
    for c, result in stripped.items():
        if result == "" and c not in kinds:
            blocks = strip.normalize_str(last + chr(c) + first) == last + first
            kinds[c] = MARK_STARTER if blocks else MARK
    return kinds


def probe_order(stripped: dict[int, str]) -> dict[int, int]:
    """Return the rank, from 1, of the canonical combining class of each mark that is kept."""
    strip = bert_normalizer(strip_accents=True).normalize_str
    decompose = normalizers.NFD().normalize_str
    marks = [
        chr(c)
        for c in CODE_POINTS
        if stripped.get(c) != "" and decompose(HIGHEST_MARK + chr(c))[0] != HIGHEST_MARK
    ]
    n_before = {a: sum(strip(a + b) == b + a for b in marks if b != a) for a in marks}
    ranks = {n: rank for rank, n in enumerate(sorted(set(n_before.values())), start=1)}
    assert len(ranks) <= MAX_RANK, f"{len(ranks)} combining classes do not fit"
    return {ord(mark): ranks[n] for mark, n in n_before.items()}


def probe_places(kinds: dict[int, int], order: dict[int, int]) -> dict[int, int]:
    """Return for each mark that is dropped twice the rank of its class, as a mark that is kept has
    it; an odd number, between its neighbours', where no such mark is of that class."""
    decompose = normalizers.NFD().normalize_str
    of_rank = {rank: chr(c) for c, rank in order.items()}
    places = {}
    for c in (c for c, kind in kinds.items() if kind == MARK):
        before = sum(decompose(chr(c) + kept)[0] == kept for kept in of_rank.values())
        after = sum(decompose(kept + chr(c))[0] != kept for kept in of_rank.values())
        is_between = before + after == len(of_rank)
        places[c] = 2 * before + (1 if is_between else 2)
    return places


def check_assumptions(
    kinds: dict[int, int],
    order: dict[int, int],
    stripped: dict[int, str],
    lowered: dict[int, str],
) -> None:
    """Stop when the library no longer has a property that the C code builds on."""
    for c in HANGUL:
        assert stripped[c] == hangul_jamo(c), f"U+{c:04X}: not the arithmetic decomposition"
    for c, result in stripped.items():
        for i, part in enumerate(map(ord, result)):
            assert part not in stripped, f"U+{c:04X}: the decomposition is not complete"
            assert i > 0 or part not in order, f"U+{c:04X}: the decomposition begins with a mark"
            assert kinds.get(part, PLAIN) in (PLAIN, PUNCTUATION, CJK), f"U+{c:04X}: {part:04X}"
    for c in (c for c, kind in kinds.items() if kind == MARK):
        assert c not in lowered, f"U+{c:04X}: a dropped mark with lower case"
        assert stripped[c] == "", f"U+{c:04X}: a dropped mark that leaves something"
    for c in order:
        assert kinds.get(c, PLAIN) in (PLAIN, REMOVED), f"U+{c:04X}: a mark that splits words"
    for c, result in lowered.items():
        assert (len(result) == 1) != (c == DOTTED_CAPITAL_I), f"U+{c:04X}: {result!r}"
        assert kinds.get(c, PLAIN) == PLAIN, f"U+{c:04X}: has lower case and is not plain"
        assert ord(result[0]) not in kinds, f"U+{c:04X}: lower case is not plain"
    assert lowered[DOTTED_CAPITAL_I] == "i\u0307"


def two_stages(traits: bytes) -> tuple[list[int], list[int]]:
    """Return the block number of each 2^BLOCK_SHIFT code points, and the distinct blocks."""
    size = 1 << BLOCK_SHIFT
    numbers: dict[bytes, int] = {}
    stage = [
        numbers.setdefault(traits[start : start + size], len(numbers))
        for start in range(0, len(traits), size)
    ]
    assert len(numbers) <= 256, "the block numbers do not fit in a byte"
    return stage, [value for block in numbers for value in block]


def decomposition_tables(stripped: dict[int, str]) -> tuple[list[int], list[int], list[int]]:
    """Return the decomposed code points, where each one's parts begin in the pool, and the pool."""
    keys = sorted(c for c, result in stripped.items() if result != "" and c not in HANGUL)
    starts: dict[str, int] = {}
    pool: list[int] = []
    for result in sorted({stripped[c] for c in keys}):
        starts[result] = len(pool)
        pool += map(ord, result)
        pool[-1] |= LAST_OF_DECOMPOSITION
    return keys, [starts[stripped[c]] for c in keys], pool


def lowercase_ranges(lowered: dict[int, str]) -> list[tuple[int, int]]:
    """Return (first code point, distance to the lower case), one for each run of one distance."""
    ranges: list[tuple[int, int]] = []
    for c in sorted(lowered):
        distance = ord(lowered[c][0]) - c
        if not ranges or ranges[-1][1] != distance:
            ranges.append((c, distance))
    return ranges


def c_array(declaration: str, values: Iterable[object]) -> str:
    """Return the definition of an array, filled up to 100 columns."""
    lines = [f"static const {declaration} = {{"]
    line = "   "
    for value in values:
        item = f" {value},"
        if len(line) + len(item) > 100:
            lines.append(line)
            line = "   "
        line += item
    return "\n".join([*lines, line, "};\n"])


def make_header() -> str:
    """Return the text of the header."""
    stripped = changes(bert_normalizer(strip_accents=True))
    lowered = changes(bert_normalizer(lowercase=True))
    order = probe_order(stripped)
    kinds = probe_kinds(stripped, order)
    places = probe_places(kinds, order)
    # What cleaning has taken away or made a space never reaches the later steps.
    stripped = {c: s for c, s in stripped.items() if kinds.get(c) not in (REMOVED, SPACE)}
    check_assumptions(kinds, order, stripped, lowered)

    traits = bytearray(0x110000)
    for c in CODE_POINTS:
        traits[c] = (
            kinds.get(c, PLAIN)
            | (DECOMPOSES if stripped.get(c, "") != "" else 0)
            | (HAS_LOWERCASE if c in lowered else 0)
            | order.get(c, 0) << RANK_SHIFT
            | places.get(c, 0) << PLACE_SHIFT
        )
    stage, blocks = two_stages(bytes(traits))
    keys, starts, pool = decomposition_tables(stripped)
    ranges = lowercase_ranges(lowered)
    n_bytes = len(stage) + len(blocks) + 4 * len(keys) + 2 * len(starts) + 4 * len(pool)
    n_bytes += 8 * len(ranges)

    kind_checks = [
        f'_Static_assert(BITM_CHAR_{name} == {kind}, "made for another text.h");'
        for kind, name in enumerate(KINDS)
    ]
    parts = [
        HEADER_BEGIN.format(n_bytes=n_bytes),
        "\n".join(kind_checks),
        "\n/* The byte of traits: kind, flags, rank among the marks that strip_accents leaves; of",
        " * a mark that it drops, kind and place between twice these ranks. */",
        f"#define TRAITS_KIND_MASK {KIND_MASK:#x}u",
        f"#define TRAITS_DECOMPOSES {DECOMPOSES:#x}u",
        f"#define TRAITS_HAS_LOWERCASE {HAS_LOWERCASE:#x}u",
        f"#define TRAITS_RANK_SHIFT {RANK_SHIFT}u",
        f"#define TRAITS_PLACE_SHIFT {PLACE_SHIFT}u",
        f"#define N_CHAR_ORDERS {2 * max(order.values()) + 2}",
        "\n/* Two stages: traits_in_block[block of code_point >> shift][the low bits]. */",
        f"#define TRAITS_BLOCK_SHIFT {BLOCK_SHIFT}u\n",
        c_array(f"uint8_t traits_block[{len(stage)}]", stage),
        c_array(f"uint8_t traits_in_block[{len(blocks)}]", blocks),
        "/* Without Hangul.  Parts begin at decomposition_start; the highest bit ends them. */",
        f"#define LAST_OF_DECOMPOSITION 0x{LAST_OF_DECOMPOSITION:X}u",
        f"#define N_DECOMPOSITIONS {len(keys)}\n",
        c_array("uint32_t decomposed[N_DECOMPOSITIONS]", map(hex, keys)),
        c_array("uint16_t decomposition_start[N_DECOMPOSITIONS]", starts),
        c_array(f"uint32_t decomposition_parts[{len(pool)}]", map(hex, pool)),
        "/* A range reaches to the next; only code points with the flag are meant.  U+0130 has two",
        " * code points in lower case, of which this gives the first. */",
        f"#define N_LOWERCASE_RANGES {len(ranges)}\n",
        "struct lowercase_range {\n    uint32_t first;\n    int32_t distance;\n};\n",
        c_array(
            "struct lowercase_range lowercase_ranges[N_LOWERCASE_RANGES]",
            (f"{{{first:#x}, {distance}}}" for first, distance in ranges),
        ),
        "/* clang-format on */",
        "#endif\n",
    ]
    return "\n".join(parts)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write or check the header; return the exit status."""
    parser = argparse.ArgumentParser(
        description="Make native/src/unicode_tables.h from the answers of the tokenizers library.",
    )
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit 1 when the header is not current"
    )
    check: bool = parser.parse_args(arguments).check
    header = make_header()
    if not check:
        HEADER.write_bytes(header.encode("ascii"))
    elif not HEADER.exists() or HEADER.read_bytes() != header.encode("ascii"):
        print(f"{HEADER}: not current; run {Path(__file__).name}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
