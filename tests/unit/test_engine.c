// SPDX-License-Identifier: Apache-2.0
// The engine from outside: what comes through a port for what was submitted, on every backend that
// runs here, with freed slots full of NaN. The models are small and odd, or the
// demonstration model where the text matters.
#include <check.h>
#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <ssm/engine.h>

#include "engine/engine.h"
#include "engine/model/model.h"

// ---- a consumer that waits

typedef struct answer { // of one choice
    int32_t *tokens;
    float *logprobs;
    int32_t n, cap;
    int finishes;
    ssm_finish finish;
} answer;

typedef struct waiter {
    uint64_t id;
    answer choices[8];
    int started, dones, prompts;
    float prompt_logprobs[512];
    int error;
    ssm_usage usage;
} waiter;

typedef struct consumer {
    ssm_engine *engine;
    ssm_port *port;
    pthread_mutex_t lock;
    pthread_cond_t wake;
    bool is_awake;
    int open;
} consumer;

static void on_wake(void *ctx) {
    consumer *c = ctx;
    pthread_mutex_lock(&c->lock);
    c->is_awake = true;
    pthread_cond_signal(&c->wake);
    pthread_mutex_unlock(&c->lock);
}

static void consumer_init(consumer *c, ssm_engine *engine) {
    memset(c, 0, sizeof *c);
    c->engine = engine;
    pthread_mutex_init(&c->lock, NULL);
    pthread_cond_init(&c->wake, NULL);
    ck_assert_int_eq(ssm_port_open(engine, on_wake, c, &c->port, NULL), 0);
}

static void consumer_dispose(consumer *c) {
    ssm_port_close(c->port);
    pthread_mutex_destroy(&c->lock);
    pthread_cond_destroy(&c->wake);
}

static void take_event(consumer *c, const ssm_event *e) {
    waiter *w = e->user;
    ck_assert_int_eq(w->dones, 0); // DONE is the last
    answer *a = &w->choices[e->choice & 7];
    switch (e->kind) {
    case SSM_EVENT_STARTED:
        w->started++;
        break;
    case SSM_EVENT_PROMPT:
        ck_assert_int_eq(e->position, w->prompts);
        if (w->prompts < 512)
            w->prompt_logprobs[w->prompts] = e->logprob;
        w->prompts++;
        break;
    case SSM_EVENT_TOKEN:
        ck_assert_int_eq(a->finishes, 0);
        ck_assert_int_eq(e->position, a->n);
        if (a->n == a->cap) {
            a->cap = a->cap ? 2 * a->cap : 64;
            a->tokens = realloc(a->tokens, (size_t)a->cap * sizeof *a->tokens);
            a->logprobs = realloc(a->logprobs, (size_t)a->cap * sizeof *a->logprobs);
        }
        a->logprobs[a->n] = e->logprob;
        a->tokens[a->n++] = e->token;
        break;
    case SSM_EVENT_FINISH:
        a->finishes++;
        a->finish = e->finish;
        break;
    case SSM_EVENT_DONE:
        w->dones++;
        w->error = e->error;
        w->usage = *e->usage;
        c->open--;
        break;
    }
}

// Takes what has come; waits for something first.
static void take(consumer *c) {
    pthread_mutex_lock(&c->lock);
    while (!c->is_awake)
        pthread_cond_wait(&c->wake, &c->lock);
    c->is_awake = false;
    pthread_mutex_unlock(&c->lock);
    ssm_batch *batches = ssm_port_take(c->port);
    for (const ssm_batch *b = batches; b; b = b->next) {
        for (size_t i = 0; i < b->n_events; i++)
            take_event(c, &b->events[i]);
    }
    ssm_batch_free(batches);
}

static void take_all(consumer *c) {
    while (c->open > 0)
        take(c);
}

static void waiter_dispose(waiter *w) {
    for (int i = 0; i < 8; i++) {
        free(w->choices[i].tokens);
        free(w->choices[i].logprobs);
    }
}

