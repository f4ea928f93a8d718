/* AMX products of one-bit and ternary weights with bytes.
 *
 * A product of tiles multiplies 16 tokens x 64 inputs by 64 inputs x 16 outputs.  Codes are read
 * where they lie, 64 of 16 tokens; weights become bytes of -1, 0 and 1 in a small ring of buffers,
 * a few steps before their tile is loaded: long enough that the stores have reached the cache,
 * soon enough that they have not left it.  Two by two tiles of sums stay in registers over all
 * inputs; only then are they stored, once, and finished while the next ones are at work: at once,
 * or, where a function of them takes as long as the products, some rows at every step.  So nothing
 * grows with the number of inputs, and few tokens cost little more than expanding weights.
 *
 * int16 codes take the place of two tokens' tiles by their low bytes, unsigned, and their high
 * ones.  Bits, of sign activations and of planes, become bytes first.
 *
 *   tdpbssd    16,384 multiply-adds in 16 cycles; four of them, 64, are a step of 64 inputs
 *   tileloadd  8 cycles of both load ports; four a step: 32
 *   vpblendmb  64 bytes of weights from a mask: 32 a step with as many loads and stores, 32 cycles
 *              of the store port and of ports 0 and 5, all beside the tiles
 */
#include "x86_avx512.h"

#include <string.h>

enum {
    TILE = 16,         /* tokens or outputs of a tile */
    TILE_BYTES = 1024, /* of a whole tile: 16 rows of 64 bytes */
    RING = 4,          /* steps of weights that are expanded at a time */
    MAX_BYTES = 4096,  /* inputs of a token whose bytes are made here; of a large BERT's linears */
    BYTES_STRIDE = MAX_BYTES + STEP, /* rows in different cache sets */
};

/* What the two rows of tiles are: two tiles of tokens; one, whose even and odd steps are added up
 * apart, because sums in two tiles would wait for each other; low and high bytes of one. */
typedef enum tile_use { TWO_TILES, ONE_TILE, TWO_BYTES } tile_use;

/* Sums of the tiles of tokens and a panel of outputs. */
typedef int32_t tile_sums[2][TILE][PANEL];

/* Sums that are not finished. */
typedef struct pending {
    tile_use use;
    uint32_t token[2], n_done[2];  /* of each tile: its first token, and how many another had */
    uint32_t n_tiles, n_left, row; /* the next row of the first tile that is left */
    epilogue halves[2];            /* of the panel's outputs */
    _Alignas(64) tile_sums sums;
} pending;

/* Where weights are expanded next. */
typedef struct expansion {
    uint32_t n_left; /* steps */
    uint32_t panel, step;
    uint32_t slot;
} expansion;

typedef struct work {
    const bitm_gemm *gemm;
    uint32_t output, end;     /* outputs [output, end) */
    uint32_t n_panels, first; /* the first panel's first output */
    uint32_t n_steps;         /* of 64 inputs */
    uint32_t n_rows;          /* tokens in a tile */
    expansion ahead;
    uint32_t slot; /* of the next step to multiply */
    /* The rows of both tiles, and of the last step, which may end early. */
    const uint8_t *codes[2], *last[2];
    size_t stride;
    pending pending[2];
    uint32_t turn; /* the sums that are stored next */
    _Alignas(64) uint8_t ring[RING][2 * TILE_BYTES];
    _Alignas(64) uint8_t last_codes[2][TILE_BYTES];
    _Alignas(64) uint8_t bytes[2][TILE][BYTES_STRIDE];
} work;

const size_t bitm_scratch__amx = sizeof(work);

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

#define MULTIPLY(use, sum, codes, weights)                                                         \
    do {                                                                                           \
        if ((use) == TWO_BYTES && (codes) == 4)                                                    \
            _tile_dpbusd(sum, codes, weights);                                                     \
        else                                                                                       \
            _tile_dpbssd(sum, codes, weights);                                                     \
    } while (0)

/* ---- Weights ---- */

/* The weights of a mask; tern: of the masks of nonzero and positive. */
INLINE __m512i expand(bitm_dtype kind, uint64_t nonzero, uint64_t positive)
{
    const __m512i minus_i8x64 = _mm512_set1_epi8(-1);
    if (kind == BITM_DTYPE_BIT1)
        return _mm512_mask_blend_epi8((__mmask64)positive, minus_i8x64, _mm512_set1_epi8(1));
    __m512i weights = _mm512_maskz_mov_epi8((__mmask64)nonzero, minus_i8x64);
    return _mm512_mask_add_epi8(weights, (__mmask64)positive, weights, _mm512_set1_epi8(2));
}

