#include "tokenizer.h"

#include <string.h>

#include "text.h"

/* Marks a piece that continues a word. */
static const char CONTINUATION[] = "##";
enum { CONTINUATION_BYTES = 2 };

/* ---- The index of tokens ----
 *
 * Open addressing with linear probing, at most half full, 4 bytes a slot: 256 KB for BERT's
 * vocabulary.  A slot is 0 when free; otherwise its low bits are id + 1 and its high bits are those
 * of the token's hash, so that nearly every comparison of bytes is one that succeeds. */

/* FNV-1a, which can be carried on over a growing piece. */
#define HASH_OF_NOTHING 2166136261u

static uint32_t hash_more(uint32_t hash, const char *bytes, size_t n_bytes)
{
    for (size_t i = 0; i < n_bytes; i++) {
        hash = (hash ^ (unsigned char)bytes[i]) * 16777619u;
    }
    return hash;
}

/* Tokens of a vocabulary that is not made to collide need between one and two probes each. */
enum { MAX_MEAN_PROBES = 64 };

static uint32_t count_slots(uint32_t n_tokens)
{
    uint32_t n_slots = 16;
    while (n_slots < 2 * n_tokens) {
        n_slots *= 2;
    }
    return n_slots;
}

size_t bitm_tokenizer_bytes(const bitm_vocabulary *v)
{
    return count_slots(v->n_tokens) * sizeof(uint32_t);
}

const char *bitm_tokenizer_token(const bitm_tokenizer *t, int32_t id, size_t *n_bytes)
{
    const uint32_t *offset = t->vocabulary.offsets + id;
    *n_bytes = offset[1] - offset[0];
    return t->vocabulary.bytes + offset[0];
}

/* A token to look up: the two parts of its bytes one after the other, and the hash of both. */
typedef struct token_key {
    const char *prefix;
    size_t n_prefix_bytes;
    const char *rest;
    size_t n_rest_bytes;
    uint32_t hash;
} token_key;

static bool token_is(const bitm_tokenizer *t, int32_t id, const token_key *key)
{
    size_t n_bytes;
    const char *token = bitm_tokenizer_token(t, id, &n_bytes);
    return n_bytes == key->n_prefix_bytes + key->n_rest_bytes &&
           memcmp(token, key->prefix, key->n_prefix_bytes) == 0 &&
           memcmp(token + key->n_prefix_bytes, key->rest, key->n_rest_bytes) == 0;
}

/* The slot that holds the token, or the free one where it would go. */
static uint32_t *find_slot(const bitm_tokenizer *t, const token_key *key, uint64_t *n_probes)
{
    for (uint32_t at = key->hash & t->slot_mask;; at = (at + 1) & t->slot_mask) {
        uint32_t slot = t->slots[at];
        *n_probes += 1;
        bool same_hash = ((slot ^ key->hash) & ~t->id_mask) == 0;
        if (slot == 0 || (same_hash && token_is(t, (int32_t)(slot & t->id_mask) - 1, key))) {
            return &t->slots[at];
        }
    }
}

static int32_t find_id(const bitm_tokenizer *t, const token_key *key)
{
    uint64_t n_probes = 0;
    uint32_t slot = *find_slot(t, key, &n_probes);
    return (int32_t)(slot & t->id_mask) - 1;
}

static token_key key_of(const char *token, size_t n_bytes)
{
    return (token_key){"", 0, token, n_bytes, hash_more(HASH_OF_NOTHING, token, n_bytes)};
}

int32_t bitm_tokenizer_find(const bitm_tokenizer *t, const char *token, size_t n_bytes)
{
    token_key key = key_of(token, n_bytes);
    return find_id(t, &key);
}

/* ---- Special tokens ---- */

static int32_t special_id(const bitm_tokenizer *t, int which)
{
    const bitm_vocabulary *v = &t->vocabulary;
    const int32_t ids[BITM_N_SPECIAL_TOKENS] = {v->unk_id, v->cls_id, v->sep_id, v->pad_id,
                                                v->mask_id};
    return ids[which];
}

/* The special token that begins at the text's first byte: the longest of them, as the library
 * chooses; or -1.  They are matched byte for byte, before normalization, and also within words. */
