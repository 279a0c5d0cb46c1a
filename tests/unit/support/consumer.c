// SPDX-License-Identifier: Apache-2.0
#include "consumer.h"

#include <check.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void on_wake(void *ctx) {
    consumer *c = ctx;
    pthread_mutex_lock(&c->lock);
    c->is_awake = true;
    pthread_cond_signal(&c->wake);
    pthread_mutex_unlock(&c->lock);
}

void consumer_init(consumer *c, ssm_engine *engine) {
    memset(c, 0, sizeof *c);
    c->engine = engine;
    pthread_mutex_init(&c->lock, NULL);
    pthread_cond_init(&c->wake, NULL);
    ck_assert_int_eq(ssm_port_open(engine, on_wake, c, &c->port, NULL), 0);
}

void consumer_dispose(consumer *c) {
    ssm_port_close(c->port);
    pthread_mutex_destroy(&c->lock);
    pthread_cond_destroy(&c->wake);
}

static void on_token(answer *a, const ssm_event *e) {
    ck_assert_int_eq(a->finishes, 0);
    ck_assert_int_eq(e->position, a->n);
    if (a->n == a->cap) {
        a->cap = a->cap ? 2 * a->cap : 64;
        a->tokens = realloc(a->tokens, (size_t)a->cap * sizeof *a->tokens);
        a->logprobs = realloc(a->logprobs, (size_t)a->cap * sizeof *a->logprobs);
        a->gaps = realloc(a->gaps, (size_t)a->cap * sizeof *a->gaps);
    }
    a->gaps[a->n] = e->n_top >= 2 ? e->top_logprobs[0] - e->top_logprobs[1] : NAN;
    a->logprobs[a->n] = e->logprob;
    a->tokens[a->n++] = e->token;
}

static void on_event(consumer *c, const ssm_event *e) {
    waiter *w = e->user;
    ck_assert_int_eq(w->dones, 0); // DONE is the last
    ck_assert_int_lt(e->choice, WAITER_CHOICES);
    answer *a = &w->choices[e->choice];
    switch (e->kind) {
    case SSM_EVENT_STARTED:
        w->started++;
        break;
    case SSM_EVENT_PROMPT:
        ck_assert_int_eq(e->position, w->prompts);
        if (w->prompts < WAITER_PROMPTS)
            w->prompt_logprobs[w->prompts] = e->logprob;
        w->prompts++;
        break;
    case SSM_EVENT_TOKEN:
        on_token(a, e);
        break;
    case SSM_EVENT_FINISH:
        a->finishes++;
        a->finish = e->finish;
        break;
    case SSM_EVENT_DONE:
        w->dones++;
        w->error = e->error;
        snprintf(w->message, sizeof w->message, "%s", e->message ? e->message : "");
        w->usage = *e->usage;
        c->open--;
        break;
    }
}

void consumer_take(consumer *c) {
    pthread_mutex_lock(&c->lock);
    while (!c->is_awake)
        pthread_cond_wait(&c->wake, &c->lock);
    c->is_awake = false;
    pthread_mutex_unlock(&c->lock);
    ssm_batch *batches = ssm_port_take(c->port);
    for (const ssm_batch *b = batches; b; b = b->next) {
        for (size_t i = 0; i < b->n_events; i++)
            on_event(c, &b->events[i]);
    }
    ssm_batch_free(batches);
}

void consumer_take_all(consumer *c) {
    while (c->open > 0)
        consumer_take(c);
}

int consumer_submit(consumer *c, waiter *w, const ssm_request *request) {
    static const ssm_sampling greedy = {
        .temperature = 0, .top_p = 1, .typical_p = 1, .repetition_penalty = 1};
    ssm_request r = *request;
    memset(w, 0, sizeof *w);
    r.port = c->port;
    r.user = w;
    if (!r.sampling)
        r.sampling = &greedy;
    c->open++;
    const int rc = ssm_engine_submit(c->engine, &r, &w->id, NULL);
    c->open -= rc != 0;
    return rc;
}

void consumer_run(consumer *c, waiter *w, const ssm_request *request) {
    ck_assert_int_eq(consumer_submit(c, w, request), 0);
    consumer_take_all(c);
    ck_assert_int_eq(w->dones, 1);
    ck_assert_msg(w->error == 0, "%d %s", w->error, w->message);
}

void waiter_dispose(waiter *w) {
    for (int i = 0; i < WAITER_CHOICES; i++) {
        free(w->choices[i].tokens);
        free(w->choices[i].logprobs);
        free(w->choices[i].gaps);
    }
    memset(w, 0, sizeof *w);
}

void assert_same_tokens(const answer *a, const answer *b, int32_t n) {
    ck_assert_int_ge(a->n, n);
    ck_assert_int_ge(b->n, n);
    for (int32_t i = 0; i < n; i++) {
        ck_assert_int_eq(a->tokens[i], b->tokens[i]);
        ck_assert_msg(memcmp(&a->logprobs[i], &b->logprobs[i], sizeof(float)) == 0,
                      "token %d: %.9g, %.9g", i, a->logprobs[i], b->logprobs[i]);
    }
}

void assert_same_answer(const answer *a, const answer *b) {
    ck_assert_int_eq(a->n, b->n);
    ck_assert_int_eq(a->finish, b->finish);
    assert_same_tokens(a, b, a->n);
}
