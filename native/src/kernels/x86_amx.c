/* AMX products of one-bit and ternary weights with bytes.
 *
 * A product of tiles multiplies 16 tokens x 64 inputs by 64 inputs x 16 outputs.  Codes are read
 * where they lie, 64 of 16 tokens.  Weights become bytes of -1, 0 and 1, of 32 outputs and a
 * stretch of inputs at a time, in a buffer of the first cache, which serves many tokens; not beside
 * the products, whose loads would wait for stores with the same low address bits.  Two by two tiles
 * of sums stay in registers over a stretch; they are finished while the next ones are at work.
 *
 * int16 codes are two rows of bytes, the low ones unsigned, one after the other: the tile unit does
 * not overlap products of unsigned and of signed bytes.  Bits, of sign activations and of planes,
 * become bytes first.
 *
 *   tdpbssd    16,384 multiply-adds in 16 cycles; four of them, 64, are a step of 64 inputs
 *   tileloadd  8 cycles of both load ports; four a step: 32
 *   vpblendmb  64 bytes of weights from a mask: 32 a step with as many loads and stores, 32 cycles
 *              of the store port, for all tokens of a pass
 */
#include "x86_avx512.h"

#include <string.h>

enum {
    TILE = 16,          /* tokens or outputs of a tile */
    TILE_BYTES = 1024,  /* of a whole tile: 16 rows of 64 bytes */
    STRETCH_STEPS = 16, /* steps of weights that are bytes at a time: 32 KiB */
    PASS_TILES = 8,     /* tiles of tokens that they serve */
    BYTES_TILES = 2,    /* of those whose bytes are made here */
    BYTES_STRIDE = (STRETCH_STEPS + 1) * STEP, /* rows in different cache sets */
    GROUP = 4,                                 /* panels that one making of bytes serves */
};

typedef enum weight_kind { WEIGHTS_BIT1, WEIGHTS_TERN } weight_kind;
typedef enum code_kind { CODES_I8, CODES_I16, CODES_SIGN, CODES_PLANES } code_kind;

/* What the two rows of tiles of sums are: two tiles of tokens, or one, whose even and odd steps are
 * added up apart, because sums in two tiles would wait for each other. */
typedef enum tile_use { TWO_TILES, ONE_TILE } tile_use;

/* Sums of one or two tiles of tokens with a panel of outputs: of low bytes, or of all, and of high
 * bytes. */
typedef struct sums {
    tile_use use;
    uint32_t first;               /* output of the panel */
    uint32_t token[2], n_done[2]; /* of each tile: its first token, and how many another had */
    _Alignas(64) int32_t dots[2][2][TILE][PANEL];
} sums;

typedef struct work {
    const bitm_gemm *gemm;
    uint32_t output, end; /* outputs [output, end) */
    uint32_t token, n_tokens;
    uint32_t n_steps; /* of 64 inputs */
    uint32_t n_rows;  /* tokens in a tile */
    /* The stretch at work. */
    uint32_t step, n_stretch;
    const uint8_t *codes[PASS_TILES][2]; /* of each tile: low bytes, or all, and high bytes */
    size_t stride;
    bool ends_early; /* the inputs end within the last step: a copy has zeros there */
    const sums *unfinished;
    sums sums[GROUP * BYTES_TILES / 2 > PASS_TILES / 2 ? GROUP * BYTES_TILES / 2 : PASS_TILES / 2];
    _Alignas(64) uint8_t weights[STRETCH_STEPS][2 * TILE_BYTES];
    _Alignas(64) uint8_t last[PASS_TILES][TILE_BYTES];
    _Alignas(64) uint8_t bytes[BYTES_TILES][2][TILE][BYTES_STRIDE];
} work;

/* ---- Tiles ---- */

/* What LDTILECFG reads (Intel SDM volume 1, 18.2). */
typedef struct tile_configuration {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t n_rows[16];
} tile_configuration;
_Static_assert(sizeof(tile_configuration) == 64, "as the CPU reads it");

