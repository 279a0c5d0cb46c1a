// SPDX-License-Identifier: Apache-2.0
// Tokenizers: the interface, files that are refused, hostile text, many threads. That answers equal
// the library's is in test_tokenizer_cases.c.
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <ssm/tokenizer.h>

#include "engine/text/unicode.h"
#include "tests/suite.h"

static const char *const families[] = {"gpt-neox",      "gpt2-prefix",      "llama-legacy",
                                       "mistral-first", "metaspace-always", "metaspace-never",
                                       "falcon",        "llama3",           "o200k",
                                       "clip",          "prefixed",         "cuts"};
enum { N_FAMILIES = sizeof families / sizeof families[0] };

static ssm_tokenizer *open_family(const char *name) {
    char path[512];
    ssm_error err = {0};
    ssm_tokenizer *t = NULL;
    snprintf(path, sizeof path, "%s/tokenizers/%s/tokenizer.json", SSM_TEST_DATA, name);
    ck_assert_msg(ssm_tokenizer_open(path, &t, &err) == 0, "%s", err.message);
    return t;
}

static ssm_tokenizer *make(const char *json) {
    ssm_error err = {0};
    ssm_tokenizer *t = NULL;
    ck_assert_msg(ssm_tokenizer_create(json, strlen(json), &t, &err) == 0, "%s", err.message);
    return t;
}

static void ids_are(const ssm_tokenizer *t, const char *text, unsigned flags, size_t n,
                    const int32_t *want) {
    ssm_ids ids = {0};
    ck_assert_int_eq(ssm_tokenizer_encode(t, text, strlen(text), flags, &ids, NULL), 0);
    ck_assert_uint_eq(ids.len, n);
    for (size_t i = 0; i < n; i++)
        ck_assert_int_eq(ids.data[i], want[i]);
    ssm_ids_dispose(&ids);
}
#define IDS_ARE(t, text, flags, ...)                                                               \
    ids_are(t, text, flags, sizeof((int32_t[]){__VA_ARGS__}) / 4, (int32_t[]){__VA_ARGS__})

static void text_is(const ssm_tokenizer *t, size_t n, const int32_t *ids, const char *want) {
    ssm_text text = {0};
    ck_assert_int_eq(ssm_tokenizer_decode(t, ids, n, 0, &text, NULL), 0);
    ck_assert_str_eq(text.data, want);
    ssm_text_dispose(&text);
}
#define TEXT_IS(t, want, ...)                                                                      \
    text_is(t, sizeof((int32_t[]){__VA_ARGS__}) / 4, (int32_t[]){__VA_ARGS__}, want)

// ---- the interface ------------------------------------------------------------------------------

START_TEST(questions_about_tokens) {
    size_t len;
    ssm_tokenizer *t = open_family("llama-legacy");
    const int32_t n = ssm_tokenizer_vocab_size(t);
    ck_assert_int_eq(ssm_tokenizer_find(t, "<s>", 3), 1);
    ck_assert(ssm_tokenizer_is_special(t, 1));
    ck_assert(!ssm_tokenizer_is_special(t, 3 + 'a'));
    ck_assert(!ssm_tokenizer_is_special(t, -1) && !ssm_tokenizer_is_special(t, n));
    ck_assert_int_eq(ssm_tokenizer_find(t, "no such token", 13), -1);
    ck_assert_ptr_null(ssm_tokenizer_piece(t, n, &len));
    ck_assert_ptr_null(ssm_tokenizer_bytes(t, -1, &len));
    const char *bytes = ssm_tokenizer_bytes(t, 3 + 0xe2, &len); // <0xE2>: half a character
    ck_assert(len == 1 && (unsigned char)bytes[0] == 0xe2);
    const int32_t the = ssm_tokenizer_find(t, "\u2581the", 6);
    ck_assert_int_ge(the, 0);
    bytes = ssm_tokenizer_bytes(t, the, &len);
    ck_assert(len == 4 && memcmp(bytes, " the", 4) == 0);
    bytes = ssm_tokenizer_piece(t, the, &len);
    ck_assert(len == 6 && memcmp(bytes, "\u2581the", 6) == 0);
    ssm_tokenizer_free(t);

    t = open_family("gpt-neox");
    const int32_t newline = ssm_tokenizer_find(t, "\u010a", 2);
    bytes = ssm_tokenizer_bytes(t, newline, &len);
    ck_assert(len == 1 && bytes[0] == '\n');
    bytes = ssm_tokenizer_bytes(t, 0, &len);
    ck_assert(len == 13 && memcmp(bytes, "<|endoftext|>", 13) == 0);
    ssm_tokenizer_free(t);
}
END_TEST

