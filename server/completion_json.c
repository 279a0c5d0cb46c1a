// SPDX-License-Identifier: Apache-2.0
// Completions and chats as JSON: whole answers and chunks of a stream.
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include <ssm/version.h>

#include "completer.h"

static void put_head(buf *out, const completer *c, bool is_chunk) {
    const char *object = !c->request.chat.is_chat ? "text_completion"
                         : is_chunk               ? "chat.completion.chunk"
                                                  : "chat.completion";
    buf_printf(out, "{\"id\":\"%s\",\"object\":\"%s\",\"created\":%lld,\"model\":", c->id, object,
               (long long)c->created);
    json_put_text(out, c->model->name);
    buf_printf(out, ",\"system_fingerprint\":\"ssmd-%s-%s\",\"choices\":[", SSM_VERSION,
               ssm_version_commit());
}

static void put_ids(buf *out, const int32_t *ids, size_t n) {
    buf_str(out, "[");
    for (size_t i = 0; i < n; i++) {
        buf_str(out, i ? "," : "");
        json_put_int(out, ids[i]);
    }
    buf_str(out, "]");
}

static void put_end(buf *out, const choice_text *t) {
    buf_str(out, ",\"finish_reason\":");
    json_put_text(out, choice_text_reason(t));
    if (t->end == CHOICE_STOP_STRING) {
        const ssm_string *stop = &t->request->stops[t->stop_string];
        buf_str(out, ",\"stop_reason\":");
        json_put_string(out, stop->data, stop->len);
    } else if (t->end == CHOICE_STOP_ID) {
        buf_printf(out, ",\"stop_reason\":%d", t->stop_id);
    } else {
        buf_str(out, ",\"stop_reason\":null");
    }
}

static void put_text(buf *out, const choice_text *t) {
    json_put_string(out, t->shown.len ? t->shown.data + t->shown_sent : "",
                    t->shown.len - t->shown_sent);
}

// A chat's message, or what a chunk adds to it: its first one says whose it is.
static void put_message(buf *out, const choice_text *t, bool is_chunk) {
    if (!is_chunk) {
        buf_str(out, "\"message\":{\"role\":\"assistant\",\"content\":");
        put_text(out, t);
        buf_str(out, ",\"refusal\":null}");
        return;
    }
    const bool has_text = t->shown.len > t->shown_sent || !t->first_sent;
    buf_str(out, t->first_sent ? "\"delta\":{" : "\"delta\":{\"role\":\"assistant\",");
    if (has_text) {
        buf_str(out, "\"content\":");
        put_text(out, t);
    }
    buf_str(out, "}");
}

static void put_logprobs(buf *out, const completer *c, const completion_run *run,
                         const choice_text *t, bool with_prompt) {
    const completion *r = &c->request;
    const logprobs_span spans[] = {
        {&run->scores, 0, with_prompt ? run->scores.n : 0},
        {&t->logprobs, t->logprobs_sent, choice_text_listed(t)},
    };
    buf_str(out, ",\"logprobs\":");
    if (r->logprobs < 0) {
        buf_str(out, "null");
    } else if (r->chat.is_chat) {
        logprobs_put_chat(out, c->model->tokenizer, r->tokens_as_ids, &spans[1]);
    } else {
        logprobs_put(out, c->model->tokenizer, r->tokens_as_ids, spans, 2);
    }
}

// {"index":...}: text from a byte on, log-probabilities and ids from their marks on.
static void put_choice(buf *out, const completer *c, const completion_run *run,
                       const choice_text *t, size_t index, bool is_chunk) {
    const completion *r = &c->request;
    const bool with_prompt = !t->first_sent;
    buf_str(out, "{\"index\":");
    json_put_int(out, (int64_t)index);
    buf_str(out, ",");
    if (r->chat.is_chat) {
        put_message(out, t, is_chunk);
    } else {
        buf_str(out, "\"text\":");
        put_text(out, t);
    }
    put_logprobs(out, c, run, t, with_prompt);
    put_end(out, t);
    if (r->return_token_ids) {
        if (with_prompt) {
            buf_str(out, ",\"prompt_token_ids\":");
            put_ids(out, run->prompt->ids, run->prompt->n_ids);
        }
        buf_str(out, ",\"token_ids\":");
        put_ids(out, t->ids.len ? t->ids.data + t->ids_sent : NULL, t->ids.len - t->ids_sent);
    }
    buf_str(out, "}");
}

// ---- totals

static ssm_usage total(const completer *c) {
    ssm_usage sum = {0};
    for (size_t i = 0; i < c->n_runs; i++) {
        const completion_run *run = &c->runs[i];
        const ssm_usage *u = &run->usage;
        // With a session the engine knows what the prompt came to.
        sum.prompt_tokens +=
            run->state == RUN_DONE ? u->prompt_tokens : (uint64_t)run->prompt->n_ids;
        sum.cached_tokens += u->cached_tokens;
        sum.completion_tokens +=
            run->state == RUN_DONE ? u->completion_tokens : (uint64_t)run->drawn;
        sum.queue_ns = u->queue_ns > sum.queue_ns ? u->queue_ns : sum.queue_ns;
        sum.prefill_ns += u->prefill_ns;
        sum.decode_ns += u->decode_ns;
    }
    return sum;
}