static int submit(consumer *c, waiter *w, ssm_request *r) {
    static const ssm_sampling greedy = {
        .temperature = 0, .top_p = 1, .typical_p = 1, .repetition_penalty = 1};
    memset(w, 0, sizeof *w);
    r->port = c->port;
    r->user = w;
    if (!r->sampling)
        r->sampling = &greedy;
    c->open++;
    const int rc = ssm_engine_submit(c->engine, r, &w->id, NULL);
    if (rc != 0)
        c->open--;
    return rc;
}

// ---- fixtures: model x backend

static ssm_model *model;
static ssm_engine *engine;
static consumer con;
static const char *backend_name;
static const char *const backend_names[] = {"reference", "cpu"};
#define N_BACKENDS (ssm_backend_find("cpu") ? 2 : 1)

static void open_engine_with(const ssm_backend *backend, int32_t n_slots, int32_t chunk,
                             int32_t queue) {
    ssm_engine_options o;
    ssm_error err;
    ssm_engine_options_init(&o);
    o.device = backend_name;
    o.max_sessions = n_slots;
    o.chunk_tokens = chunk;
    o.max_queue = queue;
    o.poison_slots = true;
    o.threads = 2;
    const int rc = engine_create_on(backend, model, &o, &engine, &err);
    ck_assert_msg(rc == 0, "%s: %s", backend_name, rc ? err.message : "");
    consumer_init(&con, engine);
}

static void open_engine(int32_t n_slots, int32_t chunk) {
    open_engine_with(NULL, n_slots, chunk, 1024);
}

static void close_engine(void) {
    consumer_dispose(&con);
    ssm_engine_free(engine); // asserts that every slot has come back
    engine = NULL;
}

static void open_model(const char *path, int backend) {
    ssm_error err;
    const int rc = ssm_model_open(path, &model, &err);
    ck_assert_msg(rc == 0, "%s", rc ? err.message : "");
    backend_name = backend_names[backend];
}

static void open_demo(int backend) {
    open_model(SSM_DEMO_MODEL, backend);
}

// Odd little models of both kinds: 0 .. N_SMALL - 1 runs over models and backends.
static const char *const small_models[] = {SSM_TEST_DATA "/goldens/mamba-kernel3-expand3",
                                           SSM_TEST_DATA "/goldens/mamba2-groups2-kernel3"};
#define N_SMALL (2 * N_BACKENDS)

static void open_small(int i) {
    open_model(small_models[i % 2], i / 2);
}

static void close_model(void) {
    ssm_model_free(model);
    model = NULL;
}

static void fill_prompt(int32_t *ids, size_t n, uint32_t seed) {
    for (size_t i = 0; i < n; i++) {
        seed = seed * 1664525u + 1013904223u;
        ids[i] = 3 + (int32_t)((seed >> 8) % 30u); // in every model, and no end-of-text id
    }
}

static void run_alone(waiter *w, ssm_request r) {
    ck_assert_int_eq(submit(&con, w, &r), 0);
    take_all(&con);
    ck_assert_int_eq(w->dones, 1);
    ck_assert_int_eq(w->error, 0);
}

static bool same_bits(float a, float b) {
    return memcmp(&a, &b, sizeof a) == 0;
}

static void assert_same_answer(const answer *a, const answer *b) {
    ck_assert_int_eq(a->n, b->n);
    ck_assert_int_eq(a->finish, b->finish);
    for (int32_t i = 0; i < a->n; i++) {
        ck_assert_int_eq(a->tokens[i], b->tokens[i]);
        ck_assert_msg(same_bits(a->logprobs[i], b->logprobs[i]), "token %d: %.9g, %.9g", i,
                      a->logprobs[i], b->logprobs[i]);
    }
}

// ---- tests