// All 256 letters of the byte-level families stand for all 256 bytes.
START_TEST(every_byte_has_its_token) {
    ssm_tokenizer *t = open_family("gpt-neox");
    bool seen[256] = {false};
    for (int32_t id = 0; id < ssm_tokenizer_vocab_size(t); id++) {
        size_t len;
        const char *bytes = ssm_tokenizer_bytes(t, id, &len);
        if (bytes && len == 1)
            seen[(unsigned char)bytes[0]] = true;
    }
    for (int b = 0; b < 256; b++)
        ck_assert_msg(seen[b], "byte %d", b);
    ssm_tokenizer_free(t);
}
END_TEST

START_TEST(invalid_text_and_ids_are_refused) {
    static const struct {
        const char *text;
        size_t len, offset;
    } bad[] = {{"\xff", 1, 0},         {"ab\xc3", 3, 2},           {"a\xc0\x80", 3, 1},
               {"\xed\xa0\x80", 3, 0}, {"\xf4\x90\x80\x80", 4, 0}, {"0123456789\x80", 11, 10},
               {"\xe2\x82", 2, 0},     {"a\0\xfe", 3, 2}};
    ssm_tokenizer *t = open_family("gpt-neox");
    ssm_ids ids = {0};
    ssm_text text = {0};
    ssm_error err;
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        char want[32];
        snprintf(want, sizeof want, "byte %zu", bad[i].offset);
        ck_assert_int_eq(ssm_tokenizer_encode(t, bad[i].text, bad[i].len, 0, &ids, &err),
                         SSM_EINVAL);
        ck_assert_msg(strstr(err.message, want), "%s", err.message);
        ck_assert_uint_eq(ids.len, 0);
    }
    const int32_t n = ssm_tokenizer_vocab_size(t);
    const int32_t wrong[] = {5, n};
    ck_assert_int_eq(ssm_tokenizer_decode(t, wrong, 2, 0, &text, &err), SSM_EINVAL);
    ck_assert(strstr(err.message, "out of range") != NULL && text.len == 0);
    ssm_detokenizer *d;
    ck_assert_int_eq(ssm_detokenizer_create(t, 0, &d), 0);
    ck_assert_int_eq(ssm_detokenizer_push(d, -1, &text, &err), SSM_EINVAL);
    ssm_detokenizer_free(d);
    ssm_ids_dispose(&ids);
    ssm_text_dispose(&text);
    ssm_tokenizer_free(t);
}
END_TEST

START_TEST(results_are_appended) {
    ssm_tokenizer *t = open_family("metaspace-always");
    ssm_ids ids = {0};
    ssm_text text = {0};
    ck_assert_int_eq(ssm_tokenizer_encode(t, "a", 1, SSM_ADD_SPECIAL, &ids, NULL), 0);
    const size_t n = ids.len;
    ck_assert_int_eq(ssm_tokenizer_encode(t, "a", 1, SSM_ADD_SPECIAL, &ids, NULL), 0);
    ck_assert_uint_eq(ids.len, 2 * n);
    ck_assert_int_eq(ids.data[0], ids.data[n]);
    ck_assert_int_eq(ssm_text_append(&text, "x", 1), 0);
    ck_assert_int_eq(ssm_tokenizer_decode(t, ids.data, n, SSM_SKIP_SPECIAL, &text, NULL), 0);
    ck_assert_str_eq(text.data, "xa");
    ssm_ids_dispose(&ids);
    ssm_text_dispose(&text);
    ssm_tokenizer_free(t);
}
END_TEST

// ---- small files --------------------------------------------------------------------------------

#define MODEL                                                                                      \
    "\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"b\":1,\"ab\":2,\" \":3},\"merges\":[\"a "    \
    "b\"]}"

