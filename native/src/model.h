/* An opened model: the file, its network, its tokenizer and the kernels that run it. */
#ifndef BITM_MODEL_H
#define BITM_MODEL_H

#include "device.h"
#include "kernels/select.h"
#include "network.h"
#include "os.h"
#include "tokenizer.h"

typedef struct bitm_allocator {
    void *(*allocate)(void *context, size_t n_bytes);
    void (*release)(void *context, void *memory);
    void *context;
} bitm_allocator;

struct bitm_model {
    bitm_allocator allocator;
    void *allocation; /* everything below, and what it points to beside the file */
    size_t allocation_bytes;
    const void *arena_base;  /* where in it they begin */
    void *packed_allocation; /* weights as the kernels want them; NULL: none are packed */
    size_t packed_bytes;
    bitm_mapping mapping; /* n_bytes 0: the file lies in the caller's memory */
    bitm_file file;
    bitm_network network;
    bitm_tokenizer tokenizer; /* when file.header->n_tokens > 0 */
    bitm_kernel_table kernels;
    const bitm_device_api *device; /* what runs the model; NULL: the CPU */
    bitm_device_model *device_model;
};

/* An arena over newly allocated memory, or BITM_NO_MEMORY; *allocation is what to release. */
bitm_status bitm_allocate_arena(const bitm_allocator *allocator, size_t n_bytes, bitm_arena *arena,
                                void **allocation, bitm_error *err);

/* bitm_model_open, but for packing the weights: packed_bytes says what they would take.  No session
 * of the model may run. */
bitm_status bitm_model_open_to_measure(const char *path, const bitm_model_options *options,
                                       bitm_model **model, bitm_error *err);

/* Fails unless the file carries a vocabulary. */
bitm_status bitm_model_needs_vocabulary(const bitm_model *model, bitm_error *err);

/* Fails when the struct_size of a caller's struct is impossible; known is this library's. */
bitm_status bitm_check_struct_size(uint32_t given, size_t known, const char *what, bitm_error *err);

/* Copies the caller's options over defaults, as far as the caller's version of the struct goes;
 * fails when struct_size is impossible. `what` names the struct in the message. */
bitm_status bitm_read_options(void *options, size_t size, const void *given, const char *what,
                              bitm_error *err);

#endif