START_TEST(events_come_in_order) {
    open_demo(_i);
    open_engine(4, 0);
    int32_t prompt[5];
    fill_prompt(prompt, 5, 1);
    waiter w;
    run_alone(&w, (ssm_request){.prompt = prompt,
                                .n_prompt = 5,
                                .n = 1,
                                .max_tokens = 7,
                                .logprobs = 3,
                                .prompt_logprobs = true});
    ck_assert_int_eq(w.started, 1);
    ck_assert_int_eq(w.prompts, 5);
    ck_assert(isnan(w.prompt_logprobs[0]));
    for (int i = 1; i < 5; i++)
        ck_assert(w.prompt_logprobs[i] < 0);
    ck_assert_int_eq(w.choices[0].finishes, 1);
    ck_assert_int_eq(w.choices[0].finish, SSM_FINISH_LENGTH);
    ck_assert_int_eq(w.choices[0].n, 7);
    ck_assert_uint_eq(w.usage.prompt_tokens, 5);
    ck_assert_uint_eq(w.usage.completion_tokens, 7);
    waiter_dispose(&w);
    close_engine();
    close_model();
}
END_TEST

// Many requests of all lengths at once over few slots, in chunks of several sizes: each answer's
// every bit as alone.
START_TEST(company_and_chunks_change_nothing) {
    static const size_t lengths[] = {1, 2, 3, 4, 5, 63, 64, 65, 127, 128, 129, 200};
    static const int32_t chunks[] = {0, 1, 3, 63, 64, 65};
    enum { N = sizeof lengths / sizeof lengths[0] };
    open_small(_i);
    int32_t *prompts = malloc(N * 256 * sizeof *prompts);
    static waiter alone[N], crowd[N];
    ssm_sampling warm;
    ssm_sampling_init(&warm);
    open_engine(2, 0);
    for (int i = 0; i < N; i++) {
        fill_prompt(prompts + 256 * i, lengths[i], (uint32_t)i + 7);
        run_alone(&alone[i], (ssm_request){.prompt = prompts + 256 * i,
                                           .n_prompt = lengths[i],
                                           .n = 1,
                                           .max_tokens = 9,
                                           .seed = 40,
                                           .sampling = i % 2 ? &warm : NULL,
                                           .logprobs = 0,
                                           .ignore_eos = true});
    }
    close_engine();
    for (size_t k = 0; k < sizeof chunks / sizeof chunks[0]; k++) {
        open_engine(5, chunks[k]);
        for (int i = 0; i < N; i++) {
            ssm_request r = {.prompt = prompts + 256 * i,
                             .n_prompt = lengths[i],
                             .n = 1,
                             .max_tokens = 9,
                             .seed = 40,
                             .sampling = i % 2 ? &warm : NULL,
                             .logprobs = 0,
                             .ignore_eos = true};
            ck_assert_int_eq(submit(&con, &crowd[i], &r), 0);
        }
        take_all(&con);
        for (int i = 0; i < N; i++) {
            assert_same_answer(&alone[i].choices[0], &crowd[i].choices[0]);
            waiter_dispose(&crowd[i]);
        }
        close_engine();
    }
    for (int i = 0; i < N; i++)
        waiter_dispose(&alone[i]);
    free(prompts);
    close_model();
}
END_TEST

// n choices over fewer slots than choices: forks on the device and from the snapshot equal single
// runs.
START_TEST(choices_fork_from_one_prompt) {
    open_small(_i);
    int32_t prompt[70];
    fill_prompt(prompt, 70, 3);
    ssm_sampling warm;
    ssm_sampling_init(&warm);
    ssm_request r = {.prompt = prompt,
                     .n_prompt = 70,
                     .n = 6,
                     .max_tokens = 8,
                     .seed = 11,
                     .sampling = &warm,
                     .logprobs = 0};
    for (int32_t n_slots = 1; n_slots <= 8; n_slots += 7) {
        open_engine(n_slots, 0);
        waiter all, one;
        run_alone(&all, r);
        ssm_stats stats;
        ssm_engine_get_stats(engine, &stats);
        ck_assert_uint_eq(stats.prompt_tokens, 70); // once, whatever n
        for (int i = 0; i < 6; i++) {
            ssm_request single = r;
            single.n = 1;
            single.seed = r.seed + (uint64_t)i;
            run_alone(&one, single);
            assert_same_answer(&one.choices[0], &all.choices[i]);
            waiter_dispose(&one);
        }
        waiter_dispose(&all);
        close_engine();
    }
    close_model();
}
END_TEST