/* A step of weights to be expanded, if place is not NULL. */
typedef struct masks {
    const uint64_t *nonzero, *positive;
    uint8_t *place;
} masks;

/* The next step of weights, if there is one; room: for masks that are not packed. */
INLINE masks next_masks(work *w, bitm_dtype kind, uint64_t room[2][STEP_MASKS])
{
    expansion *ahead = &w->ahead;
    const bitm_gemm *gemm = w->gemm;
    const uint32_t positive_plane = kind == BITM_DTYPE_TERN;
    masks m = {0};
    if (ahead->n_left == 0) return m;
    uint32_t output = w->first + ahead->panel * PANEL;
    if (gemm->packed != NULL) {
        const uint64_t *packed = (const uint64_t *)gemm->packed + (size_t)ahead->step * STEP_MASKS;
        m.nonzero = packed + panel_masks(gemm, 0, output);
        m.positive = packed + panel_masks(gemm, positive_plane, output);
    } else {
        const uint64_t *rows =
            (const uint64_t *)gemm->weights + (size_t)output * w->n_steps + ahead->step;
        m.nonzero = m.positive = room[0];
        make_masks(rows, w->n_steps, gemm->n_rows - output, room[0]);
        if (kind == BITM_DTYPE_TERN) {
            m.positive = room[1];
            make_masks(rows + (size_t)gemm->n_rows * w->n_steps, w->n_steps, gemm->n_rows - output,
                       room[1]);
        }
    }
    m.place = w->ring[ahead->slot];
    ahead->slot = (ahead->slot + 1) % RING;
    ahead->n_left--;
    if (++ahead->step == w->n_steps) {
        ahead->step = 0;
        ahead->panel = ahead->panel + 1 < w->n_panels ? ahead->panel + 1 : 0;
    }
    return m;
}

/* Expands a quarter of a step: four rows of both tiles. */
INLINE void expand_quarter(masks m, bitm_dtype kind, const uint32_t quarter)
{
    if (m.place == NULL) return;
    const uint64_t *nonzero = m.nonzero + quarter * STEP_MASKS / 4;
    const uint64_t *positive = m.positive + quarter * STEP_MASKS / 4;
    uint8_t *place = m.place + quarter * TILE_BYTES / 4;
#pragma GCC unroll 2
    for (int i = 0; i < 2; i++, nonzero += 4, positive += 4, place += 2 * STEP) {
        _mm512_store_si512(place, expand(kind, nonzero[0], positive[0]));
        _mm512_store_si512(place + STEP, expand(kind, nonzero[1], positive[1]));
        _mm512_store_si512(place + TILE_BYTES, expand(kind, nonzero[2], positive[2]));
        _mm512_store_si512(place + TILE_BYTES + STEP, expand(kind, nonzero[3], positive[3]));
    }
}

/* ---- Sums ---- */

/* Finishes n rows of sums, of tokens from `token` on. */
INLINE void finish_rows(const bitm_gemm *shared, const pending *p, const tile_use use,
                        const int32_t *sums, size_t token, uint32_t n, const bool plain,
                        const uint32_t activation)
{
    /* What is stored changes neither, which the compiler knows of copies alone. */
    const bitm_gemm gemm = *shared;
    const epilogue halves[2] = {p->halves[0], p->halves[1]};
    for (; n > 0; n--, sums += PANEL, token++) {
#pragma GCC unroll 2
        for (int half = 0; half < 2; half++) {
            __m512i dot = _mm512_load_si512(sums + half * TILE);
            if (use != TWO_TILES) {
                __m512i more = _mm512_load_si512(sums + (TILE * PANEL + half * TILE));
                if (use == TWO_BYTES) more = _mm512_slli_epi32(more, 8);
                dot = _mm512_add_epi32(dot, more);
            }
            finish_outputs(&gemm, &halves[half], token, _mm512_cvtepi32_ps(dot), plain, activation);
        }
    }
}

/* Those of rare linears, apart so that the others need not keep what they keep. */
__attribute__((noinline)) static void finish_other_rows(const bitm_gemm *gemm, const pending *p,
                                                        const int32_t *sums, size_t token,
                                                        uint32_t n)
{
    finish_rows(gemm, p, p->use, sums, token, n, false, gemm->activation);
}

