// SPDX-License-Identifier: Apache-2.0
// POST /v1/completions and /v1/chat/completions: from a body to engine requests and back to an
// answer. The two differ in what is parsed, in where the text of the prompt comes from and in the
// form of the answer, all of it elsewhere.
//
// The body is parsed and freed; texts become ids here or on the pool; every prompt is an engine
// request of its own, at most WINDOW of them submitted at once, so that one request with a
// thousand prompts neither fills the queue nor is refused by it. Events come in steps: each marks
// its completer as touched, and after each step all touched completers are flushed, which is where
// chunks are written and where a completer is answered and freed, in one place.
//
// The headers of a stream go out with its first event, not at submission: until then an error is
// still an answer with a status. A completer outlives its exchange: what was submitted is freed
// only when the engine has said DONE.
//
// A client that reads slowly: past HTTP_STREAM_HIGH bytes unsent its engine requests are paused,
// below a quarter of it they go on.
#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "completer.h"
#include "log.h"
#include "loop.h"
#include "routes.h"
#include "server.h"
#include "stream.h"
#include "tenant.h"

enum { WINDOW = 32 };

static const exchange_listener listener;

// ---- life

static bool take_memory(void *ctx, size_t bytes) {
    return budget_take(&((server *)ctx)->budget, bytes);
}

static void give_memory(void *ctx, size_t bytes) {
    budget_give(&((server *)ctx)->budget, bytes);
}

static void dispose_run(completion_run *run) {
    for (int32_t i = 0; i < run->n_choices; i++) {
        choice_text_dispose(&run->choices[i]);
    }
    free(run->choices);
    ssm_detokenizer_free(run->score_text);
    logprobs_dispose(&run->scores);
}

static void free_completer(completer *c) {
    c->loop->n_jobs--;
    for (size_t i = 0; i < c->n_runs; i++) {
        dispose_run(&c->runs[i]);
    }
    free(c->runs);
    encode_dispose(&c->encode);
    completion_dispose(&c->request);
    buf_dispose(&c->chunk);
    buf_dispose(&c->chunk_head);
    budget_give(&c->loop->server->budget, c->charged);
    free(c);
}

static void free_if_over(completer *c) {
    if (!c->ex && c->n_open == 0 && !c->encoding && !c->touched) {
        free_completer(c);
    }
}

static void touch(completer *c) {
    if (!c->touched) {
        c->touched = true;
        c->next_touched = c->loop->touched;
        c->loop->touched = c;
    }
}

static void cancel_open(completer *c) {
    for (size_t i = 0; i < c->n_submitted && c->n_open > 0; i++) {
        if (c->runs[i].state == RUN_OPEN) {
            ssm_engine_cancel(c->model->engine, c->runs[i].id, -1);
        }
    }
}

// The exchange has been answered or is gone: what the engine still has is cancelled.
static void leave(completer *c) {
    c->ex = NULL;
    cancel_open(c);
}

