// SPDX-License-Identifier: Apache-2.0
// Where one thread in a step of S4D, S4 or H3 finds a token: buffers are [window][block][tokens of
// the window][16] (lti_step.c).
#ifndef SSM_KERNELS_CPU_LTI_WORKER_H
#define SSM_KERNELS_CPU_LTI_WORKER_H

#include "step.h"

static inline int32_t worker_least(int32_t a, int32_t b) {
    return a < b ? a : b;
}

// Tokens of the window that begins at `first`.
static inline int32_t worker_tokens(const cpu_worker *k, int32_t first) {
    return worker_least(CPU_WINDOW, k->tokens - first);
}

static inline float *worker_window(const cpu_worker *k, float *buffer, int32_t first) {
    return buffer + (size_t)first * (size_t)k->m->model_blocks * CPU_LANES;
}

// A token of a block; those of its window after it follow.
static inline float *worker_at(const cpu_worker *k, float *buffer, int32_t block, int32_t token) {
    const int32_t first = token / CPU_WINDOW * CPU_WINDOW;
    const size_t row = (size_t)block * (size_t)worker_tokens(k, first) + (size_t)(token - first);
    return worker_window(k, buffer, first) + row * CPU_LANES;
}

// Tokens from `token` on that lie together, at most `most`.
static inline int32_t worker_run(const cpu_worker *k, int32_t token, int32_t most) {
    const int32_t first = token / CPU_WINDOW * CPU_WINDOW;
    return worker_least(most, first + worker_tokens(k, first) - token);
}

// A layer of a slot.
static inline float *worker_slot(const cpu_worker *k, int32_t slot, int32_t layer) {
    const size_t floats = cpu_slot_conv_floats(k->m) + cpu_slot_ssm_floats(k->m);
    return k->step->slots + (size_t)slot * k->step->slot_floats + (size_t)layer * floats;
}

// H3's SSMs over all tokens of the step and the thread's own channels: k to k' in `keys`, in place
// (lti_h3.c); then q, k' and v to y, which are work's z, bc, delta and x.
void cpu_lti_shift_keys(const cpu_worker *k, int32_t layer, float *keys);
void cpu_lti_recur_pairs(const cpu_worker *k, int32_t layer);

// Tokens [token, token + count) of a block, a multiple of LTI_PAIRS, as a convolution
// (lti_pairs.c); s: the block's state of the diagonal SSM in the slot.
void cpu_lti_convolve_pairs(const cpu_worker *k, int32_t layer, int32_t block, int32_t token,
                            int32_t count, bool fresh, float *s);

#endif