/* Finishes the next sums, at most n_rows of a tile; false: there were none. */
static bool finish_some(const work *w, pending *p, uint32_t n_rows)
{
    if (p->n_left == 0) return false;
    const bitm_gemm *gemm = w->gemm;
    const uint32_t tile = p->n_tiles - p->n_left, n = smaller(n_rows, w->n_rows - p->row);
    const int32_t *sums = p->sums[tile][p->row];
    size_t token = p->token[tile] + p->row;
    if (!is_plain(gemm) || gemm->activation > BITM_ACTIVATION_GELU)
        finish_other_rows(gemm, p, sums, token, n);
    else if (gemm->activation == BITM_ACTIVATION_GELU)
        finish_rows(gemm, p, p->use, sums, token, n, true, BITM_ACTIVATION_GELU);
    else if (p->use != TWO_TILES)
        finish_rows(gemm, p, p->use, sums, token, n, true, BITM_ACTIVATION_NONE);
    else
        finish_rows(gemm, p, TWO_TILES, sums, token, n, true, BITM_ACTIVATION_NONE);
    p->row += n;
    if (p->row == w->n_rows) {
        p->n_left--;
        p->row = p->n_done[1];
    }
    return true;
}

static void finish(const work *w, pending *p)
{
    while (finish_some(w, p, TILE)) {
    }
}

/* ---- Steps ---- */

/* All inputs of the tiles of tokens with the next panel: sums in tiles 0 to 3.  Those before are
 * finished. */
INLINE void add_steps(work *w, bitm_dtype kind, tile_use use, const bool spreads, pending *before)
{
    const uint32_t n_rows = (before->n_left * w->n_rows + w->n_steps - 1) / w->n_steps;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (uint32_t step = 0; step < w->n_steps; step++) {
        bool is_last = step + 1 == w->n_steps;
        const uint8_t *first = is_last ? w->last[0] : w->codes[0] + (size_t)step * STEP;
        const uint8_t *second = is_last ? w->last[1] : w->codes[1] + (size_t)step * STEP;
        size_t stride = is_last ? STEP : w->stride;
        const uint8_t *weights = w->ring[w->slot];
        w->slot = (w->slot + 1) % RING;
        uint64_t room[2][STEP_MASKS];
        masks next = next_masks(w, kind, room);
        LOAD_TILE(6, weights, STEP);
        if (use == ONE_TILE && step % 2 == 1) {
            LOAD_TILE(5, first, stride);
            MULTIPLY(use, 2, 5, 6);
            expand_quarter(next, kind, 0);
            LOAD_TILE(7, weights + TILE_BYTES, STEP);
            MULTIPLY(use, 3, 5, 7);
            expand_quarter(next, kind, 1);
        } else {
            LOAD_TILE(4, first, stride);
            MULTIPLY(use, 0, 4, 6);
            expand_quarter(next, kind, 0);
            LOAD_TILE(7, weights + TILE_BYTES, STEP);
            MULTIPLY(use, 1, 4, 7);
            expand_quarter(next, kind, 1);
        }
        if (use != ONE_TILE) {
            LOAD_TILE(5, second, stride);
            MULTIPLY(use, 2, 5, 6);
        }
        expand_quarter(next, kind, 2);
        if (use != ONE_TILE) MULTIPLY(use, 3, 5, 7);
        expand_quarter(next, kind, 3);
        if (spreads) finish_some(w, before, n_rows);
    }
    finish(w, before);
}

/* ---- Codes ---- */

/* 64 codes as bytes, of a token's word of nonzero bits and one of signs. */
INLINE __m512i bytes_of_signs(uint64_t nonzero, uint64_t sign)
{
    __m512i bytes = _mm512_maskz_mov_epi8((__mmask64)nonzero, _mm512_set1_epi8(-1));
    return _mm512_mask_mov_epi8(bytes, (__mmask64)(nonzero & sign), _mm512_set1_epi8(1));
}

/* Makes the bytes of rows of tile i, for tokens from `token` on. */
static void make_bytes(work *w, code_kind kind, int i, size_t token)
{
    const bitm_gemm *gemm = w->gemm;
    size_t n_words = w->n_steps;
    for (size_t row = 0; row < w->n_rows; row++) {
        uint8_t *bytes = w->bytes[i][row];
        const uint64_t *planes =
            (const uint64_t *)gemm->inputs +
            (token + row) * n_words * (kind == CODES_SIGN ? 2 : gemm->n_planes);
        for (size_t word = 0; word < n_words; word++, bytes += STEP) {
            __m512i all = _mm512_setzero_si512();
            if (kind == CODES_SIGN)
                all = bytes_of_signs(planes[word], planes[n_words + word]);
            else
                for (size_t p = 0; p < gemm->n_planes; p++)
                    all = _mm512_mask_add_epi8(all, (__mmask64)planes[p * n_words + word], all,
                                               _mm512_set1_epi8((char)gemm->plane_weights[p]));
            _mm512_store_si512(bytes, all);
        }
    }
}

