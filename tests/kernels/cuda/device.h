// SPDX-License-Identifier: Apache-2.0
// What test_cuda and test_cuda_lti share: a backend with a model on it, and a main of tests that
// need a device.
//
// Without a usable device such tests are skipped (exit 77), unless SSM_EXPECT_CUDA is set: then
// that is a failure. CUDA does not survive fork: everything runs in one process. Calls that fail
// end the test.
#ifndef SSM_TESTS_CUDA_DEVICE_H
#define SSM_TESTS_CUDA_DEVICE_H

#include <check.h>

#include "kernels/backend.h"

typedef struct rig {
    const ssm_backend *b;
    ssm_device *d;
    int32_t vocab;
    size_t state_floats;
} rig;

void must(int rc, const ssm_error *err);

// Types in `o` are a CUDA device's: other backends keep the model's.
rig rig_open_with(const char *backend, const ssm_weights *w, ssm_device_options o);
void rig_close(rig *r);
void rig_step(rig *r, const int32_t *tokens, const ssm_segment *segments, int32_t n);
float *rig_logits(rig *r, int32_t row); // the caller frees
float *rig_state(rig *r, int32_t slot); // the caller frees
void rig_restore(rig *r, int32_t slot, const float *state);

// A step of one token for every `each`-th of n rows, whose tokens and slots follow from their
// numbers: all of them on a device, some alone on the reference.
enum { MANY = 600, EACH = 13 }; // most rows; of them the reference runs
void rig_step_rows(rig *r, int32_t n, int32_t each, int32_t step);

// The same sequence of so many tokens among others, at other rows and slots of one bucket: bit for
// bit. The rig has at least NEIGHBOURS slots; dice(n) throws one of [0, n).
enum { NEIGHBOURS = 40 };
void rig_check_neighbours(rig *r, const char *name, int32_t n_tokens, int32_t (*dice)(int32_t n));

// Feeds a prompt to a slot in pieces; returns its last logits.
float *rig_feed(rig *r, int32_t slot, const int32_t *ids, int32_t n, int32_t piece, bool fresh);

// |a - b| / |b|; NaN if anything is not finite.
double distance(const float *a, const float *b, size_t n);

// 0 if a CUDA device takes the model, otherwise main's status; then it has said why.
int device_missing(const ssm_weights *w);
TCase *suite_case(Suite *suite, const char *name); // CK_RUN_CASE=NAME: these tests alone
int suite_run(Suite *suite);                       // main's status

#endif
