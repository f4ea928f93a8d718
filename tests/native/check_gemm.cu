/* Products of bits and bytes: every kernel against the plainest one, and their speed.
 *
 *   check_gemm           checks random sizes
 *   check_gemm --bench   prints multiply-adds a second, and the share of the fastest rate measured on an
 *                        H100: 7,707e12 of bits, 967e12 of bytes */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "gemm.cuh"
#include "gemm_wgmma.cuh"
#include "gemm_wgmma_bytes.cuh"

using namespace bitm;

#define TRY(call)                                                                                  \
    do {                                                                                           \
        cudaError_t error_ = (call);                                                               \
        if (error_ != cudaSuccess) {                                                               \
            printf("%s: %s\n", #call, cudaGetErrorString(error_));                                 \
            exit(1);                                                                               \
        }                                                                                          \
    } while (0)

static uint64_t state = 88172645463325252u;

static uint32_t random_word()
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (uint32_t)(state >> 16);
}

/* Memory for both sides. */
template <typename T> static T *managed(size_t n)
{
    T *memory;
    TRY(cudaMallocManaged((void **)&memory, n * sizeof(T)));
    return memory;
}

__global__ void fill(uint32_t *words, size_t n, uint32_t seed)
{
    for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < n;
         i += (size_t)gridDim.x * blockDim.x) {
        uint64_t x = (i + 1) * 0x9E3779B97F4A7C15u + seed;
        x ^= x >> 31;
        x *= 0xBF58476D1CE4E5B9u;
        words[i] = (uint32_t)(x >> 29);
    }
}

__global__ void fill_floats(float *x, size_t n, float value)
{
    for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < n;
         i += (size_t)gridDim.x * blockDim.x)
        x[i] = value;
}

/* One thread an output. */
__global__ void plainest(Product p, bool bytes)
{
    size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x;
    if (i >= (size_t)p.n_tokens * p.n_outputs) return;
    uint32_t token = (uint32_t)(i / p.n_outputs), output = (uint32_t)(i % p.n_outputs);
    uint32_t total = 0;
    for (uint32_t t = 0; t < p.n_terms; t++) {
        const Term &term = p.terms[t];
        const uint8_t *x = (const uint8_t *)(p.inputs + term.input_plane * p.input_stride);
        const uint8_t *w = (const uint8_t *)(p.weights + term.weight_plane * p.weight_stride);
        for (uint32_t k = 0; k < p.n_input_pieces * 16; k++) {
            uint32_t a = x[piece_place(token, k / 16, p.n_input_pieces) * 16 + k % 16];
            if (!bytes) {
                uint32_t b = w[piece_place(output, k / 16, p.n_weight_pieces) * 16 + k % 16];
                total += (uint32_t)__popc(a & b);
            } else {
                /* Of 128 columns, as order_for_bytes leaves them. */
                uint32_t b = w[piece_place(output, k / 128, p.n_weight_pieces) * 16 + k % 16] >>
                             k % 128 / 16;
                total += (b & 1) * (uint32_t)(term.is_signed ? (int32_t)(int8_t)a : (int32_t)a);
            }
        }
        total *= (uint32_t)term.multiplier;
    }
    store<EPILOGUE_PLAIN>(p.epilogue, token, output, (float)(int32_t)total);
}

struct Case {
    Product p;
    float *wanted, *found;
    size_t n;
};

