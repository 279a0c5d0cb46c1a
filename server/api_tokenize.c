// SPDX-License-Identifier: Apache-2.0
// POST /tokenize and /detokenize, in two dialects at once: llama-server's (content, add_special,
// with_pieces) and vLLM's (prompt, add_special_tokens, return_token_strs).
//
// Texts become ids, ids texts, and either an answer where encode.h says; on the loop a list of
// millions would hold up every stream for a fifth of a second. All of these count against
// --max-request-memory as they are made, the answer until it is sent: twelve lists that nobody read
// took 240 MB of a container of 256.
#include <stdlib.h>
#include <string.h>

#include "encode.h"
#include "json.h"
#include "loop.h"
#include "routes.h"
#include "server.h"
#include "unknown.h"

struct tokenize {
    exchange *ex; // NULL: the client has left
    loop *loop;
    const served_model *model;
    size_t price; // of the budget
    char *text;   // /tokenize's, owned
    bool pieces, strings;
    json_ids ids; // /detokenize's, owned
    bool skip;
    buf answer;
    encode encode;
};

static bool is_known(const char *key) {
    static const char *const keys[] = {"model",
                                       "content",
                                       "prompt",
                                       "add_special",
                                       "with_pieces",
                                       "add_special_tokens",
                                       "tokens",
                                       "user",
                                       "return_token_strs",
                                       "skip_special_tokens"};
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        if (strcmp(keys[i], key) == 0) {
            return true;
        }
    }
    return false;
}

static void reply_failure(exchange *ex, ssm_error *err, int code) {
    err->code = code;
    if (code == SSM_ENOTFOUND) {
        http_reply_error(ex, 404, "invalid_request_error", "model", "model_not_found",
                         err->message);
    } else {
        http_reply_ssm_error(ex, err);
    }
}

static int charge(struct tokenize *t, size_t bytes, ssm_error *err) {
    if (!budget_take(&t->loop->server->budget, bytes)) {
        return ssm_error_set(err, SSM_ENOMEM, NULL,
                             "too much request memory is in use, try again later");
    }
    t->price += bytes;
    return 0;
}

// The body's tree, its memory within the budget until the end: what is kept of it is no more.
static json_t *parse_body(exchange *ex, struct tokenize *t, json_skimmer *skim, int *rc,
                          ssm_error *err) {
    json_t *root = NULL;
    skim->is_known = is_known;
    skim->on_unknown = unknown_note;
    *rc = json_skim(skim, ex->body.data, &ex->body.len, err);
    if (*rc == 0) {
        *rc = charge(t, skim->tree_bytes, err);
    }
    if (*rc == 0) {
        root = json_parse_object(ex->body.data, ex->body.len, err);
        *rc = root ? 0 : SSM_EINVAL;
    }
    return root;
}

static int find_model(exchange *ex, const json_t *root, const served_model **out, ssm_error *err) {
    const char *name = NULL;
    size_t len = 0;
    const int rc = json_get_string(root, "model", &name, &len, err);
    if (rc < 0) {
        return rc;
    }
    *out = registry_find(&ex->conn->loop->server->models, name);
    return *out ? 0
                : ssm_error_set(err, SSM_ENOTFOUND, "model", "there is no model '%.100s' here",
                                name);
}

static void free_tokenize(struct tokenize *t) {
    t->loop->n_jobs--;
    budget_give(&t->loop->server->budget, t->price);
    encode_dispose(&t->encode);
    json_ids_dispose(&t->ids);
    buf_dispose(&t->answer);
    free(t->text);
    free(t);
}

static void on_encoded(encode *e) {
    struct tokenize *t = e->owner;
    if (t->ex) {
        http_forget_work(t->ex);
        if (e->rc < 0) {
            reply_failure(t->ex, &e->err, e->rc);
        } else {
            const size_t kept = t->answer.cap < t->price ? t->answer.cap : t->price;
            t->ex->charged += kept;
            t->price -= kept;
            http_reply_json(t->ex, 200, &t->answer);
        }
    }
    free_tokenize(t);
}

