/* Unit tests of the tokenizer against reference strings made with transformers' BertTokenizer.
 * tests/test_tokenizer.py compares the two on far more text; this runs where Python does not. */
#include <stdio.h>
#include <string.h>

#include "text.h"
#include "tokenizer.h"

static int n_passed;
static int n_failed;

static void expect(bool condition, const char *what)
{
    if (condition) {
        n_passed++;
    } else {
        n_failed++;
        printf("FAILED: %s\n", what);
    }
}

/* ---- A vocabulary from a list of tokens ---- */

enum { MAX_TOKENS = 1024, MAX_VOCABULARY_BYTES = 64 * 1024, MAX_SLOTS = 4096 };

typedef struct fixture {
    char bytes[MAX_VOCABULARY_BYTES];
    uint32_t offsets[MAX_TOKENS + 1];
    bitm_vocabulary vocabulary;
    bitm_tokenizer tokenizer;
    _Alignas(64) uint32_t memory[MAX_SLOTS];
} fixture;

static fixture shared;

enum { PAD, UNK, CLS, SEP, MASK, FIRST_WORD };

static void fixture_add(fixture *f, const char *token, size_t n_bytes)
{
    uint32_t n = f->vocabulary.n_tokens++;
    memcpy(f->bytes + f->offsets[n], token, n_bytes);
    f->offsets[n + 1] = f->offsets[n] + (uint32_t)n_bytes;
}