static Case make_case(uint32_t n_tokens, uint32_t n_outputs, uint32_t n_columns, bool bytes,
                      uint32_t n_weight_planes, uint32_t n_input_planes)
{
    Case c = {};
    Product &p = c.p;
    p.n_tokens = n_tokens;
    p.n_outputs = n_outputs;
    p.n_columns = n_columns;
    p.n_weight_pieces = pieces_of_bits(n_columns);
    p.n_input_pieces = bytes ? pieces_of_bytes(n_columns) : p.n_weight_pieces;
    uint32_t rows = ceil_div(n_outputs, ROW_BLOCK) * ROW_BLOCK;
    p.weight_stride = (size_t)rows * p.n_weight_pieces;
    p.input_stride = (size_t)n_tokens * p.n_input_pieces;
    size_t n_weights = p.weight_stride * n_weight_planes * 4;
    size_t n_inputs = (p.input_stride * n_input_planes + 64 * p.n_input_pieces) * 4;
    uint32_t *weights = managed<uint32_t>(n_weights), *inputs = managed<uint32_t>(n_inputs);
    fill<<<1024, 256>>>(weights, n_weights, random_word());
    fill<<<1024, 256>>>(inputs, n_inputs, random_word());
    p.weights = (const uint4 *)weights;
    p.inputs = (const uint4 *)inputs;
    for (uint32_t i = 0; i < n_input_planes; i++)
        for (uint32_t w = 0; w < n_weight_planes; w++)
            p.terms[p.n_terms++] = Term{w, i, (i + w) % 2 ? -2 : 2, i == 0};
    size_t most = n_tokens > n_outputs ? n_tokens : n_outputs;
    float *ones = managed<float>(most + 128);
    fill_floats<<<1024, 256>>>(ones, most + 128, 1.0F);
    float *zeros = managed<float>(most + 128);
    fill_floats<<<1024, 256>>>(zeros, most + 128, 0.0F);
    p.epilogue.row_scale = ones;
    p.epilogue.bias = zeros;
    p.epilogue.tokens.step = ones;
    p.epilogue.stride = n_outputs;
    c.n = (size_t)n_tokens * n_outputs;
    c.wanted = managed<float>(c.n);
    c.found = managed<float>(c.n);
    return c;
}

static void free_case(Case &c)
{
    TRY(cudaFree((void *)c.p.weights));
    TRY(cudaFree((void *)c.p.inputs));
    TRY(cudaFree((void *)c.p.epilogue.row_scale));
    TRY(cudaFree((void *)c.p.epilogue.bias));
    TRY(cudaFree(c.wanted));
    TRY(cudaFree(c.found));
}

enum Kernel { BITS, BYTES, BITS_WGMMA, BYTES_WGMMA, N_KERNELS };
static const char *const names[] = {"bits", "bytes", "bits wgmma", "bytes wgmma"};

static void launch(Kernel kernel, const Product &p)
{
    dim3 grid(ceil_div(p.n_outputs, GEMM_OUTPUTS), ceil_div(p.n_tokens, GEMM_TOKENS));
    dim3 wide(ceil_div(p.n_outputs, WGMMA_OUTPUTS), ceil_div(p.n_tokens, WGMMA_TOKENS));
    if (kernel == BITS) gemm_kernel<false, EPILOGUE_PLAIN><<<grid, GEMM_THREADS>>>(p);
    if (kernel == BYTES) gemm_kernel<true, EPILOGUE_PLAIN><<<grid, GEMM_THREADS>>>(p);
    if (kernel == BITS_WGMMA) {
        uint32_t pieces = wgmma_pieces(p.n_input_pieces);
        uint32_t shared = wgmma_shared_bytes(pieces, p.n_input_pieces / pieces * p.n_terms);
        if (pieces == 6) gemm_wgmma_kernel<6, EPILOGUE_PLAIN><<<wide, WGMMA_THREADS, shared>>>(p, Encoding());
        if (pieces == 4) gemm_wgmma_kernel<4, EPILOGUE_PLAIN><<<wide, WGMMA_THREADS, shared>>>(p, Encoding());
        if (pieces == 2) gemm_wgmma_kernel<2, EPILOGUE_PLAIN><<<wide, WGMMA_THREADS, shared>>>(p, Encoding());
    }
    if (kernel == BYTES_WGMMA)
        gemm_wgmma_bytes_kernel<EPILOGUE_PLAIN><<<wide, WGMMA_THREADS, BYTES_SHARED_BYTES>>>(p);
    TRY(cudaGetLastError());
}

static bool is_bytes(Kernel kernel)
{
    return kernel == BYTES || kernel == BYTES_WGMMA;
}

