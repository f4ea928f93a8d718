/* Rows of codes in planes of bits, as attention multiplies them. */
#ifndef BITM_CODE_ROWS_H
#define BITM_CODE_ROWS_H

#include "kernels/kernels.h"
#include "network.h"

/* Whether codes of a quantizer are -1, 0 and 1. */
bool bitm_is_sign(const bitm_file_quantizer *quantizer);

/* The planes of a quantizer's codes, as bitm_quantize_planes_fn makes them. */
bitm_planes bitm_planes_of(const bitm_file_quantizer *quantizer, const uint64_t *bits);

/* How many these are; 0 of no quantizer. */
uint32_t bitm_n_planes(const bitm_file_quantizer *quantizer);

/* n_rows rows of n codes each. */
typedef struct bitm_code_rows {
    uint64_t *bits;     /* [n_rows, n_planes, words] */
    bitm_planes planes; /* the same bits */
    uint32_t n_rows, n;
    bool
        are_weights; /* of one bit: signs of which none is 0; bits are but those of positive ones */
    void *room;      /* for weights as the kernel of their product packs them */
    const void *packed; /* that room, or NULL where it packs nothing */
} bitm_code_rows;

/* Copies rows whose planes are `stride` words from one to the next. */
void bitm_code_rows_copy(bitm_code_rows *rows, const bitm_file_quantizer *quantizer,
                         const uint64_t *planes, size_t stride, uint32_t n_rows, uint32_t n);

/* Row i from code i of each of n rows of n_rows codes, which lie as in bitm_code_rows_copy. */
void bitm_code_rows_transpose(bitm_code_rows *rows, const bitm_file_quantizer *quantizer,
                              const uint64_t *planes, size_t stride, uint32_t n_rows, uint32_t n);

/* Makes weights of rows if they are signs and none is 0, which is nearly always so. */
void bitm_code_rows_weigh(bitm_code_rows *rows, const bitm_file_quantizer *quantizer,
                          const bitm_packing *packing);

/* sums [n_rows] of the codes of each row. */
void bitm_code_rows_sum(const bitm_code_rows *rows, int32_t *sums);

#endif