/* Tiles 0 to 3 are sums: of the first tokens with outputs 0 to 15 and 16 to 31, of the second.
 * 4 and 5 are codes, 6 and 7 weights. */
static void configure_tiles(uint32_t n_rows)
{
    _Alignas(64) tile_configuration c = {.palette = 1};
    for (int i = 0; i < 8; i++) {
        c.row_bytes[i] = STEP;
        c.n_rows[i] = i < 6 ? (uint8_t)n_rows : TILE;
    }
    __asm__ volatile("" : : "r"(&c) : "memory");
    _tile_loadconfig(&c);
}

/* Compilers do not know what a load of a tile reads: stores must not move past it. */
#define LOAD_TILE(tile, place, stride)                                                             \
    do {                                                                                           \
        __asm__ volatile("" : : : "memory");                                                       \
        _tile_loadd(tile, place, stride);                                                          \
    } while (0)

#define MULTIPLY(is_unsigned, sum, codes, weights)                                                 \
    do {                                                                                           \
        if (is_unsigned)                                                                           \
            _tile_dpbusd(sum, codes, weights);                                                     \
        else                                                                                       \
            _tile_dpbssd(sum, codes, weights);                                                     \
    } while (0)

/* ---- Weights ---- */

/* The weights of a mask; tern: of the masks of nonzero and positive. */
INLINE __m512i expand(weight_kind kind, uint64_t nonzero, uint64_t positive)
{
    const __m512i minus_i8x64 = _mm512_set1_epi8(-1);
    if (kind == WEIGHTS_BIT1)
        return _mm512_mask_blend_epi8((__mmask64)positive, minus_i8x64, _mm512_set1_epi8(1));
    __m512i weights = _mm512_maskz_mov_epi8((__mmask64)nonzero, minus_i8x64);
    return _mm512_mask_add_epi8(weights, (__mmask64)positive, weights, _mm512_set1_epi8(2));
}

INLINE void expand_step(weight_kind kind, const uint64_t *nonzero, const uint64_t *positive,
                        uint8_t *place)
{
#pragma GCC unroll 8
    for (uint32_t row = 0; row < TILE; row += 2, nonzero += 4, positive += 4, place += 2 * STEP) {
        _mm512_store_si512(place, expand(kind, nonzero[0], positive[0]));
        _mm512_store_si512(place + STEP, expand(kind, nonzero[1], positive[1]));
        _mm512_store_si512(place + TILE_BYTES, expand(kind, nonzero[2], positive[2]));
        _mm512_store_si512(place + TILE_BYTES + STEP, expand(kind, nonzero[3], positive[3]));
    }
}

/* Expands the stretch of weights of the panel that starts with output `first`. */
INLINE void expand_panel(work *w, weight_kind kind, uint32_t first)
{
    const bitm_gemm *gemm = w->gemm;
    const uint32_t positive_plane = kind == WEIGHTS_TERN;
    if (gemm->packed != NULL) {
        const uint64_t *masks = (const uint64_t *)gemm->packed + (size_t)w->step * STEP_MASKS;
        const uint64_t *nonzero = masks + panel_masks(gemm, 0, first);
        const uint64_t *positive = masks + panel_masks(gemm, positive_plane, first);
        for (size_t s = 0; s < w->n_stretch; s++)
            expand_step(kind, nonzero + s * STEP_MASKS, positive + s * STEP_MASKS, w->weights[s]);
        return;
    }
    const uint64_t *rows = (const uint64_t *)gemm->weights + (size_t)first * w->n_steps + w->step;
    for (size_t s = 0; s < w->n_stretch; s++) {
        uint64_t nonzero[STEP_MASKS], positive[STEP_MASKS];
        make_masks(rows + s, w->n_steps, gemm->n_rows - first, nonzero);
        make_masks(rows + positive_plane * (size_t)gemm->n_rows * w->n_steps + s, w->n_steps,
                   gemm->n_rows - first, positive);
        expand_step(kind, nonzero, positive, w->weights[s]);
    }
}

