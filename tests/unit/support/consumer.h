// SPDX-License-Identifier: Apache-2.0
// A consumer of engine events that waits: what tests of the engine need of a port.
#ifndef SSM_TESTS_CONSUMER_H
#define SSM_TESTS_CONSUMER_H

#include <pthread.h>
#include <stdbool.h>

#include <ssm/engine.h>

enum { WAITER_CHOICES = 8, WAITER_PROMPTS = 512 };

typedef struct answer { // of one choice
    int32_t *tokens;
    float *logprobs, *gaps; // gaps: between the two likeliest; NAN without them
    int32_t n, cap;
    int finishes;
    ssm_finish finish;
} answer;

typedef struct waiter {
    uint64_t id;
    answer choices[WAITER_CHOICES];
    int started, dones;
    int prompts;                           // tokens of the prompt that were scored
    float prompt_logprobs[WAITER_PROMPTS]; // of the first ones
    int error;
    char message[256];
    ssm_usage usage;
} waiter;

typedef struct consumer {
    ssm_engine *engine;
    ssm_port *port;
    pthread_mutex_t lock;
    pthread_cond_t wake;
    bool is_awake;
    int open; // requests without a DONE
} consumer;

void consumer_init(consumer *c, ssm_engine *engine);
void consumer_dispose(consumer *c);

// Clears *w and submits; sampling NULL: greedy. The code of ssm_engine_submit.
int consumer_submit(consumer *c, waiter *w, const ssm_request *request);

// Takes what has come; waits for something first.
void consumer_take(consumer *c);
void consumer_take_all(consumer *c);

// One request from beginning to end, without error.
void consumer_run(consumer *c, waiter *w, const ssm_request *request);

void waiter_dispose(waiter *w);

// The first n tokens and their logprobs, bit for bit.
void assert_same_tokens(const answer *a, const answer *b, int32_t n);
void assert_same_answer(const answer *a, const answer *b);

#endif