START_TEST(old_files_and_small_parts) {
    // No type, no version, merges as pairs, added tokens whose ids the file leaves wrong.
    ssm_tokenizer *t = make("{\"model\":{\"vocab\":{\"a\":0,\"b\":1,\"ab\":2,\" \":3},"
                            "\"merges\":[[\"a\",\"b\"]]},\"added_tokens\":[{\"id\":9,\"content\":"
                            "\"<x>\",\"special\":true},{\"id\":9,\"content\":\"b\"}]}");
    ck_assert_int_eq(ssm_tokenizer_vocab_size(t), 5);
    IDS_ARE(t, "a<x>aba", 0, 0, 4, 0, 1, 0);
    TEXT_IS(t, "a <x> a b", 0, 4, 0, 1);
    ssm_tokenizer_free(t);

    t = make("{" MODEL ",\"decoder\":{\"type\":\"Sequence\",\"decoders\":[{\"type\":\"Fuse\"},"
             "{\"type\":\"Strip\",\"content\":\" \",\"start\":1,\"stop\":2}]}}");
    TEXT_IS(t, " ab ab", 3, 3, 2, 3, 0, 1, 3, 3);
    TEXT_IS(t, " ", 3, 3, 3, 3);
    TEXT_IS(t, "", 3);
    ssm_tokenizer_free(t);

    t = make("{" MODEL ",\"normalizer\":{\"type\":\"Strip\",\"strip_left\":true,\"strip_right\":"
             "true},\"pre_tokenizer\":{\"type\":\"Metaspace\",\"replacement\":\"b\","
             "\"prepend_scheme\":\"first\"}}");
    IDS_ARE(t, "a a", 0, 1, 0, 1, 0);
    IDS_ARE(t, " a a ", 0, 0, 1, 0); // as the library: what begins is no longer the first character
    ssm_tokenizer_free(t);
}
END_TEST

START_TEST(config_beside_the_file) {
    static const struct {
        const char *post, *config;
        int rc;
        size_t n;
    } rows[] = {
        {"null", "{\"add_bos_token\":true,\"bos_token\":{\"content\":\"<s>\"}}", 0, 2},
        {"null",
         "{\"add_bos_token\":true,\"add_eos_token\":true,\"bos_token\":\"<s>\","
         "\"eos_token\":\"<s>\"}",
         0, 3},
        {"null", "{\"add_bos_token\":false,\"bos_token\":\"<s>\"}", 0, 1},
        {"null", "{\"add_bos_token\":true}", SSM_EFORMAT, 0},
        {"null", "{\"add_bos_token\":true,\"bos_token\":\"<t>\"}", SSM_EFORMAT, 0},
        {"null", "{", SSM_EFORMAT, 0},
        {"{\"type\":\"TemplateProcessing\",\"single\":[{\"Sequence\":{\"id\":\"A\",\"type_id\":0}}]"
         ","
         "\"pair\":[],\"special_tokens\":{}}",
         "{\"add_bos_token\":true,\"bos_token\":\"<s>\"}", 0, 1},
    };
    char folder[] = "/tmp/test_tokenizer.XXXXXX", file[64], config[64];
    ck_assert_ptr_nonnull(mkdtemp(folder));
    snprintf(file, sizeof file, "%s/tokenizer.json", folder);
    snprintf(config, sizeof config, "%s/tokenizer_config.json", folder);
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        FILE *f = fopen(file, "w");
        fprintf(f,
                "{" MODEL ",\"post_processor\":%s,\"added_tokens\":[{\"id\":4,\"content\":\"<s>\","
                "\"special\":true}]}",
                rows[i].post);
        fclose(f);
        f = fopen(config, "w");
        fputs(rows[i].config, f);
        fclose(f);
        ssm_tokenizer *t;
        ssm_error err = {0};
        const int rc = ssm_tokenizer_open(folder, &t, &err);
        ck_assert_msg(rc == rows[i].rc, "row %zu: %d %s", i, rc, err.message);
        if (rc != 0)
            continue;
        ssm_ids ids = {0};
        ck_assert_int_eq(ssm_tokenizer_encode(t, "ab", 2, SSM_ADD_SPECIAL, &ids, NULL), 0);
        ck_assert_uint_eq(ids.len, rows[i].n);
        ssm_ids_dispose(&ids);
        ssm_tokenizer_free(t);
    }
    unlink(config);
    unlink(file);
    ssm_tokenizer *t;
    ck_assert_int_eq(ssm_tokenizer_open(folder, &t, NULL), SSM_EIO);
    rmdir(folder);
    ck_assert_int_eq(ssm_tokenizer_open(folder, &t, NULL), SSM_EIO);
}
END_TEST

