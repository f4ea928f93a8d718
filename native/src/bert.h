/* The encoder. */
#ifndef BITM_BERT_H
#define BITM_BERT_H

#include "session.h"

/* session->hidden [n_tokens, H] = hidden states of session->packed after n_layers layers (0:
 * embeddings); those of session->chosen, others need not be. */
void bitm_bert_encode(bitm_session *session, uint32_t n_layers);

#endif
