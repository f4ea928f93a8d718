/* What fuzz targets share.  A target is a LLVMFuzzerTestOneInput: libFuzzer runs it for hours, and
 * driver.c over the committed corpus and a given number of mutants with any compiler. */
#ifndef FUZZ_H
#define FUZZ_H

#include <stddef.h>
#include <stdint.h>

#include "bitm.h"
#include "random.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Changes data [size] in place, may lengthen it up to max_size; returns the new size. */
size_t mutate(uint8_t *data, size_t size, size_t max_size, random_state *random);

/* Makes the checksums of a .bitm file's header and tables right, where the file is long enough to
 * have them: without this no mutant would get past the first check. */
void repair_checksums(uint8_t *data, size_t size);

/* A copy aligned to 64 bytes, with poisoned memory right behind it under AddressSanitizer;
 * released by free(). */
uint8_t *aligned_copy(const uint8_t *data, size_t size);

/* Options whose allocator ends the process when a single request is larger than a file of
 * file_bytes can justify. */
bitm_model_options limited_options(const size_t *file_bytes);

/* Opens the bytes as they are, and runs whatever opens: all activation modes, all outputs. */
void run_model(const bitm_model *model);

#endif