/* Makes the low and high bytes of int16 codes, for tokens from `token` on. */
static void split_words(work *w, size_t token)
{
    uint32_t n = w->gemm->n_inputs;
    for (size_t row = 0; row < w->n_rows; row++) {
        const int16_t *codes = (const int16_t *)w->gemm->inputs + (token + row) * n;
        for (uint32_t i = 0; i < n; i += 32) {
            __mmask32 exist = (__mmask32)first_bytes(smaller(n - i, 32));
            __m512i words = _mm512_maskz_loadu_epi16(exist, codes + i);
            _mm256_store_si256((__m256i *)(w->bytes[0][row] + i), _mm512_cvtepi16_epi8(words));
            _mm256_store_si256((__m256i *)(w->bytes[1][row] + i),
                               _mm512_cvtepi16_epi8(_mm512_srai_epi16(words, 8)));
        }
        if ((n + 31) / 32 % 2 == 1) { /* half a step more */
            uint32_t end = (n + 31) / 32 * 32;
            memset(w->bytes[0][row] + end, 0, 32);
            memset(w->bytes[1][row] + end, 0, 32);
        }
    }
}

/* The last step of tile i's rows, zeros where they end. */
static void copy_last(work *w, int i, uint32_t n)
{
    const uint8_t *from = w->codes[i] + (size_t)(w->n_steps - 1) * STEP;
    for (size_t row = 0; row < w->n_rows; row++)
        _mm512_store_si512(w->last_codes[i] + row * STEP,
                           _mm512_maskz_loadu_epi8(first_bytes(n), from + row * w->stride));
    w->last[i] = w->last_codes[i];
}

/* Codes of tile i, for tokens from `token` on. */
static void prepare_codes(work *w, code_kind kind, int i, size_t token)
{
    uint32_t n_before = (w->n_steps - 1) * STEP;
    if (kind == CODES_I8) {
        w->codes[i] = (const uint8_t *)w->gemm->inputs + token * w->gemm->n_inputs;
        w->stride = w->gemm->n_inputs;
        copy_last(w, i, w->gemm->n_inputs - n_before);
        return;
    }
    w->codes[i] = w->bytes[i][0];
    w->stride = BYTES_STRIDE;
    if (kind == CODES_SIGN || kind == CODES_PLANES) make_bytes(w, kind, i, token);
    copy_last(w, i, STEP);
}

/* ---- The product ---- */

/* The tiles of tokens that are prepared, with all panels.  tokens: their first ones, n_done: how
 * many of each were in an earlier tile. */
INLINE void multiply_tiles(work *w, bitm_dtype weights, tile_use use, const bool spreads,
                           const uint32_t tokens[2], const uint32_t n_done[2])
{
    for (uint32_t panel = 0; panel < w->n_panels; panel++) {
        pending *now = &w->pending[w->turn];
        w->turn = 1 - w->turn;
        add_steps(w, weights, use, spreads, &w->pending[w->turn]);
        now->use = use;
        now->n_tiles = now->n_left = use == TWO_TILES ? 2 : 1;
        now->row = n_done[0];
        for (uint32_t i = 0; i < 2; i++) {
            uint32_t first = w->first + panel * PANEL + i * TILE;
            now->token[i] = tokens[i];
            now->n_done[i] = n_done[i];
            now->halves[i] =
                begin_epilogue(w->gemm, first, outputs_between(first, w->output, w->end));
        }
        _tile_stored(0, now->sums[0][0], sizeof now->sums[0][0]);
        _tile_stored(1, now->sums[0][0] + TILE, sizeof now->sums[0][0]);
        _tile_stored(2, now->sums[1][0], sizeof now->sums[1][0]);
        _tile_stored(3, now->sums[1][0] + TILE, sizeof now->sums[1][0]);
    }
}

/* Tiles have the same number of tokens, so that they are configured once; the last one begins with
 * tokens of the one before where they do not come out even. */
