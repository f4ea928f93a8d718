/* One block of memory, laid out by taking pieces in a row.
 *
 * The same function lays a block out twice: over a NULL base it measures, over the real base it
 * places, so that the two cannot disagree.
 */
#ifndef BITM_ARENA_H
#define BITM_ARENA_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { BITM_ARENA_ALIGNMENT = 64 };

typedef struct bitm_arena {
    uint8_t *base; /* aligned to 64 bytes; NULL: measure only */
    size_t n_used; /* bytes taken so far, a multiple of 64 */
    bool overflow; /* a size did not fit in size_t: n_used means nothing */
} bitm_arena;

/* Takes count elements of element_bytes each, aligned to 64 bytes; NULL when measuring. */
void *bitm_arena_take(bitm_arena *arena, uint64_t count, size_t element_bytes);

#endif
