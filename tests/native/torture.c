/* Everything that the library takes from outside - memory from the caller's allocator, files,
 * mappings, threads and locks from the system - is refused once: the first request, then the
 * second, and so on until a whole life of a model passes without a refusal.  Each refusal must
 * come out as a status, and nothing may stay behind.
 *
 * Here os.c is compiled to call torture_f for each function f of the system; see CMakeLists.txt. */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "check.h"
#include "make_file.h"

static const char path[] = "torture.bitm";

/* ---- What is asked for, and what is held ---- */

typedef enum resource {
    MEMORY,
    DESCRIPTOR,
    FACTS, /* fstat: refused, but nothing to give back */
    MAPPING,
    MUTEX,
    CONDITION,
    ATTRIBUTES,
    THREAD,
    N_RESOURCES
} resource;

static struct {
    bool watches; /* the library is at work */
    unsigned n_requests;
    unsigned refused; /* the number of the request to refuse, from 1; 0: none */
    resource refused_resource;
    int n_held[N_RESOURCES];
} watch;

/* Counts a request; whether it is to be refused. */
static bool refuses(resource r)
{
    if (!watch.watches) return false;
    if (++watch.n_requests == watch.refused) {
        watch.refused_resource = r;
        return true;
    }
    watch.n_held[r]++;
    return false;
}

static void gives_back(resource r)
{
    if (watch.watches) watch.n_held[r]--;
}

static void *allocate(void *context, size_t n_bytes)
{
    (void)context;
    return refuses(MEMORY) ? NULL : malloc(n_bytes);
}

static void release(void *context, void *memory)
{
    (void)context;
    gives_back(MEMORY);
    free(memory);
}

int torture_open(const char *name, int flags, ...);
int torture_close(int descriptor);
int torture_fstat(int descriptor, struct stat *facts);
void *torture_mmap(void *place, size_t n_bytes, int protection, int flags, int descriptor,
                   off_t at);
int torture_munmap(void *place, size_t n_bytes);
int torture_pthread_mutex_init(pthread_mutex_t *mutex, const pthread_mutexattr_t *attributes);
int torture_pthread_mutex_destroy(pthread_mutex_t *mutex);
int torture_pthread_cond_init(pthread_cond_t *condition, const pthread_condattr_t *attributes);
int torture_pthread_cond_destroy(pthread_cond_t *condition);
int torture_pthread_attr_init(pthread_attr_t *attributes);
int torture_pthread_attr_destroy(pthread_attr_t *attributes);
int torture_pthread_create(pthread_t *thread, const pthread_attr_t *attributes,
                           void *(*run)(void *), void *argument);
int torture_pthread_join(pthread_t thread, void **result);

int torture_open(const char *name, int flags, ...)
{
    errno = EMFILE;
    return refuses(DESCRIPTOR) ? -1 : open(name, flags);
}

int torture_close(int descriptor)
{
    gives_back(DESCRIPTOR);
    return close(descriptor);
}

int torture_fstat(int descriptor, struct stat *facts)
{
    errno = EIO;
    return refuses(FACTS) ? -1 : fstat(descriptor, facts);
}

void *torture_mmap(void *place, size_t n_bytes, int protection, int flags, int descriptor, off_t at)
{
    errno = ENOMEM;
    return refuses(MAPPING) ? MAP_FAILED : mmap(place, n_bytes, protection, flags, descriptor, at);
}

int torture_munmap(void *place, size_t n_bytes)
{
    gives_back(MAPPING);
    return munmap(place, n_bytes);
}

int torture_pthread_mutex_init(pthread_mutex_t *mutex, const pthread_mutexattr_t *attributes)
{
    return refuses(MUTEX) ? EAGAIN : pthread_mutex_init(mutex, attributes);
}

int torture_pthread_mutex_destroy(pthread_mutex_t *mutex)
{
    gives_back(MUTEX);
    return pthread_mutex_destroy(mutex);
}

int torture_pthread_cond_init(pthread_cond_t *condition, const pthread_condattr_t *attributes)
{
    return refuses(CONDITION) ? EAGAIN : pthread_cond_init(condition, attributes);
}

int torture_pthread_cond_destroy(pthread_cond_t *condition)
{
    gives_back(CONDITION);
    return pthread_cond_destroy(condition);
}

int torture_pthread_attr_init(pthread_attr_t *attributes)
{
    return refuses(ATTRIBUTES) ? ENOMEM : pthread_attr_init(attributes);
}