START_TEST(an_empty_prompt_is_an_empty_state) {
    open_demo(_i);
    open_engine(2, 0);
    waiter w;
    run_alone(&w, (ssm_request){.n = 3, .max_tokens = 4, .logprobs = 0});
    for (int i = 0; i < 3; i++) {
        ck_assert_int_eq(w.choices[i].tokens[0], 0); // uniform: the lowest id, which is end-of-text
        ck_assert(fabsf(w.choices[i].logprobs[0] + logf(1024)) < 1e-4f);
        ck_assert_int_eq(w.choices[i].finish, SSM_FINISH_STOP);
    }
    waiter_dispose(&w);
    close_engine();
    close_model();
}
END_TEST

START_TEST(scoring_draws_nothing) {
    open_small(_i);
    open_engine(2, 0);
    int32_t prompt[300];
    fill_prompt(prompt, 300, 5);
    for (size_t n = 1; n <= 300; n += 299) {
        waiter w;
        run_alone(&w, (ssm_request){.prompt = prompt,
                                    .n_prompt = n,
                                    .n = 2,
                                    .max_tokens = 0,
                                    .logprobs = 0,
                                    .prompt_logprobs = true});
        ck_assert_int_eq(w.prompts, (int)n);
        ck_assert_int_eq(w.choices[0].n, 0);
        ck_assert_int_eq(w.choices[1].finish, SSM_FINISH_LENGTH);
        waiter_dispose(&w);
    }
    close_engine();
    close_model();
}
END_TEST

START_TEST(stops_and_minimums) {
    open_demo(_i);
    open_engine(2, 0);
    int32_t prompt[2] = {859, 26}; // ROMEO: -> 199 41 467 ...
    const int32_t stop[] = {467};
    waiter w;
    ssm_request r = {.prompt = prompt,
                     .n_prompt = 2,
                     .n = 1,
                     .max_tokens = 30,
                     .logprobs = -1,
                     .stop_ids = stop,
                     .n_stop_ids = 1};
    run_alone(&w, r);
    ck_assert_int_eq(w.choices[0].n, 3);
    ck_assert_int_eq(w.choices[0].tokens[2], 467);
    ck_assert_int_eq(w.choices[0].finish, SSM_FINISH_STOP);
    ck_assert(isnan(w.choices[0].logprobs[0])); // not asked for
    waiter_dispose(&w);
    r.min_tokens = 5;
    run_alone(&w, r);
    ck_assert_int_ge(w.choices[0].n, 6);
    for (int i = 0; i < 5; i++)
        ck_assert_int_ne(w.choices[0].tokens[i], 467);
    waiter_dispose(&w);
    close_engine();
    close_model();
}
END_TEST

START_TEST(bad_words_and_penalties) {
    open_demo(_i);
    open_engine(2, 0);
    int32_t prompt[2] = {859, 26};
    const int32_t words[] = {41, 467, 199}, ends[] = {2, 3}; // "199 41 467" loses both
    ssm_sampling s = {.temperature = 0,
                      .top_p = 1,
                      .typical_p = 1,
                      .repetition_penalty = 1,
                      .bad_words = words,
                      .bad_ends = ends,
                      .n_bad = 2};
    waiter w;
    ssm_request r = {.prompt = prompt,
                     .n_prompt = 2,
                     .n = 1,
                     .max_tokens = 24,
                     .sampling = &s,
                     .ignore_eos = true,
                     .logprobs = -1};
    run_alone(&w, r);
    for (int i = 0; i < 24; i++) {
        ck_assert_int_ne(w.choices[0].tokens[i], 199);
        if (i > 0 && w.choices[0].tokens[i - 1] == 41)
            ck_assert_int_ne(w.choices[0].tokens[i], 467);
    }
    waiter_dispose(&w);
    s.n_bad = 0;
    s.frequency_penalty = 100; // nothing is said twice
    run_alone(&w, r);
    for (int i = 0; i < 24; i++) {
        for (int k = 0; k < i; k++)
            ck_assert_int_ne(w.choices[0].tokens[i], w.choices[0].tokens[k]);
    }
    waiter_dispose(&w);
    s.frequency_penalty = 0;
    s.repetition_penalty = 1e6f; // nor what the prompt said
    run_alone(&w, r);
    for (int i = 0; i < 24; i++)
        ck_assert(w.choices[0].tokens[i] != 859 && w.choices[0].tokens[i] != 26);
    waiter_dispose(&w);
    close_engine();
    close_model();
}
END_TEST