INLINE void multiply(const bitm_gemm *gemm, bitm_dtype weights, code_kind codes, uint32_t token,
                     uint32_t n_tokens, uint32_t output, uint32_t n_outputs)
{
    work *w = gemm->scratch;
    uint32_t n_tiles = (n_tokens + TILE - 1) / TILE;
    const uint32_t n_together = codes == CODES_I16 ? 1 : 2;
    w->gemm = gemm;
    w->output = output;
    w->end = output + n_outputs;
    w->first = output / PANEL * PANEL;
    w->n_panels = (w->end - w->first + PANEL - 1) / PANEL;
    w->n_steps = (gemm->n_inputs + STEP - 1) / STEP;
    w->n_rows = (n_tokens + n_tiles - 1) / n_tiles;
    w->slot = w->turn = w->pending[0].n_left = w->pending[1].n_left = 0;
    w->ahead =
        (expansion){.n_left = (n_tiles + n_together - 1) / n_together * w->n_panels * w->n_steps};
    configure_tiles(w->n_rows);
    for (int i = 0; i < RING - 1; i++) {
        uint64_t room[2][STEP_MASKS];
        masks next = next_masks(w, weights, room);
#pragma GCC unroll 4
        for (uint32_t quarter = 0; quarter < 4; quarter++)
            expand_quarter(next, weights, quarter);
    }
    for (uint32_t tile = 0; tile < n_tiles; tile += n_together) {
        bool one = n_together == 1 || tile + 1 == n_tiles;
        uint32_t tokens[2] = {0}, n_done[2] = {0};
        for (uint32_t i = 0; i < (one ? 1 : 2); i++) {
            uint32_t first = smaller((tile + i) * w->n_rows, n_tokens - w->n_rows);
            tokens[i] = token + first;
            n_done[i] = (tile + i) * w->n_rows - first;
            if (codes == CODES_I16) split_words(w, tokens[i]);
            prepare_codes(w, codes, (int)i, tokens[i]);
        }
        if (codes == CODES_I16) {
            prepare_codes(w, codes, 1, tokens[0]);
            multiply_tiles(w, weights, TWO_BYTES, false, tokens, n_done);
        } else if (one) {
            w->codes[1] = w->codes[0];
            w->last[1] = w->last[0];
            multiply_tiles(w, weights, ONE_TILE, false, tokens, n_done);
        } else if (gemm->activation != BITM_ACTIVATION_NONE) {
            multiply_tiles(w, weights, TWO_TILES, true, tokens, n_done);
        } else {
            multiply_tiles(w, weights, TWO_TILES, false, tokens, n_done);
        }
    }
    finish(w, &w->pending[1 - w->turn]);
    _tile_release();
}

void bitm_gemm_w1a8__amx(const bitm_gemm *gemm, uint32_t token, uint32_t n_tokens, uint32_t output,
                         uint32_t n_outputs)
{
    multiply(gemm, BITM_DTYPE_BIT1, CODES_I8, token, n_tokens, output, n_outputs);
}

void bitm_gemm_w2a8__amx(const bitm_gemm *gemm, uint32_t token, uint32_t n_tokens, uint32_t output,
                         uint32_t n_outputs)
{
    multiply(gemm, BITM_DTYPE_TERN, CODES_I8, token, n_tokens, output, n_outputs);
}

/* ---- Codes whose bytes are made first, where there is room for them ---- */

/* The same product in the file's layout of weights, for a kernel of another packing. */
INLINE bitm_gemm unpacked(const bitm_gemm *gemm)
{
    bitm_gemm other = *gemm;
    other.packed = NULL;
    return other;
}

/* Whether codes of the planes fit into a byte. */
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

#define PRODUCT(op, weights, codes, fits, fallback)                                                \
    void bitm_gemm_##op##__amx(const bitm_gemm *gemm, uint32_t token, uint32_t n_tokens,           \
                               uint32_t output, uint32_t n_outputs)                                \
    {                                                                                              \
        if (gemm->n_inputs <= MAX_BYTES && (fits)) {                                               \
            multiply(gemm, weights, codes, token, n_tokens, output, n_outputs);                    \
        } else {                                                                                   \
            bitm_gemm other = unpacked(gemm);                                                      \
            bitm_gemm_##op##__##fallback(&other, token, n_tokens, output, n_outputs);              \
        }                                                                                          \
    }

PRODUCT(w1a16, BITM_DTYPE_BIT1, CODES_I16, true, vnni)
PRODUCT(w2a16, BITM_DTYPE_TERN, CODES_I16, true, vnni)
PRODUCT(w1sign, BITM_DTYPE_BIT1, CODES_SIGN, true, vpopcnt)
PRODUCT(w2sign, BITM_DTYPE_TERN, CODES_SIGN, true, vpopcnt)
PRODUCT(w1planes, BITM_DTYPE_BIT1, CODES_PLANES, planes_fit(gemm), vpopcnt)
PRODUCT(w2planes, BITM_DTYPE_TERN, CODES_PLANES, planes_fit(gemm), vpopcnt)