static void fail(completer *c, int code, const char *param, const char *message) {
    if (c->error.code == 0) {
        ssm_error_set(&c->error, code, param, "%s", message);
    }
}

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
static void submit_more(completer *c) {
    while (c->error.code == 0 && !c->pressed && c->n_submitted < c->n_runs && c->n_open < WINDOW) {
        ssm_error err = {0};
        const int rc = submit(&c->runs[c->n_submitted], &err);
        if (rc == SSM_EBUSY && c->n_open > 0) {
            return;
        }
        if (rc < 0) {
            fail(c, rc, err.param, err.message);
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
            submit_more(c);
        } else {
            fail(c, rc, *err.param ? err.param : "prompt", err.message);
        }
    }
    touch(c);
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

static void start_encoding(completer *c) {
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
        fail(c, SSM_ENOMEM, NULL, "out of memory");
        touch(c);
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

// ---- the handler

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

static completer *create_completer(exchange *ex, bool is_chat) {
    completer *c = calloc(1, sizeof *c);
    if (c) {
        loop *l = ex->conn->loop;
        c->loop = l;
        c->ex = ex;
        c->started = ex->started;
        c->created = time(NULL);
        snprintf(c->id, sizeof c->id, "%s-%016llx%04x", is_chat ? "chatcmpl" : "cmpl",
                 (unsigned long long)loop_random(l), (unsigned)(loop_random(l) & 0xffff));
        l->n_jobs++;
    }
    return c;
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
    completer *c = create_completer(ex, is_chat);
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
        free_completer(c);
        return;
    }
    tenant_owner(ex, c->turn.owner);
    http_wait(ex, &listener, c);
    start_encoding(c);
    // An error found by now is an answer of this very call; the flush may free the completer.
    completer_flush_touched(ex->conn->loop);
}

void api_completions(exchange *ex) {
    completer_open(ex, false);
}

// ---- events

static size_t score_offset(completion_run *run, int32_t token) {
    ssm_text piece = {0};
    ssm_error err;
    const size_t offset = run->score_chars;
    if (ssm_detokenizer_push(run->score_text, token, &piece, &err) == 0) {
        run->score_chars += utf8_count(piece.data, piece.len);
    }
    ssm_text_dispose(&piece);
    return offset;
}

// The answer's end is known: what of it the session keeps. The engine waits for this word.
static void keep_turn(completion_run *run, const choice_text *choice) {
    completer *c = run->owner;
    uint8_t memo[SSM_SESSION_MEMO];
    size_t n_memo = 0;
    int64_t n = choice->n_tokens;
    if (run->kept || !c->request.session || c->error.code) {
        return;
    }
    if (choice->answer) {
        n = (int64_t)chat_turn_end(&c->turn, choice, memo, &n_memo);
    }
    run->kept = true;
    const int rc = ssm_engine_keep(c->model->engine, run->id, n, memo, n_memo);
    if (rc < 0) {
        fail(c, rc, NULL, "no memory to keep the session's turn");
    }
}

static void on_token(completion_run *run, const ssm_event *event) {
    completer *c = run->owner;
    ssm_error err = {0};
    if (!c->first_token) {
        c->first_token = uv_hrtime();
        metrics_observe(&c->loop->server->metrics.time_to_first_token, c->first_token - c->started);
    }
    run->drawn++;
    const int rc = choice_text_push(&run->choices[event->choice], event, &err);
    if (rc > 0 && c->request.session) {
        keep_turn(run, &run->choices[event->choice]);
    } else if (rc > 0) {
        ssm_engine_cancel(c->model->engine, run->id, event->choice);
    } else if (rc < 0) {
        fail(c, rc, NULL, err.message);
    }
}

static void fail_mismatch(completer *c) {
    char message[256];
    snprintf(message, sizeof message,
             "messages are not the conversation of session %.80s with something new behind it: an "
             "earlier message or answer was changed, or the chat template renders the past anew",
             c->request.session);
    fail(c, SSM_EMISMATCH, "messages", message);
}

static void on_done(completion_run *run, const ssm_event *event) {
    completer *c = run->owner;
    metrics *m = &c->loop->server->metrics;
    run->state = RUN_DONE;
    run->usage = *event->usage;
    c->n_open--;
    metrics_observe(&m->queue_time, run->usage.queue_ns);
    const uint64_t gaps = run->usage.completion_tokens;
    const uint64_t firsts = (uint64_t)run->n_choices;
    if (gaps > firsts) {
        metrics_observe(&m->time_per_output_token, run->usage.decode_ns * firsts / (gaps - firsts));
    }
    if (event->error == SSM_EMOVED && c->ex && c->turn.tries < CHAT_TURN_TRIES) {
        c->turn.tries++;
        c->moved = true;
    } else if (event->error == SSM_EMISMATCH && c->ex && c->request.chat.is_chat) {
        fail_mismatch(c);
    } else if (event->error && c->ex) {
        fail(c, event->error, NULL, event->message ? event->message : ssm_error_text(event->error));
    }
}

void completer_on_event(const ssm_event *event) {
    completion_run *run = event->user;
    completer *c = run->owner;
    ssm_error err = {0};
    int rc = 0;
    touch(c);
    if (event->kind == SSM_EVENT_DONE) {
        on_done(run, event);
        return;
    }
    if (!c->ex || c->error.code) {
        return; // no one listens
    }
    if (event->kind == SSM_EVENT_TOKEN) {
        on_token(run, event);
    } else if (event->kind == SSM_EVENT_PROMPT) {
        rc = logprobs_add(&run->scores, event, score_offset(run, event->token));
    } else if (event->kind == SSM_EVENT_FINISH && event->finish != SSM_FINISH_ERROR) {
        rc = choice_text_finish(&run->choices[event->choice], event->finish, event->token, &err);
        if (rc == 0 && event->finish != SSM_FINISH_CANCELLED) {
            keep_turn(run, &run->choices[event->choice]);
        }
    }
    if (rc < 0) {
        fail(c, rc, NULL, ssm_error_text(rc));
    }
}

// ---- answers

static void log_fields(completer *c) {
    ssm_usage sum = {0};
    buf *log = &c->ex->log;
    for (size_t i = 0; i < c->n_runs; i++) {
        sum.prompt_tokens += c->runs[i].prompt->n_ids;
        sum.cached_tokens += c->runs[i].usage.cached_tokens;
        sum.completion_tokens += c->runs[i].state == RUN_DONE ? c->runs[i].usage.completion_tokens
                                                              : (uint64_t)c->runs[i].drawn;
        if (c->runs[i].usage.queue_ns > sum.queue_ns) {
            sum.queue_ns = c->runs[i].usage.queue_ns;
        }
    }
    log_text(log, "model", c->model->name);
    log_int(log, "prompts", (int64_t)c->n_runs);
    log_int(log, "choices", (int64_t)c->n_runs * c->request.n);
    log_text(log, "stream", c->request.stream ? "yes" : "no");
    log_int(log, "prompt", (int64_t)sum.prompt_tokens);
    log_int(log, "cached", (int64_t)sum.cached_tokens);
    log_int(log, "completion", (int64_t)sum.completion_tokens);
    log_ms(log, "queue_ms", sum.queue_ns);
    if (c->first_token) {
        log_ms(log, "ttft_ms", c->first_token - c->started);
    }
}

static void answer_error(completer *c) {
    exchange *ex = c->ex;
    const bool too_long = c->error.code == SSM_EUNSUPPORTED;
    log_text(&ex->log, "error", c->error.message);
    if (c->began) {
        stream_error(ex, &c->error);
    } else {
        http_forget_work(ex);
        if (too_long) {
            http_reply_error(ex, 400, "invalid_request_error", c->error.param,
                             "context_length_exceeded", c->error.message);
        } else {
            http_reply_ssm_error(ex, &c->error);
        }
    }
    leave(c);
}

static void begin_stream(completer *c) {
    if (!c->began) {
        c->began = true;
        http_stream_begin(c->ex, STREAM_TYPE);
    }
}

static void set_paused(completer *c, bool paused) {
    c->pressed = paused;
    for (size_t i = 0; i < c->n_submitted; i++) {
        if (c->runs[i].state == RUN_OPEN) {
            ssm_engine_pause(c->model->engine, c->runs[i].id, paused);
        }
    }
}

static void send_chunk(completer *c) {
    begin_stream(c);
    if (!stream_event(c->ex, &c->chunk) && !c->pressed) {
        set_paused(c, true);
    }
    c->chunk.len = 0;
}

static void send_news(completer *c) {
    for (size_t i = 0; i < c->n_submitted; i++) {
        completion_run *run = &c->runs[i];
        for (int32_t k = 0; k < run->n_choices; k++) {
            if (completion_has_news(c, run, k)) {
                completion_put_chunk(&c->chunk, c, run, k);
                send_chunk(c);
            }
        }
    }
}

static void finish_stream(completer *c) {
    if (c->request.include_usage || c->request.timings) {
        completion_put_last_chunk(&c->chunk, c);
        send_chunk(c);
    }
    begin_stream(c);
    log_fields(c);
    stream_done(c->ex);
    leave(c);
}

static void answer_whole(completer *c) {
    buf body = {0};
    completion_put_answer(&body, c);
    log_fields(c);
    http_forget_work(c->ex);
    http_reply_json(c->ex, 200, &body);
    leave(c);
}

static bool is_done(const completer *c) {
    return c->n_runs > 0 && c->n_submitted == c->n_runs && c->n_open == 0;
}

// Results grow while they are gathered: their memory counts, in steps of a mebibyte.
static void charge_results(completer *c) {
    size_t bytes = c->request.arena.bytes;
    for (size_t i = 0; i < c->n_submitted; i++) {
        const completion_run *run = &c->runs[i];
        bytes += 2 * run->prompt->n_ids * sizeof(int32_t) + logprobs_bytes(&run->scores);
        for (int32_t k = 0; k < run->n_choices; k++) {
            bytes += choice_text_bytes(&run->choices[k]);
        }
    }
    if (bytes > c->charged + (1 << 20)) {
        if (!budget_take(&c->loop->server->budget, bytes - c->charged)) {
            fail(c, SSM_ENOMEM, NULL, "too much request memory is in use, try again later");
            return;
        }
        c->charged = bytes;
    }
}

// The session was elsewhere when the turn was to begin: it is looked at again.
static void start_again(completer *c) {
    c->moved = false;
    for (size_t i = 0; i < c->n_runs; i++) {
        dispose_run(&c->runs[i]);
    }
    free(c->runs);
    c->runs = NULL;
    c->n_runs = c->n_submitted = 0;
    encode_dispose(&c->encode);
    budget_give(&c->loop->server->budget, c->charged);
    c->charged = 0;
    start_encoding(c);
}

static void flush(completer *c) {
    if (c->ex && c->moved) {
        start_again(c);
    }
    if (c->ex && c->error.code == 0) {
        charge_results(c);
        if (c->request.stream) {
            send_news(c);
        }
        submit_more(c);
    }
    if (c->ex && c->error.code) {
        answer_error(c);
    } else if (c->ex && is_done(c)) {
        if (c->request.stream) {
            finish_stream(c);
        } else {
            answer_whole(c);
        }
    }
    free_if_over(c);
}

void completer_flush_touched(loop *l) {
    while (l->touched) {
        completer *c = l->touched;
        l->touched = c->next_touched;
        c->touched = false;
        flush(c);
    }
}

// ---- the exchange's side

static void on_gone(void *work) {
    completer *c = work;
    if (c->n_runs) {
        log_fields(c);
    }
    leave(c);
    free_if_over(c);
}

static void on_proceed(void *work) {
    completer *c = work;
    set_paused(c, false);
    touch(c);
    uv_async_send(&c->loop->engine_wake); // to submit what waited; not from within libmicrohttpd
}

static void on_idle(void *work) {
    completer *c = work;
    if (c->request.stream && c->request.n_prompts) {
        begin_stream(c);
        stream_ping(c->ex);
    }
}

static const exchange_listener listener = {on_gone, on_proceed, on_idle};
