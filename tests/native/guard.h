/* Arrays between pages that nobody may touch: a step outside ends the process. */
#ifndef GUARD_H
#define GUARD_H

#include <stdbool.h>
#include <stddef.h>

enum { GUARD_MAX_ARRAYS = 32 };

typedef struct guards {
    bool at_end; /* arrays end at a forbidden page; otherwise they begin behind one */
    size_t n;
    struct {
        void *pages; /* the first, forbidden one */
        size_t n_bytes;
    } arrays[GUARD_MAX_ARRAYS];
} guards;

/* A new array of zeros, aligned to no more than its elements' size when it stands at the end. */
void *guard_array(guards *g, size_t count, size_t element_bytes);

/* Makes all arrays so far read-only. */
void guard_seal(guards *g);

/* Gives all arrays back. */
void guard_release(guards *g);

#endif
