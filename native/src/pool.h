/* A fork-join pool: the caller and its worker threads run the tasks of one call, then all wait.
 *
 * A pool belongs to one caller at a time.  Who waits looks for a short while, for a run makes some
 * hundred calls one after the other, and then sleeps; with more threads than CPUs it sleeps at
 * once.
 */
#ifndef BITM_POOL_H
#define BITM_POOL_H

#include <stdatomic.h>

#include "arena.h"
#include "os.h"

/* Runs task number `task` on thread number `worker` (0 is the caller). */
typedef void bitm_pool_task(void *context, uint32_t task, uint32_t worker);

typedef struct bitm_pool {
    uint32_t n_threads;   /* with the caller */
    bitm_thread *threads; /* [n_threads - 1] */
    struct bitm_pool_worker *workers;
    uint64_t process_id;
    bitm_mutex mutex;
    bitm_condition start, done;
    uint32_t n_looks; /* before sleeping */
    /* Written under the mutex. */
    uint32_t n_sleeping; /* workers that wait for `start` */
    bool caller_sleeps;  /* waits for `done` */
    _Atomic bool stopping;
    /* The current call, set before `generation` changes. */
    bitm_pool_task *task;
    void *context;
    uint32_t n_tasks;
    _Atomic uint32_t generation; /* counts calls: a worker waits until it changes */
    _Atomic uint32_t n_busy;     /* workers that have not finished the current call */
    _Atomic uint32_t next;       /* the first task that nobody has taken */
} bitm_pool;

/* Takes the pool's arrays from the arena (measuring, or placing). */
void bitm_pool_layout(bitm_pool *pool, bitm_arena *arena, uint32_t n_threads);

/* Starts the threads of a laid-out pool.  On failure none is left running. */
bitm_status bitm_pool_start(bitm_pool *pool, bitm_error *err);
void bitm_pool_stop(bitm_pool *pool);

/* Starts the threads again if this process is a child that has none of them. */
bitm_status bitm_pool_revive(bitm_pool *pool, bitm_error *err);

/* Runs tasks 0 to n_tasks - 1, each once, and returns when all are done.  The order is not defined:
 * tasks must not depend on each other. */
void bitm_pool_run(bitm_pool *pool, uint32_t n_tasks, bitm_pool_task *task, void *context);

#endif