static int32_t slots_used(void) {
    ssm_stats s;
    ssm_engine_get_stats(engine, &s);
    return s.slots_used;
}

START_TEST(cancelling_gives_slots_back) {
    enum { N = 40 };
    open_small(_i);
    open_engine(4, 0);
    int32_t *prompt = malloc(5000 * sizeof *prompt);
    fill_prompt(prompt, 5000, 9);
    static waiter w[N];
    for (int i = 0; i < N; i++) {
        ssm_request r = {.prompt = prompt,
                         .n_prompt = i % 3 == 0 ? 5000 : 3,
                         .n = 1 + i % 5,
                         .max_tokens = 1000000,
                         .ignore_eos = true,
                         .logprobs = -1};
        ck_assert_int_eq(submit(&con, &w[i], &r), 0);
    }
    take(&con);
    for (int i = 0; i < N; i++) {
        if (i % 2) { // the first choice, which runs the prompt, leaves before the others
            for (int k = 0; k < 5; k++)
                ssm_engine_cancel(engine, w[i].id, k);
        } else {
            ssm_engine_cancel(engine, w[i].id, -1);
        }
        ssm_engine_cancel(engine, w[i].id, -1); // twice, and
        ssm_engine_cancel(engine, 1u << 30, 0); // nobody: both ignored
    }
    take_all(&con);
    ck_assert_int_eq(slots_used(), 0);
    for (int i = 0; i < N; i++) {
        ck_assert_int_eq(w[i].dones, 1);
        for (int k = 0; k < 1 + i % 5; k++)
            ck_assert_int_eq(w[i].choices[k].finish, SSM_FINISH_CANCELLED);
        waiter_dispose(&w[i]);
    }
    free(prompt);
    close_engine();
    close_model();
}
END_TEST

// The first choice is cancelled while its prompt runs: another takes the prompt over.
START_TEST(a_prompt_outlives_its_runner) {
    enum { LENGTH = 1600 };
    open_small(_i);
    open_engine(4, 1); // a token a step: time enough
    static int32_t prompt[LENGTH];
    fill_prompt(prompt, LENGTH, 2);
    waiter w, one;
    ssm_request r = {.prompt = prompt, .n_prompt = LENGTH, .n = 3, .max_tokens = 5, .logprobs = 0};
    ck_assert_int_eq(submit(&con, &w, &r), 0);
    while (!w.started)
        take(&con);
    ssm_engine_cancel(engine, w.id, 0);
    take_all(&con);
    ck_assert_int_eq(w.choices[0].finish, SSM_FINISH_CANCELLED);
    r.n = 1;
    run_alone(&one, r);
    assert_same_answer(&one.choices[0], &w.choices[1]);
    assert_same_answer(&one.choices[0], &w.choices[2]);
    waiter_dispose(&w);
    waiter_dispose(&one);
    close_engine();
    close_model();
}
END_TEST

