/* UTF-8, and what the tokenizer has to know of a code point.
 *
 * The properties are those of the `tokenizers` library, which mixes versions of Unicode; where it
 * and a newer standard differ, the library is right.  tools/make_unicode_tables.py asks it about
 * every code point and writes the tables.
 */
#ifndef BITM_TEXT_H
#define BITM_TEXT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Decodes the code point that begins at text[*position] (*position < n_bytes) and moves *position
 * behind it.  False, and *position is unmoved, when the bytes there are not well-formed UTF-8
 * (overlong forms, surrogates, numbers above 0x10FFFF and cut sequences are not). */
bool bitm_utf8_decode(const char *text, size_t n_bytes, size_t *position, uint32_t *code_point);

/* Writes a code point (at most 0x10FFFF) as UTF-8; returns the number of bytes, 1 to 4. */
size_t bitm_utf8_encode(uint32_t code_point, char bytes[4]);

/* What a code point is to the tokenizer.  The tables hold these numbers. */
typedef enum bitm_char_kind {
    BITM_CHAR_PLAIN = 0,
    BITM_CHAR_REMOVED = 1,      /* control, format and private-use characters, U+FFFD: never seen */
    BITM_CHAR_SPACE = 2,        /* ends a word */
    BITM_CHAR_PUNCTUATION = 3,  /* is a word of its own */
    BITM_CHAR_CJK = 4,          /* is a word of its own when ideographs are split */
    BITM_CHAR_MARK = 5,         /* a combining mark that strip_accents drops */
    BITM_CHAR_MARK_STARTER = 6, /* dropped too, and the marks around it keep their order */
} bitm_char_kind;

/* The kind of a code point (at most 0x10FFFF). */
bitm_char_kind bitm_char_kind_of(uint32_t code_point);

/* The place of a code point (at most 0x10FFFF) in the canonical order of combining marks: from 1,
 * below BITM_CHAR_ORDERS, and 0 for everything else.  Even places belong to the classes of marks
 * that strip_accents leaves; marks that it drops stand there, or between them. */
unsigned bitm_char_order(uint32_t code_point);

enum { BITM_CHAR_ORDERS = 14 };

enum { BITM_NORMALIZED_MAX = 3 };

/* Writes what a code point becomes: with strip_accents its canonical decomposition without the
 * marks that are dropped, with lowercase each of that in lower case, otherwise itself.  Returns
 * how many code points, 1 to BITM_NORMALIZED_MAX.  The code point itself must not be one that is
 * dropped (kinds REMOVED and, with strip_accents, MARK and MARK_STARTER). */
size_t bitm_char_normalize(uint32_t code_point, bool strip_accents, bool lowercase,
                           uint32_t normalized[BITM_NORMALIZED_MAX]);

#endif
