// SPDX-License-Identifier: Apache-2.0
// Tokenizers: opening a tokenizer.json, and the way from text to ids and back.
//
//     text -> added tokens as they are -> normalizer -> added tokens in normal form
//          -> pre_tokenizer -> model -> post_processor -> ids
//
// Each arrow is a file of this folder: added.c, normalizer.c (nform.c), pretokenizer.c
// (pattern.c, onig.c), bpe.c (bpe_encode.c), postprocessor.c; decoder.c leads back. The answers are
// those of the Hugging Face tokenizers library; tests/golden/diff_tokenizers.py compares them.
// What a file asks for and we do not do is an error that names it, never ignored. Two things are
// not asked of us: `truncation` and `padding`, which belong to training batches and which
// transformers, too, resets on every call.
//
// tokenizer_config.json: in transformers' fast tokenizers the ids around a text come from the
// post-processor of tokenizer.json (those classes that look at add_bos_token write it into that
// post-processor when they save). So the post-processor decides, if it says anything about ids;
// only where it is absent or ByteLevel (which is about offsets) are add_bos_token and
// add_eos_token followed. `clean_up_tokenization_spaces` changes text after decoding, in Python, in
// a way that cannot be undone or streamed; it is left to no one.
//
// A tokenizer is shared by threads. What an encoding works with is made for the call; the one thing
// written behind const is bpe's table of whole words, with atomics.
#include "engine/text/tokenizer.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "engine/text/fields.h"
#include "engine/text/unicode.h"

enum { FILE_MAX = 256 * 1024 * 1024, TEXT_MAX = 1 << 30 };

void ssm_tokenizer_free(ssm_tokenizer *t) {
    if (!t)
        return;
    normalizer_free(t->normalizer);
    pretokenizer_free(t->pretokenizer);
    bpe_free(t->model);
    added_dispose(&t->added);
    postprocessor_dispose(&t->post);
    decoder_free(t->decoder);
    free(t->entries);
    ssm_text_dispose(&t->bytes);
    free(t);
}

// ---- opening ------------------------------------------------------------------------------------

static const char *piece(const ssm_tokenizer *t, int32_t id, size_t *len) {
    const char *s = vocab_get(&t->added.table, id, len);
    return s ? s : vocab_get(&t->model->vocab, id, len);
}

static int fill_entries(ssm_tokenizer *t) {
    const int32_t model = t->model->vocab.n_ids, extra = t->added.table.n_ids;
    t->n_ids = model > extra ? model : extra;
    t->entries = calloc((size_t)t->n_ids + 1, sizeof *t->entries);
    if (!t->entries)
        return SSM_ENOMEM;
    for (int32_t id = 0; id < t->n_ids; id++) {
        size_t len;
        const char *s = piece(t, id, &len);
        if (!s)
            continue;
        const size_t start = t->bytes.len;
        const int rc = decoder_bytes(t->decoder, s, len, &t->bytes);
        if (rc != 0)
            return rc;
        t->entries[id] =
            (token_bytes){.start = start, .len = (uint32_t)(t->bytes.len - start), .present = true};
    }
    for (size_t i = 0; i < t->added.n; i++)
        t->entries[t->added.tokens[i].id].special = t->added.tokens[i].special;
    return 0;
}

static int build(ssm_tokenizer *t, const json_t *root, ssm_error *err) {
    fields f = fields_open(root, "file", false, err);
    const ssm_string version = fields_string(&f, "version", false);
    fields_any(&f, "truncation");
    fields_any(&f, "padding");
    const json_t *norm = fields_any(&f, "normalizer");
    const json_t *pre = fields_any(&f, "pre_tokenizer");
    const json_t *model = fields_object(&f, "model", true);
    const json_t *tokens = fields_any(&f, "added_tokens");
    const json_t *post = fields_any(&f, "post_processor");
    const json_t *dec = fields_any(&f, "decoder");
    if (fields_done(&f) != 0)
        return f.code;
    if (version.data && strcmp(version.data, "1.0") != 0)
        return fields_fail(&f, SSM_EUNSUPPORTED, "version %.20s is not supported", version.data);
    int rc = normalizer_create(norm, &t->normalizer, err);
    if (rc == 0)
        rc = pretokenizer_create(pre, &t->pretokenizer, err);
    if (rc == 0)
        rc = bpe_create(model, &t->model, err);
    if (rc == 0)
        rc = added_init(&t->added, tokens, &t->model->vocab, t->normalizer, err);
    if (rc == 0)
        rc = decoder_create(dec, &t->decoder, err);
    if (rc == 0)
        rc = fill_entries(t);
    if (rc == 0)
        rc = postprocessor_init(&t->post, post, t->n_ids, err);
    return rc;
}

