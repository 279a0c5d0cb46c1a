// SPDX-License-Identifier: Apache-2.0
// The C side of diff_tokenizers.py: tokenize FILE reads one JSON object a line and writes one:
//     {"text": "...", "special": true}   -> {"ids": [...]}
//     {"ids": [...], "skip": true}       -> {"text": "..."}; the stream's text must be the same
// and {"error": "..."} for what fails.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>

#include <ssm/tokenizer.h>

static json_t *fail(const char *message) {
    return json_pack("{s:s}", "error", message);
}

static json_t *encode(const ssm_tokenizer *t, const json_t *text, bool special) {
    ssm_error err = {0};
    ssm_ids ids = {0};
    if (ssm_tokenizer_encode(t, json_string_value(text), json_string_length(text),
                             special ? SSM_ADD_SPECIAL : 0, &ids, &err) != 0)
        return fail(err.message);
    json_t *list = json_array();
    for (size_t i = 0; i < ids.len; i++)
        json_array_append_new(list, json_integer(ids.data[i]));
    ssm_ids_dispose(&ids);
    return json_pack("{s:o}", "ids", list);
}

static bool stream(const ssm_tokenizer *t, const ssm_ids *ids, unsigned flags, ssm_text *out) {
    ssm_detokenizer *d = NULL;
    bool ok = ssm_detokenizer_create(t, flags, &d) == 0;
    for (size_t i = 0; ok && i < ids->len; i++)
        ok = ssm_detokenizer_push(d, ids->data[i], out, NULL) == 0;
    ok = ok && ssm_detokenizer_finish(d, out, NULL) == 0;
    ssm_detokenizer_free(d);
    return ok;
}

static json_t *decode(const ssm_tokenizer *t, const json_t *list, bool skip) {
    ssm_error err = {0};
    ssm_ids ids = {0};
    ssm_text whole = {0}, streamed = {0};
    const unsigned flags = skip ? SSM_SKIP_SPECIAL : 0;
    size_t i;
    json_t *item, *answer;
    json_array_foreach((json_t *)list, i, item) {
        const int32_t id = (int32_t)json_integer_value(item);
        ssm_ids_append(&ids, &id, 1);
    }
    if (ssm_tokenizer_decode(t, ids.data, ids.len, flags, &whole, &err) != 0)
        answer = fail(err.message);
    else if (!stream(t, &ids, flags, &streamed) || streamed.len != whole.len ||
             (whole.len > 0 && memcmp(streamed.data, whole.data, whole.len) != 0))
        answer = fail("the stream gives other text than decode");
    else
        answer = json_pack("{s:o}", "text", json_stringn(whole.data, whole.len));
    ssm_ids_dispose(&ids);
    ssm_text_dispose(&whole);
    ssm_text_dispose(&streamed);
    return answer;
}

int main(int argc, char **argv) {
    ssm_tokenizer *t;
    ssm_error err = {0};
    char *line = NULL;
    size_t cap = 0;
    ssize_t len;
    if (argc != 2 || ssm_tokenizer_open(argv[1], &t, &err) != 0) {
        fprintf(stderr, "tokenize: %s\n", err.message);
        return EXIT_FAILURE;
    }
    while ((len = getline(&line, &cap, stdin)) > 0) {
        json_t *request = json_loadb(line, (size_t)len, JSON_ALLOW_NUL, NULL);
        const json_t *text = json_object_get(request, "text");
        json_t *answer = !request ? fail("not JSON")
                         : text ? encode(t, text, json_is_true(json_object_get(request, "special")))
                                : decode(t, json_object_get(request, "ids"),
                                         json_is_true(json_object_get(request, "skip")));
        json_dumpf(answer, stdout, JSON_COMPACT);
        putchar('\n');
        json_decref(answer);
        json_decref(request);
    }
    free(line);
    ssm_tokenizer_free(t);
    return EXIT_SUCCESS;
}
