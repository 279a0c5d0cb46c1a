// SPDX-License-Identifier: Apache-2.0
// lti_prompt MODEL TOKENS [THREADS]: one prompt of a linear time-invariant model on the CPU as a
// convolution, as a scan and token by token: times, and how far the last logits and the state of
// the first two lie from those of the third.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "engine/model/model.h"
#include "kernels/backend.h"

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

typedef struct outcome {
    double seconds;
    float *logits, *state;
} outcome;

static int run(const ssm_weights *w, ssm_prompt_form form, const int32_t *tokens, int32_t n,
               int32_t piece, int32_t threads, outcome *out) {
    const ssm_device_options o = {
        .n_slots = 1, .max_tokens = piece, .max_rows = 1, .threads = threads, .prompt_form = form};
    const ssm_backend *backend = ssm_backend_find("cpu");
    ssm_error err = {0};
    ssm_device *d = NULL;
    int rc = backend->open(w, &o, &d, &err);
    for (int pass = 0; rc == 0 && pass < (piece > 1 ? 2 : 1); pass++) { // the first touches pages
        const double start = now();
        for (int32_t done = 0; rc == 0 && done < n; done += piece) {
            const int32_t count = piece < n - done ? piece : n - done;
            const ssm_segment s = {0, 0, count, done == 0,
                                   done + count == n ? SSM_WANT_LAST : SSM_WANT_NONE};
            rc = backend->step(d, &(ssm_plan){tokens + done, count, &s, 1}, &err);
        }
        out->seconds = now() - start;
    }
    if (rc != 0) {
        fprintf(stderr, "lti_prompt: %s\n", err.message);
        return rc;
    }
    out->logits = malloc((size_t)w->geometry.vocab_size * sizeof(float));
    out->state = malloc((ssm_state_conv_floats(&w->geometry) + ssm_state_ssm_floats(&w->geometry)) *
                        sizeof(float));
    backend->logits_read(d, 0, out->logits, &err);
    backend->slot_read(d, 0, out->state, &err);
    backend->close(d);
    return 0;
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

int main(int argc, char **argv) {
    const int32_t n = argc > 2 ? atoi(argv[2]) : 0, threads = argc > 3 ? atoi(argv[3]) : 0;
    ssm_error err = {0};
    ssm_model *model = NULL;
    if (n < 1 || ssm_model_open(argv[1], &model, &err) != 0) {
        fprintf(stderr, "lti_prompt: %s\n", n < 1 ? "MODEL TOKENS [THREADS]" : err.message);
        return 2;
    }
    const ssm_weights *w = ssm_model_weights(model);
    int32_t *tokens = malloc((size_t)n * sizeof *tokens);
    for (int64_t i = 0; i < n; i++)
        tokens[i] = (int32_t)((i * i + 7 * i) % 9973 % w->geometry.vocab_size);
    static const char *const names[] = {"token by token", "scan, whole", "convolution, whole",
                                        "scan, 512 a step", "convolution, 512 a step"};
    static const ssm_prompt_form forms[] = {SSM_PROMPT_SCAN, SSM_PROMPT_SCAN,
                                            SSM_PROMPT_CONVOLUTION, SSM_PROMPT_SCAN,
                                            SSM_PROMPT_CONVOLUTION};
    const int32_t pieces[] = {1, n, n, 512, 512};
    const size_t floats = ssm_state_conv_floats(&w->geometry) + ssm_state_ssm_floats(&w->geometry);
    outcome first = {0};
    printf("| %s, %d tokens | s | tokens/s | logits | state |\n|---|---|---|---|---|\n", argv[1],
           n);
    for (int i = 0; i < 5; i++) {
        outcome o;
        if (run(w, forms[i], tokens, n, pieces[i], threads, &o) != 0)
            return 1;
        if (i == 0)
            first = o;
        printf("| %s | %.3f | %.0f | %.1e | %.1e |\n", names[i], o.seconds, n / o.seconds,
               relative(o.logits, first.logits, (size_t)w->geometry.vocab_size),
               relative(o.state, first.state, floats));
        fflush(stdout);
    }
    return 0;
}