/* ---- Steps ---- */

/* Adds the stretch's products to the sums, or begins them.  `second` is the second tile of codes;
 * of ONE_TILE it is not used.  last: of the last step of both, NULL: as the others. */
INLINE void add_stretch(const work *w, tile_use use, bool is_unsigned, const uint8_t *first,
                        const uint8_t *second, const uint8_t *const last[2],
                        int32_t dots[2][TILE][PANEL])
{
    const size_t row_bytes = sizeof dots[0][0];
    size_t stride = w->stride;
    if (w->step > 0) {
        LOAD_TILE(0, dots[0][0], row_bytes);
        LOAD_TILE(1, dots[0][0] + TILE, row_bytes);
        LOAD_TILE(2, dots[1][0], row_bytes);
        LOAD_TILE(3, dots[1][0] + TILE, row_bytes);
    } else {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    }
    for (uint32_t s = 0; s < w->n_stretch; s++, first += STEP, second += STEP) {
        const uint8_t *weights = w->weights[s];
        if (last[0] != NULL && s + 1 == w->n_stretch) {
            first = last[0];
            second = last[1];
            stride = STEP;
        }
        LOAD_TILE(6, weights, STEP);
        if (use == ONE_TILE && s % 2 == 1) {
            LOAD_TILE(5, first, stride);
            MULTIPLY(is_unsigned, 2, 5, 6);
            LOAD_TILE(7, weights + TILE_BYTES, STEP);
            MULTIPLY(is_unsigned, 3, 5, 7);
        } else {
            LOAD_TILE(4, first, stride);
            MULTIPLY(is_unsigned, 0, 4, 6);
            LOAD_TILE(7, weights + TILE_BYTES, STEP);
            MULTIPLY(is_unsigned, 1, 4, 7);
        }
        if (use == TWO_TILES) {
            LOAD_TILE(5, second, stride);
            MULTIPLY(is_unsigned, 2, 5, 6);
            MULTIPLY(is_unsigned, 3, 5, 7);
        }
    }
}

static void store_sums(int32_t dots[2][TILE][PANEL])
{
    const size_t row_bytes = sizeof dots[0][0];
    _tile_stored(0, dots[0][0], row_bytes);
    _tile_stored(1, dots[0][0] + TILE, row_bytes);
    _tile_stored(2, dots[1][0], row_bytes);
    _tile_stored(3, dots[1][0] + TILE, row_bytes);
}

/* ---- Codes ---- */

/* 64 codes as bytes, of a token's word of nonzero bits and one of signs. */
INLINE __m512i bytes_of_signs(uint64_t nonzero, uint64_t sign)
{
    __m512i bytes = _mm512_maskz_mov_epi8((__mmask64)nonzero, _mm512_set1_epi8(-1));
    return _mm512_mask_mov_epi8(bytes, (__mmask64)(nonzero & sign), _mm512_set1_epi8(1));
}

/* Makes the stretch's bytes of a token's bits. */
INLINE void make_bytes(const work *w, code_kind kind, size_t token, uint8_t *bytes)
{
    const bitm_gemm *gemm = w->gemm;
    size_t n_words = w->n_steps, n_planes = kind == CODES_SIGN ? 2 : gemm->n_planes;
    const uint64_t *planes = (const uint64_t *)gemm->inputs + token * n_words * n_planes + w->step;
    for (size_t word = 0; word < w->n_stretch; word++, bytes += STEP) {
        __m512i all_codes = _mm512_setzero_si512();
        if (kind == CODES_SIGN)
            all_codes = bytes_of_signs(planes[word], planes[n_words + word]);
        else
            for (size_t p = 0; p < gemm->n_planes; p++)
                all_codes =
                    _mm512_mask_add_epi8(all_codes, (__mmask64)planes[p * n_words + word],
                                         all_codes, _mm512_set1_epi8((char)gemm->plane_weights[p]));
        _mm512_store_si512(bytes, all_codes);
    }
}

