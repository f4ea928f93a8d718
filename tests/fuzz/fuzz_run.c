/* Any bytes as a file, with its checksums made right: what opens can be run. */
#include <stdlib.h>

#include "fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    uint8_t *bytes = aligned_copy(data, size);
    repair_checksums(bytes, size);
    bitm_model_options options = limited_options(&size);
    bitm_model *model;
    bitm_error err;
    if (bitm_model_open_memory(bytes, size, &options, &model, &err) == BITM_OK) run_model(model);
    bitm_model_close(model);
    free(bytes);
    return 0;
}
