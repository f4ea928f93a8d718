/* WordPiece: text to token ids and back, from the vocabulary in the file.
 *
 * Gives what transformers' BertTokenizer gives (its normalizer, pre-tokenizer, WordPiece model,
 * special tokens and decoder); tests/test_tokenizer.py compares the two.  Nothing here allocates,
 * and a tokenizer is immutable once made, so threads may share it.
 */
#ifndef BITM_TOKENIZER_H
#define BITM_TOKENIZER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "status.h"

/* Limits of the file format (SPEC.md); they bound the memory of bitm_tokenizer_encode on the stack,
 * about 53 KB. */
#define BITM_VOCABULARY_LIMIT (1u << 24)
#define BITM_TOKEN_BYTES_LIMIT 1024u
#define BITM_WORD_CHARS_LIMIT 4096u

/* The vocabulary as it lies in the file. */
typedef struct bitm_vocabulary {
    const char *bytes;       /* the tokens' UTF-8, back to back, not terminated; borrowed */
    const uint32_t *offsets; /* [n_tokens + 1], offsets[0] = 0, not descending; borrowed */
    uint32_t n_tokens;
    bool lowercase;
    bool strip_accents;
    bool split_cjk;          /* every CJK ideograph is a word of its own */
    uint32_t max_word_chars; /* a word of more code points becomes unk */
    int32_t unk_id;
    int32_t cls_id, sep_id, pad_id, mask_id; /* -1: absent */
} bitm_vocabulary;

enum { BITM_N_SPECIAL_TOKENS = 5 };

typedef struct bitm_tokenizer {
    bitm_vocabulary vocabulary;
    uint32_t *slots; /* the hash index: [slot_mask + 1], in the caller's memory */
    uint32_t slot_mask;
    uint32_t id_mask;               /* the bits of a slot that hold id + 1 */
    uint32_t longest_token;         /* in bytes */
    bool begins_special_token[256]; /* by first byte */
} bitm_tokenizer;

/* The size of the memory that bitm_tokenizer_init needs, a multiple of 64. */
size_t bitm_tokenizer_bytes(const bitm_vocabulary *v);

/* Indexes the vocabulary.  `memory` (bitm_tokenizer_bytes(v), aligned to 64) and what *v borrows
 * must outlive *t; *v itself need not.  Of equal tokens, the last one counts.
 * BITM_FILE_CONFIG: an id or max_word_chars is out of its range; BITM_FILE_VOCABULARY: offsets
 * descend, or a token is too long; BITM_UNSUPPORTED: the tokens are made to collide in the index.
 */
bitm_status bitm_tokenizer_init(bitm_tokenizer *t, const bitm_vocabulary *v, void *memory,
                                bitm_error *err);

/* The id of a token given by its exact bytes, or -1. */
int32_t bitm_tokenizer_find(const bitm_tokenizer *t, const char *token, size_t n_bytes);

/* The bytes of a token (not terminated, borrowed from the vocabulary) and their number.
 * id must be in [0, n_tokens). */
const char *bitm_tokenizer_token(const bitm_tokenizer *t, int32_t id, size_t *n_bytes);

/* Turns UTF-8 text (it may contain NUL) into ids, with add_special_tokens between cls and sep
 * (those that the vocabulary has).  Writes the first `capacity` ids; *n_ids is the full number,
 * also when that is larger, and `ids` may be NULL when capacity is 0.  spans [capacity], which may
 * be NULL, are the bytes that ids come from, as the library's offsets: from the begin of a piece's
 * first character to the end of its last; [0, 0) for the cls and sep that are added.
 * BITM_TEXT: the text is not valid UTF-8; the message names the byte. */
bitm_status bitm_tokenizer_encode(const bitm_tokenizer *t, const char *text, size_t n_bytes,
                                  bool add_special_tokens, int32_t *ids, bitm_span *spans,
                                  size_t capacity, size_t *n_ids, bitm_error *err);

/* Turns ids[begin] to ids[end] into text, as tokenizer.decode(ids, skip_special_tokens=...) does:
 * pieces are joined, spaces before punctuation and in English contractions are taken out.  Ids
 * without a name in the vocabulary (from n_tokens up, and all but the last of equal tokens) give
 * nothing.  Writes at most `capacity` bytes, the last of them NUL (nothing when capacity is 0;
 * `text` may then be NULL); *n_bytes is the full length without the NUL.
 * BITM_TOKEN: an id is negative; the message names its place in ids. */
bitm_status bitm_tokenizer_decode(const bitm_tokenizer *t, const int32_t *ids, size_t begin,
                                  size_t end, bool skip_special_tokens, char *text, size_t capacity,
                                  size_t *n_bytes, bitm_error *err);

#endif