START_TEST(the_queue_is_bounded) {
    open_small(0);
    open_engine_with(NULL, 2, 0, 3);
    int32_t prompt[1] = {5};
    static waiter w[64];
    int accepted = 0, busy = 0;
    for (int i = 0; i < 64; i++) {
        ssm_request r = {.prompt = prompt,
                         .n_prompt = 1,
                         .n = 1,
                         .max_tokens = 1000000,
                         .ignore_eos = true,
                         .logprobs = -1};
        const int rc = submit(&con, &w[i], &r);
        ck_assert(rc == 0 || rc == SSM_EBUSY);
        accepted += rc == 0;
        busy += rc == SSM_EBUSY;
    }
    ck_assert_int_ge(accepted, 3);
    ck_assert_int_le(accepted, 7);
    ck_assert_int_ge(busy, 57);
    ssm_engine_drain(engine);
    ssm_request late = {.prompt = prompt, .n_prompt = 1, .n = 1, .logprobs = -1};
    ck_assert_int_eq(submit(&con, &w[63], &late), SSM_EDRAINING);
    consumer_dispose(&con); // takes its requests along
    while (slots_used() > 0) {
    }
    ssm_engine_free(engine);
    for (int i = 0; i < 64; i++)
        waiter_dispose(&w[i]);
    close_model();
}
END_TEST

// Freed with requests under way: every one of them gets its DONE, and the port outlives the engine.
START_TEST(freeing_ends_everything) {
    open_small(_i);
    open_engine(2, 0);
    int32_t prompt[1] = {5};
    static waiter w[10];
    for (int i = 0; i < 10; i++) {
        ssm_request r = {.prompt = prompt,
                         .n_prompt = 1,
                         .n = 2,
                         .max_tokens = 1000000,
                         .ignore_eos = true,
                         .logprobs = -1};
        ck_assert_int_eq(submit(&con, &w[i], &r), 0);
    }
    take(&con);
    ssm_engine_free(engine);
    take_all(&con);
    for (int i = 0; i < 10; i++) {
        ck_assert_int_eq(w[i].dones, 1);
        ck_assert_int_eq(w[i].error, SSM_ECANCELED);
        waiter_dispose(&w[i]);
    }
    consumer_dispose(&con);
    close_model();
}
END_TEST

START_TEST(paused_requests_keep_their_slots) {
    enum { MANY = 4000 }; // more than can come before the pause does
    open_small(_i);
    open_engine(2, 0);
    int32_t prompt[1] = {5};
    waiter slow, quick;
    ssm_request r = {.prompt = prompt,
                     .n_prompt = 1,
                     .n = 1,
                     .max_tokens = MANY,
                     .ignore_eos = true,
                     .logprobs = -1};
    ck_assert_int_eq(submit(&con, &slow, &r), 0);
    while (slow.choices[0].n == 0)
        take(&con);
    ssm_engine_pause(engine, slow.id, true);
    r.max_tokens = 20;
    for (int i = 0; i < 3; i++) {
        ck_assert_int_eq(submit(&con, &quick, &r), 0);
        while (!quick.dones)
            take(&con);
        waiter_dispose(&quick);
        if (i == 0)
            slow.started = slow.choices[0].n; // whatever came before the pause took hold
    }
    ck_assert_int_eq(slow.started, slow.choices[0].n);
    ck_assert_int_lt(slow.choices[0].n, MANY);
    ck_assert_int_eq(slots_used(), 1);
    ssm_engine_pause(engine, slow.id, false);
    take_all(&con);
    ck_assert_int_eq(slow.choices[0].n, MANY);
    waiter_dispose(&slow);
    close_engine();
    close_model();
}
END_TEST

// One client with many requests does not keep another waiting behind all of them.
START_TEST(clients_take_turns) {
    open_small(0);
    open_engine(2, 0);
    int32_t prompt[1] = {5};
    static waiter many[40], few;
    ssm_request r = {.prompt = prompt,
                     .n_prompt = 1,
                     .n = 1,
                     .max_tokens = 200, // none is done before all have come
                     .ignore_eos = true,
                     .logprobs = -1,
                     .client = 1};
    for (int i = 0; i < 40; i++)
        ck_assert_int_eq(submit(&con, &many[i], &r), 0);
    r.client = 2;
    r.max_tokens = 20;
    ck_assert_int_eq(submit(&con, &few, &r), 0);
    while (!few.dones)
        take(&con);
    int done = 0;
    for (int i = 0; i < 40; i++)
        done += many[i].dones;
    ck_assert_int_le(done, 6);
    take_all(&con);
    for (int i = 0; i < 40; i++)
        waiter_dispose(&many[i]);
    waiter_dispose(&few);
    close_engine();
    close_model();
}
END_TEST