int torture_pthread_attr_destroy(pthread_attr_t *attributes)
{
    gives_back(ATTRIBUTES);
    return pthread_attr_destroy(attributes);
}

int torture_pthread_create(pthread_t *thread, const pthread_attr_t *attributes,
                           void *(*run)(void *), void *argument)
{
    return refuses(THREAD) ? EAGAIN : pthread_create(thread, attributes, run, argument);
}

int torture_pthread_join(pthread_t thread, void **result)
{
    gives_back(THREAD);
    return pthread_join(thread, result);
}

/* ---- The life of a model ---- */

typedef struct life {
    const void *bytes; /* NULL: the file is opened by its path */
    size_t n_bytes;
    uint32_t n_threads;
} life;

/* Open, create, run, free, close; returns the first failure. */
static bitm_status live(checks *c, const life *l, bitm_error *err)
{
    const bitm_model_options model_options = {
        .struct_size = sizeof model_options, .allocate = allocate, .release = release};
    const bitm_session_options session_options = {.struct_size = sizeof session_options,
                                                  .n_threads = l->n_threads};
    bitm_model *model = NULL;
    bitm_session *session = NULL;
    bitm_prediction predictions[4];
    size_t n_masks = 0;
    bitm_status status =
        l->bytes != NULL ? bitm_model_open_memory(l->bytes, l->n_bytes, &model_options, &model, err)
                         : bitm_model_open(path, &model_options, &model, err);
    CHECK(c, (model != NULL) == (status == BITM_OK));
    if (status != BITM_OK) return status;
    status = bitm_session_create(model, &session_options, &session, err);
    CHECK(c, (session != NULL) == (status == BITM_OK));
    if (status == BITM_OK) {
        unsigned n_requests = watch.n_requests;
        status = bitm_fill_mask(session, "a [MASK] c", 10, 4, predictions, 4, &n_masks, err);
        CHECK(c, status == BITM_OK && n_masks == 1);
        CHECK(c, watch.n_requests == n_requests); /* a run takes nothing */
    }
    bitm_session_free(session);
    bitm_model_close(model);
    return status;
}

/* Whether the status is the one of a refused resource. */
static bool fits(bitm_status status, resource refused)
{
    bool is_file = refused == DESCRIPTOR || refused == FACTS;
    return status == (is_file ? BITM_IO : BITM_NO_MEMORY);
}

static void torture(checks *c, const life *l)
{
    bitm_status status = BITM_INTERNAL;
    unsigned n = 0;
    while (status != BITM_OK && n < 1000) {
        bitm_error error = {0};
        memset(&watch, 0, sizeof watch);
        watch.refused = ++n;
        watch.watches = true;
        status = live(c, l, &error);
        watch.watches = false;
        for (int r = 0; r < N_RESOURCES; r++)
            CHECK(c, watch.n_held[r] == 0 || r == FACTS);
        if (status == BITM_OK) break;
        CHECK(c, fits(status, watch.refused_resource));
        CHECK(c, error.status == status && error.message[0] != '\0');
    }
    CHECK(c, status == BITM_OK && watch.n_requests == n - 1);
    /* At least the memory of model and session, and what each thread takes. */
    unsigned least = 2 + (l->n_threads > 1 ? 3 + 2 * (l->n_threads - 1) : 0);
    /* And of a file: open, mmap, and fstat, which musl calls by another name on 32 bits. */
    unsigned of_file = sizeof(void *) == 4 ? 2 : 3;
    CHECK(c, n - 1 >= least + (l->bytes != NULL ? 0 : of_file));
}

static bool write_file(const void *bytes, size_t n_bytes)
{
    FILE *file = fopen(path, "wb");
    if (file == NULL) return false;
    bool written = fwrite(bytes, 1, n_bytes, file) == n_bytes;
    return fclose(file) == 0 && written;
}

int main(void)
{
    checks c = {0};
    size_t n_bytes = 0;
    void *bytes = make_file(&small_shape, 1, &n_bytes);
    if (CHECK(&c, bytes != NULL && write_file(bytes, n_bytes))) {
        for (uint32_t n_threads = 1; n_threads <= 4; n_threads++) {
            torture(&c, &(life){.bytes = bytes, .n_bytes = n_bytes, .n_threads = n_threads});
            torture(&c, &(life){.n_threads = n_threads});
        }
    }
    (void)remove(path);
    free(bytes);
    return check_report(&c);
}
