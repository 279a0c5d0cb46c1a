// SPDX-License-Identifier: Apache-2.0
// What states cost: saving and restoring one against a plain copy of its bytes (state_copies.c);
// the next turn of a long session against the same turn of a new one; many choices of one prompt
// against as many requests (with SSM_BENCH_APART set). bench_state [MODEL-FOLDER or geometry] [past
// tokens] [prompt tokens]; SSM_BENCH_DEVICE=cuda runs it there; times are the best of several.
#include <semaphore.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <ssm/session.h>

#include "engine/engine.h"
#include "state_copies.h"

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static ssm_model *model;
static struct {
    ssm_engine *engine;
    ssm_port *port;
    sem_t wake;
} con;

static void on_wake(void *ctx) {
    sem_post(&con.wake);
}

static int n_done; // requests whose end has come

static void wait_done(void) {
    while (n_done == 0) {
        sem_wait(&con.wake);
        ssm_batch *batches = ssm_port_take(con.port);
        for (const ssm_batch *b = batches; b; b = b->next) {
            for (size_t i = 0; i < b->n_events; i++) {
                const ssm_event *e = &b->events[i];
                n_done += e->kind == SSM_EVENT_DONE;
                if (e->kind == SSM_EVENT_DONE && e->error)
                    fprintf(stderr, "%s\n", e->message);
            }
        }
        ssm_batch_free(batches);
    }
    n_done--;
}

static const uint64_t owner[2] = {0, 0};

static void open_engine(void) {
    ssm_engine *engine;
    ssm_engine_options o;
    ssm_error err;
    ssm_engine_options_init(&o);
    o.device = getenv("SSM_BENCH_DEVICE") ? getenv("SSM_BENCH_DEVICE") : "cpu";
    o.max_sessions = 32;
    if (ssm_engine_create(model, &o, &engine, &err) != 0) {
        fprintf(stderr, "%s\n", err.message);
        exit(1);
    }
    printf("%s\n", ssm_engine_describe(engine));
    con.engine = engine;
    sem_init(&con.wake, 0, 0);
    ssm_port_open(engine, on_wake, NULL, &con.port, NULL);
}

static double best(double (*f)(void *), void *ctx, int times) {
    double least = f(ctx);
    for (int i = 1; i < times; i++) {
        const double t = f(ctx);
        least = t < least ? t : least;
    }
    return least;
}

static void row(const char *what, double seconds, double against) {
    printf("%-46s %9.3f ms %8.2f\n", what, seconds * 1e3, seconds / against);
}

// ---- turns

static int32_t *tokens;

static void submit(const char *name, size_t n, int32_t choices, int64_t max_tokens, bool cached) {
    static const ssm_sampling greedy = {.top_p = 1, .typical_p = 1, .repetition_penalty = 1};
    ssm_request r;
    ssm_request_init(&r);
    r.prompt = tokens;
    r.n_prompt = n;
    r.n = choices;
    r.max_tokens = max_tokens;
    r.ignore_eos = true;
    r.session = name;
    r.port = con.port;
    r.sampling = &greedy;
    r.cache_prompt = cached;
    ssm_error err;
    if (ssm_engine_submit(con.engine, &r, NULL, &err) != 0) {
        fprintf(stderr, "%s\n", err.message);
        exit(1);
    }
}

static double run(const char *name, size_t n, int32_t choices, int64_t max_tokens, bool cached) {
    const double t = now();
    submit(name, n, choices, max_tokens, cached);
    wait_done();
    return now() - t;
}

static double next_turn(void *ctx) {
    ssm_session_delete(con.engine, owner, "turn", NULL);
    if (ctx)
        ssm_session_fork(con.engine, owner, ctx, "turn", NULL, NULL);
    return run("turn", 32, 1, 1, false);
}

static uint64_t prompt_tokens(void) {
    ssm_stats stats;
    ssm_engine_get_stats(con.engine, &stats);
    return stats.prompt_tokens;
}

// As many requests at once, none of which may begin from another's state.
static double run_apart(size_t n, int32_t requests, int64_t max_tokens) {
    const double t = now();
    for (int32_t i = 0; i < requests; i++)
        submit(NULL, n, 1, max_tokens, false);
    for (int32_t i = 0; i < requests; i++)
        wait_done();
    return now() - t;
}

static void measure_choices(size_t prompt, double one) {
    enum { N = 32 };
    const uint64_t before = prompt_tokens();
    const double together = run(NULL, prompt, N, 4, true);
    const uint64_t ran = prompt_tokens() - before;
    ssm_device_info info;
    con.engine->backend->info(con.engine->device, &info);
    row("32 choices of it, saved on the way", together, one);
    printf("%-46s %9llu tokens\n", "prompt tokens run for them", (unsigned long long)ran);
    printf("%-46s %9.1f MiB\n", "their states", (double)info.slot_bytes * N / (1 << 20));
    const double alone = run(NULL, prompt, N, 4, false);
    row("32 choices of it, none saved", alone, one);
    if (getenv("SSM_BENCH_APART")) // takes as long as they are many
        row("32 requests of it (ratio: to those)", run_apart(prompt, N, 4), alone);
}

int main(int argc, char **argv) {
    setvbuf(stdout, NULL, _IOLBF, 0);
    const char *folder = argc > 1 ? argv[1] : SSM_DEMO_MODEL;
    const size_t past = argc > 2 ? strtoull(argv[2], NULL, 10) : 100000;
    const size_t prompt = argc > 3 ? strtoull(argv[3], NULL, 10) : 10000;
    ssm_error err;
    const int rc = strchr(folder, '/') ? ssm_model_open(folder, &model, &err)
                                       : ssm_model_random(folder, SSM_DTYPE_BF16, 1, &model, &err);
    if (rc != 0) {
        fprintf(stderr, "%s\n", err.message);
        return 1;
    }
    const size_t most = past > prompt ? past : prompt;
    tokens = malloc((most + 32) * sizeof *tokens);
    for (size_t i = 0; i < most + 32; i++)
        tokens[i] = 1 + (int32_t)(i * 2654435761u % 1000);
    open_engine();
    const double first = run("long", past, 1, 1, false);
    state_copies(con.engine, "long");
    printf("%-46s %12s %8s\n", "turns and choices", "time", "ratio");
    const double fresh = best(next_turn, NULL, 10);
    char what[64];
    row("a turn of 32 tokens, no past", fresh, fresh);
    snprintf(what, sizeof what, "the same after %zu tokens", past);
    row(what, best(next_turn, "long", 10), fresh);
    snprintf(what, sizeof what, "those %zu tokens", past);
    row(what, first, fresh);
    const double one = run(NULL, prompt, 1, 4, false);
    snprintf(what, sizeof what, "one choice of %zu tokens", prompt);
    row(what, one, one);
    measure_choices(prompt, one);
    ssm_port_close(con.port);
    ssm_engine_free(con.engine);
    ssm_model_free(model);
    free(tokens);
    return 0;
}