// ---- files that are refused ---------------------------------------------------------------------

static const struct {
    const char *json;
    int code;
    const char *named;
} refused[] = {
#define WITH(part) "{" MODEL "," part "}"
    {"", SSM_EFORMAT, "line"},
    {"[]", SSM_EFORMAT, "object"},
    {"{}", SSM_EFORMAT, "model"},
    {"{\"model\":3}", SSM_EFORMAT, "model"},
    {"{" MODEL "}x", SSM_EFORMAT, "end of file"},
    {"{\"model\":{},\"model\":{}}", SSM_EFORMAT, "duplicate"},
    {WITH("\"version\":\"2.0\""), SSM_EUNSUPPORTED, "2.0"},
    {WITH("\"surprise\":1"), SSM_EUNSUPPORTED, "surprise"},
    {"{\"model\":{\"type\":\"WordPiece\",\"vocab\":{}}}", SSM_EUNSUPPORTED, "WordPiece"},
    {"{\"model\":{\"type\":\"Unigram\",\"vocab\":[]}}", SSM_EUNSUPPORTED, "Unigram"},
    {"{\"model\":{\"type\":\"WordLevel\",\"vocab\":{}}}", SSM_EUNSUPPORTED, "WordLevel"},
    {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":-1},\"merges\":[]}}", SSM_EFORMAT, "range"},
    {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":4000000000},\"merges\":[]}}", SSM_EFORMAT,
     "range"},
    {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":1,\"b\":1},\"merges\":[]}}", SSM_EFORMAT,
     "twice"},
    {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":1,\"a\":2},\"merges\":[]}}", SSM_EFORMAT,
     "duplicate"},
    {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":\"1\"},\"merges\":[]}}", SSM_EFORMAT,
     "integer"},
    {"{\"model\":{\"type\":\"BPE\",\"vocab\":[],\"merges\":[]}}", SSM_EFORMAT, "vocab"},
    {"{\"model\":{\"type\":\"BPE\",\"vocab\":{}}}", SSM_EFORMAT, "merges"},
    {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":[\"a a\"]}}", SSM_EFORMAT,
     "merge 0"},
    {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":[\"a b\"]}}", SSM_EFORMAT,
     "merge 0"},
    {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":[\"a\"]}}", SSM_EFORMAT, "pair"},
    {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":[\"a b c\"]}}", SSM_EFORMAT,
     "pair"},
    {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":[[\"a\"]]}}", SSM_EFORMAT,
     "pair"},
    {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"\":1},\"merges\":[\" a\"]}}", SSM_EFORMAT,
     "empty"},
    {"{\"model\":{\"type\":\"BPE\",\"vocab\":{},\"merges\":[],\"dropout\":0.1}}", SSM_EUNSUPPORTED,
     "dropout"},
    {"{\"model\":{\"type\":\"BPE\",\"vocab\":{},\"merges\":[],\"novelty\":true}}", SSM_EUNSUPPORTED,
     "novelty"},
    {WITH("\"normalizer\":{}"), SSM_EFORMAT, "type"},
    {WITH("\"normalizer\":[]"), SSM_EFORMAT, "normalizer"},
    {WITH("\"normalizer\":{\"type\":\"Precompiled\"}"), SSM_EUNSUPPORTED, "Precompiled"},
    {WITH("\"normalizer\":{\"type\":\"BertNormalizer\"}"), SSM_EUNSUPPORTED, "BertNormalizer"},
    {WITH("\"normalizer\":{\"type\":\"NFC\",\"new\":1}"), SSM_EUNSUPPORTED, "new"},
    {WITH("\"normalizer\":{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"Nmt\"}]}"),
     SSM_EUNSUPPORTED, "Nmt"},
    {WITH("\"normalizer\":{\"type\":\"Replace\",\"pattern\":{\"String\":\"\"},\"content\":\"\"}"),
     SSM_EUNSUPPORTED, "empty"},
    {WITH("\"normalizer\":{\"type\":\"Replace\",\"pattern\":{\"Regex\":\"(\"},\"content\":\"\"}"),
     SSM_EFORMAT, "group"},
    {WITH("\"normalizer\":{\"type\":\"Replace\",\"pattern\":{},\"content\":\"\"}"), SSM_EFORMAT,
     "neither"},
    {WITH("\"pre_tokenizer\":{\"type\":\"UnicodeScripts\"}"), SSM_EUNSUPPORTED, "UnicodeScripts"},
    {WITH("\"pre_tokenizer\":{\"type\":\"BertPreTokenizer\"}"), SSM_EUNSUPPORTED, "Bert"},
    {WITH("\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"Regex\":\"a\"},\"behavior\":"
          "\"Sideways\",\"invert\":false}"),
     SSM_EUNSUPPORTED, "Sideways"},
    {WITH("\"pre_tokenizer\":{\"type\":\"Metaspace\",\"replacement\":\"ab\"}"), SSM_EFORMAT,
     "one character"},
    {WITH("\"pre_tokenizer\":{\"type\":\"Metaspace\",\"replacement\":\"a\",\"add_prefix_space\":"
          "false,\"prepend_scheme\":\"always\"}"),
     SSM_EFORMAT, "prepend_scheme"},
    {WITH("\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"use_regex\":1}"), SSM_EFORMAT, "use_regex"},
    {WITH("\"post_processor\":{\"type\":\"Mystery\"}"), SSM_EUNSUPPORTED, "Mystery"},
    {WITH("\"post_processor\":{\"type\":\"BertProcessing\",\"sep\":[\"a\",99],\"cls\":[\"a\",0]}"),
     SSM_EFORMAT, "99"},
    {WITH("\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":"
          "{\"id\":\"<s>\",\"type_id\":0}}],\"pair\":[],\"special_tokens\":{}}"),
     SSM_EFORMAT, "<s>"},
    {WITH("\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":[],\"pair\":[],"
          "\"special_tokens\":{}}"),
     SSM_EUNSUPPORTED, "0 texts"},
    {WITH("\"decoder\":{\"type\":\"WordPiece\"}"), SSM_EUNSUPPORTED, "WordPiece"},
    {WITH("\"decoder\":{\"type\":\"CTC\"}"), SSM_EUNSUPPORTED, "CTC"},
    {WITH("\"decoder\":{\"type\":\"Strip\",\"content\":\" \",\"start\":-1,\"stop\":0}"),
     SSM_EFORMAT, "start"},
    {WITH("\"added_tokens\":{}"), SSM_EFORMAT, "added_tokens"},
    {WITH("\"added_tokens\":[{\"id\":-4,\"content\":\"x\"}]"), SSM_EFORMAT, "id"},
    {WITH("\"added_tokens\":[{\"id\":4}]"), SSM_EFORMAT, "content"},
    {WITH("\"added_tokens\":[{\"id\":4,\"content\":\"x\"},{\"id\":5,\"content\":\"x\"}]"),
     SSM_EFORMAT, "twice"},
    {WITH("\"added_tokens\":[{\"id\":4,\"content\":\"x\",\"normalized\":1}]"), SSM_EFORMAT,
     "normalized"},
#undef WITH
};