static int32_t match_special(const bitm_tokenizer *t, const char *text, size_t n_bytes,
                             size_t *n_matched)
{
    int32_t best = -1;
    *n_matched = 0;
    if (!t->begins_special_token[(unsigned char)text[0]]) return best;
    for (int which = 0; which < BITM_N_SPECIAL_TOKENS; which++) {
        int32_t id = special_id(t, which);
        if (id < 0) continue;
        size_t n_token_bytes;
        const char *token = bitm_tokenizer_token(t, id, &n_token_bytes);
        if (n_token_bytes > *n_matched && n_token_bytes <= n_bytes &&
            memcmp(token, text, n_token_bytes) == 0) {
            best = id;
            *n_matched = n_token_bytes;
        }
    }
    return best;
}

/* ---- Making a tokenizer ---- */

static bitm_status check_configuration(const bitm_tokenizer *t, bitm_error *err)
{
    const bitm_vocabulary *v = &t->vocabulary;
    BITM_CHECK(v->n_tokens >= 1 && v->n_tokens <= BITM_VOCABULARY_LIMIT, BITM_FILE_CONFIG, err,
               "n_tokens: expected 1 to %u, found %u", BITM_VOCABULARY_LIMIT,
               (unsigned)v->n_tokens);
    BITM_CHECK(v->max_word_chars >= 1 && v->max_word_chars <= BITM_WORD_CHARS_LIMIT,
               BITM_FILE_CONFIG, err, "max_word_chars: expected 1 to %u, found %u",
               BITM_WORD_CHARS_LIMIT, (unsigned)v->max_word_chars);
    static const char *const names[BITM_N_SPECIAL_TOKENS] = {"unk_id", "cls_id", "sep_id", "pad_id",
                                                             "mask_id"};
    for (int which = 0; which < BITM_N_SPECIAL_TOKENS; which++) {
        int32_t id = special_id(t, which);
        int32_t smallest = which == 0 ? 0 : -1;
        BITM_CHECK(id >= smallest && id < (int32_t)v->n_tokens, BITM_FILE_CONFIG, err,
                   "%s: expected %d to %d, found %d", names[which], (int)smallest,
                   (int)v->n_tokens - 1, (int)id);
    }
    return BITM_OK;
}

static bitm_status index_tokens(bitm_tokenizer *t, bitm_error *err)
{
    const bitm_vocabulary *v = &t->vocabulary;
    uint64_t n_probes = 0;
    for (uint32_t id = 0; id < v->n_tokens; id++) {
        uint32_t from = v->offsets[id];
        uint32_t to = v->offsets[id + 1];
        BITM_CHECK(from <= to && to - from <= BITM_TOKEN_BYTES_LIMIT, BITM_FILE_VOCABULARY, err,
                   "token %u: expected at most %u bytes, found offsets %u to %u", (unsigned)id,
                   BITM_TOKEN_BYTES_LIMIT, (unsigned)from, (unsigned)to);
        token_key key = key_of(v->bytes + from, to - from);
        uint32_t *slot = find_slot(t, &key, &n_probes);
        *slot = (key.hash & ~t->id_mask) | (id + 1);
        if (to - from > t->longest_token) t->longest_token = to - from;
        BITM_CHECK(n_probes / MAX_MEAN_PROBES <= v->n_tokens, BITM_UNSUPPORTED, err,
                   "token %u: expected tokens that spread over the index, found ones that collide",
                   (unsigned)id);
    }
    return BITM_OK;
}

bitm_status bitm_tokenizer_init(bitm_tokenizer *t, const bitm_vocabulary *v, void *memory,
                                bitm_error *err)
{
    *t = (bitm_tokenizer){.vocabulary = *v, .slots = memory};
    BITM_TRY(check_configuration(t, err));
    t->slot_mask = count_slots(v->n_tokens) - 1;
    t->id_mask = t->slot_mask; /* at least 2 * n_tokens - 1, so n_tokens fits */
    memset(t->slots, 0, bitm_tokenizer_bytes(v));
    BITM_TRY(index_tokens(t, err));
    for (int which = 0; which < BITM_N_SPECIAL_TOKENS; which++) {
        int32_t id = special_id(t, which);
        if (id < 0) continue;
        size_t n_bytes;
        const char *token = bitm_tokenizer_token(t, id, &n_bytes);
        if (n_bytes > 0) t->begins_special_token[(unsigned char)token[0]] = true;
    }
    return BITM_OK;
}

/* ---- Text to ids ---- */

/* Where ids go: counted always, written while there is room. */
typedef struct id_list {
    int32_t *ids;
    bitm_span *spans; /* NULL: not wanted */
    size_t capacity;
    size_t n_ids;
} id_list;

