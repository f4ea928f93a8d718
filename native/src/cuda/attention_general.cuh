/* Attention with quantizers, low-rank scores or a value term: SPEC.md section 4, term by term.
 *
 * A block computes one query of one head.  Probabilities are computed anew for their statistics and
 * for the context, as on the CPU: they are too many to keep. */
#ifndef BITM_CUDA_ATTENTION_GENERAL_CUH
#define BITM_CUDA_ATTENTION_GENERAL_CUH

#include "quantize.cuh"

namespace bitm {

enum { GENERAL_THREADS = 128 };

struct GeneralAttention {
    const float *query, *key, *value; /* [n_tokens, stride], as quantized */
    const int16_t *query_codes, *key_codes, *value_codes; /* where the products are of integers */
    const float *query_step, *key_step, *value_step, *value_base; /* [n_tokens] */
    const float *low_rank[4]; /* query_p, query_m, key_p, key_m [n_tokens, rank] */
    const float *value_term;               /* [n_tokens]; NULL: none */
    float *context;
    uint32_t stride, n_heads, head_size, rank;
    float score_scale;
    uint32_t softmax, integer_scores, integer_context;
    Quantizer probabilities; /* KIND_NONE: none */
    uint32_t minimum_counts_zero;
    const uint32_t *first;
    const uint32_t *sequence_of; /* [n_tokens] */
    float *extremes;             /* [n_tokens, n_heads, 2] */
};

/* The query that a block computes. */
struct Query {
    uint32_t token, head, begin, n_tokens;
    size_t row;   /* of A, of the query */
    size_t place; /* of the first key */
};

static __device__ inline Query query_of(const GeneralAttention &a)
{
    Query q;
    q.token = blockIdx.x;
    q.head = blockIdx.y;
    uint32_t sequence = a.sequence_of[q.token];
    q.begin = a.first[sequence];
    q.n_tokens = a.first[sequence + 1] - q.begin;
    q.row = (size_t)q.token * a.stride + q.head * a.head_size;
    q.place = (size_t)q.begin * a.stride + q.head * a.head_size;
    return q;
}

static __device__ inline float canonical_dot(const float *x, const float *y, uint32_t n)
{
    float lanes[LANES];
    for (uint32_t l = 0; l < LANES; l++) {
        lanes[l] = 0.0F;
        for (uint32_t i = l; i < n; i += LANES)
            lanes[l] = fmaf(y[i], x[i], lanes[l]);
    }
    return bitm_fold(lanes);
}

static __device__ inline int32_t integer_dot(const int16_t *x, const int16_t *y, uint32_t n)
{
    int32_t sum = 0;
    for (uint32_t i = 0; i < n; i++)
        sum += x[i] * y[i];
    return sum;
}

static __device__ inline float score_of(const GeneralAttention &a, const Query &q, uint32_t j)
{
    size_t key = q.place + (size_t)j * a.stride, token = q.begin + j;
    float score;
    if (a.integer_scores)
        score = (float)integer_dot(a.query_codes + q.row, a.key_codes + key, a.head_size) *
                (a.query_step[q.token] * a.key_step[token]);
    else
        score = canonical_dot(a.query + q.row, a.key + key, a.head_size);
    const float *query_p = a.low_rank[0] + (size_t)q.token * a.rank;
    const float *query_m = a.low_rank[1] + (size_t)q.token * a.rank;
    const float *key_p = a.low_rank[2] + token * a.rank;
    const float *key_m = a.low_rank[3] + token * a.rank;
    for (uint32_t r = 0; r < a.rank; r++) {
        score = fmaf(query_m[r], key_p[r], score);
        score = fmaf(query_p[r], key_m[r], score);
        score = fmaf(query_p[r], key_p[r], score);
    }
    return score * a.score_scale;
}

/* scores [n_tokens] = probabilities before their quantizer; the first 16 threads hold the lanes of
 * the softmax's sum.  scratch: one float. */
static __device__ inline void find_probabilities(const GeneralAttention &a, const Query &q,
                                                 float *scores, float *scratch)
{
    for (uint32_t j = threadIdx.x; j < q.n_tokens; j += GENERAL_THREADS)
        scores[j] = score_of(a, q, j);
    __syncthreads();
    if (!a.softmax) return;
    if (threadIdx.x < WARP) {
        float greatest = scores[0];
        for (uint32_t j = threadIdx.x; j < q.n_tokens; j += WARP)
            greatest = scores[j] > greatest ? scores[j] : greatest;
        greatest = warp_max(greatest);
        if (threadIdx.x == 0) *scratch = greatest;
    }
    __syncthreads();
    float greatest = *scratch;
    for (uint32_t j = threadIdx.x; j < q.n_tokens; j += GENERAL_THREADS)
        scores[j] = bitm_exp(scores[j] - greatest);
    __syncthreads();
    if (threadIdx.x < WARP) { /* both halves hold the same lanes */
        float lane = 0.0F;
        for (uint32_t j = threadIdx.x % LANES; j < q.n_tokens; j += LANES)
            lane += scores[j];
        lane = fold_lanes(lane);
        if (threadIdx.x == 0) *scratch = lane;
    }
    __syncthreads();
    float sum = *scratch;
    for (uint32_t j = threadIdx.x; j < q.n_tokens; j += GENERAL_THREADS)
        scores[j] /= sum;
    __syncthreads();
}

static __global__ void __launch_bounds__(GENERAL_THREADS) probability_extremes_kernel(GeneralAttention a)
{
    BITM_DYNAMIC_SHARED(shared);
    Query q = query_of(a);
    if (q.n_tokens == 0) return; /* padding */
    float *scratch = (float *)shared, *scores = scratch + 4;
    find_probabilities(a, q, scores, scratch);
    if (threadIdx.x >= WARP) return;
    float least = clipped(a.probabilities, scores[0]), greatest = least;
    for (uint32_t j = threadIdx.x; j < q.n_tokens; j += WARP) {
        float z = clipped(a.probabilities, scores[j]);
        least = z < least ? z : least;
        greatest = z > greatest ? z : greatest;
    }
    least = warp_min(least);
    greatest = warp_max(greatest);
    if (threadIdx.x != 0) return;
    float *extremes = a.extremes + ((size_t)q.token * a.n_heads + q.head) * 2;
    extremes[0] = least;
    extremes[1] = greatest;
}

/* Joins the extremes over the rows of each head, or of all heads, of a sequence (blockIdx.x); every
 * row of every head gets its own.  One warp. */
static __global__ void join_probability_extremes_kernel(GeneralAttention a)
{
    uint32_t begin = a.first[blockIdx.x], end = a.first[blockIdx.x + 1], lane = threadIdx.x;
    if (begin == end) return;
    bool all_heads = a.probabilities.scope == SCOPE_SEQUENCE;
    for (uint32_t head = 0; head < (all_heads ? 1 : a.n_heads); head++) {
        uint32_t n = (end - begin) * (all_heads ? a.n_heads : 1);
        uint32_t step = all_heads ? 1 : a.n_heads;
        float *all = a.extremes + ((size_t)begin * a.n_heads + head) * 2;
        float least = all[0], greatest = all[1];
        for (size_t i = lane; i < n; i += WARP) {
            least = all[i * step * 2] < least ? all[i * step * 2] : least;
            greatest = all[i * step * 2 + 1] > greatest ? all[i * step * 2 + 1] : greatest;
        }
        least = warp_min(least);
        greatest = warp_max(greatest);
        if (a.minimum_counts_zero && least > 0.0F) least = 0.0F;
        for (size_t i = lane; i < n; i += WARP) {
            all[i * step * 2] = least;
            all[i * step * 2 + 1] = greatest;
        }
        __syncwarp();
    }
}

/* Component d of the context: products of integers or floats, in the order of attention.c. */
static __device__ inline float context_of(const GeneralAttention &a, const Query &q,
                                          const float *scores, const int16_t *codes, float step,
                                          float base, int32_t code_sum, uint32_t d)
{
    if (!a.integer_context) {
        float context = 0.0F;
        for (uint32_t j = 0; j < q.n_tokens; j++)
            context = fmaf(scores[j], a.value[q.place + (size_t)j * a.stride + d], context);
        return context;
    }
    int32_t product = 0, value_sum = 0;
    for (uint32_t j = 0; j < q.n_tokens; j++) {
        int32_t value = a.value_codes[q.place + (size_t)j * a.stride + d];
        product += codes[j] * value;
        value_sum += value;
    }
    float value_step = a.value_step[q.begin], value_base = a.value_base[q.begin];
    float sum = step * (float)code_sum + base * (float)q.n_tokens;
    float context = (float)product * (step * value_step);
    context = fmaf(base * value_step, (float)value_sum, context);
    return fmaf(value_base, sum, context);
}

/* Shared memory: 4 words of scratch, scores and codes [n_tokens]. */
static __global__ void __launch_bounds__(GENERAL_THREADS) general_attention_kernel(GeneralAttention a)
{
    BITM_DYNAMIC_SHARED(shared);
    Query q = query_of(a);
    if (q.n_tokens == 0) return; /* padding */
    float *scratch = (float *)shared, *scores = scratch + 4;
    int16_t *codes = (int16_t *)(scores + q.n_tokens);
    find_probabilities(a, q, scores, scratch);
    float step = 1.0F, base = 0.0F;
    int32_t code_sum = 0;
    if (a.probabilities.kind != KIND_NONE) {
        const float *extremes = a.extremes + ((size_t)q.token * a.n_heads + q.head) * 2;
        bool dynamic = a.probabilities.scope != SCOPE_STATIC;
        Quantization known = quantization_of(a.probabilities, dynamic ? extremes[0] : 0.0F,
                                             dynamic ? extremes[1] : 0.0F);
        step = known.step;
        base = known.base;
        for (uint32_t j = threadIdx.x; j < q.n_tokens; j += GENERAL_THREADS) {
            int32_t code = code_of(known, clipped(a.probabilities, scores[j]));
            codes[j] = (int16_t)code;
            scores[j] = fmaf(step, (float)code, base);
        }
        __syncthreads();
        for (uint32_t j = 0; j < q.n_tokens; j++)
            code_sum += codes[j];
    }
    float term = 0.0F;
    if (a.value_term != NULL)
        for (uint32_t j = 0; j < q.n_tokens; j++)
            term = fmaf(scores[j], a.value_term[q.begin + j], term);
    for (uint32_t d = threadIdx.x; d < a.head_size; d += GENERAL_THREADS) {
        float context = context_of(a, q, scores, codes, step, base, code_sum, d);
        if (a.value_term != NULL) context += term;
        a.context[q.row + d] = context;
    }
}

} // namespace bitm

#endif
