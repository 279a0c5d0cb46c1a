// SPDX-License-Identifier: Apache-2.0
// What states cost: saving and restoring one against a plain copy of its bytes; the next turn of a
// long session against the same turn of a new one; many choices of one prompt against as many
// requests (with SSM_BENCH_APART set). bench_state [MODEL-FOLDER] [past tokens] [prompt tokens];
// times are the best of several.
#include <semaphore.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <ssm/session.h>

#include "engine/engine.h"
#include "engine/state/files.h"
#include "engine/state/snapshot_file.h"

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
    o.device = "cpu";
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

// ---- a state and its bytes

typedef struct copies {
    float *from, *to;
    size_t bytes;
} copies;

static double plain_copy(void *ctx) {
    copies *c = ctx;
    const double t = now();
    memcpy(c->to, c->from, c->bytes);
    __asm__ volatile("" ::"r"(c->to) : "memory");
    return now() - t;
}

static double slot_copy(void *ctx) {
    const int32_t src = 0, dst = 1;
    const double t = now();
    con.engine->backend->slots_copy(con.engine->device, &src, &dst, 1, NULL);
    return now() - t;
}

static double slot_to_host(void *ctx) {
    const double t = now();
    con.engine->backend->slot_read(con.engine->device, 0, ((copies *)ctx)->to, NULL);
    return now() - t;
}

static double host_to_slot(void *ctx) {
    const double t = now();
    con.engine->backend->slot_write(con.engine->device, 0, ((copies *)ctx)->from, NULL);
    return now() - t;
}

static double to_page_cache(void *ctx) {
    copies *c = ctx;
    const double t = now();
    const struct iovec piece = {c->from, c->bytes};
    file_replace("bench_state.tmp", &piece, 1, false, NULL);
    return now() - t;
}

// Into memory that is there, or with c->to NULL into memory of its own, as a session needs it.
static double from_page_cache(void *ctx) {
    const copies *c = ctx;
    FILE *f = fopen("bench_state.tmp", "r");
    const double t = now();
    float *to = c->to ? c->to : malloc(c->bytes);
    if (read(fileno(f), to, c->bytes) != (ssize_t)c->bytes)
        fprintf(stderr, "a short read\n");
    if (!c->to)
        free(to);
    const double took = now() - t;
    fclose(f);
    return took;
}

static double save_file(void *ctx) {
    const double t = now();
    ssm_session_export(con.engine, owner, "long", "bench_state.session", NULL);
    return now() - t;
}

static double load_file(void *ctx) {
    const double t = now();
    ssm_session_import(con.engine, owner, "copy", "bench_state.session", NULL, NULL);
    return now() - t;
}

static void row(const char *what, double seconds, double against) {
    printf("%-44s %10.3f ms %8.2f\n", what, seconds * 1e3, seconds / against);
}

static void measure_copies(void) {
    copies c = {.bytes = con.engine->state_floats * sizeof(float)};
    c.from = calloc(1, c.bytes);
    c.to = calloc(1, c.bytes);
    const double plain = best(plain_copy, &c, 50);
    row("plain copy of a state", plain, plain);
    row("slot to slot (save, restore, fork)", best(slot_copy, &c, 50), plain);
    row("slot to host", best(slot_to_host, &c, 50), plain);
    row("host to slot", best(host_to_slot, &c, 50), plain);
    copies anew = {.bytes = c.bytes};
    const double page = best(to_page_cache, &c, 20), host = best(from_page_cache, &c, 20);
    row("its bytes to a file in the page cache", page, page);
    row("session to a file", best(save_file, NULL, 20), page);
    row("its bytes from a file in the page cache", host, host);
    row("the same into new memory", best(from_page_cache, &anew, 20), host);
    row("session from a file", best(load_file, NULL, 50), host);
    remove("bench_state.tmp");
    remove("bench_state.session");
    free(c.from);
    free(c.to);
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
    row("32 choices of it", together, one);
    printf("%-44s %10llu tokens\n", "prompt tokens run for them", (unsigned long long)ran);
    printf("%-44s %10.1f MiB\n", "their states", (double)info.slot_bytes * N / (1 << 20));
    if (getenv("SSM_BENCH_APART")) // takes as long as they are many
        row("32 requests of it (ratio: to 32 choices)", run_apart(prompt, N, 4), together);
}

int main(int argc, char **argv) {
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
    printf("%-44s %13s %8s\n", "", "time", "ratio");
    const double first = run("long", past, 1, 1, false);
    measure_copies();
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