/* Makes the stretch's low and high bytes of a token's int16 codes; zeros where they end. */
INLINE void split_words(const work *w, size_t token, uint8_t *low, uint8_t *high)
{
    uint32_t first = w->step * STEP, n = w->gemm->n_inputs - first;
    const int16_t *codes = (const int16_t *)w->gemm->inputs + token * w->gemm->n_inputs + first;
    for (uint32_t i = 0; i < w->n_stretch * STEP; i += 32) {
        __mmask32 exist = (__mmask32)first_bytes(i < n ? smaller(n - i, 32) : 0);
        __m512i words = _mm512_maskz_loadu_epi16(exist, codes + i);
        _mm256_store_si256((__m256i *)(low + i), _mm512_cvtepi16_epi8(words));
        _mm256_store_si256((__m256i *)(high + i),
                           _mm512_cvtepi16_epi8(_mm512_srai_epi16(words, 8)));
    }
}

/* The tile's first token, and how many of its tokens are the tile's before. */
static uint32_t tile_token(const work *w, uint32_t tile, uint32_t *n_done)
{
    uint32_t first = smaller(tile * w->n_rows, w->n_tokens - w->n_rows);
    *n_done = tile * w->n_rows - first;
    return w->token + first;
}

/* Codes of tile `tile`, the pass's number i. */
INLINE void prepare_tile(work *w, code_kind kind, uint32_t tile, uint32_t i)
{
    uint32_t n_done;
    size_t token = tile_token(w, tile, &n_done), n = w->gemm->n_inputs;
    if (kind != CODES_I8) {
        for (size_t row = 0; row < w->n_rows; row++) {
            if (kind == CODES_I16)
                split_words(w, token + row, w->bytes[i][0][row], w->bytes[i][1][row]);
            else
                make_bytes(w, kind, token + row, w->bytes[i][0][row]);
        }
        w->codes[i][0] = w->bytes[i][0][0];
        w->codes[i][1] = w->bytes[i][1][0];
        return;
    }
    w->codes[i][0] = (const uint8_t *)w->gemm->inputs + token * n + (size_t)w->step * STEP;
    for (size_t row = 0; w->ends_early && row < w->n_rows; row++) {
        const uint8_t *from = w->codes[i][0] + row * n + (size_t)(w->n_stretch - 1) * STEP;
        _mm512_store_si512(w->last[i] + row * STEP,
                           _mm512_maskz_loadu_epi8(first_bytes((uint32_t)n % STEP), from));
    }
}

/* ---- The product ---- */

/* Finishes sums: of 16 outputs after the other, so that what they share is loaded once. */
INLINE void finish(const work *w, code_kind kind, const sums *p)
{
    if (p == NULL) return;
    for (uint32_t half = 0; half < PANEL; half += TILE) {
        __mmask16 lanes = outputs_between(p->first + half, w->output, w->end);
        if (lanes == 0) continue;
        epilogue e = begin_epilogue(w->gemm, p->first + half, lanes);
        for (uint32_t i = 0; i < (p->use == TWO_TILES ? 2 : 1); i++) {
            for (uint32_t row = p->n_done[i]; row < w->n_rows; row++) {
                __m512i dot = _mm512_load_si512(p->dots[0][i][row] + half);
                if (p->use == ONE_TILE)
                    dot = _mm512_add_epi32(dot, _mm512_load_si512(p->dots[0][1][row] + half));
                if (kind == CODES_I16) {
                    __m512i high = _mm512_load_si512(p->dots[1][i][row] + half);
                    if (p->use == ONE_TILE)
                        high = _mm512_add_epi32(high, _mm512_load_si512(p->dots[1][1][row] + half));
                    dot = _mm512_add_epi32(dot, _mm512_slli_epi32(high, 8));
                }
                store_outputs(w->gemm, &e, p->token[i] + row, _mm512_cvtepi32_ps(dot));
            }
        }
    }
}