// ---- a device that fails

static int calls_left;

static int failing_step(ssm_device *device, const ssm_plan *plan, ssm_error *err) {
    if (calls_left-- <= 0)
        return ssm_error_set(err, SSM_EDEVICE, NULL, "the device has caught fire");
    return ssm_backend_reference.step(device, plan, err);
}

static int failing_collect(ssm_device *device, ssm_sampled *out, int32_t n, ssm_error *err) {
    if (calls_left <= 1)
        return ssm_error_set(err, SSM_EDEVICE, NULL, "the device has caught fire");
    return ssm_backend_reference.collect(device, out, n, err);
}

START_TEST(a_failed_device_ends_requests_and_nothing_else) {
    ssm_backend failing = ssm_backend_reference;
    failing.step = failing_step;
    if (_i % 2)
        failing.collect = failing_collect;
    open_demo(0);
    calls_left = _i;
    open_engine_with(&failing, 2, 0, 1024);
    int32_t prompt[100];
    fill_prompt(prompt, 100, 4);
    static waiter w[6];
    for (int i = 0; i < 6; i++) {
        ssm_request r = {
            .prompt = prompt, .n_prompt = 100, .n = 2, .max_tokens = 50, .logprobs = 1};
        const int rc = submit(&con, &w[i], &r);
        ck_assert(rc == 0 || rc == SSM_EDEVICE);
    }
    take_all(&con);
    ssm_stats stats;
    ssm_engine_get_stats(engine, &stats);
    ck_assert(stats.failed);
    for (int i = 0; i < 6; i++) {
        if (w[i].dones)
            ck_assert_int_eq(w[i].error, SSM_EDEVICE);
        waiter_dispose(&w[i]);
    }
    ssm_request late = {.prompt = prompt, .n_prompt = 1, .n = 1, .logprobs = -1};
    ck_assert_int_eq(submit(&con, &w[0], &late), SSM_EDEVICE);
    close_engine();
    close_model();
}
END_TEST

static int nan_step(ssm_device *device, const ssm_plan *plan, ssm_error *err) {
    const int rc = ssm_backend_reference.step(device, plan, err);
    float logits[1024];
    for (int i = 0; i < 1024; i++)
        logits[i] = NAN;
    int32_t row = 0;
    for (int32_t i = 0; i < plan->n_segments; i++)
        row += plan->segments[i].want == SSM_WANT_LAST;
    if (row > 0)
        ssm_backend_reference.logits_write(device, row - 1, logits, err);
    return rc;
}

START_TEST(nan_logits_end_one_request) {
    ssm_backend broken = ssm_backend_reference;
    broken.step = nan_step;
    open_demo(0);
    open_engine_with(&broken, 2, 0, 1024);
    int32_t prompt[1] = {5};
    waiter w;
    ssm_request r = {.prompt = prompt, .n_prompt = 1, .n = 1, .max_tokens = 5, .logprobs = 0};
    ck_assert_int_eq(submit(&con, &w, &r), 0);
    take_all(&con);
    ck_assert_int_eq(w.error, SSM_EINTERNAL);
    ck_assert_int_eq(w.choices[0].finish, SSM_FINISH_ERROR);
    ssm_stats stats;
    ssm_engine_get_stats(engine, &stats);
    ck_assert(!stats.failed);
    waiter_dispose(&w);
    close_engine();
    close_model();
}
END_TEST

