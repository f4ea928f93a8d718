/* The operating system: memory, files, threads, CPUs.  The only part with #ifdefs for systems. */
#ifndef BITM_OS_H
#define BITM_OS_H

#include <stdbool.h>

#include "status.h"

/* The C library's allocator, in the form of bitm_model_options. context is not used. */
void *bitm_os_allocate(void *context, size_t n_bytes);
void bitm_os_release(void *context, void *memory);

/* Says of memory from bitm_os_allocate that all of it is about to be used: the system may hand it
 * over in larger pieces.  A hint alone. */
void bitm_os_expect_use(void *memory, size_t n_bytes);

/* A whole file, mapped read-only. An empty file maps to a valid pointer and 0 bytes. */
typedef struct bitm_mapping {
    const void *bytes;
    uint64_t n_bytes;
} bitm_mapping;

bitm_status bitm_os_map_file(bitm_mapping *mapping, const char *path, bitm_error *err);
void bitm_os_unmap_file(bitm_mapping *mapping);

/* CPUs that this process may use: affinity and, on Linux, the cgroup's quota.  At least 1. */
uint32_t bitm_os_cpu_count(void);

/* Whether threads may use the tile registers of AMX.  Linux wants to be asked, once for a process
 * before its threads start, because tiles make the state that it saves of a thread large. */
bool bitm_os_allow_tiles(void);

/* What the system says of an ARM processor, a set of bits; none of other processors. */
enum {
    BITM_ARM_NEON = 1 << 0,    /* vectors, and fused multiply-adds of floats */
    BITM_ARM_DOTPROD = 1 << 1, /* FEAT_DotProd */
    BITM_ARM_I8MM = 1 << 2,    /* FEAT_I8MM */
};
uint32_t bitm_os_arm_abilities(void);

/* Changes after a fork. */
uint64_t bitm_os_process_id(void);

/* Tells the processor that a thread looks at memory again and again. */
void bitm_os_pause(void);

/* Opens the shared library of this name (without prefix and suffix) that lies beside the code of
 * bitm, and finds a symbol of it.  It stays open. */
bitm_status bitm_os_library_symbol(const char *name, const char *symbol, void **found,
                                   bitm_error *err);

/* Room for the system's own objects (os.c asserts that they fit), so that no header of it is
 * needed. */
typedef struct bitm_mutex {
    _Alignas(16) unsigned char storage[64];
} bitm_mutex;
typedef struct bitm_condition {
    _Alignas(16) unsigned char storage[64];
} bitm_condition;
typedef struct bitm_thread {
    void (*run)(void *context);
    void *context;
    _Alignas(16) unsigned char storage[16];
} bitm_thread;

/* Of each thread: they need little, but musl's default of 128 KiB leaves none to spare. */
enum { BITM_OS_STACK_BYTES = 1 << 19 };

/* False when the system refuses. */
bool bitm_os_thread_start(bitm_thread *thread); /* run and context set; must stay in place */
void bitm_os_thread_join(bitm_thread *thread);

bool bitm_os_mutex_init(bitm_mutex *mutex);
void bitm_os_mutex_destroy(bitm_mutex *mutex);
void bitm_os_mutex_lock(bitm_mutex *mutex);
void bitm_os_mutex_unlock(bitm_mutex *mutex);

bool bitm_os_condition_init(bitm_condition *condition);
void bitm_os_condition_destroy(bitm_condition *condition);
void bitm_os_condition_wait(bitm_condition *condition, bitm_mutex *mutex);
void bitm_os_condition_broadcast(bitm_condition *condition);

#endif