/* The stretch's products of one or two tiles, the pass's from i on, with the expanded panel. */
INLINE void multiply_tiles(work *w, code_kind kind, tile_use use, uint32_t tile, uint32_t i,
                           uint32_t first, sums *now)
{
    const uint32_t second = use == TWO_TILES ? i + 1 : i;
    const uint8_t *const last[2] = {w->ends_early ? w->last[i] : NULL, w->last[second]};
    add_stretch(w, use, kind == CODES_I16, w->codes[i][0], w->codes[second][0], last, now->dots[0]);
    finish(w, kind, w->unfinished);
    w->unfinished = NULL; /* its place may be this one's */
    now->use = use;
    now->first = first;
    for (uint32_t k = 0; k < (use == TWO_TILES ? 2 : 1); k++)
        now->token[k] = tile_token(w, tile + k, &now->n_done[k]);
    store_sums(now->dots[0]);
    if (kind == CODES_I16) {
        add_stretch(w, use, false, w->codes[i][1], w->codes[second][1], last, now->dots[1]);
        store_sums(now->dots[1]);
    }
    if (w->step + w->n_stretch == w->n_steps) w->unfinished = now;
}

/* Tiles [tile, tile + n_tiles) of tokens with n_panels panels from output `first` on.  Sums wait in
 * a place of their own from stretch to stretch. */
INLINE void multiply_pass(work *w, weight_kind weights, code_kind kind, uint32_t tile,
                          uint32_t n_tiles, uint32_t first, uint32_t n_panels)
{
    for (w->step = 0; w->step < w->n_steps; w->step += STRETCH_STEPS) {
        w->n_stretch = smaller(STRETCH_STEPS, w->n_steps - w->step);
        w->ends_early = kind == CODES_I8 && w->gemm->n_inputs % STEP != 0 &&
                        w->step + w->n_stretch == w->n_steps;
        for (uint32_t i = 0; i < n_tiles; i++)
            prepare_tile(w, kind, tile + i, i);
        sums *now = w->sums;
        for (uint32_t panel = 0; panel < n_panels; panel++) {
            uint32_t output = first + panel * PANEL;
            expand_panel(w, weights, output);
            for (uint32_t i = 0; i < n_tiles; i += 2, now++) {
                if (i + 1 < n_tiles)
                    multiply_tiles(w, kind, TWO_TILES, tile + i, i, output, now);
                else
                    multiply_tiles(w, kind, ONE_TILE, tile + i, i, output, now);
            }
        }
    }
}

/* Tiles have the same number of tokens, so that they are configured once; the last one begins with
 * tokens of the one before where they do not come out even. */
INLINE void multiply(const bitm_gemm *gemm, weight_kind weights, code_kind kind, uint32_t token,
                     uint32_t n_tokens, uint32_t output, uint32_t n_outputs)
{
    work w; /* large: its arrays stay as they are until their use */
    const uint32_t pass = kind == CODES_I8 ? PASS_TILES : BYTES_TILES;
    const uint32_t group = kind == CODES_I8 ? 1 : GROUP;
    uint32_t n_tiles = (n_tokens + TILE - 1) / TILE;
    w.gemm = gemm;
    w.output = output;
    w.end = output + n_outputs;
    w.token = token;
    w.n_tokens = n_tokens;
    w.n_steps = (gemm->n_inputs + STEP - 1) / STEP;
    w.n_rows = (n_tokens + n_tiles - 1) / n_tiles;
    w.stride = kind == CODES_I8 ? gemm->n_inputs : BYTES_STRIDE;
    w.unfinished = NULL;
    configure_tiles(w.n_rows);
    for (uint32_t tile = 0; tile < n_tiles; tile += pass) {
        for (uint32_t o = output / PANEL * PANEL; o < w.end; o += group * PANEL) {
            uint32_t n_panels = (w.end - o + PANEL - 1) / PANEL;
            multiply_pass(&w, weights, kind, tile, smaller(pass, n_tiles - tile), o,
                          smaller(group, n_panels));
        }
    }
    finish(&w, kind, w.unfinished);
    _tile_release();
}

