// SPDX-License-Identifier: Apache-2.0
// The engine's own speed under the load that ssmd-load puts on a server, without one: a number of
// streams in a closed loop, each a prompt of random ids and a fixed number of tokens, on one port.
// What HTTP, JSON and text take is the rest: gpu_http.sh runs both.
//
//   engine_load [--device D] [--state T] [--prompt N] [--max-tokens N] [--seconds S] [--warmup S]
//               MODEL STREAMS...          MODEL: a folder, or a geometry with random bf16 weights
#include <assert.h>
#include <getopt.h>
#include <semaphore.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <ssm/engine.h>

enum { VOCAB = 256 }; // ids are drawn below, as ssmd-load does

typedef struct load {
    ssm_engine *engine;
    ssm_port *port;
    sem_t wake;
    int32_t *prompt; // [n_prompt]
    size_t n_prompt;
    int64_t max_tokens;
    uint64_t random_state;
    uint64_t tokens, requests, failed; // so far
} load;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static uint64_t draw(load *l) { // splitmix64
    uint64_t z = l->random_state += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static void on_wake(void *ctx) {
    sem_post(&((load *)ctx)->wake);
}

static void fail(const ssm_error *err) {
    fprintf(stderr, "engine_load: %s\n", err->message);
    exit(1);
}

static void submit(load *l) {
    const ssm_sampling sampling = {
        .temperature = 1, .top_p = 1, .typical_p = 1, .repetition_penalty = 1};
    ssm_request r;
    ssm_error err;
    ssm_request_init(&r);
    for (size_t i = 0; i < l->n_prompt; i++)
        l->prompt[i] = (int32_t)(draw(l) % VOCAB);
    r.port = l->port;
    r.prompt = l->prompt;
    r.n_prompt = l->n_prompt;
    r.max_tokens = l->max_tokens;
    r.sampling = &sampling;
    r.seed = draw(l);
    r.ignore_eos = true;
    if (ssm_engine_submit(l->engine, &r, NULL, &err) != 0)
        fail(&err);
}

// Takes events until `end`; a request that is over is followed by another.
static void run_until(load *l, double end) {
    while (now() < end) {
        sem_wait(&l->wake);
        ssm_batch *batches = ssm_port_take(l->port);
        for (const ssm_batch *b = batches; b; b = b->next) {
            for (size_t i = 0; i < b->n_events; i++) {
                const ssm_event *e = &b->events[i];
                l->tokens += e->kind == SSM_EVENT_TOKEN;
                if (e->kind != SSM_EVENT_DONE)
                    continue;
                l->requests++;
                l->failed += e->error != 0;
                if (e->error != 0)
                    fprintf(stderr, "engine_load: %s\n", e->message);
                submit(l);
            }
        }
        ssm_batch_free(batches);
    }
}

static bool measure(const ssm_model *model, const ssm_engine_options *options, load *l,
                    int32_t streams, double warmup, double seconds) {
    ssm_error err;
    if (ssm_engine_create(model, options, &l->engine, &err) != 0)
        fail(&err);
    sem_init(&l->wake, 0, 0);
    if (ssm_port_open(l->engine, on_wake, l, &l->port, &err) != 0)
        fail(&err);
    for (int32_t i = 0; i < streams; i++)
        submit(l);
    run_until(l, now() + warmup);
    l->tokens = l->requests = l->failed = 0;
    const double began = now();
    run_until(l, began + seconds);
    const double took = now() - began;
    printf("%6d streams %9.0f tokens/s, %.1f requests/s, %llu failed\n", streams,
           (double)l->tokens / took, (double)l->requests / took, (unsigned long long)l->failed);
    ssm_port_close(l->port);
    ssm_engine_free(l->engine);
    return l->failed == 0;
}

static ssm_dtype dtype_of(const char *name) {
    const int type = ssm_dtype_parse(name);
    if (type < 0) {
        fprintf(stderr, "engine_load: no type of numbers: %s\n", name);
        exit(2);
    }
    return (ssm_dtype)type;
}

int main(int argc, char **argv) {
    static const struct option listed[] = {
        {"device", required_argument, NULL, 'd'},     {"state", required_argument, NULL, 's'},
        {"prompt", required_argument, NULL, 'p'},     {"max-tokens", required_argument, NULL, 'm'},
        {"seconds", required_argument, NULL, 't'},    {"warmup", required_argument, NULL, 'w'},
        {"activation", required_argument, NULL, 'a'}, {0}};
    ssm_engine_options options;
    load l = {.n_prompt = 32, .max_tokens = 128, .random_state = 1};
    double seconds = 5, warmup = 3;
    int c;
    ssm_engine_options_init(&options);
    options.device = "cpu";
    options.cache_bytes = 0;
    setvbuf(stdout, NULL, _IOLBF, 0);
    while ((c = getopt_long(argc, argv, "", listed, NULL)) != -1) {
        switch (c) {
        case 'd':
            options.device = optarg;
            break;
        case 's':
            options.state_dtype = dtype_of(optarg);
            break;
        case 'a':
            options.activation_dtype = dtype_of(optarg);
            break;
        case 'p':
            l.n_prompt = strtoull(optarg, NULL, 10);
            break;
        case 'm':
            l.max_tokens = strtoll(optarg, NULL, 10);
            break;
        case 't':
            seconds = strtod(optarg, NULL);
            break;
        case 'w':
            warmup = strtod(optarg, NULL);
            break;
        default:
            return 2;
        }
    }
    if (argc - optind < 2) {
        fprintf(stderr, "usage: engine_load [OPTIONS] MODEL STREAMS...\n");
        return 2;
    }
    const char *name = argv[optind];
    ssm_model *model;
    ssm_error err;
    if ((strchr(name, '/') ? ssm_model_open(name, &model, &err)
                           : ssm_model_random(name, SSM_DTYPE_BF16, 1, &model, &err)) != 0)
        fail(&err);
    l.prompt = malloc((l.n_prompt ? l.n_prompt : 1) * sizeof *l.prompt);
    assert(l.prompt);
    bool good = true;
    for (int i = optind + 1; i < argc; i++) {
        const int32_t streams = (int32_t)strtol(argv[i], NULL, 10);
        options.max_sessions = streams;
        good &= measure(model, &options, &l, streams, warmup, seconds);
    }
    free(l.prompt);
    ssm_model_free(model);
    return good ? 0 : 1;
}
