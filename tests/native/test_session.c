/* Tests of the public functions: options, memory, misuse, and one answer for every session. */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "guard.h"
#include "make_file.h"
#include "session.h"

enum { LENGTH = 9, BATCH = 3, SEED = 7 };

static const int32_t ids[BATCH * LENGTH] = {
    FILE_CLS, 5,  6, FILE_MASK, 8,  9,         10, 11, FILE_SEP, //
    FILE_CLS, 30, 7, FILE_SEP,  0,  0,         0,  0,  0,        //
    FILE_CLS, 12, 5, 99,        40, FILE_MASK, 31, 5,  FILE_SEP,
};
static const int32_t mask[BATCH * LENGTH] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0,
                                             0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1};
static const bitm_batch whole_batch = {.struct_size = sizeof(bitm_batch),
                                       .n_sequences = BATCH,
                                       .length = LENGTH,
                                       .input_ids = ids,
                                       .attention_mask = mask,
                                       .layer = -1};
static const bitm_session_options whole_session = {.struct_size = sizeof(bitm_session_options),
                                                   .max_batch = BATCH,
                                                   .max_length = LENGTH,
                                                   .n_threads = 2};

/* ---- An allocator that counts ---- */

typedef struct counter {
    size_t n_live, n_taken;
} counter;

static void *counted_allocate(void *context, size_t n_bytes)
{
    counter *count = context;
    count->n_live++;
    count->n_taken++;
    return malloc(n_bytes);
}

static void counted_release(void *context, void *memory)
{
    ((counter *)context)->n_live--;
    free(memory);
}

static bitm_model_options counted(counter *count)
{
    return (bitm_model_options){.struct_size = sizeof(bitm_model_options),
                                .allocate = counted_allocate,
                                .release = counted_release,
                                .allocator_context = count};
}

/* ---- The model that all tests share ---- */

typedef struct fixture {
    void *file;
    size_t n_file_bytes;
    bitm_model *model;
    size_t n_logits;
    float *logits; /* [BATCH, LENGTH, V] of one thread */
} fixture;

static bitm_session *create(checks *c, const fixture *f, const bitm_session_options *options)
{
    bitm_session *session = NULL;
    bitm_error error = {0};
    CHECK_STATUS(c, BITM_OK, &error, bitm_session_create(f->model, options, &session, &error));
    return session;
}

static bool set_up(checks *c, fixture *f)
{
    bitm_error error = {0};
    f->file = make_file(&small_shape, SEED, &f->n_file_bytes);
    CHECK_STATUS(c, BITM_OK, &error,
                 bitm_model_open_memory(f->file, f->n_file_bytes, NULL, &f->model, &error));
    CHECK_STATUS(c, BITM_OK, &error, bitm_model_verify(f->model, &error));
    f->n_logits = (size_t)BATCH * LENGTH * small_shape.vocab_size;
    f->logits = malloc(f->n_logits * sizeof *f->logits);
    bitm_session_options options = whole_session;
    options.n_threads = 1;
    bitm_session *session = create(c, f, &options);
    CHECK_STATUS(c, BITM_OK, &error,
                 bitm_run(session, &whole_batch, f->logits, f->n_logits, &error));
    bitm_session_free(session);
    return c->n_failed == 0;
}

static void tear_down(fixture *f)
{
    bitm_model_close(f->model);
    free(f->logits);
    free(f->file);
}

/* Whether the session gives the fixture's logits, bit for bit. */
static bool agrees(const fixture *f, bitm_session *session)
{
    float *logits = malloc(f->n_logits * sizeof *logits);
    bool same = bitm_run(session, &whole_batch, logits, f->n_logits, NULL) == BITM_OK &&
                memcmp(logits, f->logits, f->n_logits * sizeof *logits) == 0;
    free(logits);
    return same;
}

/* ---- Arguments ---- */

