// SPDX-License-Identifier: Apache-2.0
// lti_prompt [--backend cuda] [--f32] MODEL TOKENS [THREADS]: one prompt of a linear time-invariant
// model as a convolution, as a scan and token by token: times, and how far the last logits and the
// state of the first two lie from those of the third; then prompts of one step by length in both
// forms, and on a GPU decode steps by batch.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "engine/model/model.h"
#include "kernels/backend.h"

static ssm_dtype activations = SSM_DTYPE_AUTO; // --f32: on a GPU they have the weights' type else

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

typedef struct outcome {
    double seconds;
    float *logits, *state;
} outcome;

static int fail(int rc, const ssm_error *err) {
    if (rc != 0)
        fprintf(stderr, "lti_prompt: %s\n", err->message);
    return rc;
}

// Reading a row of logits waits for the device.
static int run(const ssm_weights *w, const ssm_backend *backend, ssm_prompt_form form,
               const int32_t *tokens, int32_t n, int32_t piece, int32_t threads, outcome *out) {
    const ssm_device_options o = {.n_slots = 1,
                                  .max_tokens = piece,
                                  .max_rows = 1,
                                  .threads = threads,
                                  .activation_dtype = activations,
                                  .prompt_form = form};
    ssm_error err = {0};
    ssm_device *d = NULL;
    int rc = backend->open(w, &o, &d, &err);
    out->logits = malloc((size_t)w->geometry.vocab_size * sizeof(float));
    out->state = malloc((ssm_state_conv_floats(&w->geometry) + ssm_state_ssm_floats(&w->geometry)) *
                        sizeof(float));
    for (int pass = 0; rc == 0 && pass < (piece > 1 ? 3 : 1); pass++) { // the first touches pages
        const double start = now();
        for (int32_t done = 0; rc == 0 && done < n; done += piece) {
            const int32_t count = piece < n - done ? piece : n - done;
            const bool wanted = piece == 1 || done + count == n; // a decode step has logits
            const ssm_segment s = {0, 0, count, done == 0, wanted ? SSM_WANT_LAST : SSM_WANT_NONE};
            rc = backend->step(d, &(ssm_plan){tokens + done, count, &s, 1}, &err);
        }
        if (rc == 0)
            rc = backend->logits_read(d, 0, out->logits, &err);
        out->seconds = now() - start;
    }
    if (rc == 0)
        rc = backend->slot_read(d, 0, out->state, &err);
    if (d)
        backend->close(d);
    return fail(rc, &err);
}

static double relative(const float *a, const float *b, size_t n) {
    double most = 0, scale = 0;
    for (size_t i = 0; i < n; i++) {
        const double off = fabs((double)a[i] - (double)b[i]);
        scale = fmax(scale, fabs((double)b[i]));
        if (!(off <= most))
            most = off;
    }
    return most / scale;
}

static int prompts(const ssm_weights *w, const ssm_backend *backend, const char *name, int32_t n,
                   int32_t threads) {
    int32_t *tokens = malloc((size_t)n * sizeof *tokens);
    for (int64_t i = 0; i < n; i++)
        tokens[i] = (int32_t)((i * i + 7 * i) % 9973 % w->geometry.vocab_size);
    static const char *const names[] = {
        "token by token",    "scan, whole",      "convolution, whole",     "scan, 8192 a step",
        "convolution, 8192", "scan, 512 a step", "convolution, 512 a step"};
    static const ssm_prompt_form forms[] = {
        SSM_PROMPT_SCAN,        SSM_PROMPT_SCAN, SSM_PROMPT_CONVOLUTION, SSM_PROMPT_SCAN,
        SSM_PROMPT_CONVOLUTION, SSM_PROMPT_SCAN, SSM_PROMPT_CONVOLUTION};
    const int32_t pieces[] = {1, n, n, 8192, 8192, 512, 512};
    const size_t floats = ssm_state_conv_floats(&w->geometry) + ssm_state_ssm_floats(&w->geometry);
    outcome first = {0};
    const char *slash = strrchr(name, '/');
    printf("| %s, %d tokens | s | tokens/s | logits | state |\n|---|---|---|---|---|\n",
           slash ? slash + 1 : name, n);
    for (int i = 0; i < 7; i++) {
        outcome o = {0};
        if (run(w, backend, forms[i], tokens, n, pieces[i], threads, &o) != 0)
            return 1;
        if (i == 0)
            first = o;
        printf("| %s | %.4f | %.0f | %.1e | %.1e |\n", names[i], o.seconds, n / o.seconds,
               relative(o.logits, first.logits, (size_t)w->geometry.vocab_size),
               relative(o.state, first.state, floats));
        fflush(stdout);
    }
    return 0;
}

// Microseconds of a step of `spans` fresh prompts of n tokens, the best of some.
static int one_step(const ssm_backend *backend, ssm_device *d, int32_t spans, int32_t n,
                    int32_t vocab, double *best) {
    int32_t *tokens = malloc((size_t)spans * (size_t)n * sizeof *tokens);
    ssm_segment *segments = malloc((size_t)spans * sizeof *segments);
    float *row = malloc((size_t)vocab * sizeof *row);
    ssm_error err = {0};
    int rc = 0;
    for (int32_t i = 0; i < spans * n; i++)
        tokens[i] = (int32_t)((int64_t)i * i % 4999 % vocab);
    for (int32_t i = 0; i < spans; i++)
        segments[i] = (ssm_segment){i, i * n, n, true, SSM_WANT_LAST};
    *best = INFINITY;
    for (int pass = 0; rc == 0 && pass < 8; pass++) {
        const double start = now();
        rc = backend->step(d, &(ssm_plan){tokens, spans * n, segments, spans}, &err);
        if (rc == 0)
            rc = backend->logits_read(d, 0, row, &err);
        *best = fmin(*best, 1e6 * (now() - start));
    }
    free(tokens);
    free(segments);
    free(row);
    return fail(rc, &err);
}

