// SPDX-License-Identifier: Apache-2.0
// Tokenizer files that are broken or not supported, each refused by the name of what is wrong.
#include <string.h>

#include "fixtures/tokenizer.h"

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

int main(void) {
    Suite *suite = suite_create("tokenizer refused");
    TCase *tc = tcase_create("all");
    tcase_set_timeout(tc, 120);
    tcase_add_test(tc, broken_and_foreign_files);
    tcase_add_test(tc, deep_nesting_is_refused);
    suite_add_tcase(suite, tc);
    return suite_run(suite);
}