static void test_null_arguments(checks *c, const fixture *f)
{
    bitm_session *session = create(c, f, &whole_session);
    bitm_model *model = NULL;
    bitm_session *none = NULL;
    bitm_error error;
    size_t n = 0;
    const size_t end = 1, falling_ends[2] = {1, 0};
    size_t text_ends[2];
    int32_t id = 0;
    float x = 0;
    char text[8];
    bitm_prediction prediction;
    bitm_model_properties properties = {.struct_size = sizeof properties};
    bitm_metadata entry = {0};
    const bitm_status found[] = {
        bitm_model_open(NULL, NULL, &model, &error),
        bitm_model_open("/nowhere", NULL, NULL, &error),
        bitm_model_open_memory(NULL, 64, NULL, &model, &error),
        bitm_model_open_memory(f->file, f->n_file_bytes, NULL, NULL, &error),
        bitm_model_verify(NULL, &error),
        bitm_model_info(NULL, &properties, &error),
        bitm_model_info(f->model, NULL, &error),
        bitm_tokenize(NULL, "a", 1, &id, NULL, 1, &n, &error),
        bitm_tokenize(f->model, NULL, 1, &id, NULL, 1, &n, &error),
        bitm_tokenize(f->model, "a", 1, NULL, NULL, 1, &n, &error),
        bitm_tokenize(f->model, "a", 1, &id, NULL, 1, NULL, &error),
        bitm_softmax(NULL, 1, 1, &error),
        bitm_softmax(&x, 1, 0, &error),
        bitm_sigmoid(NULL, 1, &error),
        bitm_decode(NULL, &id, 1, 0, text, sizeof text, &n, &error),
        bitm_decode(f->model, NULL, 1, 0, text, sizeof text, &n, &error),
        bitm_decode(f->model, &id, 1, 0, NULL, 1, &n, &error),
        bitm_decode(f->model, &id, 1, 0, text, sizeof text, NULL, &error),
        bitm_decode_rows(NULL, &id, &end, 1, 0, text, sizeof text, &n, &error),
        bitm_decode_rows(f->model, NULL, &end, 1, 0, text, sizeof text, &n, &error),
        bitm_decode_rows(f->model, &id, NULL, 1, 0, text, sizeof text, &n, &error),
        bitm_decode_rows(f->model, &id, &end, 1, 0, NULL, 1, &n, &error),
        bitm_decode_rows(f->model, &id, &end, 1, 0, text, sizeof text, NULL, &error),
        bitm_decode_rows(f->model, &id, falling_ends, 2, 0, text, sizeof text, text_ends, &error),
        bitm_session_bytes(NULL, NULL, &n, &error),
        bitm_session_bytes(f->model, NULL, NULL, &error),
        bitm_session_create(NULL, NULL, &none, &error),
        bitm_session_create(f->model, NULL, NULL, &error),
        bitm_run(NULL, &whole_batch, &x, 1, &error),
        bitm_run(session, NULL, &x, 1, &error),
        bitm_run(session, &whole_batch, NULL, f->n_logits, &error),
        bitm_run_top_k(NULL, &whole_batch, 1, NULL, 0, &prediction, 1, &error),
        bitm_run_top_k(session, NULL, 1, NULL, 0, &prediction, 1, &error),
        bitm_run_top_k(session, &whole_batch, 1, NULL, 0, NULL, 1, &error),
        bitm_fill_mask(NULL, "a", 1, 1, &prediction, 1, &n, &error),
        bitm_fill_mask(session, NULL, 1, 1, &prediction, 1, &n, &error),
        bitm_fill_mask(session, "[MASK]", 6, 1, NULL, 1, &n, &error),
        bitm_fill_mask(session, "[MASK]", 6, 1, &prediction, 1, NULL, &error),
    };
    for (size_t i = 0; i < sizeof found / sizeof found[0]; i++)
        if (!CHECK(c, found[i] == BITM_ARGUMENT)) (void)printf("    call number %zu\n", i);
    CHECK(c, model == NULL && none == NULL);
    CHECK(c, bitm_model_metadata(NULL, "key", &n) == NULL);
    CHECK(c, bitm_model_next_metadata(NULL, &entry) == 0);
    CHECK(c, bitm_token_id(NULL, "a", 1) == -1 && bitm_token_id(f->model, NULL, 1) == -1);
    CHECK(c, bitm_session_threads(NULL) == 0);
    CHECK(c, bitm_kernels(NULL, NULL, 0) > 0);
    bitm_model_close(NULL);
    bitm_session_free(NULL);
    CHECK(c, agrees(f, session)); /* the refusals have left nothing behind */
    bitm_session_free(session);
}