START_TEST(broken_and_foreign_files) {
    for (size_t i = 0; i < sizeof refused / sizeof refused[0]; i++) {
        ssm_tokenizer *t = NULL;
        ssm_error err = {0};
        const int rc = ssm_tokenizer_create(refused[i].json, strlen(refused[i].json), &t, &err);
        ck_assert_msg(rc == refused[i].code, "%s: %d %s", refused[i].json, rc, err.message);
        ck_assert_msg(strstr(err.message, refused[i].named), "%s: %s", refused[i].json,
                      err.message);
    }
}
END_TEST

START_TEST(deep_nesting_is_refused) {
    static const char *const opens[] = {
        "{\"type\":\"Sequence\",\"normalizers\":[", "{\"type\":\"Sequence\",\"pretokenizers\":[",
        "{\"type\":\"Sequence\",\"decoders\":[", "{\"type\":\"Sequence\",\"processors\":[", "["};
    static const char *const keys[] = {"normalizer", "pre_tokenizer", "decoder", "post_processor",
                                       "normalizer"};
    static const int depths[] = {100, 200000};
    for (size_t k = 0; k < sizeof opens / sizeof opens[0]; k++) {
        for (size_t d = 0; d < 2; d++) {
            ssm_text text = {0};
            ssm_tokenizer *t;
            ssm_text_append(&text, "{" MODEL ",\"", strlen("{" MODEL ",\""));
            ssm_text_append(&text, keys[k], strlen(keys[k]));
            ssm_text_append(&text, "\":", 2);
            for (int i = 0; i < depths[d]; i++)
                ssm_text_append(&text, opens[k], strlen(opens[k]));
            for (int i = 0; i < depths[d]; i++)
                ssm_text_append(&text, k < 4 ? "]}" : "]", k < 4 ? 2 : 1);
            ssm_text_append(&text, "}", 1);
            ck_assert_int_lt(ssm_tokenizer_create(text.data, text.len, &t, NULL), 0);
            ssm_text_dispose(&text);
        }
    }
}
END_TEST

