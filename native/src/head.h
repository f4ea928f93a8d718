/* The heads: what is computed from hidden states. */
#ifndef BITM_HEAD_H
#define BITM_HEAD_H

#include "session.h"

/* Rows are at most session->max_tokens; the hidden state of rows[i] is in session->head_input
 * [n_rows, H], which the heads overwrite. */

/* output[rows[i].output] [V] = masked-LM logits. */
void bitm_head_masked_lm(bitm_session *session, const bitm_row *rows, uint32_t n_rows,
                         float *output);

/* The candidates of a search for the best tokens: all of the vocabulary, or the targets. */
typedef struct bitm_candidates {
    const int32_t *targets; /* [n], NULL: ids 0 ... n - 1 */
    size_t n;
    uint32_t top_k; /* at most n */
} bitm_candidates;

/* predictions[rows[i].output] [top_k] = the best candidates, by logit, then by lower id. */
void bitm_head_top_k(bitm_session *session, const bitm_row *rows, uint32_t n_rows,
                     const bitm_candidates *candidates, bitm_prediction *predictions);

/* output[rows[i].output] [C] = logits. */
void bitm_head_tokens(bitm_session *session, const bitm_row *rows, uint32_t n_rows, float *output);

/* output[b] [C] = logits of each packed sequence, b its number in the batch.  Takes the sequences'
 * hidden states itself. */
void bitm_head_classify(bitm_session *session, float *output);

#endif