static void append_id(id_list *list, int32_t id, bitm_span span)
{
    if (list->n_ids < list->capacity) {
        list->ids[list->n_ids] = id;
        if (list->spans != NULL) list->spans[list->n_ids] = span;
    }
    list->n_ids++;
}

/* Where a character of the word comes from: the byte of the text at which its source begins.  Of a
 * mark of a run that has not ended (order above 0), `at` numbers the sources of that order. */
typedef struct source {
    unsigned order;
    size_t at;
} source;

/* The run of combining marks under way: what of it strip_accents leaves is put into canonical
 * order.  The library sorts before it drops marks, and then takes the sources in the order of the
 * text: so the k-th mark of the sorted run, the dropped ones included, comes from the run's k-th
 * source.  When the run ends, it is known how many marks of every order it has. */
typedef struct mark_run {
    size_t first_byte, first_char; /* of the run in the word */
    size_t n[BITM_CHAR_ORDERS];    /* sources so far, by order */
    size_t n_sources;
    size_t begin;  /* of the first source in the text */
    size_t before; /* begin of the character that decomposed to marks of the run, before them */
    bool is_open;  /* it has begun */
} mark_run;

/* The normalized word under way.  Code points beyond max_word_chars are only counted: such a word
 * becomes unk whatever it is. */
typedef struct word {
    char bytes[4 * BITM_WORD_CHARS_LIMIT];
    size_t sources[BITM_WORD_CHARS_LIMIT]; /* source.at of each code point in bytes */
    size_t n_bytes;
    size_t n_stored; /* code points in bytes */
    size_t n_chars;
    source first, last; /* of all code points */
    mark_run marks;
} word;

typedef struct encoder {
    const bitm_tokenizer *tokenizer;
    const char *text;
    size_t n_text_bytes;
    id_list *list;
    word word;
} encoder;

/* The code point of the text at *at, which moves behind it; what is read was found well-formed. */
static uint32_t next_char(const encoder *e, size_t *at)
{
    uint32_t code_point = 0;
    (void)bitm_utf8_decode(e->text, e->n_text_bytes, at, &code_point);
    return code_point;
}

/* From the begin of one source to the end of another. */
static bitm_span span_of(const encoder *e, size_t first, size_t last)
{
    (void)next_char(e, &last);
    return (bitm_span){first, last};
}

static size_t start_of_last_char(const char *bytes, size_t n_bytes)
{
    size_t at = n_bytes - 1;
    while (((unsigned char)bytes[at] & 0xC0) == 0x80) {
        at--;
    }
    return at;
}

/* A walk over the sources of a run of marks: number 1 is the first, 0 what comes before. */
typedef struct source_walk {
    size_t number, begin, end;
} source_walk;

/* Walks on to a source (not backwards); returns where it begins. */
static size_t walk_to(const encoder *e, source_walk *walk, size_t number)
{
    while (walk->number < number) {
        walk->begin = walk->end;
        if (bitm_char_kind_of(next_char(e, &walk->end)) != BITM_CHAR_REMOVED) walk->number++;
    }
    return walk->begin;
}

static void find_source(const encoder *e, source_walk *walk, const size_t n_before[], source *s)
{
    if (s->order == 0) return;
    *s = (source){.at = walk_to(e, walk, n_before[s->order] + s->at)};
}

/* The sources of the run's marks become bytes of the text. */
static void find_sources(const encoder *e, word *w)
{
    const mark_run *run = &w->marks;
    size_t n_before[BITM_CHAR_ORDERS] = {0}; /* sources of lower orders */
    for (unsigned order = 1; order < BITM_CHAR_ORDERS; order++)
        n_before[order] = n_before[order - 1] + run->n[order - 1];
    source_walk walk = {0, run->before, run->begin};
    find_source(e, &walk, n_before, &w->first);
    for (size_t i = run->first_char, at = run->first_byte; i < w->n_stored; i++) {
        uint32_t mark = 0;
        (void)bitm_utf8_decode(w->bytes, w->n_bytes, &at, &mark); /* well-formed: encoded */
        source s = {bitm_char_order(mark), w->sources[i]};
        find_source(e, &walk, n_before, &s);
        w->sources[i] = s.at;
    }
    find_source(e, &walk, n_before, &w->last);
}

