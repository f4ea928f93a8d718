/* Products of bits on Hopper: wgmma m64n128k256 and.popc, 7.7e15 multiply-adds a second on an H100.
 *
 * A block of two warpgroups computes 128 tokens x 128 outputs.  Operands come through a ring of
 * stages of 256 to 768 columns, filled with cp.async: tiles as they lie in memory are what wgmma
 * reads (no swizzle: a tile of 8 rows x 16 bytes is 128 consecutive bytes).  Blocks are small
 * enough for two or three to share a multiprocessor, so that one's epilogue hides behind another's
 * products. */
#ifndef BITM_CUDA_GEMM_WGMMA_CUH
#define BITM_CUDA_GEMM_WGMMA_CUH

#include "hopper.cuh"
#include "quantize.cuh"

namespace bitm {

enum {
    WGMMA_THREADS = 256,
    WGMMA_TOKENS = 128,
    WGMMA_OUTPUTS = 128,
    WGMMA_STAGES = 4,
};

/* A stage of so many pieces of every row: 6, 4 or 2, the most that divides all. */
static __host__ __device__ constexpr uint32_t wgmma_stage_bytes(uint32_t pieces)
{
    return (WGMMA_TOKENS + WGMMA_OUTPUTS) * pieces * PIECE_BYTES;
}

/* What an epilogue wants to know of a block's outputs: read before the products, so that after them
 * no load is waited for, nor waits for a store. */
struct OutputFacts {
    float scale[WGMMA_OUTPUTS], bias[WGMMA_OUTPUTS];
    float shift[WGMMA_OUTPUTS];  /* kinds that write bits */
    int32_t ones[WGMMA_OUTPUTS]; /* positive weights, where they are known */
};

/* A product of n stages in all: its facts, and the stages, in whose place the results follow. */
static __host__ __device__ inline uint32_t wgmma_shared_bytes(uint32_t pieces, uint32_t n)
{
    uint32_t stages = (n < WGMMA_STAGES ? n : WGMMA_STAGES) * wgmma_stage_bytes(pieces);
    uint32_t results = WGMMA_TOKENS * WGMMA_OUTPUTS * sizeof(int32_t);
    return (uint32_t)sizeof(OutputFacts) + (stages > results ? stages : results);
}

static __host__ __device__ constexpr uint32_t wgmma_pieces(uint32_t n_pieces)
{
    return n_pieces % 6 == 0 ? 6 : n_pieces % 4 == 0 ? 4 : 2;
}

#if BITM_HAS_WGMMA

/* Starts to copy PIECES pieces, from number `first` on, of ROWS rows, which begin a tile; the block
 * has THREADS threads.  PADS: pieces past a row's end are zeros. */
template <int ROWS, int PIECES, int THREADS, bool PADS>
static __device__ inline void copy_rows(const uint4 *from, uint32_t row, uint32_t n_pieces,
                                        uint32_t first, uint4 *to)
{
    const uint32_t TILE = PIECES * TILE_ROWS; /* neighbours of a tile of rows */
    uint32_t next_tile = n_pieces * TILE_ROWS;
    from += piece_place(row, first, n_pieces);
#pragma unroll
    for (uint32_t k = 0; k < ROWS * PIECES; k += THREADS) { /* without branches where it divides */
        uint32_t i = k + threadIdx.x;
        if (ROWS * PIECES % THREADS != 0 && i >= ROWS * PIECES) continue;
        if (PADS && first + i % TILE / TILE_ROWS >= n_pieces)
            to[i] = make_uint4(0, 0, 0, 0);
        else
            copy_async(to + i, from + (i / TILE * next_tile + i % TILE));
    }
}

/* Starts to copy a stage; they count through all of a term, then those of the next. */
template <int PIECES>
static __device__ inline void fetch_stage(const Product &p, uint32_t number, uint32_t token,
                                          uint32_t output, uint4 *shared)
{
    uint32_t n_stages = p.n_input_pieces / PIECES, first = number % n_stages * PIECES;
    const Term &term = p.terms[number / n_stages];
    uint4 *to = shared + number % WGMMA_STAGES * (wgmma_stage_bytes(PIECES) / PIECE_BYTES);
    copy_rows<WGMMA_TOKENS, PIECES, WGMMA_THREADS, false>(
        p.inputs + term.input_plane * p.input_stride, token, p.n_input_pieces, first, to);
    copy_rows<WGMMA_OUTPUTS, PIECES, WGMMA_THREADS, false>(
        p.weights + term.weight_plane * p.weight_stride, output, p.n_weight_pieces, first,
        to + WGMMA_TOKENS * PIECES);
}

/* acc = the sum over n_terms; this thread's part as wgmma has it. */
template <int PIECES>
static __device__ inline void multiply_stages(const Product &p, uint32_t n_terms, uint32_t token,
                                              uint32_t output, uint4 *shared, int32_t acc[64])
{
    uint32_t n_stages = p.n_input_pieces / PIECES, n_all = n_stages * n_terms, s = 0;
    for (; s < WGMMA_STAGES - 1; s++) {
        if (s < n_all) fetch_stage<PIECES>(p, s, token, output, shared);
        copy_commit();
    }
    s = 0;
    for (uint32_t term = 0; term < n_terms; term++) {
        for (uint32_t k = 0; k < n_stages; k++, s++) {
            copy_wait<WGMMA_STAGES - 2>();
            __syncthreads();
            const uint4 *inputs =
                shared + s % WGMMA_STAGES * (wgmma_stage_bytes(PIECES) / PIECE_BYTES);
            const uint4 *weights = inputs + WGMMA_TOKENS * PIECES;
            inputs += threadIdx.x / 128 * 64 * PIECES;
            wgmma_fence();
#pragma unroll
            for (int piece = 0; piece < PIECES; piece += 2)
                wgmma_bits(acc, tile_descriptor(inputs + piece * TILE_ROWS, PIECES),
                           tile_descriptor(weights + piece * TILE_ROWS, PIECES));
            wgmma_commit();
            if (s + WGMMA_STAGES - 1 < n_all)
                fetch_stage<PIECES>(p, s + WGMMA_STAGES - 1, token, output, shared);
            copy_commit();
            wgmma_wait<0>();
        }
        uint32_t multiplier = (uint32_t)p.terms[term].multiplier;
#pragma unroll
        for (int i = 0; i < 64; i++)
            acc[i] = (int32_t)((uint32_t)acc[i] * multiplier);
    }
}

#endif

/* What this machine's code has: 1 where gemm_wgmma_kernel is more than an empty one. */
static __global__ void has_wgmma_kernel(uint32_t *has)
{
    *has = BITM_HAS_WGMMA;
}

template <int KIND>
static __device__ inline void read_output_facts(const Product &p, const Encoding &e,
                                                uint32_t output, OutputFacts *facts)
{
    uint32_t i = threadIdx.x, o = output + i;
    if (i >= WGMMA_OUTPUTS) return;
    facts->scale[i] = o < p.n_outputs ? p.epilogue.row_scale[o] : 0.0F;
    facts->bias[i] = o < p.n_outputs ? p.epilogue.bias[o] : 0.0F;
    facts->ones[i] = p.n_nonzero != NULL ? (int32_t)p.row_ones[o] : 0; /* of whole blocks */
    if (KIND != EPILOGUE_BITS && KIND != EPILOGUE_GELU_BITS) return;
    facts->shift[i] = shift_of(e, o);
}

/* What an epilogue knows of a thread's two tokens; the multiplier is that of sums after the ones of
 * outputs have been added, 0: they are not. */
struct RowFacts {
    int32_t multiplier;
    float steps[2];
    int32_t code_sums[2];
};

static __device__ inline RowFacts read_row_facts(const Product &p, bool dense,
                                                 const uint32_t tokens[2])
{
    RowFacts rows;
    rows.multiplier = dense ? p.terms[1].multiplier : 0;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        bool is_token = tokens[half] < p.n_tokens;
        rows.steps[half] = is_token ? p.epilogue.tokens.step[tokens[half]] : 0.0F;
        rows.code_sums[half] =
            is_token && p.subtract_code_sum ? p.epilogue.tokens.code_sum[tokens[half]] : 0;
    }
    return rows;
}