// ---- hostile text -------------------------------------------------------------------------------

// One piece over and over: what is quadratic anywhere takes minutes for a megabyte of it. The limit
// is a second of processor time a megabyte; sanitizers get less text and more time.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
enum { LONG_TEXT = 100000, SHORT_TEXT = 50000 };
static const double seconds_a_byte = 20e-6;
#else
enum { LONG_TEXT = 1000000, SHORT_TEXT = 200000 };
static const double seconds_a_byte = 1e-6;
#endif

static const char *const pieces[] = {"a",
                                     " ",
                                     "\xf0\x9f\x98\x80", // a megabyte of each of these
                                     "\n",
                                     "a ",
                                     " \n",
                                     "\u0301\u0316",
                                     "\u00e9",
                                     "\u4f60",
                                     "<s>",
                                     "<|",
                                     "1",
                                     ".",
                                     "\u2581",
                                     "'s",
                                     "\r\n",
                                     "\u3000",
                                     "e\u0301\u0327",
                                     "\xf0\x9f\x91\xa8\u200d",
                                     "ab\u0301 "};

START_TEST(a_megabyte_of_anything_is_fast) {
    ssm_tokenizer *t = open_family(families[_i]);
    char *text = malloc(LONG_TEXT);
    for (size_t p = 0; p < sizeof pieces / sizeof pieces[0]; p++) {
        const size_t len = strlen(pieces[p]);
        const size_t n = (p < 3 ? LONG_TEXT : SHORT_TEXT) / len * len;
        for (size_t i = 0; i < n; i += len)
            memcpy(text + i, pieces[p], len);
        ssm_ids ids = {0};
        ssm_text back = {0};
        const clock_t start = clock();
        ck_assert_int_eq(ssm_tokenizer_encode(t, text, n, 0, &ids, NULL), 0);
        const double took = (double)(clock() - start) / CLOCKS_PER_SEC;
        ck_assert_msg(took < seconds_a_byte * (double)n, "%s: %zu bytes of \"%s\" take %.2f s",
                      families[_i], n, pieces[p], took);
        ck_assert_int_eq(ssm_tokenizer_decode(t, ids.data, ids.len, 0, &back, NULL), 0);
        ssm_ids_dispose(&ids);
        ssm_text_dispose(&back);
    }
    free(text);
    ssm_tokenizer_free(t);
}
END_TEST

// Random ids, byte tokens above all: no piece is half a character, none is taken back, and
// together they are what decode gives.
START_TEST(streams_give_whole_characters) {
    ssm_tokenizer *t = open_family(families[_i]);
    const int32_t n = ssm_tokenizer_vocab_size(t);
    uint64_t random = 0x2545f4914f6cdd1d + (uint64_t)_i;
    for (int round = 0; round < 400; round++) {
        ssm_ids ids = {0};
        ssm_text whole = {0}, streamed = {0};
        ssm_detokenizer *d;
        const unsigned flags = round % 2 ? SSM_SKIP_SPECIAL : 0;
        ck_assert_int_eq(ssm_detokenizer_create(t, flags, &d), 0);
        for (int i = 0; i < 60; i++) {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            const int32_t id = (int32_t)(random >> 20) & 3
                                   ? (int32_t)((random >> 33) % 262)
                                   : (int32_t)((random >> 33) % (uint64_t)n);
            const size_t before = streamed.len;
            ck_assert_int_eq(ssm_ids_append(&ids, &id, 1), 0);
            ck_assert_int_eq(ssm_detokenizer_push(d, id, &streamed, NULL), 0);
            const size_t fresh = streamed.len - before;
            ck_assert(fresh == 0 || utf8_valid_prefix(streamed.data + before, fresh) == fresh);
        }
        ck_assert_int_eq(ssm_detokenizer_finish(d, &streamed, NULL), 0);
        ck_assert_int_eq(ssm_tokenizer_decode(t, ids.data, ids.len, flags, &whole, NULL), 0);
        ck_assert_uint_eq(whole.len, streamed.len);
        ck_assert(whole.len == 0 || memcmp(whole.data, streamed.data, whole.len) == 0);
        ssm_detokenizer_free(d);
        ssm_ids_dispose(&ids);
        ssm_text_dispose(&whole);
        ssm_text_dispose(&streamed);
    }
    ssm_tokenizer_free(t);
}
END_TEST