static void end_marks(encoder *e)
{
    word *w = &e->word;
    if (!w->marks.is_open) return;
    find_sources(e, w);
    w->marks = (mark_run){.first_byte = w->n_bytes, .first_char = w->n_stored};
}

static void count_mark(mark_run *run, unsigned order, size_t begin)
{
    if (run->n_sources++ == 0) run->begin = begin;
    run->n[order]++;
    run->is_open = true;
}

/* Canonical ordering as marks arrive: a mark goes before those of the run that have a higher
 * class. */
static void store_mark(word *w, uint32_t code_point, source from)
{
    char bytes[4];
    size_t n_bytes = bitm_utf8_encode(code_point, bytes);
    size_t at = w->n_bytes, number = w->n_stored;
    while (at > w->marks.first_byte) {
        size_t before = start_of_last_char(w->bytes, at);
        size_t position = before;
        uint32_t mark = 0;
        (void)bitm_utf8_decode(w->bytes, at, &position, &mark); /* well-formed: encoded above */
        if (bitm_char_order(mark) <= from.order) break;
        at = before;
        number--;
    }
    memmove(w->bytes + at + n_bytes, w->bytes + at, w->n_bytes - at);
    memcpy(w->bytes + at, bytes, n_bytes);
    memmove(w->sources + number + 1, w->sources + number,
            (w->n_stored - number) * sizeof *w->sources);
    w->sources[number] = from.at;
    w->n_bytes += n_bytes;
    w->n_stored++;
}

/* Adds a code point that the character at byte `begin` of the text has become, as its first part or
 * a later one.  When accents stay, there are no runs of marks. */
static void append_char(encoder *e, uint32_t code_point, size_t begin, bool is_first_part)
{
    const bitm_vocabulary *v = &e->tokenizer->vocabulary;
    word *w = &e->word;
    source from = {v->strip_accents ? bitm_char_order(code_point) : 0, begin};
    if (from.order == 0) {
        end_marks(e);
    } else {
        if (is_first_part) count_mark(&w->marks, from.order, begin);
        if (!is_first_part) w->marks.before = begin;
        w->marks.is_open = true;
        from.at = w->marks.n[from.order];
    }
    if (w->n_chars == 0 || from.order < w->first.order) w->first = from;
    if (from.order >= w->last.order) w->last = from;
    bool has_room = w->n_chars++ < v->max_word_chars;
    if (has_room && from.order > 0) store_mark(w, code_point, from);
    if (!has_room || from.order > 0) return;
    w->n_bytes += bitm_utf8_encode(code_point, w->bytes + w->n_bytes);
    w->sources[w->n_stored++] = begin;
    w->marks.first_byte = w->n_bytes; /* the next run begins behind it */
    w->marks.first_char = w->n_stored;
}

static void begin_word(word *w)
{
    w->n_bytes = w->n_stored = w->n_chars = 0;
    w->first = w->last = (source){0};
    w->marks.first_byte = w->marks.first_char = 0;
}

/* The longest piece of the vocabulary that begins at `start`: its id, and in *end where it ends; -1
 * when there is none.  One pass forward notes the hash of every length up to that of the longest
 * token; the look-ups then go from the longest down, and as most words are tokens the first one
 * usually succeeds. */
static int32_t longest_piece(const bitm_tokenizer *t, const word *w, size_t start, size_t *end)
{
    uint32_t hash_at[BITM_TOKEN_BYTES_LIMIT + 1]; /* by length in bytes, without the prefix's */
    token_key key = {.prefix = CONTINUATION,
                     .n_prefix_bytes = start > 0 ? CONTINUATION_BYTES : 0,
                     .rest = w->bytes + start};
    if (t->longest_token < key.n_prefix_bytes) return -1;
    size_t n_most = t->longest_token - key.n_prefix_bytes;
    if (n_most > w->n_bytes - start) n_most = w->n_bytes - start;

    hash_at[0] = hash_more(HASH_OF_NOTHING, key.prefix, key.n_prefix_bytes);
    for (size_t i = 0; i < n_most; i++) {
        hash_at[i + 1] = hash_more(hash_at[i], key.rest + i, 1);
    }
    for (size_t n = n_most; n > 0; n--) {
        bool within_char = start + n < w->n_bytes && ((unsigned char)key.rest[n] & 0xC0) == 0x80;
        if (within_char) continue;
        key.n_rest_bytes = n;
        key.hash = hash_at[n];
        int32_t id = find_id(t, &key);
        if (id >= 0) {
            *end = start + n;
            return id;
        }
    }
    return -1;
}