/* Every wrong batch has its own status, with and without a place for the message. */
static void test_refused_batches(checks *c, const fixture *f)
{
    static const int32_t low[LENGTH] = {-1}, high[LENGTH] = {101}, types[LENGTH] = {2};
    static const int32_t far[] = {LENGTH}, negative[] = {-2}, padding[] = {-1, 4, -1};
    const bitm_batch one = {.struct_size = sizeof one,
                            .n_sequences = 1,
                            .length = LENGTH,
                            .n_positions = 1,
                            .input_ids = ids};
    struct {
        bitm_status expected;
        bitm_batch batch;
    } cases[] = {
        {BITM_ARGUMENT, one}, {BITM_ARGUMENT, one}, {BITM_ARGUMENT, one}, {BITM_ARGUMENT, one},
        {BITM_TOO_LONG, one}, {BITM_TOKEN, one},    {BITM_TOKEN, one},    {BITM_TOKEN, one},
        {BITM_POSITION, one}, {BITM_POSITION, one}, {BITM_POSITION, one}, {BITM_ARGUMENT, one},
        {BITM_ARGUMENT, one}, {BITM_ARGUMENT, one}, {BITM_ARGUMENT, one},
    };
    cases[0].batch.n_sequences = 0;
    cases[1].batch.n_sequences = BATCH + 1;
    cases[2].batch.length = 0;
    cases[3].batch.input_ids = NULL;
    cases[4].batch.length = LENGTH + 1;
    cases[5].batch.input_ids = low;
    cases[6].batch.input_ids = high;
    cases[7].batch.token_type_ids = types;
    cases[8].batch.positions = far;
    cases[9].batch.positions = negative;
    cases[10].batch = whole_batch;
    cases[10].batch.n_positions = 1;
    cases[10].batch.positions = padding;
    cases[11].batch.positions = far;
    cases[11].batch.n_positions = 0;
    cases[12].batch.output = 2;
    cases[13].batch.output = BITM_OUTPUT_HIDDEN_STATES;
    cases[13].batch.layer = 3;
    cases[14].batch.output = BITM_OUTPUT_HIDDEN_STATES;
    cases[14].batch.layer = -2;
    bitm_session *session = create(c, f, &whole_session);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        bitm_error error = {0};
        float x;
        bitm_status found = bitm_run(session, &cases[i].batch, &x, 0, &error);
        if (!CHECK_STATUS(c, cases[i].expected, &error, found))
            (void)printf("    case number %zu\n", i);
        CHECK(c, error.status == found && error.message[0] != '\0');
        CHECK(c, bitm_run(session, &cases[i].batch, &x, 0, NULL) == found);
    }
    CHECK(c, agrees(f, session));
    bitm_session_free(session);
}

