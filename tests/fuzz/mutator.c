/* libFuzzer's own mutations know nothing of fields and checksums: half of the time ours do the
 * work, and always the checksums are made right. */
#include "fuzz.h"

size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t max_size);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned seed);

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned seed)
{
    random_state random = {seed};
    if (size > 0 && random_below(&random, 2) == 0) return mutate(data, size, max_size, &random);
    size = LLVMFuzzerMutate(data, size, max_size);
    repair_checksums(data, size);
    return size;
}