static size_t count_chars(const char *bytes, size_t n_bytes)
{
    size_t n_chars = 0;
    for (size_t i = 0; i < n_bytes; i++) {
        n_chars += ((unsigned char)bytes[i] & 0xC0) != 0x80;
    }
    return n_chars;
}

/* Greedy, longest match first; a word with a part that no piece matches is unk as a whole. */
static void end_word(encoder *e)
{
    const bitm_tokenizer *t = e->tokenizer;
    word *w = &e->word;
    end_marks(e);
    size_t n_ids_before = e->list->n_ids;
    bool known = w->n_chars <= t->vocabulary.max_word_chars;
    for (size_t start = 0, end = 0, first = 0; known && start < w->n_bytes; start = end) {
        int32_t id = longest_piece(t, w, start, &end);
        known = id >= 0;
        if (!known) break;
        size_t next = first + count_chars(w->bytes + start, end - start);
        append_id(e->list, id, span_of(e, w->sources[first], w->sources[next - 1]));
        first = next;
    }
    if (!known) {
        e->list->n_ids = n_ids_before;
        append_id(e->list, t->vocabulary.unk_id, span_of(e, w->first.at, w->last.at));
    }
    begin_word(w);
}

/* Cleaning, ideographs, accents and case, in the library's order, then its splitting into words, of
 * the character at byte `begin` of the text. */
static void add_char(encoder *e, uint32_t code_point, size_t begin)
{
    const bitm_vocabulary *v = &e->tokenizer->vocabulary;
    bitm_char_kind kind = bitm_char_kind_of(code_point);
    bool dropped = v->strip_accents && (kind == BITM_CHAR_MARK || kind == BITM_CHAR_MARK_STARTER);
    bool alone = v->split_cjk && kind == BITM_CHAR_CJK;
    if (dropped && kind == BITM_CHAR_MARK)
        count_mark(&e->word.marks, bitm_char_order(code_point), begin);
    if (dropped && kind == BITM_CHAR_MARK_STARTER) end_marks(e);
    if (dropped || kind == BITM_CHAR_REMOVED) return;
    if (alone || kind == BITM_CHAR_SPACE) end_word(e);
    if (kind == BITM_CHAR_SPACE) return;

    uint32_t normalized[BITM_NORMALIZED_MAX];
    size_t n = bitm_char_normalize(code_point, v->strip_accents, v->lowercase, normalized);
    for (size_t i = 0; i < n; i++) {
        bool punctuation = bitm_char_kind_of(normalized[i]) == BITM_CHAR_PUNCTUATION;
        if (punctuation) end_word(e);
        append_char(e, normalized[i], begin, i == 0);
        if (punctuation) end_word(e);
    }
    if (alone) end_word(e);
}

bitm_status bitm_tokenizer_encode(const bitm_tokenizer *t, const char *text, size_t n_bytes,
                                  bool add_special_tokens, int32_t *ids, bitm_span *spans,
                                  size_t capacity, size_t *n_ids, bitm_error *err)
{
    const bitm_vocabulary *v = &t->vocabulary;
    const bitm_span nowhere = {0, 0};
    id_list list = {ids, spans, capacity, 0};
    encoder e;
    e.tokenizer = t;
    e.text = text;
    e.n_text_bytes = n_bytes;
    e.list = &list;
    e.word.marks = (mark_run){0};
    begin_word(&e.word);

    *n_ids = 0;
    if (add_special_tokens && v->cls_id >= 0) append_id(&list, v->cls_id, nowhere);
    for (size_t at = 0; at < n_bytes;) {
        size_t begin = at, n_matched;
        int32_t special = match_special(t, text + at, n_bytes - at, &n_matched);
        if (special >= 0) {
            end_word(&e);
            at += n_matched;
            append_id(&list, special, (bitm_span){begin, at});
            continue;
        }
        uint32_t code_point = 0;
        BITM_CHECK(bitm_utf8_decode(text, n_bytes, &at, &code_point), BITM_TEXT, err,
                   "text: expected UTF-8, found an ill-formed sequence at byte %zu (0x%02X)", at,
                   (unsigned)(unsigned char)text[at]);
        add_char(&e, code_point, begin);
    }
    end_word(&e);
    if (add_special_tokens && v->sep_id >= 0) append_id(&list, v->sep_id, nowhere);
    *n_ids = list.n_ids;
    return BITM_OK;
}

