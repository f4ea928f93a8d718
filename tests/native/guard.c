#include "guard.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

static size_t page_bytes(void)
{
    return (size_t)sysconf(_SC_PAGESIZE);
}

static void require(bool condition, const char *what)
{
    if (condition) return;
    (void)fprintf(stderr, "guard: %s\n", what);
    abort();
}

void *guard_array(guards *g, size_t count, size_t element_bytes)
{
    size_t page = page_bytes(), n_bytes = count * element_bytes;
    size_t inner = (n_bytes / page + 1) * page;
    uint8_t *pages = mmap(NULL, inner + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    require(pages != MAP_FAILED && g->n < GUARD_MAX_ARRAYS, "no memory, or too many arrays");
    require(mprotect(pages + page, inner, PROT_READ | PROT_WRITE) == 0, "mprotect fails");
    g->arrays[g->n].pages = pages;
    g->arrays[g->n++].n_bytes = inner + 2 * page;
    return g->at_end ? pages + page + inner - n_bytes : pages + page;
}

void guard_seal(guards *g)
{
    size_t page = page_bytes();
    for (size_t i = 0; i < g->n; i++)
        require(mprotect((uint8_t *)g->arrays[i].pages + page, g->arrays[i].n_bytes - 2 * page,
                         PROT_READ) == 0,
                "mprotect fails");
}

void guard_release(guards *g)
{
    for (size_t i = 0; i < g->n; i++)
        require(munmap(g->arrays[i].pages, g->arrays[i].n_bytes) == 0, "munmap fails");
    g->n = 0;
}