START_TEST(requests_are_checked) {
    open_demo(0);
    open_engine(2, 0);
    int32_t prompt[1] = {5}, high[1] = {1024}, low[1] = {-1};
    ssm_sampling s;
    ssm_sampling_init(&s);
    ssm_sampling cold = s, nan_p = s, no_rep = s, far_bias = s;
    cold.temperature = -1;
    nan_p.top_p = NAN;
    no_rep.repetition_penalty = 0;
    const ssm_logit_bias bias = {.id = 4096, .bias = 1};
    far_bias.bias = &bias;
    far_bias.n_bias = 1;
    const struct {
        const char *param;
        ssm_request r;
    } cases[] = {
        {"prompt", {.prompt = high, .n_prompt = 1, .n = 1, .sampling = &s}},
        {"prompt", {.prompt = low, .n_prompt = 1, .n = 1, .sampling = &s}},
        {"n", {.prompt = prompt, .n_prompt = 1, .n = 0, .sampling = &s}},
        {"max_tokens", {.prompt = prompt, .n_prompt = 1, .n = 1, .max_tokens = -1, .sampling = &s}},
        {"logprobs", {.prompt = prompt, .n_prompt = 1, .n = 1, .logprobs = 21, .sampling = &s}},
        {"temperature", {.prompt = prompt, .n_prompt = 1, .n = 1, .sampling = &cold}},
        {"top_p", {.prompt = prompt, .n_prompt = 1, .n = 1, .sampling = &nan_p}},
        {"repetition_penalty", {.prompt = prompt, .n_prompt = 1, .n = 1, .sampling = &no_rep}},
        {"logit_bias", {.prompt = prompt, .n_prompt = 1, .n = 1, .sampling = &far_bias}},
        {"sampling", {.prompt = prompt, .n_prompt = 1, .n = 1}},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        ssm_request r = cases[i].r;
        ssm_error err;
        r.port = con.port;
        ck_assert_int_eq(ssm_engine_submit(engine, &r, NULL, &err), SSM_EINVAL);
        ck_assert_str_eq(err.param, cases[i].param);
    }
    ssm_error err;
    ssm_engine *none;
    ssm_engine_options o;
    ssm_engine_options_init(&o);
    o.device = "gpu";
    ck_assert_int_eq(ssm_engine_create(model, &o, &none, &err), SSM_EINVAL);
    ck_assert_str_eq(err.param, "device");
    close_engine();
    close_model();
}
END_TEST

int main(void) {
    Suite *suite = suite_create("engine");
    TCase *tc = tcase_create("all");
    tcase_set_timeout(tc, 120);
    tcase_add_loop_test(tc, events_come_in_order, 0, N_BACKENDS);
    tcase_add_loop_test(tc, company_and_chunks_change_nothing, 0, N_SMALL);
    tcase_add_loop_test(tc, choices_fork_from_one_prompt, 0, N_SMALL);
    tcase_add_loop_test(tc, an_empty_prompt_is_an_empty_state, 0, N_BACKENDS);
    tcase_add_loop_test(tc, scoring_draws_nothing, 0, N_SMALL);
    tcase_add_loop_test(tc, stops_and_minimums, 0, N_BACKENDS);
    tcase_add_loop_test(tc, bad_words_and_penalties, 0, N_BACKENDS);
    tcase_add_loop_test(tc, cancelling_gives_slots_back, 0, N_SMALL);
    tcase_add_loop_test(tc, a_prompt_outlives_its_runner, 0, N_SMALL);
    tcase_add_loop_test(tc, freeing_ends_everything, 0, N_SMALL);
    tcase_add_loop_test(tc, paused_requests_keep_their_slots, 0, N_SMALL);
    tcase_add_test(tc, the_queue_is_bounded);
    tcase_add_test(tc, clients_take_turns);
    tcase_add_loop_test(tc, a_failed_device_ends_requests_and_nothing_else, 0, 6);
    tcase_add_test(tc, nan_logits_end_one_request);
    tcase_add_test(tc, requests_are_checked);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    const int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
