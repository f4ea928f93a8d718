/* Exponentials of the scores of signs, of which none is 0: a score is of how many components of
 * query and key differ, their distance, and so an exponential is of the distances of two keys, the
 * nearest one and its own. */
#ifndef BITM_CUDA_SIGN_EXPONENTIALS_CUH
#define BITM_CUDA_SIGN_EXPONENTIALS_CUH

#include "operands.cuh"

namespace bitm {

enum {
    SIGNS_HEAD = 64,
    SIGNS_NO_KEY = SIGNS_HEAD + 1, /* the distance of a key that is not: its exponential is 0 */
    /* Floats of a table: for each distance of the nearest key, those from it to SIGNS_NO_KEY. */
    SIGN_EXPONENTIALS = (SIGNS_HEAD + 1) * (SIGNS_HEAD + 4) / 2,
};

/* Steps are positive: scores fall with the distance. */
static __device__ inline float score_of_signs(int32_t product, float step, float scale)
{
    return (float)product * step * scale;
}

/* Exponentials by distance, from that of the nearest key on.  In bytes: compilers would add a
 * number of floats to every distance. */
template <typename Float>
static __device__ inline Float *exponentials_from(Float *table, int32_t nearest)
{
    int32_t bytes = nearest * (2 * SIGNS_HEAD + 3 - nearest) * (int32_t)(sizeof(float) / 2);
    return (Float *)((const char *)table + bytes);
}

/* Blocks: distances of the nearest key.  Threads: distances. */
static __global__ void sign_exponentials_kernel(float score_step, float score_scale, float *table)
{
    int32_t nearest = (int32_t)blockIdx.x, distance = (int32_t)threadIdx.x;
    if (distance < nearest || distance > SIGNS_NO_KEY) return;
    float e = bitm_exp(score_of_signs(SIGNS_HEAD - 2 * distance, score_step, score_scale) -
                       score_of_signs(SIGNS_HEAD - 2 * nearest, score_step, score_scale));
    exponentials_from(table, nearest)[distance] = distance == SIGNS_NO_KEY ? 0.0F : e;
}

} // namespace bitm

#endif