/* A caller of another version: its struct is shorter, or longer than the library's. */
static void test_struct_sizes(checks *c, const fixture *f)
{
    struct {
        bitm_session_options options;
        uint64_t tail;
    } newer = {.options = whole_session};
    bitm_session_options options = whole_session;
    size_t expected = 0, n_bytes = 0;
    CHECK_STATUS(c, BITM_OK, NULL, bitm_session_bytes(f->model, &options, &expected, NULL));

    newer.options.struct_size = sizeof newer;
    CHECK_STATUS(c, BITM_OK, NULL, bitm_session_bytes(f->model, &newer.options, &n_bytes, NULL));
    CHECK(c, n_bytes == expected);
    newer.tail = (uint64_t)1 << 56;
    CHECK_STATUS(c, BITM_UNSUPPORTED, NULL,
                 bitm_session_bytes(f->model, &newer.options, &n_bytes, NULL));

    static const uint32_t impossible[] = {0, 3, 4097, UINT32_MAX};
    for (size_t i = 0; i < sizeof impossible / sizeof impossible[0]; i++) {
        options.struct_size = impossible[i];
        CHECK_STATUS(c, BITM_ARGUMENT, NULL,
                     bitm_session_bytes(f->model, &options, &n_bytes, NULL));
    }
    /* An older caller ends after max_length: n_threads, here nonsense, is not its field. */
    options.struct_size = offsetof(bitm_session_options, n_threads);
    options.n_threads = UINT32_MAX;
    CHECK_STATUS(c, BITM_OK, NULL, bitm_session_bytes(f->model, &options, &n_bytes, NULL));
    options.struct_size = sizeof options;
    CHECK_STATUS(c, BITM_ARGUMENT, NULL, bitm_session_bytes(f->model, &options, &n_bytes, NULL));

    bitm_model *model = NULL;
    bitm_model_options model_options = {.struct_size = sizeof model_options, .reserved = 1};
    CHECK_STATUS(c, BITM_UNSUPPORTED, NULL,
                 bitm_model_open_memory(f->file, f->n_file_bytes, &model_options, &model, NULL));
    options = whole_session;
    options.reserved = 1;
    CHECK_STATUS(c, BITM_UNSUPPORTED, NULL, bitm_session_bytes(f->model, &options, &n_bytes, NULL));
}

static void test_properties(checks *c, const fixture *f)
{
    struct {
        bitm_model_properties properties;
        uint64_t tail;
    } newer = {.properties.struct_size = sizeof newer, .tail = 1};
    CHECK_STATUS(c, BITM_OK, NULL, bitm_model_info(f->model, &newer.properties, NULL));
    CHECK(c, newer.properties.struct_size == sizeof newer && newer.tail == 0);
    CHECK(c, newer.properties.hidden_size == small_shape.hidden_size);
    CHECK(c, newer.properties.mask_id == FILE_MASK);
    CHECK(c, newer.properties.file_bytes == f->n_file_bytes);
    CHECK(c, newer.properties.one_bit_matrices == 6 * small_shape.n_layers);

    bitm_model_properties older = {.struct_size = offsetof(bitm_model_properties, hidden_size),
                                   .hidden_size = 12345};
    CHECK_STATUS(c, BITM_OK, NULL, bitm_model_info(f->model, &older, NULL));
    CHECK(c, older.vocab_size == small_shape.vocab_size && older.hidden_size == 12345);
    older.struct_size = 0;
    CHECK_STATUS(c, BITM_ARGUMENT, NULL, bitm_model_info(f->model, &older, NULL));
}

/* ---- Memory ---- */

/* The caller's arena, between guard pages: of exactly the stated size, then of too few bytes, then
 * not aligned. */
static void test_arena(checks *c, const fixture *f, bool at_end)
{
    guards g = {.at_end = at_end};
    bitm_session_options options = whole_session;
    bitm_session *session = NULL;
    size_t n_bytes = 0;
    CHECK_STATUS(c, BITM_OK, NULL, bitm_session_bytes(f->model, &options, &n_bytes, NULL));
    char *arena = guard_array(&g, n_bytes, 1);
    options.arena = arena;
    options.arena_bytes = n_bytes;
    session = create(c, f, &options);
    CHECK(c, (char *)session >= arena && (char *)session < arena + n_bytes);
    CHECK(c, agrees(f, session));
    bitm_session_free(session);

    options.arena_bytes = n_bytes - 1;
    CHECK_STATUS(c, BITM_NO_MEMORY, NULL, bitm_session_create(f->model, &options, &session, NULL));
    options.arena = arena + 8;
    options.arena_bytes = n_bytes;
    CHECK_STATUS(c, BITM_ARGUMENT, NULL, bitm_session_create(f->model, &options, &session, NULL));
    CHECK(c, session == NULL);
    guard_release(&g);
}