static void on_gone(void *work) {
    struct tokenize *t = work;
    t->ex = NULL;
    if (encode_drop(&t->encode)) {
        free_tokenize(t);
    } // otherwise when the pool is done with it
}

static const exchange_listener listener = {.on_gone = on_gone};

// Reads the body and starts what it asks for.
static void begin(exchange *ex, int (*read)(exchange *, struct tokenize *, ssm_error *)) {
    struct tokenize *t = calloc(1, sizeof *t);
    ssm_error err = {0};
    if (!t) {
        reply_failure(ex, &err, SSM_ENOMEM);
        return;
    }
    t->loop = ex->conn->loop;
    t->loop->n_jobs++;
    const int rc = read(ex, t, &err);
    http_free_body(ex);
    if (rc < 0) {
        reply_failure(ex, &err, rc);
        free_tokenize(t);
        return;
    }
    t->ex = ex;
    t->encode.done = on_encoded;
    t->encode.owner = t;
    http_wait(ex, &listener, t);
    encode_start(&t->encode, t->loop);
}

// ---- /tokenize

static void put_piece(buf *out, const ssm_tokenizer *tokenizer, int32_t id) {
    size_t len = 0;
    const char *bytes = ssm_tokenizer_bytes(tokenizer, id, &len);
    buf_printf(out, "{\"id\":%d,\"piece\":", id);
    if (utf8_is_valid(bytes, len)) {
        json_put_string(out, bytes ? bytes : "", len);
    } else { // half a character: its bytes, as llama-server lists them
        buf_str(out, "[");
        for (size_t i = 0; i < len; i++) {
            buf_printf(out, i ? ",%u" : "%u", (unsigned char)bytes[i]);
        }
        buf_str(out, "]");
    }
    buf_str(out, "}");
}

static void put_tokens(encode *e) {
    struct tokenize *t = e->owner;
    buf *out = &t->answer;
    const ssm_ids *ids = &e->items[0].ids;
    const ssm_tokenizer *tokenizer = t->model->tokenizer;
    const size_t entry = (t->pieces ? 48 : 8) + (t->strings ? 16 : 0); // of a list, about
    e->rc = charge(t, ids->len * (sizeof *ids->data + entry), &e->err);
    if (e->rc < 0) {
        return;
    }
    buf_str(out, "{\"tokens\":[");
    for (size_t i = 0; i < ids->len; i++) {
        buf_str(out, i ? "," : "");
        if (t->pieces) {
            put_piece(out, tokenizer, ids->data[i]);
        } else {
            json_put_int(out, ids->data[i]);
        }
    }
    buf_printf(out, "],\"count\":%zu,\"max_model_len\":null", ids->len);
    if (t->strings) {
        buf_str(out, ",\"token_strs\":[");
        for (size_t i = 0; i < ids->len; i++) {
            size_t len = 0;
            const char *piece = ssm_tokenizer_piece(tokenizer, ids->data[i], &len);
            buf_str(out, i ? "," : "");
            json_put_string(out, piece ? piece : "", len);
        }
        buf_str(out, "]");
    }
    buf_str(out, "}");
}

