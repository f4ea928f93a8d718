#include "text.h"

#include "unicode_tables.h"

/* The number of continuation bytes, and the smallest code point that needs so many, come from the
 * first byte; every other ill-formed sequence then fails one of the comparisons. */
bool bitm_utf8_decode(const char *text, size_t n_bytes, size_t *position, uint32_t *code_point)
{
    size_t at = *position;
    uint32_t value = (unsigned char)text[at++];
    size_t n_more = 0;
    uint32_t smallest = 0;
    bool continuation = value >= 0x80 && value < 0xC0;
    if (continuation || value >= 0xF8) return false;
    if (value >= 0xF0) {
        n_more = 3;
        smallest = 0x10000;
        value &= 0x07u;
    } else if (value >= 0xE0) {
        n_more = 2;
        smallest = 0x800;
        value &= 0x0Fu;
    } else if (value >= 0xC0) {
        n_more = 1;
        smallest = 0x80;
        value &= 0x1Fu;
    }
    if (n_more > n_bytes - at) return false;
    for (size_t i = 0; i < n_more; i++) {
        uint32_t byte = (unsigned char)text[at++];
        if ((byte & 0xC0) != 0x80) return false;
        value = value << 6 | (byte & 0x3F);
    }
    if (value < smallest || value > 0x10FFFF || (value >= 0xD800 && value < 0xE000)) return false;
    *position = at;
    *code_point = value;
    return true;
}

size_t bitm_utf8_encode(uint32_t code_point, char bytes[4])
{
    if (code_point < 0x80) {
        bytes[0] = (char)code_point;
        return 1;
    }
    size_t n_bytes = code_point < 0x800 ? 2 : code_point < 0x10000 ? 3 : 4;
    for (size_t i = n_bytes - 1; i > 0; i--) {
        bytes[i] = (char)(0x80 | (code_point & 0x3F));
        code_point >>= 6;
    }
    bytes[0] = (char)((0xF00u >> n_bytes & 0xF0) | code_point); /* as many ones as bytes */
    return n_bytes;
}

static unsigned traits_of(uint32_t code_point)
{
    uint32_t block = traits_block[code_point >> TRAITS_BLOCK_SHIFT];
    uint32_t within = code_point & ((1u << TRAITS_BLOCK_SHIFT) - 1);
    return traits_in_block[block << TRAITS_BLOCK_SHIFT | within];
}

bitm_char_kind bitm_char_kind_of(uint32_t code_point)
{
    return (bitm_char_kind)(traits_of(code_point) & TRAITS_KIND_MASK);
}

static bool is_dropped_mark(unsigned traits)
{
    return (traits & TRAITS_KIND_MASK) == BITM_CHAR_MARK;
}

_Static_assert(N_CHAR_ORDERS == BITM_CHAR_ORDERS, "made for another text.h");

unsigned bitm_char_order(uint32_t code_point)
{
    unsigned traits = traits_of(code_point);
    if (is_dropped_mark(traits)) return traits >> TRAITS_PLACE_SHIFT;
    return 2 * (traits >> TRAITS_RANK_SHIFT);
}

/* Hangul syllables are numbered by lead, vowel and tail (The Unicode Standard, section 3.12); the
 * 11,172 of them need no table. */
static size_t decompose_hangul(uint32_t index, uint32_t parts[BITM_NORMALIZED_MAX])
{
    const uint32_t n_tails = 28;
    const uint32_t n_vowels = 21;
    uint32_t tail = index % n_tails;
    parts[0] = 0x1100 + index / (n_vowels * n_tails);
    parts[1] = 0x1161 + index / n_tails % n_vowels;
    parts[2] = 0x11A7 + tail;
    return tail == 0 ? 2 : 3;
}

/* code_point is one whose TRAITS_DECOMPOSES is set, so the search always finds it. */
static size_t decompose(uint32_t code_point, uint32_t parts[BITM_NORMALIZED_MAX])
{
    if (code_point >= 0xAC00 && code_point <= 0xD7A3) {
        return decompose_hangul(code_point - 0xAC00, parts);
    }
    size_t low = 0;
    size_t high = N_DECOMPOSITIONS - 1;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (decomposed[middle] < code_point) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    const uint32_t *part = decomposition_parts + decomposition_start[low];
    size_t n_parts = 0;
    do {
        parts[n_parts++] = *part & ~LAST_OF_DECOMPOSITION;
    } while ((*part++ & LAST_OF_DECOMPOSITION) == 0);
    return n_parts;
}

/* The traits of a mark that is dropped hold its place where others have flags. */
static bool has_lowercase(uint32_t code_point)
{
    unsigned traits = traits_of(code_point);
    return !is_dropped_mark(traits) && (traits & TRAITS_HAS_LOWERCASE) != 0;
}

/* code_point is one whose TRAITS_HAS_LOWERCASE is set: it is in the last range that begins at or
 * before it. */
static uint32_t lowercase_of(uint32_t code_point)
{
    size_t low = 0;
    size_t high = N_LOWERCASE_RANGES - 1;
    while (low < high) {
        size_t middle = (low + high + 1) / 2;
        if (lowercase_ranges[middle].first <= code_point) {
            low = middle;
        } else {
            high = middle - 1;
        }
    }
    return code_point + (uint32_t)lowercase_ranges[low].distance;
}

/* Only U+0130 (capital I with a dot) has two code points in lower case, and as it decomposes to I
 * and a dropped mark, that happens only when accents stay: there is always room. */
size_t bitm_char_normalize(uint32_t code_point, bool strip_accents, bool lowercase,
                           uint32_t normalized[BITM_NORMALIZED_MAX])
{
    const uint32_t capital_i_with_dot = 0x130;
    const uint32_t dot_above = 0x307;
    size_t n_parts = 1;
    normalized[0] = code_point;
    if (strip_accents && (traits_of(code_point) & TRAITS_DECOMPOSES) != 0) {
        n_parts = decompose(code_point, normalized);
    }
    if (!lowercase) return n_parts;
    for (size_t i = 0; i < n_parts; i++) {
        if (has_lowercase(normalized[i])) normalized[i] = lowercase_of(normalized[i]);
    }
    if (code_point == capital_i_with_dot && !strip_accents) normalized[n_parts++] = dot_above;
    return n_parts;
}