static void test_memory(checks *c, const fixture *f)
{
    counter count = {0};
    bitm_model_options options = counted(&count);
    fixture other = *f;
    bitm_error error = {0};
    CHECK_STATUS(c, BITM_OK, &error,
                 bitm_model_open_memory(f->file, f->n_file_bytes, &options, &other.model, &error));
    /* One block for the model; one for weights where a kernel of this machine packs them. */
    unsigned n_of_model = (unsigned)count.n_taken;
    CHECK(c, n_of_model == 1 || n_of_model == 2);
    test_arena(c, &other, false);
    test_arena(c, &other, true);
    CHECK(c, count.n_taken == n_of_model);

    /* The model's allocator: one block for the session, none while it runs. */
    bitm_session *session = create(c, &other, &whole_session);
    CHECK(c, agrees(f, session));
    CHECK(c, count.n_taken == n_of_model + 1);
    bitm_session_free(session);
    bitm_model_close(other.model);
    CHECK(c, count.n_live == 0);
}

/* ---- Threads ---- */

static void test_busy(checks *c, const fixture *f)
{
    bitm_session *session = create(c, f, &whole_session);
    bitm_error error = {0};
    bitm_prediction prediction;
    size_t n_masks = 0;
    (void)atomic_flag_test_and_set(&session->busy); /* as a run in another thread does */
    CHECK_STATUS(c, BITM_BUSY, &error,
                 bitm_run(session, &whole_batch, f->logits, f->n_logits, &error));
    CHECK_STATUS(c, BITM_BUSY, &error,
                 bitm_run_top_k(session, &whole_batch, 1, NULL, 0, &prediction, 1, &error));
    CHECK_STATUS(c, BITM_BUSY, &error,
                 bitm_fill_mask(session, "[MASK]", 6, 1, &prediction, 1, &n_masks, &error));
    atomic_flag_clear(&session->busy);
    CHECK(c, agrees(f, session));
    bitm_session_free(session);
}

enum { N_CALLERS = 3, N_RUNS = 20 };

typedef struct caller {
    const fixture *f;
    bitm_session *session; /* NULL: one of its own */
    bool failed;
    unsigned n_done;
} caller;

static void *call_often(void *context)
{
    caller *self = context;
    size_t n_bytes = self->f->n_logits * sizeof(float);
    float *logits = malloc(n_bytes);
    bitm_session *own = NULL;
    if (self->session == NULL) {
        self->failed = bitm_session_create(self->f->model, &whole_session, &own, NULL) != BITM_OK;
        self->session = own;
    }
    for (int i = 0; i < N_RUNS && !self->failed; i++) {
        bitm_status status = bitm_run(self->session, &whole_batch, logits, self->f->n_logits, NULL);
        if (status == BITM_BUSY) continue;
        self->n_done++;
        self->failed = status != BITM_OK || memcmp(logits, self->f->logits, n_bytes) != 0;
    }
    bitm_session_free(own);
    free(logits);
    return NULL;
}

/* Several threads at once, on a session each or all on one: what runs is right, the rest is BUSY.
 */
static void test_concurrency(checks *c, const fixture *f, bool share)
{
    bitm_session *shared = share ? create(c, f, &whole_session) : NULL;
    caller callers[N_CALLERS];
    pthread_t threads[N_CALLERS];
    unsigned n_done = 0;
    for (int i = 0; i < N_CALLERS; i++) {
        callers[i] = (caller){.f = f, .session = shared};
        CHECK(c, pthread_create(&threads[i], NULL, call_often, &callers[i]) == 0);
    }
    for (int i = 0; i < N_CALLERS; i++) {
        CHECK(c, pthread_join(threads[i], NULL) == 0);
        CHECK(c, !callers[i].failed);
        n_done += callers[i].n_done;
    }
    CHECK(c, share ? n_done >= 1 : n_done == N_CALLERS * N_RUNS);
    bitm_session_free(shared);
}

