// SPDX-License-Identifier: Apache-2.0
// Times a backend's own steps, without scheduler and server: decode by batch, with and without
// sampling, and prefill.
//
//   cuda_step [--state f16] [--backend cuda] [--no-sampling] [--unpacked | --packed]
//   GEOMETRY:decode=1,64:prefill=1x2048,8x2048 ...
//
// An option holds for what follows it: --unpacked G --packed G compares weights as stored with
// those that are there in 12 bits, too.
//
// Random weights of a published geometry in bf16. A decode row's sequences begin with prompts of 1
// to 16 tokens: a device that does not write states every token (replay.cu, advance_ring.cu) is met
// at all phases, and steps are a multiple of 16. A row gives milliseconds a step (decode) or for
// all prompts (prefill), tokens a second, and the bytes that a step must move over that time:
// weights as stored once, states read and written. Host clock around many steps, the device drained
// at both ends; steps with sampling run one ahead of collect, as the engine does. Prompts are timed
// twice: the best of four after a rest, as a server that was idle takes them, and, behind
// "sustained", the mean of what follows half a second of them: a card that meets its limit of power
// needs about 100 ms to lower its clock.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "engine/model/model.h"
#include "kernels/backend.h"

typedef struct bench {
    const ssm_backend *backend;
    ssm_device *device;
    ssm_device_info info;
    const char *geometry;
    ssm_dtype state;
    int32_t vocab;
    bool sampling;
    double weight_bytes; // as stored
} bench;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void must(int rc, const ssm_error *err) {
    if (rc == 0)
        return;
    fprintf(stderr, "cuda_step: %s\n", err->message);
    exit(1);
}

static void drain(bench *b) { // reading a row waits for the device
    ssm_error err = {0};
    float *row = malloc((size_t)b->vocab * sizeof *row);
    must(b->backend->logits_read(b->device, 0, row, &err), &err);
    free(row);
}

static void print_row(const bench *b, const char *what, double seconds, double tokens,
                      double bytes) {
    printf("%-14s %-22s %9.4f ms %10.0f tokens/s %6.3f TB/s\n", b->geometry, what, seconds * 1e3,
           tokens / seconds, bytes / seconds / 1e12);
    fflush(stdout);
}

// ---- decode

static void fill_samples(ssm_sample *samples, int32_t n, uint64_t position,
                         const ssm_sampling *params) {
    for (int32_t i = 0; i < n; i++)
        samples[i] = (ssm_sample){.row = i,
                                  .slot = i,
                                  .target = -1,
                                  .n_top = -1,
                                  .seed = (uint64_t)i,
                                  .position = position,
                                  .params = params};
}

// Sequences' first tokens, as many as fit; returns how many those are.
static int32_t begin(const bench *b, int32_t n, int32_t *tokens, ssm_segment *segments) {
    const int32_t most = b->info.max_tokens / n < 16 ? b->info.max_tokens / n : 16;
    int32_t at = 0;
    for (int32_t i = 0; i < n; i++) {
        segments[i] = (ssm_segment){i, at, 1 + i % most, true, SSM_WANT_LAST};
        for (int32_t k = 0; k < segments[i].count; k++, at++)
            tokens[at] = at * 977 % b->vocab;
    }
    return at;
}

