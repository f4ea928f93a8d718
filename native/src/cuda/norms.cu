/* Norms, and the linears that end in one. */
#include "forward.cuh"
#include "gemm_norm_cluster.cuh"

namespace bitm {

template <int N16> static void launch_norm(const Work &w, const Norm &a, const Followers &followers)
{
    BITM_LAUNCH(add_norm_registers_kernel<N16>, token_blocks(w.n_tokens), TOKEN_THREADS, 0,
                w.session->stream, a, followers);
}

void add_norm(const Work &w, const float *x, const float *residual, const NormWeights &norm,
              float eps, uint32_t n, float *y, const Next &next)
{
    Norm a = {x, residual, norm.gain, norm.bias, eps, w.n_tokens, n, y};
    Followers followers = plan_followers(w, n, next);
    if (n == 512)
        launch_norm<32>(w, a, followers);
    else if (n == 768)
        launch_norm<48>(w, a, followers);
    else if (n == 1024)
        launch_norm<64>(w, a, followers);
    else
        BITM_LAUNCH(add_norm_kernel, token_blocks(w.n_tokens), TOKEN_THREADS, 0, w.session->stream,
                    a);
}

template <int N16, int TOKENS, int WARPGROUPS, bool BYTES>
static void launch_product_norm(const Work &w, const ProductNorm &a)
{
    typedef NormShape<N16, TOKENS, WARPGROUPS, BYTES> Shape;
    launch_early(w, gemm_norm_kernel<N16, TOKENS, WARPGROUPS, BYTES>, w.n_tokens / TOKENS,
                 (uint32_t)Shape::THREADS, (uint32_t)Shape::SHARED_BYTES, 1, a);
}

/* Few enough for blocks of 8 tokens; enough for one of 64 on most multiprocessors. */
enum { FEW_TOKENS = 448, MANY_TOKENS = 6144 };

template <int N, bool BYTES> static bool launch_cluster_norm(const Work &w, const ClusterNorm &a)
{
    size_t shared = cluster_shared_bytes<N>(a);
    if (shared > w.session->model->shared_bytes) return false;
    launch_early(w, gemm_norm_cluster_kernel<N, BYTES>, w.n_tokens / CLUSTER_ROWS,
                 (uint32_t)ClusterShape<N>::THREADS, shared, CLUSTER_BLOCKS, a);
    return true;
}

/* The same where there are few tokens, or false. */
static bool run_cluster_norm(const Work &w, const ProductNorm &of, bool bytes)
{
    const Product &p = of.product;
    if (w.n_tokens > FEW_TOKENS ||
        p.n_input_pieces != p.n_weight_pieces * (bytes ? BYTES_PIECES : 1))
        return false;
    ClusterNorm a = {of, 0, 0};
    for (uint32_t t = 0; t < p.n_terms; t++) {
        const Term &term = p.terms[t];
        if (term.input_plane >= a.n_input_planes) a.n_input_planes = term.input_plane + 1;
        if (term.weight_plane >= a.n_weight_planes) a.n_weight_planes = term.weight_plane + 1;
    }
    if (of.norm.n == 512)
        return bytes ? launch_cluster_norm<512, true>(w, a) : launch_cluster_norm<512, false>(w, a);
    if (of.norm.n == 1024)
        return bytes ? launch_cluster_norm<1024, true>(w, a)
                     : launch_cluster_norm<1024, false>(w, a);
    return bytes ? launch_cluster_norm<768, true>(w, a) : launch_cluster_norm<768, false>(w, a);
}

/* x = norm(linear(inputs) + x), and the inputs of what follows, in one kernel where it can run.
 * Inputs are in the place after products or attention, which what follows does not use. */
void run_linear_norm(const Work &w, const Linear &linear, const float *from, Inputs *inputs,
                     const NormWeights &norm, const Next &next)
{
    const bitm_file_config *config = w.session->model->network.config;
    const Buffers &b = w.session->buffers;
    uint32_t n = config->hidden_size;
    float eps = config->layer_norm_eps;
    if (inputs->place == NULL) inputs->place = &b.encoded[LATER];
    if (w.session->model->has_wgmma == 0 || !is_in_registers(n) || !is_plain_product(w, linear)) {
        run_linear(w, linear, from, 0, b.output, inputs);
        add_norm(w, b.output, b.hidden, norm, eps, n, b.hidden, next);
        return;
    }
    const Branch *branch = &linear.branches[0];
    make_inputs(w, branch, from, linear.columns, inputs);
    ProductNorm a;
    a.product = product_of(w, branch, *inputs, linear.columns);
    a.product.epilogue = epilogue_of(branch, *inputs, 0, NULL);
    a.norm = Norm{NULL, b.hidden, norm.gain, norm.bias, eps, w.n_tokens, n, b.hidden};
    a.followers = plan_followers(w, n, next);
    bool bytes = are_bytes(inputs->form);
    if (run_cluster_norm(w, a, bytes)) return;
    bool many = w.n_tokens >= MANY_TOKENS;
    if (n == 512)
        bytes ? launch_product_norm<32, 32, 2, true>(w, a)
              : launch_product_norm<32, 32, 2, false>(w, a);
    else if (n == 1024)
        bytes ? launch_product_norm<64, 32, 4, true>(w, a)
              : launch_product_norm<64, 32, 4, false>(w, a);
    else if (many)
        bytes ? launch_product_norm<48, 64, 3, true>(w, a)
              : launch_product_norm<48, 64, 4, false>(w, a);
    else
        bytes ? launch_product_norm<48, 32, 4, true>(w, a)
              : launch_product_norm<48, 32, 4, false>(w, a);
}

template <int N>
static bitm_status allow_cluster_norm(const bitm_device_model *model, bitm_error *err)
{
    BITM_TRY_STATUS(allow_shared(gemm_norm_cluster_kernel<N, true>, model, err));
    return allow_shared(gemm_norm_cluster_kernel<N, false>, model, err);
}

bitm_status prepare_norms(const bitm_device_model *model, bitm_error *err)
{
    BITM_TRY_STATUS(allow_cluster_norm<512>(model, err));
    BITM_TRY_STATUS(allow_cluster_norm<768>(model, err));
    BITM_TRY_STATUS(allow_cluster_norm<1024>(model, err));
    BITM_TRY_STATUS(allow_shared(gemm_norm_kernel<32, 32, 2, true>, model, err));
    BITM_TRY_STATUS(allow_shared(gemm_norm_kernel<32, 32, 2, false>, model, err));
    BITM_TRY_STATUS(allow_shared(gemm_norm_kernel<64, 32, 4, true>, model, err));
    BITM_TRY_STATUS(allow_shared(gemm_norm_kernel<64, 32, 4, false>, model, err));
    BITM_TRY_STATUS(allow_shared(gemm_norm_kernel<48, 64, 3, true>, model, err));
    BITM_TRY_STATUS(allow_shared(gemm_norm_kernel<48, 64, 4, false>, model, err));
    BITM_TRY_STATUS(allow_shared(gemm_norm_kernel<48, 32, 4, true>, model, err));
    return allow_shared(gemm_norm_kernel<48, 32, 4, false>, model, err);
}

} // namespace bitm
