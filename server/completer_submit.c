// SPDX-License-Identifier: Apache-2.0
// A completer's prompts on their way to the engine.
//
// The body is parsed and freed; texts become ids here or on the pool; every prompt is an engine
// request of its own, at most WINDOW of them submitted at once, so that one request with a
// thousand prompts neither fills the queue nor is refused by it.
#include <stdlib.h>
#include <string.h>

#include "completer_parts.h"
#include "loop.h"
#include "server.h"
#include "tenant.h"

enum { WINDOW = 32 };

// ---- submission

static int start_choices(completion_run *run, ssm_error *err) {
    completer *c = run->owner;
    const completion *r = &c->request;
    ssm_text text = {0};
    int rc = 0;
    run->choices = calloc((size_t)r->best_of, sizeof *run->choices);
    if (!run->choices) {
        return ssm_error_set(err, SSM_ENOMEM, NULL, "out of memory");
    }
    if (r->echo && !run->prompt->text) {
        rc = ssm_tokenizer_decode(c->model->tokenizer, run->prompt->ids, run->prompt->n_ids,
                                  r->skip_special ? SSM_SKIP_SPECIAL : 0, &text, err);
    }
    for (int32_t i = 0; rc == 0 && i < r->best_of; i++) {
        rc = choice_text_init(&run->choices[i], r, c->model, err);
        run->n_choices = i + 1;
        if (rc == 0 && r->echo) {
            rc = run->prompt->text
                     ? choice_text_echo(&run->choices[i], run->prompt->text, run->prompt->text_len)
                     : choice_text_echo(&run->choices[i], text.data, text.len);
        }
    }
    ssm_text_dispose(&text);
    if (rc == 0 && r->echo && r->logprobs >= 0) {
        rc = ssm_detokenizer_create(c->model->tokenizer, r->skip_special ? SSM_SKIP_SPECIAL : 0,
                                    &run->score_text);
    }
    return rc < 0 && !*err->message ? ssm_error_set(err, rc, NULL, "%s", ssm_error_text(rc)) : rc;
}

static uint64_t client_of(const exchange *ex) {
    const char *key = MHD_lookup_connection_value(ex->mhd, MHD_HEADER_KIND, "Authorization");
    uint64_t hash = 0xcbf29ce484222325u; // FNV-1a
    for (const char *at = key ? key : ex->conn->peer; *at; at++) {
        hash = (hash ^ (unsigned char)*at) * 0x100000001b3u;
    }
    return hash;
}

static int submit(completion_run *run, ssm_error *err) {
    completer *c = run->owner;
    const completion *r = &c->request;
    ssm_request request;
    if (!run->choices) {
        const int rc = start_choices(run, err);
        if (rc < 0) {
            return rc;
        }
    }
    ssm_request_init(&request);
    request.port = c->loop->ports[c->model->index];
    request.user = run;
    request.prompt = run->prompt->ids;
    request.n_prompt = run->prompt->n_ids;
    request.n = r->best_of;
    request.max_tokens = r->max_tokens;
    request.min_tokens = r->min_tokens;
    request.sampling = &r->sampling;
    request.seed = r->seed;
    request.logprobs = r->logprobs < 0 && r->best_of > r->n ? 0 : r->logprobs;
    request.prompt_logprobs = r->echo && r->logprobs >= 0;
    request.stop_ids = r->stop_ids;
    request.n_stop_ids = r->n_stop_ids;
    request.ignore_eos = r->ignore_eos;
    request.client = client_of(c->ex);
    request.priority = r->priority;
    request.cache_prompt = r->cache_prompt && !request.prompt_logprobs;
    tenant_salt(c->ex, r->cache_salt.data, r->cache_salt.len, request.cache_salt);
    request.session = r->session;
    request.session_hold = r->session != NULL;
    if (r->session && r->chat.is_chat) {
        request.session_whole = c->turn.is_whole;
        request.session_at = &c->turn.at;
    }
    tenant_owner(c->ex, request.session_owner);
    request.session_no_wait = strcmp(c->loop->server->o->session_busy, "409") == 0;
    const int rc = ssm_engine_submit(c->model->engine, &request, &run->id, err);
    if (rc == 0) {
        run->state = RUN_OPEN;
        c->n_open++;
    }
    return rc;
}

// Submits as many prompts as the window lets in. A full queue is an answer (429) only while nothing
// of this request runs; later prompts wait for its own to end.
void completer_submit_more(completer *c) {
    while (c->error.code == 0 && !c->pressed && c->n_submitted < c->n_runs && c->n_open < WINDOW) {
        ssm_error err = {0};
        const int rc = submit(&c->runs[c->n_submitted], &err);
        if (rc == SSM_EBUSY && c->n_open > 0) {
            return;
        }
        if (rc < 0) {
            completer_fail(c, rc, err.param, err.message);
            return;
        }
        c->n_submitted++;
    }
}