// Seconds a step. params NULL: no sampling, tokens from the host.
static double time_decode(bench *b, int32_t n, int steps, const ssm_sampling *params) {
    ssm_error err = {0};
    int32_t *tokens = malloc((size_t)n * 16 * sizeof *tokens);
    ssm_segment *segments = malloc((size_t)n * sizeof *segments);
    ssm_sample *samples = malloc((size_t)n * sizeof *samples);
    ssm_sampled *drawn = malloc((size_t)n * sizeof *drawn);
    ssm_plan plan = {tokens, begin(b, n, tokens, segments), segments, n};
    double start = 0;
    for (int step = -3; step < steps; step++) {
        if (step == 0) {
            drain(b);
            start = now();
        }
        for (int32_t i = 0; i < n && step > -3; i++) {
            segments[i] = (ssm_segment){i, i, 1, false, SSM_WANT_LAST};
            tokens[i] = params ? SSM_TOKEN_SAMPLED : (i * 977 + step + 3) % b->vocab;
        }
        plan.n_tokens = step > -3 ? n : plan.n_tokens;
        must(b->backend->step(b->device, &plan, &err), &err);
        if (!params)
            continue;
        fill_samples(samples, n, (uint64_t)(step + 3), params);
        must(b->backend->sample(b->device, samples, n, &err), &err);
        if (step > -3)
            must(b->backend->collect(b->device, drawn, n, &err), &err);
    }
    drain(b);
    const double seconds = (now() - start) / steps;
    if (params)
        must(b->backend->collect(b->device, drawn, n, &err), &err);
    free(tokens);
    free(segments);
    free(samples);
    free(drawn);
    return seconds;
}

static void bench_decode(bench *b, int32_t n) {
    const struct {
        const char *name;
        ssm_sampling params;
    } ways[] = {
        {"", {.top_k = 0}},
        {" greedy",
         {.temperature = 0, .top_k = 0, .top_p = 1, .typical_p = 1, .repetition_penalty = 1}},
        {" top_k40_top_p",
         {.temperature = 1, .top_k = 40, .top_p = 0.9f, .typical_p = 1, .repetition_penalty = 1}}};
    const double bytes = b->weight_bytes + 2.0 * (double)n * (double)b->info.slot_bytes;
    double first = 0;
    for (int i = 0; i < (b->sampling ? 3 : 1); i++) {
        int steps = first > 0 ? (int)(0.12 / first) : (int)(0.05e12 / bytes * 20);
        steps = steps < 8 ? 8 : steps > 400 ? 400 : steps;
        steps = (steps + 15) / 16 * 16;
        double best = 1e9;
        for (int k = 0; k < 3; k++) {
            const double t = time_decode(b, n, steps, i == 0 ? NULL : &ways[i].params);
            best = t < best ? t : best;
        }
        first = i == 0 ? best : first;
        char what[48];
        snprintf(what, sizeof what, "b%d %s%s", n, ssm_dtype_name(b->state), ways[i].name);
        print_row(b, what, best, n, bytes);
    }
}

// ---- prefill

static void rest(void) {
    const struct timespec second = {.tv_sec = 1};
    nanosleep(&second, NULL);
}

typedef struct prompts {
    int32_t n, length, a_step; // a_step: that go into one step
    int32_t *tokens;
    ssm_segment *segments;
} prompts;

static double time_prompts(bench *b, const prompts *p) {
    ssm_error err = {0};
    const double start = now();
    for (int32_t done = 0; done < p->n; done += p->a_step) {
        const int32_t n = p->n - done < p->a_step ? p->n - done : p->a_step;
        const ssm_plan plan = {p->tokens, n * p->length, p->segments, n};
        must(b->backend->step(b->device, &plan, &err), &err);
    }
    drain(b);
    return now() - start;
}

// Mean seconds from half a second to a second and a half of such work.
static double time_sustained(bench *b, const prompts *p) {
    for (double t = 0; t < 0.5;)
        t += time_prompts(b, p);
    int times = 0;
    double t = 0;
    for (; t < 1; times++)
        t += time_prompts(b, p);
    return t / times;
}