void bitm_gemm_w1a8__amx(const bitm_gemm *gemm, uint32_t token, uint32_t n_tokens, uint32_t output,
                         uint32_t n_outputs)
{
    multiply(gemm, WEIGHTS_BIT1, CODES_I8, token, n_tokens, output, n_outputs);
}

void bitm_gemm_w2a8__amx(const bitm_gemm *gemm, uint32_t token, uint32_t n_tokens, uint32_t output,
                         uint32_t n_outputs)
{
    multiply(gemm, WEIGHTS_TERN, CODES_I8, token, n_tokens, output, n_outputs);
}

void bitm_gemm_w1a16__amx(const bitm_gemm *gemm, uint32_t token, uint32_t n_tokens, uint32_t output,
                          uint32_t n_outputs)
{
    multiply(gemm, WEIGHTS_BIT1, CODES_I16, token, n_tokens, output, n_outputs);
}

void bitm_gemm_w2a16__amx(const bitm_gemm *gemm, uint32_t token, uint32_t n_tokens, uint32_t output,
                          uint32_t n_outputs)
{
    multiply(gemm, WEIGHTS_TERN, CODES_I16, token, n_tokens, output, n_outputs);
}

void bitm_gemm_w1sign__amx(const bitm_gemm *gemm, uint32_t token, uint32_t n_tokens,
                           uint32_t output, uint32_t n_outputs)
{
    multiply(gemm, WEIGHTS_BIT1, CODES_SIGN, token, n_tokens, output, n_outputs);
}

void bitm_gemm_w2sign__amx(const bitm_gemm *gemm, uint32_t token, uint32_t n_tokens,
                           uint32_t output, uint32_t n_outputs)
{
    multiply(gemm, WEIGHTS_TERN, CODES_SIGN, token, n_tokens, output, n_outputs);
}

/* ---- Planes: where their codes fit into a byte ---- */

static bool planes_fit(const bitm_gemm *gemm)
{
    int32_t least = 0, greatest = 0;
    for (uint32_t p = 0; p < gemm->n_planes; p++) {
        int32_t weight = gemm->plane_weights[p];
        if (weight < -128 || weight > 127) return false;
        if (weight < 0)
            least += weight;
        else
            greatest += weight;
    }
    return least >= -128 && greatest <= 127;
}

/* The same product in the file's layout of weights, for a kernel of another packing. */
static bitm_gemm unpacked(const bitm_gemm *gemm)
{
    bitm_gemm other = *gemm;
    other.packed = NULL;
    return other;
}

void bitm_gemm_w1planes__amx(const bitm_gemm *gemm, uint32_t token, uint32_t n_tokens,
                             uint32_t output, uint32_t n_outputs)
{
    if (planes_fit(gemm)) {
        multiply(gemm, WEIGHTS_BIT1, CODES_PLANES, token, n_tokens, output, n_outputs);
        return;
    }
    bitm_gemm other = unpacked(gemm);
    bitm_gemm_w1planes__vpopcnt(&other, token, n_tokens, output, n_outputs);
}

void bitm_gemm_w2planes__amx(const bitm_gemm *gemm, uint32_t token, uint32_t n_tokens,
                             uint32_t output, uint32_t n_outputs)
{
    if (planes_fit(gemm)) {
        multiply(gemm, WEIGHTS_TERN, CODES_PLANES, token, n_tokens, output, n_outputs);
        return;
    }
    bitm_gemm other = unpacked(gemm);
    bitm_gemm_w2planes__vpopcnt(&other, token, n_tokens, output, n_outputs);
}