static int lengths(const ssm_weights *w, const ssm_backend *backend, int32_t threads) {
    static const int32_t sizes[][2] = {{1, 32},   {1, 64},   {1, 128},  {1, 256},  {1, 512},
                                       {1, 1024}, {1, 2048}, {1, 4096}, {1, 8192}, {8, 64},
                                       {8, 128},  {8, 256},  {8, 512},  {8, 1024}};
    ssm_device_options o = {
        .n_slots = 8, .max_tokens = 8192, .threads = threads, .activation_dtype = activations};
    ssm_device *d[2] = {NULL, NULL};
    ssm_error err = {0};
    int rc = 0;
    for (int form = 0; rc == 0 && form < 2; form++) {
        o.prompt_form = form ? SSM_PROMPT_CONVOLUTION : SSM_PROMPT_SCAN;
        rc = fail(backend->open(w, &o, &d[form], &err), &err);
    }
    printf("\n| prompts x tokens | scan, us | convolution, us |\n|---|---|---|\n");
    for (size_t i = 0; rc == 0 && i < sizeof sizes / sizeof sizes[0]; i++) {
        double us[2] = {0, 0};
        for (int form = 0; rc == 0 && form < 2; form++)
            rc = one_step(backend, d[form], sizes[i][0], sizes[i][1], w->geometry.vocab_size,
                          &us[form]);
        printf("| %d x %d | %.1f | %.1f |\n", sizes[i][0], sizes[i][1], us[0], us[1]);
    }
    for (int form = 0; form < 2; form++) {
        if (d[form])
            backend->close(d[form]);
    }
    return rc != 0;
}

// Steps of n rows, tokens from the host.
static int decode(const ssm_backend *backend, ssm_device *d, int32_t n, int32_t vocab,
                  double *seconds) {
    enum { STEPS = 200, WARM = 5 };
    int32_t *tokens = malloc((size_t)n * sizeof *tokens);
    ssm_segment *segments = malloc((size_t)n * sizeof *segments);
    float *row = malloc((size_t)vocab * sizeof *row);
    ssm_error err = {0};
    double start = 0;
    int rc = 0;
    for (int step = 0; rc == 0 && step < WARM + STEPS; step++) {
        if (step == WARM) {
            rc = backend->logits_read(d, 0, row, &err);
            start = now();
        }
        for (int32_t i = 0; i < n; i++) {
            segments[i] = (ssm_segment){i, i, 1, step == 0, SSM_WANT_LAST};
            tokens[i] = (i * 977 + step) % vocab;
        }
        if (rc == 0)
            rc = backend->step(d, &(ssm_plan){tokens, n, segments, n}, &err);
    }
    if (rc == 0)
        rc = backend->logits_read(d, 0, row, &err);
    *seconds = (now() - start) / STEPS;
    free(tokens);
    free(segments);
    free(row);
    return fail(rc, &err);
}

static int batches(const ssm_weights *w, const ssm_backend *backend) {
    static const int32_t sizes[] = {1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048};
    const ssm_device_options o = {
        .n_slots = 2048, .max_tokens = 2048, .max_rows = 2048, .activation_dtype = activations};
    ssm_error err = {0};
    ssm_device *d = NULL;
    if (fail(backend->open(w, &o, &d, &err), &err) != 0)
        return 1;
    ssm_device_info info;
    backend->info(d, &info);
    printf("\n| batch | us a step | tokens/s | states, GB/s |\n|---|---|---|---|\n");
    int rc = 0;
    for (size_t i = 0; rc == 0 && i < sizeof sizes / sizeof sizes[0]; i++) {
        double s;
        rc = decode(backend, d, sizes[i], w->geometry.vocab_size, &s);
        printf("| %d | %.1f | %.0f | %.0f |\n", sizes[i], s * 1e6, sizes[i] / s,
               2e-9 * (double)info.slot_bytes * sizes[i] / s);
    }
    backend->close(d);
    return rc != 0;
}

int main(int argc, char **argv) {
    const char *name = "cpu";
    if (argc > 2 && strcmp(argv[1], "--backend") == 0) {
        name = argv[2];
        argc -= 2, argv += 2;
    }
    if (argc > 2 && strcmp(argv[1], "--f32") == 0) {
        activations = SSM_DTYPE_F32;
        argc--, argv++;
    }
    const int32_t n = argc > 2 ? atoi(argv[2]) : 0, threads = argc > 3 ? atoi(argv[3]) : 0;
    const ssm_backend *backend = ssm_backend_find(name);
    ssm_error err = {0};
    ssm_model *model = NULL;
    if (n < 1 || !backend) {
        fprintf(stderr, "lti_prompt: [--backend NAME] [--f32] MODEL TOKENS [THREADS]\n");
        return 2;
    }
    if (fail(ssm_model_open(argv[1], &model, &err), &err) != 0)
        return 2;
    const ssm_weights *w = ssm_model_weights(model);
    int rc = prompts(w, backend, argv[1], n, threads);
    if (rc == 0)
        rc = lengths(w, backend, threads);
    if (rc == 0 && strcmp(name, "cuda") == 0)
        rc = batches(w, backend);
    ssm_model_free(model);
    return rc;
}
