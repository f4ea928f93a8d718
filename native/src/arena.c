#include "arena.h"

void *bitm_arena_take(bitm_arena *arena, uint64_t count, size_t element_bytes)
{
    size_t limit = SIZE_MAX - arena->n_used - BITM_ARENA_ALIGNMENT;
    if (arena->overflow || (element_bytes > 0 && count > limit / element_bytes)) {
        arena->overflow = true;
        return NULL;
    }
    size_t start = arena->n_used;
    size_t n_bytes = (size_t)count * element_bytes;
    size_t mask = BITM_ARENA_ALIGNMENT - 1;
    arena->n_used = (start + n_bytes + mask) & ~mask;
    return arena->base != NULL ? arena->base + start : NULL;
}