static void bench_prefill(bench *b, int32_t n, int32_t length) {
    const int32_t most = b->info.max_tokens / length;
    prompts p = {n, length, most < n ? most : n, NULL, NULL};
    p.tokens = malloc((size_t)p.a_step * (size_t)length * sizeof *p.tokens);
    p.segments = malloc((size_t)p.a_step * sizeof *p.segments);
    for (int32_t i = 0; i < p.a_step * length; i++)
        p.tokens[i] = (int32_t)((uint32_t)i * 2654435761u % (uint32_t)b->vocab);
    for (int32_t i = 0; i < p.a_step; i++)
        p.segments[i] = (ssm_segment){i, i * length, length, true, SSM_WANT_LAST};
    rest();
    double best = 1e9;
    for (int k = 0; k < 4; k++) {
        const double t = time_prompts(b, &p);
        best = t < best ? t : best;
    }
    const double sustained = time_sustained(b, &p);
    char what[64];
    snprintf(what, sizeof what, "prefill %dx%d", n, length);
    print_row(b, what, best, (double)n * length, b->weight_bytes);
    snprintf(what, sizeof what, "prefill %dx%d sustained", n, length);
    print_row(b, what, sustained, (double)n * length, b->weight_bytes);
    free(p.tokens);
    free(p.segments);
}

// ---- command line

static int32_t most_rows(const char *text) {
    int32_t most = 8;
    const char *list = strstr(text, "decode=");
    for (const char *p = list ? list + 7 : ""; *p && *p != ':';
         p += strcspn(p, ",:"), p += *p == ',') {
        const int32_t n = (int32_t)atoi(p);
        most = n > most ? n : most;
    }
    return most;
}

static void run_list(bench *b, const char *text, const char *key) {
    const char *list = strstr(text, key);
    if (!list)
        return;
    for (const char *p = list + strlen(key); *p && *p != ':';
         p += strcspn(p, ",:"), p += *p == ',') {
        int n = 0, length = 0;
        if (sscanf(p, "%dx%d", &n, &length) == 2)
            bench_prefill(b, n, length);
        else
            bench_decode(b, (int32_t)atoi(p));
    }
}

static void run_geometry(const char *backend, const char *text, ssm_dtype state, bool sampling,
                         bool unpacked) {
    ssm_error err = {0};
    char name[64];
    snprintf(name, sizeof name, "%.*s", (int)strcspn(text, ":"), text);
    ssm_model *model = NULL;
    double start = now();
    must(ssm_model_random(name, SSM_DTYPE_BF16, 1, &model, &err), &err);
    const double made = now() - start;
    bench b = {.backend = ssm_backend_find(backend),
               .geometry = name,
               .state = state,
               .sampling = sampling};
    if (!b.backend) {
        fprintf(stderr, "cuda_step: no backend %s\n", backend);
        exit(1);
    }
    const ssm_weights *w = ssm_model_weights(model);
    b.vocab = w->geometry.vocab_size;
    const ssm_device_options o = {.n_slots = most_rows(text),
                                  .max_tokens = 16384,
                                  .state_dtype = state,
                                  .unpacked = unpacked};
    start = now();
    must(b.backend->open(w, &o, &b.device, &err), &err);
    b.backend->info(b.device, &b.info);
    b.weight_bytes = (double)(b.info.weight_bytes - b.info.packed_bytes);
    printf("%s: %s; made in %.1f s, open in %.1f s\n", name, b.info.text, made, now() - start);
    run_list(&b, text, "decode=");
    run_list(&b, text, "prefill=");
    b.backend->close(b.device);
    ssm_model_free(model);
}

int main(int argc, char **argv) {
    const char *backend = "cuda";
    ssm_dtype state = SSM_DTYPE_F32;
    bool sampling = true, unpacked = false;
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--state") == 0 && i + 1 < argc)
            state = (ssm_dtype)ssm_dtype_parse(argv[++i]);
        else if (strcmp(argv[i], "--backend") == 0 && i + 1 < argc)
            backend = argv[++i];
        else if (strcmp(argv[i], "--no-sampling") == 0)
            sampling = false;
        else if (strcmp(argv[i], "--unpacked") == 0 || strcmp(argv[i], "--packed") == 0)
            unpacked = argv[i][2] == 'u';
        else
            run_geometry(backend, argv[i], state, sampling, unpacked);
    }
    return 0;
}
