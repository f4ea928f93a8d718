/* Any bytes as a file: opening and verifying them gives a status, twice the same. */
#include <stdlib.h>

#include "fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    uint8_t *bytes = aligned_copy(data, size);
    bitm_model_options options = limited_options(&size);
    bitm_model *model, *again;
    bitm_error err;
    bitm_status status = bitm_model_open_memory(bytes, size, &options, &model, &err);
    if (bitm_model_open_memory(bytes, size, &options, &again, &err) != status) abort();
    if ((status == BITM_OK) != (model != NULL) || (model == NULL) != (again == NULL)) abort();
    if (model != NULL) {
        bitm_model_properties properties = {.struct_size = sizeof properties};
        bitm_metadata entry = {0};
        (void)bitm_model_verify(model, &err);
        if (bitm_model_info(model, &properties, &err) != BITM_OK) abort();
        while (bitm_model_next_metadata(model, &entry) != 0)
            if (entry.key == NULL || entry.value == NULL) abort();
    }
    bitm_model_close(again);
    bitm_model_close(model);
    free(bytes);
    return 0;
}