// The text and whether special tokens are added: off with content alone, on with prompt.
static int read_text(const json_t *root, struct tokenize *t, size_t *len, ssm_error *err) {
    const char *content = NULL, *prompt = NULL;
    size_t content_len = 0, prompt_len = 0;
    int rc = json_get_string(root, "content", &content, &content_len, err);
    if (rc == 0) {
        rc = json_get_string(root, "prompt", &prompt, &prompt_len, err);
    }
    bool special = prompt != NULL;
    if (rc == 0) {
        rc = json_get_bool(root, "add_special", &special, err);
    }
    if (rc == 0) {
        rc = json_get_bool(root, "add_special_tokens", &special, err);
    }
    if (rc < 0) {
        return rc;
    }
    if (!content && !prompt) {
        return ssm_error_set(err, SSM_EINVAL, "content", "content or prompt is missing");
    }
    if (content && prompt &&
        (content_len != prompt_len || memcmp(content, prompt, prompt_len) != 0)) {
        return ssm_error_set(err, SSM_EINVAL, "prompt", "content and prompt differ");
    }
    *len = content ? content_len : prompt_len;
    t->text = malloc(*len + 1);
    if (!t->text) {
        return ssm_error_set(err, SSM_ENOMEM, NULL, "out of memory");
    }
    memcpy(t->text, content ? content : prompt, *len);
    t->encode.flags = special ? SSM_ADD_SPECIAL : 0;
    return 0;
}

static int read_tokenize(exchange *ex, struct tokenize *t, ssm_error *err) {
    json_skimmer skim = {0};
    size_t len = 0;
    int rc;
    json_t *root = parse_body(ex, t, &skim, &rc, err);
    if (rc < 0 || (rc = find_model(ex, root, &t->model, err)) < 0 ||
        (rc = read_text(root, t, &len, err)) < 0 ||
        (rc = json_get_bool(root, "with_pieces", &t->pieces, err)) < 0 ||
        (rc = json_get_bool(root, "return_token_strs", &t->strings, err)) < 0) {
        goto done;
    }
    t->encode.tokenizer = t->model->tokenizer;
    t->encode.items = calloc(1, sizeof *t->encode.items);
    if (!t->encode.items) {
        rc = ssm_error_set(err, SSM_ENOMEM, NULL, "out of memory");
        goto done;
    }
    t->encode.items[0] = (encode_item){.text = t->text, .len = len};
    t->encode.n = 1;
    t->encode.finish = put_tokens;
done:
    json_decref(root);
    return rc;
}

void api_tokenize(exchange *ex) {
    begin(ex, read_tokenize);
}

// ---- /detokenize

static void put_text(buf *out, const char *key, const ssm_text *text) {
    buf_str(out, key);
    json_put_string(out, text->data ? text->data : "", text->len);
}

static int decode(encode *e) {
    struct tokenize *t = e->owner;
    ssm_text text = {0};
    int rc = ssm_tokenizer_decode(t->model->tokenizer, t->ids.data, t->ids.n,
                                  t->skip ? SSM_SKIP_SPECIAL : 0, &text, &e->err);
    if (rc == 0) {
        rc = charge(t, 3 * text.len, &e->err); // and twice in the answer
    }
    if (rc == SSM_EINVAL) {
        ssm_error named = e->err;
        ssm_error_set(&e->err, rc, "tokens", "tokens: %s", named.message);
    } else if (rc == 0) {
        put_text(&t->answer, "{\"content\":", &text);
        put_text(&t->answer, ",\"prompt\":", &text);
        buf_str(&t->answer, "}");
    }
    ssm_text_dispose(&text);
    return rc;
}

static int read_detokenize(exchange *ex, struct tokenize *t, ssm_error *err) {
    json_skimmer skim = {.ids_key = "tokens"};
    int rc;
    json_t *root = parse_body(ex, t, &skim, &rc, err);
    t->ids = skim.ids;
    if (rc < 0 || (rc = find_model(ex, root, &t->model, err)) < 0 ||
        (rc = json_get_bool(root, "skip_special_tokens", &t->skip, err)) < 0) {
        goto done;
    }
    if (!t->ids.found || t->ids.nested) {
        rc = ssm_error_set(err, SSM_EINVAL, "tokens", "tokens must be a list of token ids");
        goto done;
    }
    t->encode.prepare = decode;
    t->encode.prepare_bytes = t->ids.n * sizeof *t->ids.data;
    rc = charge(t, t->encode.prepare_bytes, err);
done:
    json_decref(root);
    return rc;
}

void api_detokenize(exchange *ex) {
    begin(ex, read_detokenize);
}
