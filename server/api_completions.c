// SPDX-License-Identifier: Apache-2.0
// POST /v1/completions, and what POST /v1/chat/completions has of it: a body becomes a completer.
// The two differ in what is parsed, in where the text of the prompt comes from and in the form of
// the answer, all of it elsewhere.
//
// From here completer_submit.c brings the prompts to the engine, completer.c takes its events,
// completer_answer.c answers, later or within this very call.
#include <stdio.h>

#include "completer_parts.h"
#include "loop.h"
#include "routes.h"
#include "server.h"
#include "tenant.h"

static bool take_memory(void *ctx, size_t bytes) {
    return budget_take(&((server *)ctx)->budget, bytes);
}

static void give_memory(void *ctx, size_t bytes) {
    budget_give(&((server *)ctx)->budget, bytes);
}

completion_limits completer_limits(const loop *l) {
    const options *o = l->server->o;
    return (completion_limits){.max_prompts = (size_t)o->max_prompts,
                               .max_prompt_tokens = (size_t)o->max_prompt_tokens,
                               .any_model = o->any_model,
                               .chat_max_tokens = o->default_max_tokens};
}

completion_memory completer_memory(loop *l) {
    return (completion_memory){take_memory, give_memory, l->server, l->server->budget.limit};
}

void completer_reply_unknown_model(exchange *ex, const char *name) {
    char message[160];
    snprintf(message, sizeof message, "there is no model '%.*s' here", 100, name);
    http_reply_error(ex, 404, "invalid_request_error", "model", "model_not_found", message);
}

static int parse(completer *c, exchange *ex, bool is_chat, ssm_error *err) {
    const completion_limits limits = completer_limits(c->loop);
    const completion_memory memory = completer_memory(c->loop);
    const int rc = is_chat ? completion_parse_chat(&c->request, &limits, &memory, &ex->body, err)
                           : completion_parse(&c->request, &limits, &memory, &ex->body, err);
    http_free_body(ex);
    if (rc < 0) {
        return rc;
    }
    if (!c->request.has_seed) {
        c->request.seed = loop_random(c->loop);
    }
    c->model = registry_find(&c->loop->server->models, c->request.model);
    return c->model ? completion_bind(&c->request, c->model, err) : SSM_ENOTFOUND;
}

void completer_open(exchange *ex, bool is_chat) {
    completer *c = completer_create(ex, is_chat);
    ssm_error err = {0};
    if (!c) {
        ssm_error_set(&err, SSM_ENOMEM, NULL, "out of memory");
        http_reply_ssm_error(ex, &err);
        return;
    }
    const int rc = parse(c, ex, is_chat, &err);
    if (rc < 0) {
        if (rc == SSM_ENOTFOUND) {
            completer_reply_unknown_model(ex, c->request.model);
        } else {
            err.code = rc;
            http_reply_ssm_error(ex, &err);
        }
        c->ex = NULL;
        completer_free(c);
        return;
    }
    tenant_owner(ex, c->turn.owner);
    http_wait(ex, &completer_listener, c);
    completer_start_encoding(c);
    // An error found by now is an answer of this very call; the flush may free the completer.
    completer_flush_touched(ex->conn->loop);
}

void api_completions(exchange *ex) {
    completer_open(ex, false);
}