/* A sum with what is known without the last term, and without the sum of codes. */
static __device__ inline int32_t finished_sum(const RowFacts &rows, int half, int32_t sum,
                                              int32_t ones)
{
    if (rows.multiplier != 0) sum = (sum + ones) * rows.multiplier;
    return sum - rows.code_sums[half];
}

/* A thread's results leave its registers for the operands' place, so that a loop can take them:
 * instructions of their own for each of them would run once, which takes longer than they do.
 * Number i: outputs i * 8 and the next of two tokens, from the thread's first on. */
static __device__ inline const int4 *store_results(const int32_t acc[64], uint4 *operands)
{
    int4 *results = (int4 *)operands + threadIdx.x;
    __syncthreads(); /* operands are done with */
#pragma unroll
    for (int i = 0; i < 16; i++)
        results[i * WGMMA_THREADS] =
            make_int4(acc[i * 4], acc[i * 4 + 1], acc[i * 4 + 2], acc[i * 4 + 3]);
    return results;
}

/* The bits of a thread's 32 outputs, planes [token][plane]. */
template <int KIND, int RULE>
static __device__ inline void find_output_bits(const Encoding &e, const OutputFacts &facts,
                                               const RowFacts &rows, const int4 *results,
                                               uint32_t planes[2][2])
{
    uint32_t first = threadIdx.x % 4 * 2;
#pragma unroll 1
    for (int part = 0; part < 4; part++, first += 32) {
#pragma unroll
        for (int half = 0; half < 2; half++)
            planes[half][0] >>= 8, planes[half][1] >>= 8;
#pragma unroll
        for (int i = 0; i < 8; i++) {
            uint32_t o = first + i / 2 * 8 + i % 2;
            int4 pairs = results[(part * 4 + i / 2) * WGMMA_THREADS];
            float scale = facts.scale[o], bias = facts.bias[o];
#pragma unroll
            for (int half = 0; half < 2; half++) {
                int32_t sum =
                    half == 0 ? (i % 2 == 0 ? pairs.x : pairs.y) : (i % 2 == 0 ? pairs.z : pairs.w);
                sum = finished_sum(rows, half, sum, facts.ones[o]);
                float x = fmaf((float)sum, scale * rows.steps[half], bias);
                float y = KIND == EPILOGUE_GELU_BITS ? bitm_gelu(x) : x;
                add_bits<RULE>(e, y + facts.shift[o], 24 + i, planes[half]);
            }
        }
    }
#pragma unroll
    for (int half = 0; half < 2; half++)
        finish_bits<RULE>(e, planes[half]);
}

