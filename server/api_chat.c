// SPDX-License-Identifier: Apache-2.0
// POST /v1/chat/completions, which is a completion of another form (api_completions.c has the way
// of both), and POST /apply-template, which takes the same body and shows the prompt.
#include <stdlib.h>

#include "completer.h"
#include "loop.h"
#include "routes.h"
#include "server.h"

void api_chat(exchange *ex) {
    completer_open(ex, true);
}

// ---- /apply-template

struct apply {
    exchange *ex; // NULL: the client has left
    struct loop *loop;
    completion request;
    const served_model *model;
    encode encode; // no items: only what comes before them
};

static void free_apply(struct apply *a) {
    a->loop->n_jobs--;
    encode_dispose(&a->encode);
    completion_dispose(&a->request);
    free(a);
}

static void on_gone(void *work) {
    struct apply *a = work;
    a->ex = NULL;
    if (encode_drop(&a->encode)) {
        free_apply(a);
    } // otherwise when the pool is done with it
}

static const exchange_listener listener = {.on_gone = on_gone};

static int render(encode *e) {
    struct apply *a = e->owner;
    return completion_render(&a->request, a->model, &e->err);
}

static void on_rendered(encode *e) {
    struct apply *a = e->owner;
    if (a->ex && e->rc < 0) {
        http_forget_work(a->ex);
        http_reply_ssm_error(a->ex, &e->err);
    } else if (a->ex) {
        const completion_prompt *prompt = &a->request.prompts[0];
        buf body = {0};
        buf_str(&body, "{\"prompt\":");
        json_put_string(&body, prompt->text, prompt->text_len);
        buf_str(&body, "}");
        http_forget_work(a->ex);
        http_reply_json(a->ex, 200, &body);
    }
    free_apply(a);
}

static int parse(struct apply *a, exchange *ex, ssm_error *err) {
    const completion_limits limits = completer_limits(a->loop);
    const completion_memory memory = completer_memory(a->loop);
    const int rc = completion_parse_chat(&a->request, &limits, &memory, &ex->body, err);
    http_free_body(ex);
    if (rc == 0) {
        a->model = registry_find(&a->loop->server->models, a->request.model);
    }
    return rc;
}

void api_apply_template(exchange *ex) {
    ssm_error err = {0};
    struct apply *a = calloc(1, sizeof *a);
    if (!a) {
        ssm_error_set(&err, SSM_ENOMEM, NULL, "out of memory");
        http_reply_ssm_error(ex, &err);
        return;
    }
    a->loop = ex->conn->loop;
    a->loop->n_jobs++;
    const int rc = parse(a, ex, &err);
    if (rc < 0 || !a->model) {
        if (rc < 0) {
            http_reply_ssm_error(ex, &err);
        } else {
            completer_reply_unknown_model(ex, a->request.model);
        }
        free_apply(a);
        return;
    }
    a->ex = ex;
    a->encode = (encode){.prepare = render,
                         .prepare_bytes = a->request.chat.messages_len,
                         .done = on_rendered,
                         .owner = a};
    http_wait(ex, &listener, a);
    encode_start(&a->encode, a->loop);
}