/* The five special tokens, then the words of a list separated by single spaces. */
static void fixture_fill(fixture *f, const char *words, bool lowercase, bool strip_accents)
{
    f->vocabulary = (bitm_vocabulary){.bytes = f->bytes,
                                      .offsets = f->offsets,
                                      .lowercase = lowercase,
                                      .strip_accents = strip_accents,
                                      .split_cjk = true,
                                      .max_word_chars = 100,
                                      .unk_id = UNK,
                                      .cls_id = CLS,
                                      .sep_id = SEP,
                                      .pad_id = PAD,
                                      .mask_id = MASK};
    static const char *const special[] = {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"};
    for (size_t i = 0; i < sizeof special / sizeof special[0]; i++) {
        fixture_add(f, special[i], strlen(special[i]));
    }
    while (*words != '\0') {
        size_t n_bytes = strcspn(words, " ");
        fixture_add(f, words, n_bytes);
        words += n_bytes;
        if (*words == ' ') words++;
    }
}

static bitm_status fixture_init(fixture *f, bitm_error *err)
{
    if (bitm_tokenizer_bytes(&f->vocabulary) > sizeof f->memory) return BITM_NO_MEMORY;
    return bitm_tokenizer_init(&f->tokenizer, &f->vocabulary, f->memory, err);
}

static const bitm_tokenizer *make(const char *words, bool lowercase, bool strip_accents)
{
    bitm_error err = {BITM_OK, ""};
    fixture_fill(&shared, words, lowercase, strip_accents);
    bitm_status status = fixture_init(&shared, &err);
    if (status != BITM_OK) printf("FAILED: init: %s\n", err.message);
    n_failed += status != BITM_OK;
    return &shared.tokenizer;
}

/* ---- Checks ---- */

/* The text's pieces, without [CLS] and [SEP], are the expected tokens separated by spaces. */
static void expect_pieces(const bitm_tokenizer *t, const char *text, const char *expected)
{
    int32_t ids[256];
    size_t n_ids = 0;
    char pieces[4096] = "";
    size_t n_written = 0;
    bitm_status status =
        bitm_tokenizer_encode(t, text, strlen(text), false, ids, NULL, 256, &n_ids, NULL);
    for (size_t i = 0; status == BITM_OK && i < n_ids; i++) {
        size_t n_bytes;
        const char *token = bitm_tokenizer_token(t, ids[i], &n_bytes);
        if (i > 0) pieces[n_written++] = ' ';
        memcpy(pieces + n_written, token, n_bytes);
        n_written += n_bytes;
    }
    pieces[n_written] = '\0';
    expect(status == BITM_OK && strcmp(pieces, expected) == 0, text);
    if (strcmp(pieces, expected) != 0) printf("  expected %s\n  found    %s\n", expected, pieces);
}

static void expect_decoded(const bitm_tokenizer *t, const int32_t *ids, size_t n_ids,
                           bool skip_special_tokens, const char *expected)
{
    char text[512];
    size_t n_bytes = 0;
    bitm_status status = bitm_tokenizer_decode(t, ids, 0, n_ids, skip_special_tokens, text,
                                               sizeof text, &n_bytes, NULL);
    bool same = status == BITM_OK && n_bytes == strlen(expected) && strcmp(text, expected) == 0;
    expect(same, expected);
    if (!same) printf("  found %s\n", text);
}

static void test_utf8(void)
{
    static const struct {
        const char *bytes;
        uint32_t code_point;
    } well_formed[] = {{"a", 'a'},
                       {"\xC2\x80", 0x80},
                       {"\xDF\xBF", 0x7FF},
                       {"\xE0\xA0\x80", 0x800},
                       {"\xED\x9F\xBF", 0xD7FF},
                       {"\xEE\x80\x80", 0xE000},
                       {"\xEF\xBF\xBF", 0xFFFF},
                       {"\xF0\x90\x80\x80", 0x10000},
                       {"\xF4\x8F\xBF\xBF", 0x10FFFF}};
    for (size_t i = 0; i < sizeof well_formed / sizeof well_formed[0]; i++) {
        const char *bytes = well_formed[i].bytes;
        size_t position = 0;
        uint32_t code_point = 0;
        char back[5] = "";
        bool decoded = bitm_utf8_decode(bytes, strlen(bytes), &position, &code_point);
        expect(decoded && position == strlen(bytes) && code_point == well_formed[i].code_point,
               "bitm_utf8_decode of a well-formed sequence");
        back[bitm_utf8_encode(code_point, back)] = '\0';
        expect(strcmp(back, bytes) == 0, "bitm_utf8_encode gives the same bytes");
    }
    static const char *const ill_formed[] = {"\x80",
                                             "\xBF",
                                             "\xC0\x80",
                                             "\xC1\xBF",
                                             "\xC2",
                                             "\xC2\x41",
                                             "\xE0\x80\x80",
                                             "\xE0\x9F\xBF",
                                             "\xED\xA0\x80",
                                             "\xED\xBF\xBF",
                                             "\xE2\x82",
                                             "\xE2\x28\xA1",
                                             "\xF0\x80\x80\x80",
                                             "\xF0\x8F\xBF\xBF",
                                             "\xF4\x90\x80\x80",
                                             "\xF0\x9F\x98",
                                             "\xF5\x80\x80\x80",
                                             "\xF8\x88\x80\x80\x80",
                                             "\xFE",
                                             "\xFF"};
    for (size_t i = 0; i < sizeof ill_formed / sizeof ill_formed[0]; i++) {
        size_t position = 0;
        uint32_t code_point = 0;
        bool decoded =
            bitm_utf8_decode(ill_formed[i], strlen(ill_formed[i]), &position, &code_point);
        expect(!decoded && position == 0, "bitm_utf8_decode refuses an ill-formed sequence");
    }
}

static void test_words(void)
{
    const bitm_tokenizer *t = make("un ##aff ##able ##a the cafe ##s ! , ' don t # b", true, true);
    expect_pieces(t, "", "");
    expect_pieces(t, "  \t\r\n ", "");
    expect_pieces(t, "The UNAFFABLE cafes!", "the un ##aff ##able cafe ##s !");
    expect_pieces(t, "unaffx the", "[UNK] the");                      /* a part that is not known */
    expect_pieces(t, "don't,,the", "don ' t , , the");                /* punctuation stands alone */
    expect_pieces(t, "##able", "# # [UNK]");                          /* not a continuation here */
    expect_pieces(t, "the\xC2\xA0the\xE3\x80\x80the", "the the the"); /* Unicode's spaces */
    expect_pieces(t,
                  "t\x01h\xE2\x80\x8B"
                  "e\xEF\xBB\xBF",
                  "the");                       /* control, format: removed */
    expect_pieces(t, "the\xEF\xBF\xBD", "the"); /* so is U+FFFD */
}

static void test_accents_and_case(void)
{
    /* U+00E9 is e with acute, U+03C3 sigma, U+AC01 a Hangul syllable of the three jamo before it.
     */
    const char *words = "cafe caf\xC3\xA9 i i\xCC\x87 \xCF\x83 \xE1\x84\x80 ##\xE1\x85\xA1 "
                        "##\xE1\x86\xA8 \xEA\xB0\x81 Caf\xC3\xA9 ; \xCF\x83\xCF\x83";
    const bitm_tokenizer *t = make(words, true, true);
    expect_pieces(t, "Caf\xC3\xA9 CAFE\xCC\x81", "cafe cafe");
    expect_pieces(t, "\xC4\xB0", "i");
    expect_pieces(t, "\xCE\xA3\xCE\xA3", "\xCF\x83\xCF\x83"); /* no final sigma */
    expect_pieces(t, "\xEA\xB0\x81", "\xE1\x84\x80 ##\xE1\x85\xA1 ##\xE1\x86\xA8");
    expect_pieces(t, "\xCD\xBEi", "; i"); /* the Greek question mark decomposes */
    t = make(words, true, false);
    expect_pieces(t, "Caf\xC3\xA9 cafe\xCC\x81", "caf\xC3\xA9 [UNK]");
    expect_pieces(t, "\xC4\xB0", "i\xCC\x87");
    expect_pieces(t, "\xEA\xB0\x81", "\xEA\xB0\x81");
    expect_pieces(t, "\xCD\xBEi", "[UNK] i"); /* punctuation all the same */
    t = make(words, false, false);
    expect_pieces(t, "Caf\xC3\xA9 caf\xC3\xA9", "Caf\xC3\xA9 caf\xC3\xA9");
    t = make(words, false, true);
    expect_pieces(t, "caf\xC3\xA9 Caf\xC3\xA9", "cafe [UNK]");
}

/* U+302E (class 224) and U+1D165 (class 216) are marks that strip_accents keeps. */
static void test_order_of_marks(void)
{
    const char *words = "a \xE3\x80\xAE ##\xE3\x80\xAE ##\xF0\x9D\x85\xA5 ##\xF0\x9D\x85\xA5 ##b";
    const char *kept = "a\xE3\x80\xAE\xF0\x9D\x85\xA5";
    const char *between_dot = "a\xE3\x80\xAE\xCC\x87\xF0\x9D\x85\xA5";    /* U+0307, class 230 */
    const char *between_joiner = "a\xE3\x80\xAE\xCD\x8F\xF0\x9D\x85\xA5"; /* U+034F, class 0 */
    const char *sorted = "a ##\xF0\x9D\x85\xA5 ##\xE3\x80\xAE";
    const char *unsorted = "a ##\xE3\x80\xAE ##\xF0\x9D\x85\xA5";
    const bitm_tokenizer *t = make(words, false, true);
    expect_pieces(t, kept, sorted);
    expect_pieces(t, between_dot, sorted);
    expect_pieces(t, between_joiner, unsorted);
    expect_pieces(t,
                  "a\xE3\x80\xAE"
                  "b\xF0\x9D\x85\xA5",
                  "a ##\xE3\x80\xAE ##b ##\xF0\x9D\x85\xA5");
    t = make(words, false, false);
    expect_pieces(t, kept, unsorted);
}

static void test_ideographs(void)
{
    const char *words = "\xE4\xB8\xAD ##\xE4\xB8\xAD a ##a \xE8\xB1\x88";
    const bitm_tokenizer *t = make(words, true, true);
    expect_pieces(t,
                  "a\xE4\xB8\xAD\xE4\xB8\xAD"
                  "a",
                  "a \xE4\xB8\xAD \xE4\xB8\xAD a");
    expect_pieces(t, "\xEF\xA4\x80", "\xE8\xB1\x88"); /* a compatibility ideograph */
    shared.tokenizer.vocabulary.split_cjk = false;
    expect_pieces(t,
                  "a\xE4\xB8\xAD\xE4\xB8\xAD"
                  "a",
                  "a ##\xE4\xB8\xAD ##\xE4\xB8\xAD ##a");
    expect_pieces(t,
                  "\xE4\xB8\xAD\xE4\xB8\xAD"
                  "a",
                  "\xE4\xB8\xAD ##\xE4\xB8\xAD ##a");
}

static void test_special_tokens(void)
{
    const bitm_tokenizer *t = make("a b ##b [ ] mask", true, true);
    expect_pieces(t, "a[MASK]b", "a [MASK] b");
    expect_pieces(t, "[[CLS]][UNK][PAD][SEP]", "[ [CLS] ] [UNK] [PAD] [SEP]");
    expect_pieces(t, "[mask] [MASK", "[ mask ] [ mask"); /* only exactly so */
    expect_pieces(t, "[MA\x01SK]", "[ mask ]");          /* and before cleaning */

    fixture_fill(&shared, "[UNK]] [", true, true); /* of two that match, the longer */
    shared.vocabulary.mask_id = FIRST_WORD;
    expect(fixture_init(&shared, NULL) == BITM_OK, "a special token that begins with another");
    expect_pieces(&shared.tokenizer, "[[UNK]][UNK]", "[ [UNK]] [UNK]");

    fixture_fill(&shared, "a", true, true);
    shared.vocabulary.cls_id = -1;
    shared.vocabulary.mask_id = -1;
    expect(fixture_init(&shared, NULL) == BITM_OK, "absent special tokens");
    expect_pieces(&shared.tokenizer, "a[MASK]a", "a [UNK] [UNK] [UNK] a");
    int32_t ids[4];
    size_t n_ids = 0;
    bitm_tokenizer_encode(&shared.tokenizer, "a", 1, true, ids, NULL, 4, &n_ids, NULL);
    expect(n_ids == 2 && ids[0] == FIRST_WORD && ids[1] == SEP, "an absent cls is left out");
}

static void test_long_words(void)
{
    const bitm_tokenizer *t = make("a ##a \xC3\xA9 ##\xC3\xA9", false, false);
    static char text[3 * 1000 * 1000];
    int32_t ids[128];
    size_t n_ids = 0;
    memset(text, 'a', sizeof text);
    expect(bitm_tokenizer_encode(t, text, 100, false, ids, NULL, 128, &n_ids, NULL) == BITM_OK &&
               n_ids == 100 && ids[0] == FIRST_WORD && ids[99] == FIRST_WORD + 1,
           "a word of max_word_chars");
    expect(bitm_tokenizer_encode(t, text, 101, false, ids, NULL, 128, &n_ids, NULL) == BITM_OK &&
               n_ids == 1 && ids[0] == UNK,
           "a word of one character more");
    expect(bitm_tokenizer_encode(t, text, sizeof text, false, ids, NULL, 128, &n_ids, NULL) ==
                   BITM_OK &&
               n_ids == 1 && ids[0] == UNK,
           "a word of megabytes");
    for (size_t i = 0; i < 100; i++) {
        text[2 * i] = '\xC3'; /* U+00E9 */
        text[2 * i + 1] = '\xA9';
    }
    expect(bitm_tokenizer_encode(t, text, 200, false, ids, NULL, 128, &n_ids, NULL) == BITM_OK &&
               n_ids == 100,
           "max_word_chars counts code points, not bytes");
}

static void test_encode_interface(void)
{
    const bitm_tokenizer *t = make("a b ##c", true, true);
    int32_t ids[8] = {-7, -7, -7, -7, -7, -7, -7, -7};
    size_t n_ids = 0;
    bitm_error err = {BITM_OK, ""};
    expect(bitm_tokenizer_encode(t, "a bc", 4, true, ids, NULL, 8, &n_ids, &err) == BITM_OK &&
               n_ids == 5 && ids[0] == CLS && ids[1] == FIRST_WORD && ids[2] == FIRST_WORD + 1 &&
               ids[3] == FIRST_WORD + 2 && ids[4] == SEP && ids[5] == -7,
           "[CLS] pieces [SEP]");
    ids[3] = -7;
    expect(bitm_tokenizer_encode(t, "a bc", 4, true, ids, NULL, 3, &n_ids, &err) == BITM_OK &&
               n_ids == 5 && ids[2] == FIRST_WORD + 1 && ids[3] == -7,
           "more ids than capacity");
    expect(bitm_tokenizer_encode(t, "a bc", 4, true, NULL, NULL, 0, &n_ids, &err) == BITM_OK &&
               n_ids == 5,
           "counting only");
    expect(bitm_tokenizer_encode(t, "a\0b", 3, false, ids, NULL, 8, &n_ids, &err) == BITM_OK &&
               n_ids == 1 && ids[0] == UNK,
           "NUL is removed like other controls, and ends nothing");
    expect(bitm_tokenizer_encode(t, "ab \xFF", 4, true, ids, NULL, 8, &n_ids, &err) == BITM_TEXT &&
               err.status == BITM_TEXT && strstr(err.message, "byte 3 (0xFF)") != NULL,
           "ill-formed UTF-8 is refused by its place");
    expect(bitm_tokenizer_encode(t, "\xC3\xA9", 1, true, ids, NULL, 8, &n_ids, NULL) == BITM_TEXT,
           "nothing is read past the end");
}

/* The pieces of the text come from these bytes: begin and end of each, from the first on. */
static void expect_spans(const bitm_tokenizer *t, const char *text, size_t n_pieces,
                         const size_t expected[][2])
{
    int32_t ids[16];
    bitm_span spans[16];
    size_t n_ids = 0;
    bitm_status status =
        bitm_tokenizer_encode(t, text, strlen(text), false, ids, spans, 16, &n_ids, NULL);
    bool same = status == BITM_OK && n_ids == n_pieces;
    for (size_t i = 0; same && i < n_pieces; i++) {
        same = spans[i].begin == expected[i][0] && spans[i].end == expected[i][1];
        if (!same)
            printf("  piece %zu: expected %zu to %zu, found %zu to %zu\n", i, expected[i][0],
                   expected[i][1], spans[i].begin, spans[i].end);
    }
    expect(same, text);
}

/* U+0301 (class 230) is dropped; U+302E (class 224) and U+1D165 (class 216) are kept. */
static void test_spans(void)
{
    const char *words =
        "cafe ##s the , a ##\xE3\x80\xAE ##\xF0\x9D\x85\xA5 \xE4\xB8\xAD i ##\xCC\x87";
    const bitm_tokenizer *t = make(words, true, true);
    expect_spans(t, " The,cafes", 4, (size_t[][2]){{1, 4}, {4, 5}, {5, 9}, {9, 10}});
    expect_spans(t, "caf\xC3\xA9s t\x01he\x01 CAFE\xCC\x81", 4,
                 (size_t[][2]){{0, 5}, {5, 6}, {7, 11}, {13, 17}});
    expect_spans(t, "a\xE4\xB8\xADqq[MASK]the", 5,
                 (size_t[][2]){{0, 1}, {1, 4}, {4, 6}, {6, 12}, {12, 15}});
    /* Sorted marks take the places that marks have in the text, the dropped ones' included. */
    expect_spans(t, "a\xE3\x80\xAE\xF0\x9D\x85\xA5", 3, (size_t[][2]){{0, 1}, {1, 4}, {4, 8}});
    expect_spans(t, "a\xCC\x81\xE3\x80\xAE", 2, (size_t[][2]){{0, 1}, {1, 3}});
    expect_spans(t, "a\xCC\x81\x01\xE3\x80\xAE\xF0\x9D\x85\xA5", 3,
                 (size_t[][2]){{0, 1}, {1, 3}, {4, 7}});
    t = make(words, true, false);
    expect_spans(t, "\xC4\xB0", 2, (size_t[][2]){{0, 2}, {0, 2}}); /* one becomes two */

    int32_t ids[4];
    bitm_span spans[4] = {{7, 7}, {7, 7}, {7, 7}, {7, 7}};
    size_t n_ids = 0;
    expect(bitm_tokenizer_encode(t, "the", 3, true, ids, spans, 2, &n_ids, NULL) == BITM_OK &&
               n_ids == 3 && spans[0].begin == 0 && spans[0].end == 0 && spans[1].end == 3 &&
               spans[2].begin == 7,
           "[CLS] comes from nowhere, and no more spans than capacity");
}

static void test_decode(void)
{
    const bitm_tokenizer *t = make("it ##s . ' s do not n't ? Paris", false, false);
    enum { IT = FIRST_WORD, PIECE_S, DOT, QUOTE, S, DO, NOT, NT, QUESTION, PARIS };
    expect_decoded(t, NULL, 0, false, "");
    expect_decoded(t, (int32_t[]){CLS, IT, PIECE_S, DOT, MASK, SEP, PAD}, 7, false,
                   "[CLS] its. [MASK] [SEP] [PAD]");
    expect_decoded(t, (int32_t[]){CLS, IT, PIECE_S, DOT, MASK, SEP, PAD}, 7, true, "its.");
    expect_decoded(t, (int32_t[]){PIECE_S}, 1, true, "##s");
    expect_decoded(t, (int32_t[]){DO, NT, QUESTION}, 3, true, "don't?");
    expect_decoded(t, (int32_t[]){IT, QUOTE, S, DO, NOT}, 5, true, "it ' s do not");
    expect_decoded(t, (int32_t[]){PARIS, 1000, DOT}, 3, true, "Paris."); /* an id without a name */
    char text[8];
    size_t n_bytes = 0;
    bitm_status status = bitm_tokenizer_decode(t, (int32_t[]){PARIS, PARIS}, 0, 2, false, text,
                                               sizeof text, &n_bytes, NULL);
    expect(status == BITM_OK && n_bytes == 11 && strcmp(text, "Paris P") == 0, "a cut text");
    status = bitm_tokenizer_decode(t, (int32_t[]){PARIS}, 0, 1, false, NULL, 0, &n_bytes, NULL);
    expect(status == BITM_OK && n_bytes == 5, "counting the bytes only");
    bitm_error err = {BITM_OK, ""};
    status = bitm_tokenizer_decode(t, (int32_t[]){PARIS, -1}, 0, 2, false, text, sizeof text,
                                   &n_bytes, &err);
    expect(status == BITM_TOKEN && strstr(err.message, "ids[1]") != NULL, "a negative id");
}

static void test_vocabulary(void)
{
    const bitm_tokenizer *t = make("a b a  ##b", true, true); /* ids 5 to 9; 8 is empty */
    expect(bitm_tokenizer_find(t, "a", 1) == 7, "of equal tokens the last counts");
    expect(bitm_tokenizer_find(t, "##b", 3) == 9, "a continuation piece is found by its full name");
    expect(bitm_tokenizer_find(t, "c", 1) == -1, "a token that is not there");
    expect(bitm_tokenizer_find(t, "", 0) == 8, "the empty token");
    expect_pieces(t, "a b", "a b");
    expect_decoded(t, (int32_t[]){5, 6, 7}, 3, false, "b a"); /* the first a has no name */
}

static void expect_refused(bitm_status expected, const char *in_message)
{
    bitm_error err = {BITM_OK, ""};
    bitm_status status = fixture_init(&shared, &err);
    expect(status == expected && strstr(err.message, in_message) != NULL, in_message);
}

static void test_refused_vocabularies(void)
{
    fixture_fill(&shared, "a", true, true);
    shared.vocabulary.n_tokens = 0;
    expect_refused(BITM_FILE_CONFIG, "n_tokens");
    fixture_fill(&shared, "a", true, true);
    shared.vocabulary.max_word_chars = 0;
    expect_refused(BITM_FILE_CONFIG, "max_word_chars");
    fixture_fill(&shared, "a", true, true);
    shared.vocabulary.max_word_chars = BITM_WORD_CHARS_LIMIT + 1;
    expect_refused(BITM_FILE_CONFIG, "max_word_chars");
    fixture_fill(&shared, "a", true, true);
    shared.vocabulary.unk_id = -1;
    expect_refused(BITM_FILE_CONFIG, "unk_id");
    fixture_fill(&shared, "a", true, true);
    shared.vocabulary.mask_id = FIRST_WORD + 1;
    expect_refused(BITM_FILE_CONFIG, "mask_id: expected -1 to 5, found 6");
    fixture_fill(&shared, "a b", true, true);
    shared.offsets[FIRST_WORD + 1] = 0;
    expect_refused(BITM_FILE_VOCABULARY, "token 5");

    char long_token[BITM_TOKEN_BYTES_LIMIT + 1];
    memset(long_token, 'x', sizeof long_token);
    fixture_fill(&shared, "", true, true);
    fixture_add(&shared, long_token, BITM_TOKEN_BYTES_LIMIT);
    expect(fixture_init(&shared, NULL) == BITM_OK, "the longest token allowed");
    fixture_add(&shared, long_token, BITM_TOKEN_BYTES_LIMIT + 1);
    expect_refused(BITM_FILE_VOCABULARY, "token 6");
}

/* Three-letter tokens whose hash has the same low bits, and so the same place in the index. */
static void test_colliding_vocabulary(void)
{
    fixture_fill(&shared, "", true, true);
    for (uint32_t n = 0; n < 1u << 24 && shared.vocabulary.n_tokens < 1000; n++) {
        const char token[3] = {(char)(n >> 16), (char)(n >> 8), (char)n};
        uint32_t hash = 2166136261u;
        for (int i = 0; i < 3; i++) {
            hash = (hash ^ (unsigned char)token[i]) * 16777619u;
        }
        if ((hash & 2047) == 0) fixture_add(&shared, token, sizeof token);
    }
    expect(shared.vocabulary.n_tokens == 1000, "a thousand tokens that collide");
    expect_refused(BITM_UNSUPPORTED, "collide");
}

int main(void)
{
    test_utf8();
    test_words();
    test_accents_and_case();
    test_order_of_marks();
    test_ideographs();
    test_special_tokens();
    test_long_words();
    test_encode_interface();
    test_spans();
    test_decode();
    test_vocabulary();
    test_refused_vocabularies();
    test_colliding_vocabulary();
    printf("%d passed, %d failed\n", n_passed, n_failed);
    return n_failed > 0;
}
