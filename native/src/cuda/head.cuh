/* The best tokens at each row of logits, with softmax scores. */
#ifndef BITM_CUDA_HEAD_CUH
#define BITM_CUDA_HEAD_CUH

#include "operands.cuh"

namespace bitm {

enum { TOP_K_THREADS = 256 };

struct Prediction {
    float score;
    int32_t token;
};

struct TopK {
    float *logits;          /* [n_rows, n] */
    uint32_t n;             /* V */
    const int32_t *targets; /* [n_candidates]; NULL: all */
    uint32_t n_candidates, top_k;
    Prediction *best; /* [n_rows, top_k] */
};

/* A candidate as a number that is greater for a better one: the logit's order, then the lower id.
 * Zeros of both signs are one value. */
static __device__ inline uint64_t rank_of(float logit, int32_t token)
{
    uint32_t bits = (uint32_t)__float_as_int(logit + 0.0F);
    bits = (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
    return (uint64_t)bits << 32 | (uint32_t)~token;
}

static __device__ inline uint64_t greater_rank(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}

/* The greatest of a block's values, in all threads; scratch [TOP_K_THREADS / WARP]. */
static __device__ inline uint64_t block_max(uint64_t x, uint64_t *scratch)
{
    for (int step = 16; step > 0; step /= 2)
        x = greater_rank(x, __shfl_xor_sync(ALL_THREADS, x, step));
    __syncthreads(); /* nobody reads the scratch of the call before any more */
    if (threadIdx.x % WARP == 0) scratch[threadIdx.x / WARP] = x;
    __syncthreads();
    for (int i = 0; i < TOP_K_THREADS / WARP; i++)
        x = greater_rank(x, scratch[i]);
    return x;
}

/* Takes the best that is worse than the last one taken, again and again: top_k is small, and a
 * row's logits stay in the cache. */
static __global__ void __launch_bounds__(TOP_K_THREADS) top_k_kernel(TopK k)
{
    __shared__ uint64_t scratch[TOP_K_THREADS / WARP];
    __shared__ float lanes[LANES][TOP_K_THREADS / LANES];
    __shared__ float sum;
    float *logits = k.logits + (size_t)blockIdx.x * k.n;
    Prediction *best = k.best + (size_t)blockIdx.x * k.top_k;
    uint64_t last = ~(uint64_t)0;
    for (uint32_t i = 0; i < k.top_k; i++) {
        uint64_t mine = 0;
        for (uint32_t c = threadIdx.x; c < k.n_candidates; c += TOP_K_THREADS) {
            int32_t token = k.targets != NULL ? k.targets[c] : (int32_t)c;
            uint64_t rank = rank_of(logits[token], token);
            if (rank < last) mine = greater_rank(mine, rank);
        }
        last = block_max(mine, scratch);
        if (threadIdx.x == 0) best[i].token = (int32_t)~(uint32_t)last;
    }
    uint64_t mine = 0;
    for (uint32_t c = threadIdx.x; c < k.n; c += TOP_K_THREADS)
        mine = greater_rank(mine, rank_of(logits[c], (int32_t)c));
    mine = block_max(mine, scratch);
    float greatest = logits[(int32_t)~(uint32_t)mine];
    __syncthreads();
    if (threadIdx.x == 0)
        for (uint32_t i = 0; i < k.top_k; i++)
            best[i].score = logits[best[i].token];
    __syncthreads();

    /* Lane l adds elements l, l + 16, ... one after another: the exponentials are what all threads
     * compute, 256 at a time, and 16 of them add. */
    float lane = 0.0F;
    for (uint32_t first = 0; first < k.n; first += TOP_K_THREADS) {
        uint32_t i = first + threadIdx.x;
        lanes[threadIdx.x % LANES][threadIdx.x / LANES] =
            i < k.n ? bitm_exp(logits[i] - greatest) : 0.0F;
        __syncthreads();
        if (threadIdx.x < LANES)
            for (int j = 0; j < TOP_K_THREADS / LANES; j++)
                lane += lanes[threadIdx.x][j];
        __syncthreads();
    }
    if (threadIdx.x < WARP) {
        float total = fold_lanes(lane);
        if (threadIdx.x == 0) sum = total;
    }
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < k.top_k; i += TOP_K_THREADS)
        best[i].score = bitm_exp(best[i].score - greatest) / sum;
}

} // namespace bitm

#endif
