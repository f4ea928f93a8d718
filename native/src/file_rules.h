/* The rules of formats/SPEC.md for single fields: of the configuration and of quantizers. */
#ifndef BITM_FILE_RULES_H
#define BITM_FILE_RULES_H

#include "file.h"

enum { BITM_F32_INFINITY = 0x7F800000 }; /* its bits, and the exponent's */

bool bitm_bytes_are_zero(const uint8_t *bytes, uint64_t n_bytes);

/* Step 8 of section 5. */
bitm_status bitm_file_check_config(const bitm_file_config *c, uint32_t n_tokens, bitm_error *err);

/* Step 10 for one entry, without what its name has to be. */
bitm_status bitm_file_check_quantizer(const bitm_file_quantizer *q, bitm_error *err);

#endif