static int parse(const char *json, size_t len, const char *name, json_t **out, ssm_error *err) {
    json_error_t e;
    *out = json_loadb(json, len, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, &e);
    if (*out)
        return 0;
    if (json_error_code(&e) == json_error_out_of_memory)
        return SSM_ENOMEM;
    return ssm_error_set(err, SSM_EFORMAT, NULL, "%s: line %d: %s", name, e.line, e.text);
}

int ssm_tokenizer_create(const char *json, size_t len, ssm_tokenizer **out, ssm_error *err) {
    json_t *root = NULL;
    int rc = parse(json, len, "tokenizer.json", &root, err);
    if (rc != 0)
        return rc;
    ssm_tokenizer *t = calloc(1, sizeof *t);
    rc = t ? build(t, root, err) : SSM_ENOMEM;
    json_decref(root);
    if (rc != 0) {
        ssm_tokenizer_free(t);
        if (rc == SSM_ENOMEM)
            ssm_error_set(err, rc, NULL, "out of memory for the tokenizer");
        return rc;
    }
    *out = t;
    return 0;
}

static int read_file(const char *path, ssm_text *out, ssm_error *err) {
    char chunk[65536];
    FILE *file = fopen(path, "rbe");
    if (!file)
        return ssm_error_set(err, SSM_EIO, NULL, "%s: %s", path, strerror(errno));
    int rc = ssm_text_append(out, "", 0);
    size_t n;
    while (rc == 0 && (n = fread(chunk, 1, sizeof chunk, file)) > 0) {
        rc = ssm_text_append(out, chunk, n);
        if (out->len > FILE_MAX)
            rc = ssm_error_set(err, SSM_EFORMAT, NULL, "%s: too large for a tokenizer", path);
    }
    if (rc == 0 && ferror(file))
        rc = ssm_error_set(err, SSM_EIO, NULL, "%s: %s", path, strerror(errno));
    fclose(file);
    return rc;
}

// bos_token and eos_token are a string, or an object with the string as its content.
static int push_named(ssm_tokenizer *t, const json_t *config, const char *flag, const char *name,
                      ssm_ids *to, ssm_error *err) {
    if (!json_is_true(json_object_get(config, flag)))
        return 0;
    const json_t *token = json_object_get(config, name);
    if (json_is_object(token))
        token = json_object_get(token, "content");
    if (!json_is_string(token))
        return ssm_error_set(err, SSM_EFORMAT, flag, "tokenizer_config.json: %s without %s", flag,
                             name);
    const ssm_string s = json_text(token);
    const int32_t id = ssm_tokenizer_find(t, s.data, s.len);
    if (id < 0)
        return ssm_error_set(err, SSM_EFORMAT, name,
                             "tokenizer_config.json: %s %.60s is not in the vocabulary", name,
                             s.data);
    return ssm_ids_append(to, &id, 1);
}

static int read_config(ssm_tokenizer *t, const char *path, ssm_error *err) {
    ssm_text text = {0};
    json_t *config = NULL;
    struct stat info;
    if (t->post.is_template || stat(path, &info) != 0)
        return 0;
    int rc = read_file(path, &text, err);
    if (rc == 0)
        rc = parse(text.data, text.len, "tokenizer_config.json", &config, err);
    if (rc == 0)
        rc = push_named(t, config, "add_bos_token", "bos_token", &t->post.before, err);
    if (rc == 0)
        rc = push_named(t, config, "add_eos_token", "eos_token", &t->post.after, err);
    json_decref(config);
    ssm_text_dispose(&text);
    return rc;
}

// dir/name, or the neighbour `name` of a file.
static char *beside(const char *path, bool is_folder, const char *name) {
    const char *slash = strrchr(path, '/');
    const size_t folder = is_folder ? strlen(path) : slash ? (size_t)(slash - path) : 0;
    const bool needs_slash = is_folder || slash;
    char *out = malloc(folder + strlen(name) + 2);
    if (out)
        sprintf(out, "%.*s%s%s", (int)folder, path, needs_slash ? "/" : "", name);
    return out;
}

int ssm_tokenizer_open(const char *path, ssm_tokenizer **out, ssm_error *err) {
    struct stat info;
    if (stat(path, &info) != 0)
        return ssm_error_set(err, SSM_EIO, NULL, "%s: %s", path, strerror(errno));
    const bool is_folder = S_ISDIR(info.st_mode);
    ssm_text text = {0};
    ssm_tokenizer *t = NULL;
    char *file = is_folder ? beside(path, true, "tokenizer.json") : strdup(path);
    char *config = beside(path, is_folder, "tokenizer_config.json");
    int rc = file && config ? 0 : SSM_ENOMEM;
    if (rc == 0)
        rc = read_file(file, &text, err);
    if (rc == 0)
        rc = ssm_tokenizer_create(text.data, text.len, &t, err);
    if (rc == 0)
        rc = read_config(t, config, err);
    if (rc == 0)
        *out = t;
    else
        ssm_tokenizer_free(t);
    free(file);
    free(config);
    ssm_text_dispose(&text);
    return rc;
}

