// SPDX-License-Identifier: Apache-2.0
#include "device.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void must(int rc, const ssm_error *err) {
    ck_assert_msg(rc == 0, "%s", err->message);
}

// ---- a backend with a model on it

rig rig_open_with(const char *backend, const ssm_weights *w, ssm_device_options o) {
    ssm_error err = {0};
    if (strcmp(backend, "cuda") != 0)
        o.weight_dtype = o.state_dtype = SSM_DTYPE_AUTO;
    rig r = {.b = ssm_backend_find(backend), .vocab = w->geometry.vocab_size};
    r.state_floats = ssm_state_conv_floats(&w->geometry) + ssm_state_ssm_floats(&w->geometry);
    ck_assert_ptr_nonnull(r.b);
    must(r.b->open(w, &o, &r.d, &err), &err);
    return r;
}

void rig_close(rig *r) {
    r->b->close(r->d);
}

void rig_step(rig *r, const int32_t *tokens, const ssm_segment *segments, int32_t n) {
    ssm_error err = {0};
    const ssm_plan plan = {tokens, segments[n - 1].first + segments[n - 1].count, segments, n};
    must(r->b->step(r->d, &plan, &err), &err);
}

float *rig_logits(rig *r, int32_t row) {
    ssm_error err = {0};
    float *out = malloc((size_t)r->vocab * sizeof *out);
    must(r->b->logits_read(r->d, row, out, &err), &err);
    return out;
}

float *rig_state(rig *r, int32_t slot) {
    ssm_error err = {0};
    float *out = malloc(r->state_floats * sizeof *out);
    must(r->b->slot_read(r->d, slot, out, &err), &err);
    return out;
}

void rig_restore(rig *r, int32_t slot, const float *state) {
    ssm_error err = {0};
    must(r->b->slot_write(r->d, slot, state, &err), &err);
}

float *rig_feed(rig *r, int32_t slot, const int32_t *ids, int32_t n, int32_t piece, bool fresh) {
    for (int32_t done = 0; done < n; done += piece) {
        const int32_t count = n - done < piece ? n - done : piece;
        const ssm_segment s = {slot, 0, count, fresh && done == 0, SSM_WANT_LAST};
        rig_step(r, ids + done, &s, 1);
    }
    return rig_logits(r, 0);
}

double distance(const float *a, const float *b, size_t n) {
    double difference = 0, norm = 0;
    for (size_t i = 0; i < n; i++) {
        const double e = (double)a[i] - (double)b[i];
        difference += e * e;
        norm += (double)b[i] * (double)b[i];
    }
    return norm > 0 ? sqrt(difference / norm) : sqrt(difference);
}

// ---- main

static bool is_usable(const ssm_weights *w, char *why, size_t size) {
    ssm_error err = {0};
    ssm_device *d = NULL;
    const ssm_backend *b = ssm_backend_find("cuda");
    if (!b) {
        snprintf(why, size, "the CUDA backend is not built in");
        return false;
    }
    const ssm_device_options o = {.n_slots = 1, .max_rows = 1, .max_tokens = 1};
    const int rc = b->open(w, &o, &d, &err);
    snprintf(why, size, "%s", err.message);
    if (rc == 0)
        b->close(d);
    return rc == 0;
}

void rig_step_rows(rig *r, int32_t n, int32_t each, int32_t step) {
    static int32_t tokens[MANY];
    static ssm_segment segments[MANY];
    int32_t used = 0;
    for (int32_t i = 0; i < n; i += each, used++) {
        segments[used] =
            (ssm_segment){(i * 7 + n) % MANY, used, 1, step == 0 || i % 5 == 4, SSM_WANT_LAST};
        tokens[used] = (i * 31 + step * 17 + n) % r->vocab;
    }
    rig_step(r, tokens, segments, used);
}

// One throw: n rows for n_tokens steps, of which the row in `place`, slot `slot`, always gets the
// same.
static void step_among_others(rig *r, int32_t n, int32_t place, int32_t slot, int32_t n_tokens,
                              int32_t (*dice)(int32_t n)) {
    for (int32_t step = 0; step < n_tokens; step++) {
        int32_t tokens[NEIGHBOURS];
        ssm_segment segments[NEIGHBOURS];
        for (int32_t i = 0; i < n; i++) {
            segments[i] = (ssm_segment){(slot + i - place + NEIGHBOURS) % NEIGHBOURS, i, 1,
                                        step == 0, SSM_WANT_LAST};
            tokens[i] = i == place ? (5 + step) % r->vocab : dice(r->vocab);
        }
        rig_step(r, tokens, segments, n);
    }
}

void rig_check_neighbours(rig *r, const char *name, int32_t n_tokens, int32_t (*dice)(int32_t n)) {
    static const int32_t sizes[] = {1, 2, 4, 8, 13, 29, NEIGHBOURS};
    for (size_t b = 0; b < sizeof sizes / sizeof *sizes; b++) {
        float *first = NULL, *first_state = NULL;
        for (int round = 0; round < 3; round++) {
            const int32_t n = sizes[b], place = dice(n), slot = dice(NEIGHBOURS);
            step_among_others(r, n, place, slot, n_tokens, dice);
            float *logits = rig_logits(r, place), *state = rig_state(r, slot);
            if (round == 0) {
                first = logits, first_state = state;
                continue;
            }
            ck_assert_msg(memcmp(logits, first, (size_t)r->vocab * sizeof *logits) == 0,
                          "%s, %d rows: logits depend on neighbours", name, n);
            ck_assert_msg(memcmp(state, first_state, r->state_floats * sizeof *state) == 0,
                          "%s, %d rows: the state depends on neighbours", name, n);
            free(logits);
            free(state);
        }
        free(first);
        free(first_state);
    }
}

int device_missing(const ssm_weights *w) {
    char why[512];
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (is_usable(w, why, sizeof why))
        return 0;
    const bool expected = getenv("SSM_EXPECT_CUDA") != NULL;
    printf("%s: %s\n", expected ? "FAILED" : "skipped", why);
    return expected ? EXIT_FAILURE : 77;
}

TCase *suite_case(Suite *suite, const char *name) {
    TCase *tc = tcase_create(name);
    tcase_set_timeout(tc, 0);
    suite_add_tcase(suite, tc);
    return tc;
}

int suite_run(Suite *suite) {
    SRunner *sr = srunner_create(suite);
    srunner_set_fork_status(sr, CK_NOFORK);
    srunner_run_all(sr, CK_NORMAL);
    const int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