/* ---- Results ---- */

/* The same logits for every number of threads, and of sequences and positions asked for at once. */
static void test_one_answer(checks *c, const fixture *f)
{
    size_t width = small_shape.vocab_size;
    for (uint32_t n_threads = 1; n_threads <= 5; n_threads++) {
        bitm_session_options options = whole_session;
        options.n_threads = n_threads;
        bitm_session *session = create(c, f, &options);
        CHECK(c, bitm_session_threads(session) == n_threads);
        CHECK(c, agrees(f, session));
        for (int32_t s = 0; s < BATCH; s++) {
            float row[101];
            const int32_t position = s;
            bitm_batch one = whole_batch;
            one.n_sequences = one.n_positions = 1;
            one.input_ids += s * LENGTH;
            one.attention_mask += s * LENGTH;
            one.positions = &position;
            CHECK_STATUS(c, BITM_OK, NULL, bitm_run(session, &one, row, width, NULL));
            CHECK(c, memcmp(row, f->logits + (size_t)(s * LENGTH + position) * width, sizeof row) ==
                         0);
        }
        bitm_session_free(session);
    }
}

static void test_fill_mask(checks *c, const fixture *f)
{
    static const uint32_t forms[] = {BITM_ACTIVATIONS_AUTO, BITM_ACTIVATIONS_INT8,
                                     BITM_ACTIVATIONS_INT16, BITM_ACTIVATIONS_FLOAT32,
                                     BITM_ACTIVATIONS_INT11};
    static const char text[] = "a b [MASK] q zz [MASK]";
    for (size_t i = 0; i < sizeof forms / sizeof forms[0]; i++) {
        bitm_session_options options = whole_session;
        options.activations = forms[i];
        bitm_session *session = create(c, f, &options);
        bitm_prediction best[2 * 101];
        size_t n_masks = 0;
        bitm_error error = {0};
        CHECK_STATUS(c, BITM_OK, &error,
                     bitm_fill_mask(session, text, sizeof text - 1, 101, best,
                                    sizeof best / sizeof best[0], &n_masks, &error));
        CHECK(c, n_masks == 2);
        for (size_t m = 0; m < 2; m++) {
            const bitm_prediction *p = best + 101 * m;
            double sum = p[0].score;
            for (int k = 1; k < 101; k++) {
                sum += p[k].score;
                CHECK(c, p[k].score < p[k - 1].score ||
                             (p[k].score == p[k - 1].score && p[k].token > p[k - 1].token));
            }
            CHECK(c, sum > 0.9999 && sum < 1.0001);
        }
        CHECK_STATUS(c, BITM_NO_MASK, &error,
                     bitm_fill_mask(session, "a", 1, 1, best, 1, &n_masks, &error));
        CHECK_STATUS(c, BITM_TOO_LONG, &error,
                     bitm_fill_mask(session, "a b c d e f g h", 15, 1, best, 1, &n_masks, &error));
        CHECK_STATUS(c, BITM_TEXT, &error,
                     bitm_fill_mask(session, "\xFF", 1, 1, best, 1, &n_masks, &error));
        bitm_session_free(session);
    }
}

