// SPDX-License-Identifier: Apache-2.0
// What a completer answers. Its flush, after each step, is where chunks are written and where it is
// answered and freed, in one place.
//
// The headers of a stream go out with its first event, not at submission: until then an error is
// still an answer with a status.
//
// A client that reads slowly: past HTTP_STREAM_HIGH bytes unsent its engine requests are paused,
// below a quarter of it they go on.
#include "completer_parts.h"
#include "log.h"
#include "loop.h"
#include "server.h"
#include "stream.h"

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
    completer_leave(c);
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
    completer_leave(c);
}

static void answer_whole(completer *c) {
    buf body = {0};
    completion_put_answer(&body, c);
    log_fields(c);
    http_forget_work(c->ex);
    http_reply_json(c->ex, 200, &body);
    completer_leave(c);
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
            completer_fail(c, SSM_ENOMEM, NULL,
                           "too much request memory is in use, try again later");
            return;
        }
        c->charged = bytes;
    }
}

static void flush(completer *c) {
    if (c->ex && c->moved) {
        completer_start_again(c);
    }
    if (c->ex && c->error.code == 0) {
        charge_results(c);
        if (c->request.stream) {
            send_news(c);
        }
        completer_submit_more(c);
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
    completer_free_if_over(c);
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
    completer_leave(c);
    if (c->encoding && encode_drop(&c->encode)) {
        c->encoding = false;
    }
    completer_free_if_over(c);
}

static void on_proceed(void *work) {
    completer *c = work;
    set_paused(c, false);
    completer_touch(c);
    uv_async_send(&c->loop->engine_wake); // to submit what waited; not from within libmicrohttpd
}

static void on_idle(void *work) {
    completer *c = work;
    if (c->request.stream && c->request.n_prompts) {
        begin_stream(c);
        stream_ping(c->ex);
    }
}

const exchange_listener completer_listener = {on_gone, on_proceed, on_idle};
