// SPDX-License-Identifier: Apache-2.0
// A completer's life, and the engine's events into it.
//
// A completer outlives its exchange: what was submitted is freed only when the engine has said
// DONE. Events come in steps: each marks its completer as touched, and after each step all touched
// completers are flushed (completer_answer.c).
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "completer_parts.h"
#include "loop.h"
#include "server.h"

completer *completer_create(exchange *ex, bool is_chat) {
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

void completer_dispose_run(completion_run *run) {
    for (int32_t i = 0; i < run->n_choices; i++) {
        choice_text_dispose(&run->choices[i]);
    }
    free(run->choices);
    ssm_detokenizer_free(run->score_text);
    logprobs_dispose(&run->scores);
}

void completer_free(completer *c) {
    c->loop->n_jobs--;
    for (size_t i = 0; i < c->n_runs; i++) {
        completer_dispose_run(&c->runs[i]);
    }
    free(c->runs);
    encode_dispose(&c->encode);
    completion_dispose(&c->request);
    buf_dispose(&c->chunk);
    buf_dispose(&c->chunk_head);
    budget_give(&c->loop->server->budget, c->charged);
    free(c);
}

void completer_free_if_over(completer *c) {
    if (!c->ex && c->n_open == 0 && !c->encoding && !c->touched) {
        completer_free(c);
    }
}

void completer_touch(completer *c) {
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
void completer_leave(completer *c) {
    c->ex = NULL;
    cancel_open(c);
}

void completer_fail(completer *c, int code, const char *param, const char *message) {
    if (c->error.code == 0) {
        ssm_error_set(&c->error, code, param, "%s", message);
    }
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
        completer_fail(c, rc, NULL, "no memory to keep the session's turn");
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
        completer_fail(c, rc, NULL, err.message);
    }
}

static void fail_mismatch(completer *c) {
    char message[256];
    snprintf(message, sizeof message,
             "messages are not the conversation of session %.80s with something new behind it: an "
             "earlier message or answer was changed, or the chat template renders the past anew",
             c->request.session);
    completer_fail(c, SSM_EMISMATCH, "messages", message);
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
        completer_fail(c, event->error, NULL,
                       event->message ? event->message : ssm_error_text(event->error));
    }
}

void completer_on_event(const ssm_event *event) {
    completion_run *run = event->user;
    completer *c = run->owner;
    ssm_error err = {0};
    int rc = 0;
    completer_touch(c);
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
        completer_fail(c, rc, NULL, ssm_error_text(rc));
    }
}