static void put_usage(buf *out, const completer *c) {
    const ssm_usage u = total(c);
    buf_printf(
        out,
        ",\"usage\":{\"prompt_tokens\":%llu,\"completion_tokens\":%llu,\"total_tokens\":%llu,"
        "\"prompt_tokens_details\":{\"cached_tokens\":%llu}}",
        (unsigned long long)u.prompt_tokens, (unsigned long long)u.completion_tokens,
        (unsigned long long)(u.prompt_tokens + u.completion_tokens),
        (unsigned long long)u.cached_tokens);
}

static double rate(uint64_t tokens, uint64_t ns) {
    return ns ? (double)tokens * 1e9 / (double)ns : 0;
}

// llama-server's names and units.
static void put_timings(buf *out, const completer *c) {
    const ssm_usage u = total(c);
    const uint64_t fresh = u.prompt_tokens - u.cached_tokens;
    buf_printf(
        out,
        ",\"timings\":{\"queue_ms\":%.3f,\"cache_n\":%llu,\"prompt_n\":%llu,\"prompt_ms\":%.3f,"
        "\"prompt_per_second\":%.3f,\"predicted_n\":%llu,\"predicted_ms\":%.3f,"
        "\"predicted_per_second\":%.3f}",
        (double)u.queue_ns * 1e-6, (unsigned long long)u.cached_tokens, (unsigned long long)fresh,
        (double)u.prefill_ns * 1e-6, rate(fresh, u.prefill_ns),
        (unsigned long long)u.completion_tokens, (double)u.decode_ns * 1e-6,
        rate(u.completion_tokens, u.decode_ns));
}

// ---- best_of

struct ranked {
    int32_t choice;
    double mean; // log-probability a token
};

static int by_mean(const void *a, const void *b) {
    const struct ranked *x = a, *y = b;
    return x->mean > y->mean ? -1 : x->mean < y->mean ? 1 : x->choice - y->choice;
}

// The n best of a run's choices, best first; with best_of = n the choices as they are.
static void rank(const completer *c, const completion_run *run, struct ranked *out) {
    for (int32_t i = 0; i < run->n_choices; i++) {
        const choice_text *t = &run->choices[i];
        out[i] = (struct ranked){i, t->n_tokens ? t->sum_logprob / (double)t->n_tokens : -INFINITY};
    }
    if (c->request.best_of > c->request.n) {
        qsort(out, (size_t)run->n_choices, sizeof *out, by_mean);
    }
}

// ---- the answer

void completion_put_answer(buf *out, const completer *c) {
    struct ranked order[256];
    put_head(out, c, false);
    for (size_t i = 0; i < c->n_runs; i++) {
        const completion_run *run = &c->runs[i];
        rank(c, run, order);
        for (int32_t k = 0; k < c->request.n; k++) {
            buf_str(out, i || k ? "," : "");
            put_choice(out, c, run, &run->choices[order[k].choice], run->first_index + (size_t)k,
                       false);
        }
    }
    buf_str(out, "]");
    put_usage(out, c);
    if (c->request.timings) {
        put_timings(out, c);
    }
    buf_str(out, "}");
}

// ---- chunks

bool completion_has_news(const completer *c, const completion_run *run, int32_t choice) {
    const choice_text *t = &run->choices[choice];
    if (t->ended_sent) {
        return false;
    }
    if (t->n_tokens == 0 && t->end == CHOICE_OPEN) {
        return false; // an echo waits for the first token: the prompt's scores go with it
    }
    return t->end != CHOICE_OPEN || t->shown.len > t->shown_sent || t->ids.len > t->ids_sent ||
           choice_text_listed(t) > t->logprobs_sent;
}

static void mark_sent(choice_text *t) {
    t->logprobs_sent = choice_text_listed(t);
    t->shown_sent = t->shown.len;
    t->ids_sent = t->ids.len;
    t->first_sent = true;
    t->ended_sent = t->end != CHOICE_OPEN;
}

// What has been sent is not needed again: a long stream's memory stays small.
static void forget_sent(choice_text *t) {
    t->shown.len = t->shown_sent = 0;
    t->ids.len = t->ids_sent = 0;
    if (t->logprobs_sent == t->logprobs.n) {
        t->logprobs.n = t->logprobs.n_tops = t->logprobs_sent = 0;
    }
}

static void put_chunk_usage(buf *out, const completer *c) {
    if (c->request.continuous_usage) {
        put_usage(out, c);
    } else if (c->request.include_usage) {
        buf_str(out, ",\"usage\":null");
    }
}

// Made once: an event took 5,719 instructions to write with this formatting, 1,923 without.
static void put_chunk_head(buf *out, completer *c) {
    if (c->chunk_head.len == 0) {
        put_head(&c->chunk_head, c, true);
        out->failed |= c->chunk_head.failed;
    }
    buf_add(out, c->chunk_head.data, c->chunk_head.len);
}

void completion_put_chunk(buf *out, completer *c, completion_run *run, int32_t choice) {
    choice_text *t = &run->choices[choice];
    put_chunk_head(out, c);
    put_choice(out, c, run, t, run->first_index + (size_t)choice, true);
    buf_str(out, "]");
    put_chunk_usage(out, c);
    buf_str(out, "}");
    mark_sent(t);
    forget_sent(t);
}

void completion_put_last_chunk(buf *out, completer *c) {
    put_chunk_head(out, c);
    buf_str(out, "]");
    if (c->request.include_usage) {
        put_usage(out, c);
    }
    if (c->request.timings) {
        put_timings(out, c);
    }
    buf_str(out, "}");
}
