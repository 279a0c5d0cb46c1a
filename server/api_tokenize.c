// SPDX-License-Identifier: Apache-2.0
// POST /tokenize and /detokenize, in two dialects at once: llama-server's (content, add_special,
// with_pieces) and vLLM's (prompt, add_special_tokens, return_token_strs).
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
    char *text; // owned
    bool pieces, strings;
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

// The body's tree, its memory within the budget; *price is to be given back with the tree.
static json_t *parse_body(exchange *ex, json_skimmer *skim, size_t *price, int *rc,
                          ssm_error *err) {
    budget *b = &ex->conn->loop->server->budget;
    json_t *root = NULL;
    skim->is_known = is_known;
    skim->on_unknown = unknown_note;
    *price = 0;
    *rc = json_skim(skim, ex->body.data, &ex->body.len, err);
    if (*rc == 0 && !budget_take(b, skim->tree_bytes)) {
        *rc = ssm_error_set(err, SSM_ENOMEM, NULL,
                            "too much request memory is in use, try again later");
    } else if (*rc == 0) {
        *price = skim->tree_bytes;
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

static void put_tokens(buf *out, const struct tokenize *t) {
    const ssm_ids *ids = &t->encode.items[0].ids;
    const ssm_tokenizer *tokenizer = t->model->tokenizer;
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

static void free_tokenize(struct tokenize *t) {
    t->loop->n_jobs--;
    encode_dispose(&t->encode);
    free(t->text);
    free(t);
}

static void on_encoded(encode *e) {
    struct tokenize *t = e->owner;
    if (t->ex) {
        buf body = {0};
        http_forget_work(t->ex);
        if (e->rc < 0) {
            reply_failure(t->ex, &e->err, e->rc);
        } else {
            put_tokens(&body, t);
            http_reply_json(t->ex, 200, &body);
        }
    }
    free_tokenize(t);
}

static void on_gone(void *work) {
    ((struct tokenize *)work)->ex = NULL;
}

static void on_nothing(void *work) {
}

static const exchange_listener listener = {on_gone, on_nothing, on_nothing};

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
    size_t price, len = 0;
    int rc;
    json_t *root = parse_body(ex, &skim, &price, &rc, err);
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
done:
    json_decref(root);
    budget_give(&ex->conn->loop->server->budget, price);
    http_free_body(ex);
    return rc;
}

void api_tokenize(exchange *ex) {
    struct tokenize *t = calloc(1, sizeof *t);
    ssm_error err = {0};
    if (!t) {
        reply_failure(ex, &err, SSM_ENOMEM);
        return;
    }
    t->loop = ex->conn->loop;
    t->loop->n_jobs++;
    const int rc = read_tokenize(ex, t, &err);
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

// ---- /detokenize

static int decode(exchange *ex, ssm_text *text, ssm_error *err) {
    json_skimmer skim = {.ids_key = "tokens"};
    const served_model *model = NULL;
    bool skip = false;
    size_t price;
    int rc;
    json_t *root = parse_body(ex, &skim, &price, &rc, err);
    if (rc < 0 || (rc = find_model(ex, root, &model, err)) < 0 ||
        (rc = json_get_bool(root, "skip_special_tokens", &skip, err)) < 0) {
        goto done;
    }
    if (!skim.ids.found || skim.ids.nested) {
        rc = ssm_error_set(err, SSM_EINVAL, "tokens", "tokens must be a list of token ids");
        goto done;
    }
    rc = ssm_tokenizer_decode(model->tokenizer, skim.ids.data, skim.ids.n,
                              skip ? SSM_SKIP_SPECIAL : 0, text, err);
    if (rc == SSM_EINVAL) {
        ssm_error named = *err;
        ssm_error_set(err, rc, "tokens", "tokens: %s", named.message);
    }
done:
    json_decref(root);
    json_ids_dispose(&skim.ids);
    budget_give(&ex->conn->loop->server->budget, price);
    http_free_body(ex);
    return rc;
}

void api_detokenize(exchange *ex) {
    ssm_text text = {0};
    ssm_error err = {0};
    const int rc = decode(ex, &text, &err);
    if (rc < 0) {
        reply_failure(ex, &err, rc);
    } else {
        buf body = {0};
        buf_str(&body, "{\"content\":");
        json_put_string(&body, text.data ? text.data : "", text.len);
        buf_str(&body, ",\"prompt\":");
        json_put_string(&body, text.data ? text.data : "", text.len);
        buf_str(&body, "}");
        http_reply_json(ex, 200, &body);
    }
    ssm_text_dispose(&text);
}
