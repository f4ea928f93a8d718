#include "pool.h"

/* Some 20 to 50 microseconds: about what a sleeper takes to wake up, so that looking in vain costs
 * at most as much again. */
enum { MOST_LOOKS = 1000 };

typedef struct bitm_pool_worker {
    bitm_pool *pool;
    uint32_t number;
} bitm_pool_worker;

void bitm_pool_layout(bitm_pool *pool, bitm_arena *arena, uint32_t n_threads)
{
    pool->n_threads = n_threads;
    pool->threads = bitm_arena_take(arena, n_threads - 1, sizeof *pool->threads);
    pool->workers = bitm_arena_take(arena, n_threads - 1, sizeof *pool->workers);
}

static void take_tasks(bitm_pool *pool, uint32_t worker)
{
    for (;;) {
        uint32_t task = atomic_fetch_add_explicit(&pool->next, 1, memory_order_relaxed);
        if (task >= pool->n_tasks) return;
        pool->task(pool->context, task, worker);
    }
}

/* Waits until a call follows number `last`; false: the pool stops. */
static bool await_call(bitm_pool *pool, uint32_t last)
{
    for (uint32_t i = 0; i < pool->n_looks; i++) {
        if (atomic_load(&pool->generation) != last) return true;
        if (atomic_load(&pool->stopping)) return false;
        bitm_os_pause();
    }
    bitm_os_mutex_lock(&pool->mutex);
    pool->n_sleeping++;
    while (atomic_load(&pool->generation) == last && !atomic_load(&pool->stopping))
        bitm_os_condition_wait(&pool->start, &pool->mutex);
    pool->n_sleeping--;
    bitm_os_mutex_unlock(&pool->mutex);
    return !atomic_load(&pool->stopping);
}

static void worker_main(void *context)
{
    bitm_pool_worker *worker = context;
    bitm_pool *pool = worker->pool;
    /* The next call waits for this worker, so none can be missed. */
    for (uint32_t generation = 0; await_call(pool, generation);) {
        generation = atomic_load(&pool->generation);
        take_tasks(pool, worker->number);
        if (atomic_fetch_sub(&pool->n_busy, 1) > 1) continue;
        bitm_os_mutex_lock(&pool->mutex);
        if (pool->caller_sleeps) bitm_os_condition_broadcast(&pool->done);
        bitm_os_mutex_unlock(&pool->mutex);
    }
}

/* Makes the mutex and the conditions: all of them, or none. */
static bool make_locks(bitm_pool *pool)
{
    if (!bitm_os_mutex_init(&pool->mutex)) return false;
    if (bitm_os_condition_init(&pool->start)) {
        if (bitm_os_condition_init(&pool->done)) return true;
        bitm_os_condition_destroy(&pool->start);
    }
    bitm_os_mutex_destroy(&pool->mutex);
    return false;
}

static void stop_workers(bitm_pool *pool, uint32_t n_started)
{
    bitm_os_mutex_lock(&pool->mutex);
    atomic_store(&pool->stopping, true);
    bitm_os_condition_broadcast(&pool->start);
    bitm_os_mutex_unlock(&pool->mutex);
    for (uint32_t i = 0; i < n_started; i++)
        bitm_os_thread_join(&pool->threads[i]);
    bitm_os_condition_destroy(&pool->done);
    bitm_os_condition_destroy(&pool->start);
    bitm_os_mutex_destroy(&pool->mutex);
}

bitm_status bitm_pool_start(bitm_pool *pool, bitm_error *err)
{
    pool->process_id = 0;
    pool->n_looks = pool->n_threads <= bitm_os_cpu_count() ? MOST_LOOKS : 0;
    pool->n_sleeping = 0;
    pool->caller_sleeps = false;
    atomic_store(&pool->stopping, false);
    atomic_store(&pool->generation, 0);
    atomic_store(&pool->n_busy, 0);
    if (pool->n_threads > 1 && !make_locks(pool))
        return bitm_fail(err, BITM_NO_MEMORY, "the system refuses a lock for the thread pool");
    for (uint32_t i = 0; i + 1 < pool->n_threads; i++) {
        pool->workers[i] = (bitm_pool_worker){.pool = pool, .number = i + 1};
        pool->threads[i].run = worker_main;
        pool->threads[i].context = &pool->workers[i];
        if (!bitm_os_thread_start(&pool->threads[i])) {
            stop_workers(pool, i);
            return bitm_fail(err, BITM_NO_MEMORY, "the system refuses thread %u of %u", i + 2,
                             pool->n_threads);
        }
    }
    pool->process_id = bitm_os_process_id();
    return BITM_OK;
}

bitm_status bitm_pool_revive(bitm_pool *pool, bitm_error *err)
{
    if (pool->process_id == bitm_os_process_id()) return BITM_OK;
    return bitm_pool_start(pool, err);
}

void bitm_pool_stop(bitm_pool *pool)
{
    /* In a child process the threads, and whatever they held, do not exist. */
    if (pool->n_threads > 1 && pool->process_id == bitm_os_process_id())
        stop_workers(pool, pool->n_threads - 1);
}

void bitm_pool_run(bitm_pool *pool, uint32_t n_tasks, bitm_pool_task *task, void *context)
{
    if (pool->n_threads == 1 || n_tasks <= 1) {
        for (uint32_t i = 0; i < n_tasks; i++)
            task(context, i, 0);
        return;
    }
    pool->task = task;
    pool->context = context;
    pool->n_tasks = n_tasks;
    atomic_store(&pool->next, 0);
    atomic_store(&pool->n_busy, pool->n_threads - 1);
    bitm_os_mutex_lock(&pool->mutex);
    atomic_fetch_add(&pool->generation, 1);
    if (pool->n_sleeping > 0) bitm_os_condition_broadcast(&pool->start);
    bitm_os_mutex_unlock(&pool->mutex);

    take_tasks(pool, 0);

    for (uint32_t i = 0; i < pool->n_looks; i++) {
        if (atomic_load(&pool->n_busy) == 0) return;
        bitm_os_pause();
    }
    bitm_os_mutex_lock(&pool->mutex);
    pool->caller_sleeps = true;
    while (atomic_load(&pool->n_busy) > 0)
        bitm_os_condition_wait(&pool->done, &pool->mutex);
    pool->caller_sleeps = false;
    bitm_os_mutex_unlock(&pool->mutex);
}