// ---- prompts

static int check_prompts(completer *c, ssm_error *err) {
    const completion_limits limits = completer_limits(c->loop);
    for (size_t i = 0; i < c->request.n_prompts; i++) {
        completion_prompt *prompt = &c->request.prompts[i];
        if (prompt->text) {
            prompt->ids = c->encode.items[i].ids.data;
            prompt->n_ids = c->encode.items[i].ids.len;
        }
        const int rc = completion_check_prompt(&c->request, c->model, &limits, prompt, err);
        if (rc < 0) {
            return rc;
        }
    }
    return 0;
}

static int make_runs(completer *c, ssm_error *err) {
    size_t ids = 0;
    c->runs = calloc(c->request.n_prompts, sizeof *c->runs);
    if (!c->runs) {
        return ssm_error_set(err, SSM_ENOMEM, NULL, "out of memory");
    }
    c->n_runs = c->request.n_prompts;
    for (size_t i = 0; i < c->n_runs; i++) {
        c->runs[i] = (completion_run){
            .owner = c, .prompt = &c->request.prompts[i], .first_index = i * (size_t)c->request.n};
        ids += c->request.prompts[i].n_ids;
    }
    // Ours and the engine's copy, and what parsing left in the arena.
    const size_t bytes = 2 * ids * sizeof(int32_t) + c->request.arena.bytes;
    if (!budget_take(&c->loop->server->budget, bytes)) {
        return ssm_error_set(err, SSM_ENOMEM, NULL,
                             "too much request memory is in use, try again later");
    }
    c->charged = bytes;
    return 0;
}

static void on_encoded(encode *e) {
    completer *c = e->owner;
    ssm_error err = {0};
    c->encoding = false;
    if (c->ex) {
        int rc = e->rc < 0 ? (err = e->err, e->rc) : check_prompts(c, &err);
        rc = rc == 0 ? make_runs(c, &err) : rc;
        if (rc == 0) {
            completer_submit_more(c);
        } else {
            completer_fail(c, rc, *err.param ? err.param : "prompt", err.message);
        }
    }
    completer_touch(c);
    if (!c->in_handler) {
        completer_flush_touched(c->loop); // from the pool: no one else does
    }
}

// On the pool, if the conversation is long or has a session.
static int render(encode *e) {
    completer *c = e->owner;
    completion_prompt *prompt = &c->request.prompts[0];
    const bool is_first = prompt->text_len == 0; // and not made again for its session's sake
    int rc = is_first ? completion_render(&c->request, c->model, &e->err) : 0;
    if (rc == 0 && c->request.session) {
        e->items[0].text = NULL; // the ids come from here
        rc = chat_turn_encode(&c->turn, &c->request, c->model, &e->items[0].ids, &e->err);
        prompt->goes_on = !c->turn.is_whole;
        return rc;
    }
    e->items[0].text = prompt->text;
    e->items[0].len = prompt->text_len;
    return rc;
}

void completer_start_encoding(completer *c) {
    const completion *r = &c->request;
    c->encode = (encode){.tokenizer = c->model->tokenizer,
                         .flags = completion_adds_special(r, c->model) ? SSM_ADD_SPECIAL : 0,
                         .prepare = r->chat.is_chat ? render : NULL,
                         .prepare_bytes = r->chat.messages_len + (r->session ? ENCODE_INLINE : 0),
                         .items = calloc(r->n_prompts, sizeof *c->encode.items),
                         .n = r->n_prompts,
                         .done = on_encoded,
                         .owner = c};
    if (!c->encode.items) {
        c->encode.n = 0;
        completer_fail(c, SSM_ENOMEM, NULL, "out of memory");
        completer_touch(c);
        return;
    }
    for (size_t i = 0; i < r->n_prompts; i++) {
        c->encode.items[i].text = r->prompts[i].text;
        c->encode.items[i].len = r->prompts[i].text_len;
    }
    c->encoding = c->in_handler = true;
    encode_start(&c->encode, c->loop);
    c->in_handler = false;
}

// The session was elsewhere when the turn was to begin: it is looked at again.
void completer_start_again(completer *c) {
    c->moved = false;
    for (size_t i = 0; i < c->n_runs; i++) {
        completer_dispose_run(&c->runs[i]);
    }
    free(c->runs);
    c->runs = NULL;
    c->n_runs = c->n_submitted = 0;
    encode_dispose(&c->encode);
    budget_give(&c->loop->server->budget, c->charged);
    c->charged = 0;
    completer_start_encoding(c);
}
