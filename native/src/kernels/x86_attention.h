/* What attention of the x86 tiers shares: how a head lies in the room of bitm_attention.  Included
 * by x86_*_attention.c alone. */
#ifndef BITM_X86_ATTENTION_H
#define BITM_X86_ATTENTION_H

#include <string.h>

#include "kernels.h"

enum {
    CHUNK = 16, /* keys side by side: as many as a sum has lanes, two vectors of AVX2 */
    MOST_COMMON_SIZE = 64,
};

typedef struct head {
    const bitm_attention *attention;
    size_t n_padded; /* tokens, rounded up to whole chunks */
    float *keys;     /* [n_padded / CHUNK, head_size, CHUNK]; 0 past the last key */
    float *values;   /* [n_tokens, head_size] */
    float *scores;   /* [BITM_ATTENTION_QUERIES, n_padded] */
} head;

static inline head open_head(const bitm_attention *attention)
{
    head h = {.attention = attention};
    h.n_padded = ((size_t)attention->n_tokens + CHUNK - 1) / CHUNK * CHUNK;
    h.scores = attention->scores;
    h.keys = h.scores + BITM_ATTENTION_QUERIES * h.n_padded;
    h.values = h.keys + h.n_padded * attention->head_size;
    return h;
}

static inline void lay_out_values(const head *h)
{
    const bitm_attention *a = h->attention;
    for (size_t j = 0; j < a->n_tokens; j++)
        memcpy(h->values + j * a->head_size, a->value + j * a->stride,
               a->head_size * sizeof *h->values);
}

#endif