static void test_decode_rows(checks *c, const fixture *f)
{
    int32_t three[3];
    size_t n_ids, ends[4] = {1, 1, 3, 3}, text_ends[4];
    /* Of the rows "[CLS]", "", "[MASK] [SEP]", "". */
    static const char expected[] = "[CLS][MASK] [SEP]";
    enum { N_BYTES = sizeof expected - 1 };
    char text[N_BYTES + 3];
    bitm_error error = {0};
    CHECK_STATUS(c, BITM_OK, &error,
                 bitm_tokenize(f->model, "[MASK]", 6, three, NULL, 3, &n_ids, &error));
    for (size_t capacity = 0; capacity <= sizeof text; capacity++) {
        for (size_t i = 0; i < sizeof text; i++)
            text[i] = '#';
        CHECK_STATUS(
            c, BITM_OK, &error,
            bitm_decode_rows(f->model, three, ends, 4, 0, text, capacity, text_ends, &error));
        CHECK(c, text_ends[0] == 5 && text_ends[1] == 5);
        CHECK(c, text_ends[2] == N_BYTES && text_ends[3] == N_BYTES);
        size_t n_kept = capacity > N_BYTES ? N_BYTES : capacity - (capacity > 0);
        CHECK(c, memcmp(text, expected, n_kept) == 0);
        CHECK(c, capacity == 0 || text[n_kept] == '\0');
        for (size_t i = capacity; i < sizeof text; i++)
            CHECK(c, text[i] == '#');
    }
    CHECK_STATUS(c, BITM_OK, &error,
                 bitm_decode_rows(f->model, NULL, NULL, 0, 0, NULL, 0, NULL, &error));
    three[2] = -1;
    CHECK_STATUS(
        c, BITM_TOKEN, &error,
        bitm_decode_rows(f->model, three, ends, 4, 0, text, sizeof text, text_ends, &error));
    CHECK(c, strcmp(error.message, "ids[2]: expected a token id, found -1") == 0);
}

/* Each kernel that this machine has, forced: it is the one chosen, and the logits stay the same. */
static void test_every_kernel(checks *c, const fixture *f)
{
    bitm_kernel listed[256], chosen[256];
    size_t n = bitm_kernels(NULL, listed, 256);
    CHECK(c, n <= 256);
    for (size_t i = 0; i < n; i++) {
        if (!listed[i].available) continue;
        char forced[128];
        (void)snprintf(forced, sizeof forced, "%s=%s", listed[i].op, listed[i].variant);
        bitm_model_options options = {.struct_size = sizeof options, .kernels = forced};
        fixture other = *f;
        bitm_error error = {0};
        CHECK_STATUS(
            c, BITM_OK, &error,
            bitm_model_open_memory(f->file, f->n_file_bytes, &options, &other.model, &error));
        CHECK(c, bitm_kernels(other.model, chosen, 256) == n && chosen[i].chosen);
        bitm_session *session = create(c, &other, &whole_session);
        if (!CHECK(c, agrees(f, session))) (void)printf("    with %s\n", forced);
        bitm_session_free(session);
        bitm_model_close(other.model);
    }
}

static void test_forced_kernels(checks *c, const fixture *f)
{
    static const struct {
        const char *kernels;
        bitm_status expected;
    } cases[] = {{"", BITM_OK},
                 {"gemm_w1a8=scalar", BITM_OK},
                 {"gemm_w1a8=scalar,attention=scalar", BITM_OK},
                 {"gemm_w1a8", BITM_ARGUMENT},
                 {"gemm_w1a8=nothing", BITM_ARGUMENT},
                 {"nothing=scalar", BITM_ARGUMENT},
                 {"gemm_w1a8=scalar,,", BITM_ARGUMENT}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        bitm_model_options options = {.struct_size = sizeof options, .kernels = cases[i].kernels};
        bitm_model *model = NULL;
        bitm_error error = {0};
        CHECK_STATUS(c, cases[i].expected, &error,
                     bitm_model_open_memory(f->file, f->n_file_bytes, &options, &model, &error));
        CHECK(c, (model != NULL) == (cases[i].expected == BITM_OK));
        bitm_model_close(model);
    }
}

int main(void)
{
    checks c = {0};
    fixture f = {0};
    if (set_up(&c, &f)) {
        test_null_arguments(&c, &f);
        test_refused_batches(&c, &f);
        test_struct_sizes(&c, &f);
        test_properties(&c, &f);
        test_memory(&c, &f);
        test_busy(&c, &f);
        test_concurrency(&c, &f, false);
        test_concurrency(&c, &f, true);
        test_one_answer(&c, &f);
        test_fill_mask(&c, &f);
        test_decode_rows(&c, &f);
        test_every_kernel(&c, &f);
        test_forced_kernels(&c, &f);
    }
    tear_down(&f);
    return check_report(&c);
}
