/* Small valid .bitm files for the C tests, written by formats/SPEC.md alone. */
#ifndef MAKE_FILE_H
#define MAKE_FILE_H

#include <stddef.h>
#include <stdint.h>

typedef struct file_shape {
    uint32_t vocab_size; /* at least FILE_TOKENS */
    uint32_t hidden_size;
    uint32_t n_layers;
    uint32_t n_heads;
    uint32_t head_size;
    uint32_t intermediate_size;
    uint32_t max_positions;
} file_shape;

/* The vocabulary: [PAD] [UNK] [CLS] [SEP] [MASK] and the letters a to z; other ids have no name. */
enum { FILE_PAD, FILE_UNK, FILE_CLS, FILE_SEP, FILE_MASK, FILE_LETTER_A, FILE_TOKENS = 31 };

/* Awkward sizes: no row is a multiple of 16 or 64. */
extern const file_shape small_shape;

/* A masked LM of random weights: 1-bit linears with a scale for each row, f16 embeddings, a tied
 * decoder.  Returns the file, aligned to 64 bytes, to be released with free(); NULL without memory.
 */
void *make_file(const file_shape *shape, uint64_t seed, size_t *n_bytes);

#endif