// ---- threads ------------------------------------------------------------------------------------

enum { THREADS = 6 };
static const char *const lines[] = {"Shall I compare thee to a summer's day?",
                                    "  spaces   and\n\nlines\t",
                                    "na\u00efve caf\u00e9 12345",
                                    "\u4f60\u597d\u4e16\u754c \xf0\x9f\x98\x80",
                                    "<s>[INST] x </s><|endoftext|>",
                                    "the the the thine"};
enum { N_LINES = sizeof lines / sizeof lines[0] };
static ssm_tokenizer *shared;

static void *encode_lines(void *arg) {
    ssm_ids *out = arg;
    for (int round = 0; round < 50; round++) {
        out->len = 0;
        for (int i = 0; i < N_LINES; i++) {
            if (ssm_tokenizer_encode(shared, lines[i], strlen(lines[i]), SSM_ADD_SPECIAL, out,
                                     NULL) != 0)
                return NULL;
        }
        ssm_text text = {0};
        const int rc = ssm_tokenizer_decode(shared, out->data, out->len, 0, &text, NULL);
        ssm_text_dispose(&text);
        if (rc != 0)
            return NULL;
    }
    return out;
}

START_TEST(threads_share_a_tokenizer) {
    pthread_t threads[THREADS];
    ssm_ids results[THREADS] = {{0}}, alone = {0};
    void *ok;
    shared = open_family(families[_i]);
    for (int i = 0; i < THREADS; i++)
        ck_assert_int_eq(pthread_create(&threads[i], NULL, encode_lines, &results[i]), 0);
    for (int i = 0; i < THREADS; i++) {
        ck_assert_int_eq(pthread_join(threads[i], &ok), 0);
        ck_assert_ptr_nonnull(ok);
    }
    ssm_tokenizer_free(shared);
    shared = open_family(families[_i]);
    ck_assert_ptr_nonnull(encode_lines(&alone));
    for (int i = 0; i < THREADS; i++) {
        ck_assert_uint_eq(results[i].len, alone.len);
        ck_assert_int_eq(memcmp(results[i].data, alone.data, alone.len * sizeof *alone.data), 0);
        ssm_ids_dispose(&results[i]);
    }
    ssm_ids_dispose(&alone);
    ssm_tokenizer_free(shared);
}
END_TEST

int main(void) {
    Suite *suite = suite_create("tokenizer");
    TCase *tc = tcase_create("all");
    tcase_set_timeout(tc, 120);
    tcase_add_test(tc, questions_about_tokens);
    tcase_add_test(tc, every_byte_has_its_token);
    tcase_add_test(tc, invalid_text_and_ids_are_refused);
    tcase_add_test(tc, results_are_appended);
    tcase_add_test(tc, old_files_and_small_parts);
    tcase_add_test(tc, config_beside_the_file);
    tcase_add_test(tc, broken_and_foreign_files);
    tcase_add_test(tc, deep_nesting_is_refused);
    tcase_add_loop_test(tc, a_megabyte_of_anything_is_fast, 0, N_FAMILIES);
    tcase_add_loop_test(tc, streams_give_whole_characters, 0, N_FAMILIES);
    suite_add_tcase(suite, tc);
    TCase *threads = tcase_create("threads"); // all that TSan is given
    tcase_set_timeout(threads, 120);
    tcase_add_loop_test(threads, threads_share_a_tokenizer, 0, N_FAMILIES);
    suite_add_tcase(suite, threads);
    return suite_run(suite);
}