// ---- questions ----------------------------------------------------------------------------------

int32_t ssm_tokenizer_vocab_size(const ssm_tokenizer *t) {
    return t->n_ids;
}

const char *ssm_tokenizer_bytes(const ssm_tokenizer *t, int32_t id, size_t *len) {
    if (id < 0 || id >= t->n_ids || !t->entries[id].present) {
        *len = 0;
        return NULL;
    }
    *len = t->entries[id].len;
    return t->bytes.data + t->entries[id].start;
}

const char *ssm_tokenizer_piece(const ssm_tokenizer *t, int32_t id, size_t *len) {
    return piece(t, id, len);
}

bool ssm_tokenizer_is_special(const ssm_tokenizer *t, int32_t id) {
    return id >= 0 && id < t->n_ids && t->entries[id].special;
}

int32_t ssm_tokenizer_find(const ssm_tokenizer *t, const char *s, size_t len) {
    const int32_t id = vocab_find(&t->added.table, s, len);
    return id >= 0 ? id : vocab_find(&t->model->vocab, s, len);
}

// ---- encoding -----------------------------------------------------------------------------------

// What one encoding works with.
typedef struct encoder {
    const ssm_tokenizer *t;
    matcher *matcher;
    spans spans, inner;
    words words;
    bpe_scratch scratch;
    ssm_text form;
    ssm_ids *out;
    ssm_error *err;
} encoder;

static int encode_words(encoder *e, const char *s, size_t len, bool is_first) {
    int rc = pretokenizer_run(e->t->pretokenizer, e->matcher, s, len, is_first, &e->words, e->err);
    for (size_t i = 0; i < e->words.n && rc == 0; i++) {
        const word w = e->words.list[i];
        rc = bpe_encode(e->t->model, &e->scratch, e->words.base + w.start, w.len, e->out, e->err);
    }
    return rc;
}

// Text between added tokens: normalised, then split at those that are sought in normal form.
static int encode_plain(encoder *e, const char *s, size_t len, bool is_first) {
    const ssm_tokenizer *t = e->t;
    bool kept_start = true;
    int rc = 0;
    if (t->normalizer) {
        rc = normalizer_run(t->normalizer, e->matcher, s, len, &e->form, &kept_start, e->err);
        s = e->form.data;
        len = e->form.len;
    }
    if (rc == 0)
        rc = added_split(&t->added, &t->added.normalized, s, len, &e->inner);
    for (size_t i = 0; i < e->inner.n && rc == 0; i++) {
        const span p = e->inner.list[i];
        if (p.id >= 0)
            rc = ssm_ids_append(e->out, &p.id, 1);
        else
            rc = encode_words(e, s + p.start, p.len, is_first && kept_start && p.start == 0);
    }
    return rc;
}

static int encode(encoder *e, const char *text, size_t len) {
    const ssm_tokenizer *t = e->t;
    int rc = matcher_create(&e->matcher);
    if (rc == 0)
        rc = added_split(&t->added, &t->added.plain, text, len, &e->spans);
    for (size_t i = 0; i < e->spans.n && rc == 0; i++) {
        const span p = e->spans.list[i];
        if (p.id >= 0)
            rc = ssm_ids_append(e->out, &p.id, 1);
        else
            rc = encode_plain(e, text + p.start, p.len, p.start == 0);
    }
    matcher_free(e->matcher);
    spans_dispose(&e->spans);
    spans_dispose(&e->inner);
    words_dispose(&e->words);
    bpe_scratch_dispose(&e->scratch);
    ssm_text_dispose(&e->form);
    return rc;
}

int ssm_tokenizer_encode(const ssm_tokenizer *t, const char *text, size_t len, unsigned flags,
                         ssm_ids *out, ssm_error *err) {
    if (len > TEXT_MAX)
        return ssm_error_set(err, SSM_EINVAL, NULL, "a text of %zu bytes is too long", len);
    const size_t valid = utf8_valid_prefix(text, len);
    if (valid != len)
        return ssm_error_set(err, SSM_EINVAL, NULL, "the text is not valid UTF-8 at byte %zu",
                             valid);
    const size_t before = out->len;
    encoder e = {.t = t, .out = out, .err = err};
    int rc = ssm_ids_append(out, NULL, 0);
    if (rc == 0 && (flags & SSM_ADD_SPECIAL))
        rc = ssm_ids_append(out, t->post.before.data, t->post.before.len);
    if (rc == 0)
        rc = encode(&e, text, len);
    if (rc == 0 && (flags & SSM_ADD_SPECIAL))
        rc = ssm_ids_append(out, t->post.after.data, t->post.after.len);
    if (rc != 0)
        out->len = before;
    if (rc == SSM_ENOMEM)
        ssm_error_set(err, rc, NULL, "out of memory while tokenizing %zu bytes", len);
    return rc;
}
