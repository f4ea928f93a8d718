#include "select.h"

#include <string.h>

typedef void any_fn(void);

static const char *const op_names[BITM_N_OPS] = {
#define BITM_OP(op) #op,
    BITM_OPS(BITM_OP)
#undef BITM_OP
};

static const struct entry {
    bitm_op op;
    const char *variant;
    bitm_tier tier;
    any_fn *function;
} entries[] = {
#define BITM_KERNEL(op, variant, tier)                                                             \
    {BITM_OP_##op, #variant, tier, (any_fn *)bitm_##op##__##variant},
#include "kernels.def"
#undef BITM_KERNEL
};

enum { N_ENTRIES = sizeof entries / sizeof entries[0] };

static const bitm_packing *packing_of(const struct entry *entry)
{
#define BITM_KERNEL(op, variant, tier)
#define BITM_PACKING(op, variant, packing)                                                         \
    if (entry->function == (any_fn *)bitm_##op##__##variant) return &bitm_packing__##packing;
#include "kernels.def"
#undef BITM_KERNEL
    (void)entry;
    return NULL;
}

static size_t scratch_of(const struct entry *entry)
{
    size_t n_bytes = 0;
#define BITM_KERNEL(op, variant, tier)
#define BITM_SCRATCH(op, variant, scratch)                                                         \
    if (entry->function == (any_fn *)bitm_##op##__##variant && n_bytes < bitm_scratch__##scratch)  \
        n_bytes = bitm_scratch__##scratch;
#include "kernels.def"
#undef BITM_KERNEL
    (void)entry;
    return n_bytes;
}

static void choose(bitm_kernel_table *table, const struct entry *entry)
{
    table->packing[entry->op] = packing_of(entry);
    table->scratch_bytes[entry->op] = scratch_of(entry);
    switch (entry->op) {
#define BITM_OP(op)                                                                                \
    case BITM_OP_##op:                                                                             \
        table->op = (bitm_##op##_fn *)entry->function;                                             \
        break;
        BITM_OPS(BITM_OP)
#undef BITM_OP
    case BITM_N_OPS:
        break;
    }
}

static any_fn *chosen(const bitm_kernel_table *table, bitm_op op)
{
    switch (op) {
#define BITM_OP(op)                                                                                \
    case BITM_OP_##op:                                                                             \
        return (any_fn *)table->op;
        BITM_OPS(BITM_OP)
#undef BITM_OP
    case BITM_N_OPS:
        break;
    }
    return NULL;
}

static bool equals(const char *name, const char *text, size_t n)
{
    return strlen(name) == n && memcmp(name, text, n) == 0;
}

/* One "op=variant" of n characters. */
static bitm_status force(bitm_kernel_table *table, const char *text, size_t n, bitm_error *err)
{
    if (equals("attention=tensor", text, n)) {
        table->tensor_attention = true;
        return BITM_OK;
    }
    const char *sign = memchr(text, '=', n);
    BITM_CHECK(sign != NULL, BITM_ARGUMENT, err, "kernels: '%.*s' is not op=variant", (int)n, text);
    size_t op_length = (size_t)(sign - text), variant_length = n - op_length - 1;
    for (size_t i = 0; i < N_ENTRIES; i++) {
        const struct entry *entry = &entries[i];
        if (!equals(op_names[entry->op], text, op_length) ||
            !equals(entry->variant, sign + 1, variant_length))
            continue;
        BITM_CHECK(bitm_cpu_has(entry->tier), BITM_UNSUPPORTED, err,
                   "kernels: this machine cannot run %.*s", (int)n, text);
        choose(table, entry);
        return BITM_OK;
    }
    return bitm_fail(err, BITM_ARGUMENT, "kernels: there is no kernel %.*s", (int)n, text);
}

bitm_status bitm_kernels_select(bitm_kernel_table *table, const char *forced, bitm_error *err)
{
    for (size_t i = N_ENTRIES; i-- > 0;)
        if (bitm_cpu_prefers(entries[i].tier)) choose(table, &entries[i]);
    table->tensor_attention = false;
    while (forced != NULL && *forced != '\0') {
        size_t n = strcspn(forced, ",");
        BITM_TRY(force(table, forced, n, err));
        forced += n + (forced[n] == ',');
    }
    return BITM_OK;
}

/* The modes whose ops contain one. */
static uint32_t modes_with(const uint64_t *ops_of_mode, bitm_op op)
{
    uint32_t modes = 0;
    for (uint32_t mode = BITM_ACTIVATIONS_INT8;
         ops_of_mode != NULL && mode <= BITM_ACTIVATIONS_INT11; mode++)
        if (ops_of_mode[mode] >> op & 1) modes |= 1U << mode;
    return modes;
}

size_t bitm_kernels_list(const bitm_kernel_table *table, const uint64_t *ops_of_mode,
                         bitm_kernel *kernels, size_t capacity)
{
    for (size_t i = 0; i < N_ENTRIES && i < capacity; i++) {
        bool is_chosen = chosen(table, entries[i].op) == entries[i].function;
        kernels[i] = (bitm_kernel){
            .op = op_names[entries[i].op],
            .variant = entries[i].variant,
            .available = bitm_cpu_has(entries[i].tier),
            .chosen = is_chosen,
            .modes = is_chosen ? modes_with(ops_of_mode, entries[i].op) : 0,
        };
    }
    return N_ENTRIES;
}