/* ---- Ids to text ---- */

/* The library's cleaning of what the splitting into words tore apart, in its order.  No replacement
 * is longer than its pattern. */
static const struct {
    const char *pattern, *replacement;
} CLEANING[] = {
    {" .", "."},   {" ?", "?"},     {" !", "!"},     {" ,", ","},
    {" ' ", "'"},  {" n't", "n't"}, {" 'm", "'m"},   {" do not", " don't"},
    {" 's", "'s"}, {" 've", "'ve"}, {" 're", "'re"},
};
enum { N_CLEANING = sizeof CLEANING / sizeof CLEANING[0] };

/* Whether a pattern may occur (all begin with a space); nearly no token has one. */
static bool may_need_cleaning(const char *text, size_t n_bytes)
{
    for (size_t i = 0; i + 1 < n_bytes; i++) {
        if (text[i] != ' ') continue;
        for (size_t rule = 0; rule < N_CLEANING; rule++)
            if (text[i + 1] == CLEANING[rule].pattern[1]) return true;
    }
    return false;
}

/* Replaces all occurrences, from the left, in place; returns the new length. */
static size_t replace_all(char *text, size_t n_bytes, const char *pattern, const char *replacement)
{
    size_t n_pattern = strlen(pattern);
    size_t n_replacement = strlen(replacement);
    size_t n_written = 0;
    for (size_t at = 0; at < n_bytes;) {
        if (n_bytes - at >= n_pattern && memcmp(text + at, pattern, n_pattern) == 0) {
            memcpy(text + n_written, replacement, n_replacement);
            n_written += n_replacement;
            at += n_pattern;
        } else {
            text[n_written++] = text[at++];
        }
    }
    return n_written;
}

/* Writes to `text` what one token adds to the text; returns the length. */
static size_t decode_token(const char *token, size_t n_token_bytes, bool first,
                           char text[BITM_TOKEN_BYTES_LIMIT + 1])
{
    size_t n_bytes = 0;
    bool continues =
        n_token_bytes >= CONTINUATION_BYTES && memcmp(token, CONTINUATION, CONTINUATION_BYTES) == 0;
    if (!first && continues) {
        token += CONTINUATION_BYTES;
        n_token_bytes -= CONTINUATION_BYTES;
    } else if (!first) {
        text[n_bytes++] = ' ';
    }
    memcpy(text + n_bytes, token, n_token_bytes);
    n_bytes += n_token_bytes;
    if (!may_need_cleaning(text, n_bytes)) return n_bytes;
    for (size_t rule = 0; rule < N_CLEANING; rule++) {
        n_bytes = replace_all(text, n_bytes, CLEANING[rule].pattern, CLEANING[rule].replacement);
    }
    return n_bytes;
}

bitm_status bitm_tokenizer_decode(const bitm_tokenizer *t, const int32_t *ids, size_t begin,
                                  size_t end, bool skip_special_tokens, char *text, size_t capacity,
                                  size_t *n_bytes, bitm_error *err)
{
    size_t n_written = 0;
    bool first = true;
    *n_bytes = 0;
    for (size_t i = begin; i < end; i++) {
        BITM_CHECK(ids[i] >= 0, BITM_TOKEN, err, "ids[%zu]: expected a token id, found %d", i,
                   (int)ids[i]);
        if ((uint32_t)ids[i] >= t->vocabulary.n_tokens) continue;
        size_t n_token_bytes;
        const char *token = bitm_tokenizer_token(t, ids[i], &n_token_bytes);
        if (bitm_tokenizer_find(t, token, n_token_bytes) != ids[i]) continue;
        bool special = false;
        for (int which = 0; which < BITM_N_SPECIAL_TOKENS; which++) {
            special = special || special_id(t, which) == ids[i];
        }
        if (special && skip_special_tokens) continue;

        char piece[BITM_TOKEN_BYTES_LIMIT + 1];
        size_t n_piece = decode_token(token, n_token_bytes, first, piece);
        first = false;
        for (size_t k = 0; k < n_piece; k++, n_written++) {
            if (n_written + 1 < capacity) text[n_written] = piece[k];
        }
    }
    if (capacity > 0) text[n_written < capacity ? n_written : capacity - 1] = '\0';
    *n_bytes = n_written;
    return BITM_OK;
}
