/* The choice of kernels. */
#ifndef BITM_SELECT_H
#define BITM_SELECT_H

#include "../status.h"
#include "kernels.h"

/* Takes the first kernel of each op that this machine runs, then those that `forced` names
 * ("op=variant,op=variant", NULL: none).  A name that does not exist is BITM_ARGUMENT, a kernel
 * that this machine cannot run is BITM_UNSUPPORTED.  "attention=tensor", a device's, is noted. */
bitm_status bitm_kernels_select(bitm_kernel_table *table, const char *forced, bitm_error *err);

/* Lists kernels as bitm_kernels of bitm.h does: `chosen` by the table, `modes` by the ops of each
 * bitm_activations (NULL: none). */
size_t bitm_kernels_list(const bitm_kernel_table *table, const uint64_t *ops_of_mode,
                         bitm_kernel *kernels, size_t capacity);

#endif
