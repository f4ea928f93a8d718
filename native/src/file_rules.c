#include "file_rules.h"

#include <inttypes.h>
#include <string.h>

enum { MAX_ATTENTION_SIZE = 16384 };

bool bitm_bytes_are_zero(const uint8_t *bytes, uint64_t n_bytes)
{
    for (uint64_t i = 0; i < n_bytes; i++)
        if (bytes[i] != 0) return false;
    return true;
}

static uint32_t bits_of(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static bool is_finite(float value)
{
    return (bits_of(value) & 0x7FFFFFFF) < BITM_F32_INFINITY;
}

/* A field that is 0, or at least 0, is never -0: one model has one file. */
static bool is_zero(float value)
{
    return bits_of(value) == 0;
}

static bool is_nonnegative(float value)
{
    return bits_of(value) < BITM_F32_INFINITY;
}

static bool is_positive(float value)
{
    return is_nonnegative(value) && !is_zero(value);
}

static bitm_status check_number(const char *field, int64_t value, int64_t least, int64_t greatest,
                                bitm_error *err)
{
    BITM_CHECK(value >= least && value <= greatest, BITM_FILE_CONFIG, err,
               "configuration: %s is %" PRId64 ", expected %" PRId64 " to %" PRId64, field, value,
               least, greatest);
    return BITM_OK;
}

/* A field that is 0 where it is not used. */
static bitm_status check_number_if(bool used, const char *field, int64_t value, int64_t least,
                                   int64_t greatest, bitm_error *err)
{
    return used ? check_number(field, value, least, greatest, err)
                : check_number(field, value, 0, 0, err);
}

static bitm_status check_eps_if(bool used, const char *field, float value, bitm_error *err)
{
    BITM_CHECK(used ? is_nonnegative(value) : is_zero(value), BITM_FILE_CONFIG, err,
               "configuration: %s is %g, expected %s", field, (double)value,
               used ? "a finite number, at least 0" : "0");
    return BITM_OK;
}

static bitm_status check_flags(const char *owner, const char *field, uint32_t value, uint32_t known,
                               bitm_error *err)
{
    BITM_CHECK((value & ~known) == 0, BITM_FILE_RESERVED, err,
               "%s: %s has the reserved bits 0x%" PRIx32, owner, field, value & ~known);
    return BITM_OK;
}

/* The fields that say how large the encoder is and how it computes. */
static bitm_status check_encoder(const bitm_file_config *c, bitm_error *err)
{
    BITM_TRY(check_number("architecture", c->architecture, 1, 1, err));
    BITM_TRY(check_number("vocab_size", c->vocab_size, 1, 1 << 24, err));
    BITM_TRY(check_number("hidden_size", c->hidden_size, 1, 16384, err));
    BITM_TRY(check_number("n_layers", c->n_layers, 0, 1024, err));
    BITM_TRY(check_number("n_heads", c->n_heads, 1, 1024, err));
    BITM_TRY(check_number("head_size", c->head_size, 1, 1024, err));
    BITM_TRY(check_number("intermediate_size", c->intermediate_size, 1, 65536, err));
    BITM_TRY(check_number("max_positions", c->max_positions, 1, 65536, err));
    BITM_TRY(check_number("n_token_types", c->n_token_types, 1, 256, err));
    BITM_TRY(check_number("hidden_activation", c->hidden_activation, BITM_ACTIVATION_GELU,
                          BITM_ACTIVATION_MISH, err));
    BITM_TRY(check_eps_if(true, "layer_norm_eps", c->layer_norm_eps, err));
    BITM_TRY(check_number("attention_normalizer", c->attention_normalizer, BITM_NORMALIZER_NONE,
                          BITM_NORMALIZER_SOFTMAX, err));
    BITM_CHECK(is_positive(c->score_scale), BITM_FILE_CONFIG, err,
               "configuration: score_scale is %g, expected a finite number above 0",
               (double)c->score_scale);
    BITM_TRY(check_number("score_rank", c->score_rank, 0, 64, err));
    BITM_TRY(check_number("value_term", c->value_term, 0, 1, err));
    return check_eps_if(true, "rms_norm_eps", c->rms_norm_eps, err);
}

static bitm_status check_heads(const bitm_file_config *c, bitm_error *err)
{
    BITM_TRY(check_number("pooler", c->pooler, BITM_POOLER_NONE, BITM_POOLER_NORM_SKIP, err));
    BITM_TRY(check_eps_if(c->pooler == BITM_POOLER_NORM_SKIP, "pooler_norm_eps", c->pooler_norm_eps,
                          err));
    BITM_TRY(check_number("head", c->head, BITM_HEAD_NONE, BITM_HEAD_QUESTION_ANSWERING, err));
    bool has_labels = c->head == BITM_HEAD_CLASSIFIER || c->head == BITM_HEAD_TOKEN_CLASSIFIER;
    bool has_lm = c->head == BITM_HEAD_MASKED_LM || c->head == BITM_HEAD_MASKED_LM_NEXT_SENTENCE;
    if (c->head == BITM_HEAD_QUESTION_ANSWERING)
        BITM_TRY(check_number("n_labels", c->n_labels, 2, 2, err));
    else
        BITM_TRY(check_number_if(has_labels, "n_labels", c->n_labels, 1, 65536, err));
    BITM_TRY(check_number_if(has_labels, "problem", c->problem, 1, 4, err));
    BITM_TRY(check_number_if(has_lm, "head_activation", c->head_activation, BITM_ACTIVATION_GELU,
                             BITM_ACTIVATION_MISH, err));
    return check_eps_if(has_lm, "head_norm_eps", c->head_norm_eps, err);
}

static bitm_status check_tokenizer(const bitm_file_config *c, uint32_t n_tokens, bitm_error *err)
{
    enum {
        KNOWN = BITM_TOKENIZER_LOWERCASE | BITM_TOKENIZER_STRIP_ACCENTS | BITM_TOKENIZER_SPLIT_CJK,
    };
    bool present = n_tokens > 0;
    BITM_TRY(check_number("tokenizer", c->tokenizer, present, present, err));
    BITM_TRY(check_flags("configuration", "tokenizer_flags", c->tokenizer_flags, KNOWN, err));
    BITM_TRY(check_number_if(present, "tokenizer_flags", c->tokenizer_flags, 0, KNOWN, err));
    BITM_TRY(check_number_if(present, "max_word_chars", c->max_word_chars, 1, 4096, err));
    int64_t last = (int64_t)n_tokens - 1;
    BITM_TRY(check_number("unk_id", c->unk_id, present ? 0 : -1, last, err));
    BITM_TRY(check_number("cls_id", c->cls_id, -1, last, err));
    BITM_TRY(check_number("sep_id", c->sep_id, -1, last, err));
    BITM_TRY(check_number("pad_id", c->pad_id, -1, last, err));
    return check_number("mask_id", c->mask_id, -1, last, err);
}

bitm_status bitm_file_check_config(const bitm_file_config *c, uint32_t n_tokens, bitm_error *err)
{
    BITM_TRY(check_encoder(c, err));
    BITM_TRY(check_heads(c, err));
    BITM_TRY(check_flags("configuration", "flags", c->flags, BITM_FLAG_PROBABILITY_MIN_ZERO, err));
    BITM_TRY(check_tokenizer(c, n_tokens, err));
    BITM_CHECK(bitm_bytes_are_zero(c->reserved, sizeof c->reserved), BITM_FILE_RESERVED, err,
               "configuration: reserved bytes are not 0");
    BITM_TRY(check_number("n_heads x head_size", (int64_t)c->n_heads * c->head_size, 1,
                          MAX_ATTENTION_SIZE, err));
    bool needs_pooler =
        c->head == BITM_HEAD_MASKED_LM_NEXT_SENTENCE || c->head == BITM_HEAD_CLASSIFIER;
    BITM_CHECK(!needs_pooler || c->pooler != BITM_POOLER_NONE, BITM_FILE_CONFIG, err,
               "configuration: head %" PRIu32 " needs a pooler, but pooler is 0", c->head);
    BITM_CHECK(n_tokens <= c->vocab_size, BITM_FILE_CONFIG, err,
               "configuration: vocab_size is %" PRIu32 ", below n_tokens %" PRIu32, c->vocab_size,
               n_tokens);
    return BITM_OK;
}

static bool codes_fit(const bitm_file_quantizer *q)
{
    /* 2^n - 1 for some n, where hi is at least 1 */
    bool hi_is_ones = q->hi >= 1 && q->hi <= 255 && (q->hi & (q->hi + 1)) == 0;
    switch (q->kind) {
    case BITM_QUANTIZER_SIGN:
        return q->lo == -1 && q->hi == 1;
    case BITM_QUANTIZER_INT:
        return q->lo >= -32768 && q->lo < q->hi && q->hi <= 32767;
    case BITM_QUANTIZER_INT_MIN:
        return q->lo == 0 && q->hi >= 1 && q->hi <= 255;
    case BITM_QUANTIZER_DYN_SYM:
        return hi_is_ones && q->hi <= 127 && q->lo == -q->hi - 1;
    case BITM_QUANTIZER_DYN_ASYM:
        return q->lo == 0 && hi_is_ones;
    default: /* BITM_QUANTIZER_BOOL */
        return q->lo == 0 && q->hi == 1;
    }
}

bitm_status bitm_file_check_quantizer(const bitm_file_quantizer *q, bitm_error *err)
{
    BITM_CHECK(q->kind >= BITM_QUANTIZER_SIGN && q->kind <= BITM_QUANTIZER_BOOL,
               BITM_FILE_QUANTIZER, err, "quantizer %s: kind %" PRIu32 " is unknown", q->name,
               q->kind);
    bool is_dynamic = q->kind == BITM_QUANTIZER_DYN_SYM || q->kind == BITM_QUANTIZER_DYN_ASYM;
    bool has_scope = is_dynamic || q->kind == BITM_QUANTIZER_INT_MIN;
    bool has_step = !is_dynamic && q->kind != BITM_QUANTIZER_BOOL;
    BITM_CHECK(has_scope ? q->scope == BITM_SCOPE_TOKEN || q->scope == BITM_SCOPE_SEQUENCE
                         : q->scope == BITM_SCOPE_STATIC,
               BITM_FILE_QUANTIZER, err,
               "quantizer %s: scope %" PRIu32 " is not allowed for kind %" PRIu32, q->name,
               q->scope, q->kind);
    BITM_CHECK(codes_fit(q), BITM_FILE_QUANTIZER, err,
               "quantizer %s: codes from %" PRId32 " to %" PRId32
               " are not allowed for kind %" PRIu32,
               q->name, q->lo, q->hi, q->kind);
    BITM_CHECK(has_step ? is_positive(q->step) : bits_of(q->step) == bits_of(1.0F),
               BITM_FILE_QUANTIZER, err, "quantizer %s: step is %g, expected %s", q->name,
               (double)q->step, has_step ? "a finite number above 0" : "1");
    BITM_CHECK(is_dynamic ? is_nonnegative(q->eps) : is_zero(q->eps), BITM_FILE_QUANTIZER, err,
               "quantizer %s: eps is %g, expected %s", q->name, (double)q->eps,
               is_dynamic ? "a finite number, at least 0" : "0");
    bool clip_fits = (q->flags & BITM_QUANTIZER_CLIP) != 0
                         ? is_dynamic && is_finite(q->clip_lo) && is_finite(q->clip_hi) &&
                               q->clip_lo <= q->clip_hi
                         : is_zero(q->clip_lo) && is_zero(q->clip_hi);
    BITM_CHECK(clip_fits, BITM_FILE_QUANTIZER, err,
               "quantizer %s: clipping from %g to %g is not allowed for kind %" PRIu32
               " with flags %" PRIu32,
               q->name, (double)q->clip_lo, (double)q->clip_hi, q->kind, q->flags);
    BITM_TRY(check_flags(q->name, "flags", q->flags, BITM_QUANTIZER_CLIP, err));
    BITM_CHECK(bitm_bytes_are_zero(q->reserved, sizeof q->reserved), BITM_FILE_RESERVED, err,
               "quantizer %s: reserved bytes are not 0", q->name);
    return BITM_OK;
}