/* The epilogue of kinds that write bits: four neighbouring threads have those of four words of a
 * token; transposed, each has a word. */
template <int KIND, int RULE>
static __device__ inline void store_product_bits(const Product &p, const Encoding &e,
                                                 const OutputFacts &facts, const RowFacts &rows,
                                                 uint32_t output, const uint32_t tokens[2],
                                                 const int4 *results)
{
    uint32_t planes[2][2] = {};
    find_output_bits<KIND, RULE>(e, facts, rows, results, planes);
    uint32_t word = threadIdx.x % 4;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        int32_t n_bits[2] = {0, 0};
        bool is_token = tokens[half] < p.n_tokens;
        uint32_t *row = word_at(e, tokens[half], output);
#pragma unroll
        for (uint32_t plane = 0; plane < 2; plane++) {
            if (plane >= n_planes_of(e)) continue;
            uint32_t bits = transpose_pairs_4(planes[half][plane]);
            if (is_token) row[plane * e.plane_stride * 4 + word] = bits;
            n_bits[plane] = __popc(bits);
            n_bits[plane] += __shfl_xor_sync(ALL_THREADS, n_bits[plane], 1);
            n_bits[plane] += __shfl_xor_sync(ALL_THREADS, n_bits[plane], 2);
        }
        if (e.counts && word == 0 && is_token) count_bits(e, tokens[half], n_bits[0], n_bits[1]);
    }
}