static int check(Kernel kernel)
{
    int n_wrong = 0;
    for (int round = 0; round < 12; round++) {
        uint32_t n_tokens = (1 + random_word() % 6) * 64, n_outputs = 1 + random_word() % 400;
        uint32_t n_columns = 1 + random_word() % 3000;
        Case c = make_case(n_tokens, n_outputs, n_columns, is_bytes(kernel), 1 + round % 2,
                           1 + round / 2 % 2);
        fill_floats<<<1024, 256>>>(c.found, c.n, -1e30F);
        c.p.epilogue.outputs = c.wanted;
        plainest<<<(uint32_t)((c.n + 255) / 256), 256>>>(c.p, is_bytes(kernel));
        c.p.epilogue.outputs = c.found;
        launch(kernel, c.p);
        TRY(cudaDeviceSynchronize());
        size_t wrong = 0, first = 0;
        for (size_t i = 0; i < c.n; i++)
            if (c.found[i] != c.wanted[i] && wrong++ == 0) first = i;
        if (wrong > 0 && n_wrong++ < 4)
            printf("%s: %u x %u x %u: %zu of %zu differ, [%zu, %zu] is %g, expected %g\n",
                   names[kernel], n_tokens, n_outputs, n_columns, wrong, c.n, first / n_outputs,
                   first % n_outputs, (double)c.found[first], (double)c.wanted[first]);
        free_case(c);
    }
    return n_wrong;
}

static void bench(Kernel kernel, uint32_t n_tokens, uint32_t n_outputs, uint32_t n_columns)
{
    enum { RUNS = 30 };
    Case c = make_case(n_tokens, n_outputs, n_columns, is_bytes(kernel), 1, 1);
    c.p.epilogue.outputs = c.found;
    cudaEvent_t begin, end;
    TRY(cudaEventCreate(&begin));
    TRY(cudaEventCreate(&end));
    for (int i = 0; i < 5; i++)
        launch(kernel, c.p);
    TRY(cudaEventRecord(begin));
    for (int i = 0; i < RUNS; i++)
        launch(kernel, c.p);
    TRY(cudaEventRecord(end));
    TRY(cudaEventSynchronize(end));
    float ms;
    TRY(cudaEventElapsedTime(&ms, begin, end));
    double rate = (double)n_tokens * n_outputs * n_columns * RUNS / ms * 1e3;
    printf("%-12s %6u x %5u x %5u %9.2f us %8.1fe12 MAC/s %5.1f %%\n", names[kernel], n_tokens,
           n_outputs, n_columns, (double)ms / RUNS * 1e3, rate / 1e12,
           rate / (is_bytes(kernel) ? 967e10 : 7707e10));
    free_case(c);
}

int main(int argc, char **argv)
{
    uint32_t *has = managed<uint32_t>(1);
    has_wgmma_kernel<<<1, 1>>>(has);
    TRY(cudaDeviceSynchronize());
    TRY(cudaFuncSetAttribute((const void *)gemm_wgmma_kernel<6, EPILOGUE_PLAIN>,
                             cudaFuncAttributeMaxDynamicSharedMemorySize,
                             wgmma_shared_bytes(6, WGMMA_STAGES)));
    TRY(cudaFuncSetAttribute((const void *)gemm_wgmma_kernel<4, EPILOGUE_PLAIN>,
                             cudaFuncAttributeMaxDynamicSharedMemorySize,
                             wgmma_shared_bytes(4, WGMMA_STAGES)));
    TRY(cudaFuncSetAttribute((const void *)gemm_wgmma_kernel<2, EPILOGUE_PLAIN>,
                             cudaFuncAttributeMaxDynamicSharedMemorySize,
                             wgmma_shared_bytes(2, WGMMA_STAGES)));
    TRY(cudaFuncSetAttribute((const void *)gemm_wgmma_bytes_kernel<EPILOGUE_PLAIN>,
                             cudaFuncAttributeMaxDynamicSharedMemorySize, BYTES_SHARED_BYTES));
    int n_wrong = 0;
    for (int k = 0; k < N_KERNELS; k++) {
        if (k >= BITS_WGMMA && *has == 0) continue;
        int wrong = check((Kernel)k);
        printf("%-12s %s\n", names[k], wrong > 0 ? "WRONG" : "ok");
        n_wrong += wrong;
    }
    if (argc > 1 && strcmp(argv[1], "--bench") == 0) {
        static const uint32_t sizes[][3] = {
            {8192, 768, 768}, {8192, 3072, 768}, {8192, 768, 3072}, {16384, 4096, 4096}};
        for (size_t s = 0; s < sizeof sizes / sizeof sizes[0]; s++)
            for (int k = 0; k < N_KERNELS; k++)
                if (k < BITS_WGMMA || *has != 0)
                    bench((Kernel)k, sizes[s][0], sizes[s][1], sizes[s][2]);
    }
    return n_wrong > 0;
}
