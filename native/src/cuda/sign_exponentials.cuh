/* Exponentials of the scores of signs, of which none is 0: a score is of how many components of
 * query and key differ, their distance, and so an exponential is of the distances of two keys, the
 * nearest one and its own.  And from which of them on probabilities become 1. */
#ifndef BITM_CUDA_SIGN_EXPONENTIALS_CUH
#define BITM_CUDA_SIGN_EXPONENTIALS_CUH

#include "operands.cuh"

namespace bitm {

enum {
    SIGNS_HEAD = 64,
    SIGNS_NO_KEY = SIGNS_HEAD + 1, /* the distance of a key that is not: its exponential is 0 */
    /* Floats of a table: for each distance of the nearest key, those from it to SIGNS_NO_KEY.  And
     * two more, for copies of 16 bytes each. */
    SIGN_EXPONENTIALS = (SIGNS_HEAD + 1) * (SIGNS_HEAD + 4) / 2 + 2,
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

/* The least float from 0 on whose quotient reaches the threshold; infinite where there is none. */
static __device__ inline float bisect_least(float threshold, float sum)
{
    int32_t below = -1, least = 0x7F800000; /* as integers such floats are in the same order */
    while (least - below > 1) {
        int32_t middle = below + (least - below) / 2;
        bool reaches = __int_as_float(middle) / sum >= threshold;
        least = reaches ? middle : least;
        below = reaches ? below : middle;
    }
    return __int_as_float(least);
}

/* The same: it is near the threshold times the sum, so the four threads t of a quad try a float
 * each. */
static __device__ inline float find_least(float threshold, float sum, uint32_t t)
{
    uint32_t first = __float_as_uint(threshold * sum) - 2;
    bool reaches = __uint_as_float(first + t) / sum >= threshold;
    uint32_t quad = __ballot_sync(ALL_THREADS, reaches) >> (threadIdx.x % WARP - t) & 15;
    /* From the second, third or fourth float on. */
    if (quad != 14 && quad != 12 && quad != 8) return bisect_least(threshold, sum);
    return __uint_as_float(first + (uint32_t)__ffs((int)quad) - 1);
}

} // namespace bitm

#endif
