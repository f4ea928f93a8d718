#include "pool.h"

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

static void worker_main(void *context)
{
    bitm_pool_worker *worker = context;
    bitm_pool *pool = worker->pool;
    uint64_t generation = 0;
    bitm_os_mutex_lock(&pool->mutex);
    for (;;) {
        while (pool->generation == generation && !pool->stopping)
            bitm_os_condition_wait(&pool->start, &pool->mutex);
        if (pool->stopping) break;
        generation = pool->generation;
        bitm_os_mutex_unlock(&pool->mutex);
        take_tasks(pool, worker->number);
        bitm_os_mutex_lock(&pool->mutex);
        if (--pool->n_busy == 0) bitm_os_condition_broadcast(&pool->done);
    }
    bitm_os_mutex_unlock(&pool->mutex);
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
    pool->stopping = true;
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
    pool->generation = 0;
    pool->n_busy = 0;
    pool->stopping = false;
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
    bitm_os_mutex_lock(&pool->mutex);
    pool->task = task;
    pool->context = context;
    pool->n_tasks = n_tasks;
    atomic_store_explicit(&pool->next, 0, memory_order_relaxed);
    pool->n_busy = pool->n_threads - 1;
    pool->generation++;
    bitm_os_condition_broadcast(&pool->start);
    bitm_os_mutex_unlock(&pool->mutex);

    take_tasks(pool, 0);

    bitm_os_mutex_lock(&pool->mutex);
    while (pool->n_busy > 0)
        bitm_os_condition_wait(&pool->done, &pool->mutex);
    bitm_os_mutex_unlock(&pool->mutex);
}
