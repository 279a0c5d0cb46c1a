// SPDX-License-Identifier: Apache-2.0
// Models with known answers, and a runner that feeds prompts to a backend.
#ifndef SSM_TESTS_GOLDEN_H
#define SSM_TESTS_GOLDEN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <jansson.h>

#include "engine/model/model.h"
#include "kernels/backend.h"

// ---- which models, and how near the answers must be

typedef struct golden_model {
    const char *folder;
    double tolerance; // of a logit, absolute
} golden_model;

// Trained models: 1e-4 in fp32; of the task models whose logits reach 46 and whose golden is
// float64, 5e-3. Odd geometries (make_goldens.py): 1e-4.
extern const golden_model golden_trained[];
extern const int golden_n_trained;
extern const golden_model golden_odd[];
extern const int golden_n_odd;

// Backends built in whose arithmetic is fp32: the goldens hold for each of them.
extern const char *golden_backends[];
extern int golden_n_backends;

// ---- one prompt with its answer

typedef struct golden_prompt {
    int32_t *ids;
    int32_t n_ids;
    int32_t *greedy;
    int32_t n_greedy;
    float *last_logits; // [vocab]
    float *logits;      // [n_ids][vocab], or NULL
    float *state;       // canonical form, or NULL
} golden_prompt;

typedef struct golden {
    ssm_model *model;
    golden_prompt *prompts;
    int n_prompts;
} golden;

// Opens a model's folder and its golden.json; fails the test if it cannot.
void golden_open(golden *g, const char *folder);
void golden_close(golden *g);

// ---- running

typedef struct runner {
    const ssm_backend *backend;
    ssm_device *device;
    int32_t max_tokens, vocab;
    size_t state_floats;
    bool same_bits; // however a prompt is cut: all but S4 and H3, whose prompts run as convolutions
} runner;

enum { RUNNER_SLOTS = 12 };

// A device of RUNNER_SLOTS slots over weights (borrowed). Fails the test if it does not open.
void runner_open(runner *r, const char *backend, const ssm_weights *weights);
void runner_close(runner *r);

// Feeds ids to a slot in segments of at most chunk tokens (0: as long as the device takes). fresh:
// from the zero state. all: NULL, or logits of every position [n][vocab]; last: NULL, or [vocab].
void runner_feed(runner *r, int32_t slot, const int32_t *ids, int32_t n, int32_t chunk, bool fresh,
                 float *all, float *last);
void runner_read(runner *r, int32_t slot, float *state);
void runner_poison(runner *r, int32_t slot); // NaN everywhere

// ---- comparing

// The largest |a - b|; NaN if any is NaN.
double max_difference(const float *a, const float *b, size_t n);

// That of two states over the largest magnitude of b, the worse of the two parts.
double state_difference(const ssm_geometry *g, const float *a, const float *b);
int32_t arg_max(const float *logits, int32_t n);

#endif