/* A block of a product.  Memory holds whole blocks of tokens and outputs; what lies in those past
 * the last is ignored. */
template <int PIECES, int KIND>
static __global__ void __launch_bounds__(WGMMA_THREADS, 2)
    gemm_wgmma_kernel(Product p, Encoding encoding)
{
#if BITM_HAS_WGMMA
    BITM_DYNAMIC_SHARED(shared);
    uint32_t token = blockIdx.y * WGMMA_TOKENS, output = blockIdx.x * WGMMA_OUTPUTS;
    OutputFacts *facts = (OutputFacts *)shared;
    uint4 *operands = (uint4 *)(facts + 1);
    read_output_facts<KIND>(p, encoding, output, facts);
    wait_for_kernels_before(p.n_tokens);
    int32_t acc[64];
#pragma unroll
    for (int i = 0; i < 64; i++)
        acc[i] = 0;
    /* The last term of signs counts nonzero inputs: with all of them nonzero that is the number of
     * positive weights of the output, known in advance. */
    uint32_t n_terms = p.n_terms;
    bool dense = false;
    if (p.n_nonzero != NULL) {
        uint32_t t = token + threadIdx.x;
        bool full = threadIdx.x >= WGMMA_TOKENS || t >= p.n_tokens || p.n_nonzero[t] == p.n_columns;
        dense = __syncthreads_and(full) != 0;
        if (dense) n_terms--;
    }
    multiply_stages<PIECES>(p, n_terms, token, output, operands, acc);
    const int4 *results = store_results(acc, operands);
    uint32_t row = token + threadIdx.x / WARP * 16 + threadIdx.x % WARP / 4;
    const uint32_t tokens[2] = {row, row + 8};
    RowFacts rows = read_row_facts(p, dense, tokens);
    if (KIND == EPILOGUE_BITS || KIND == EPILOGUE_GELU_BITS) {
        BitsRule rule = bits_rule(encoding);
        if (rule == RULE_SIGNS)
            store_product_bits<KIND, RULE_SIGNS>(p, encoding, *facts, rows, output, tokens,
                                                 results);
        else if (rule == RULE_TWO_LEVELS)
            store_product_bits<KIND, RULE_TWO_LEVELS>(p, encoding, *facts, rows, output, tokens,
                                                      results);
        else
            store_product_bits<KIND, RULE_LEVELS>(p, encoding, *facts, rows, output, tokens,
                                                  results);
        return;
    }
#pragma unroll 4
    for (uint32_t i = 0; i < 16; i++) {
        uint32_t o = threadIdx.x % 4 * 2 + i * 8;
        float2 scale = *(const float2 *)(facts->scale + o);
        float2 bias = *(const float2 *)(facts->bias + o);
        int4 pairs = results[i * WGMMA_THREADS];
#pragma unroll
        for (int half = 0; half < 2; half++) {
            if (tokens[half] >= p.n_tokens) continue;
            int32_t x = finished_sum(rows, half, half == 0 ? pairs.x : pairs.z, facts->ones[o]);
            int32_t y = finished_sum(rows, half, half == 0 ? pairs.y : pairs.w, facts->ones[o + 1]);
            store_pair<KIND>(p, tokens[half], output + o, x, y, scale, bias, rows.steps[half]);
        }
    }
#else
    (void)p;
    (void)encoding;
#endif
}

} // namespace bitm

#endif
