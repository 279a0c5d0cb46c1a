// SPDX-License-Identifier: Apache-2.0
// H3's two SSMs over the tokens of a step, a thread's own channels: the shift SSM on k, then the
// diagonal one on the pairs of a head, k'[a] v[b], heard by q[a].
//
// A lane is a channel (h, b), and a runs outside. As a scan every a is a pass of its own over the
// lanes' poles (template_lti.h), for which q and k' of the lanes' heads are laid beside them.
#include <string.h>

#include "lti_kernels.h"
#include "lti_worker.h"

enum { CHUNK = 64 }; // tokens of a block that pass through all poles together, in first-level cache

void cpu_lti_shift_keys(const cpu_worker *k, int32_t layer, float *keys) {
    const cpu_lti_part *part = &k->t->parts[layer].lti;
    const size_t state = (size_t)k->m->g.d_state * CPU_LANES;
    for (int32_t j = 0; j < k->step->plan->n_segments; j++) {
        const ssm_segment *segment = &k->step->plan->segments[j];
        for (int32_t b = k->t->model.first; b < k->t->model.end; b++) {
            const size_t own = (size_t)(b - k->t->model.first);
            for (int32_t done = 0; done < segment->count;) {
                const int32_t token = segment->first + done;
                const lti_shift args = {.b = part->shift_b + own * state,
                                        .c = part->shift_c + own * state,
                                        .d = part->shift_d + own * CPU_LANES,
                                        .u = worker_at(k, keys, b, token),
                                        .s = worker_slot(k, segment->slot, layer) +
                                             (size_t)b * state,
                                        .n = k->m->g.d_state,
                                        .count = worker_run(k, token, segment->count - done),
                                        .fresh = segment->fresh && done == 0};
                k->m->kernels->lti->shift(&args);
                done += args.count;
            }
        }
    }
}

// Number a of each head that has lanes in a block, beside them. Lanes past the channels take what
// the last head has: their v is 0.
static void lay_beside(const cpu_worker *k, float *buffer, int32_t block, int32_t token,
                       int32_t count, int32_t a, const float *v, float *to) {
    const int32_t d = k->m->g.head_dim, first = block * CPU_LANES;
    const int32_t end = worker_least(first + CPU_LANES, k->m->g.d_model);
    lti_spread args = {.v = v, .to = to, .count = count};
    for (int32_t c = first; c < end; c = c / d * d + d) {
        const int32_t from = c / d * d + a;
        args.lane[args.runs] = c - first;
        args.from[args.runs++] = worker_at(k, buffer, from / CPU_LANES, token) + from % CPU_LANES;
    }
    k->m->kernels->lti->spread(&args);
}

static void scan_pairs(const cpu_worker *k, const cpu_lti_part *part, int32_t block, int32_t token,
                       int32_t count, bool fresh, float *s) {
    const size_t n = (size_t)k->m->g.d_state, own = (size_t)(block - k->t->model.first);
    float q[(CHUNK + 1) * CPU_LANES], kv[(CHUNK + 1) * CPU_LANES];
    for (int32_t t = 0; t < count; t += CHUNK) {
        const int32_t some = worker_least(CHUNK, count - t);
        float *y = worker_at(k, k->w->x, block, token + t);
        memset(y, 0, (size_t)some * CPU_LANES * sizeof *y);
        for (int32_t a = 0; a < k->m->g.head_dim; a++) {
            lay_beside(k, k->w->z, block, token + t, some, a, NULL, q);
            lay_beside(k, k->w->bc, block, token + t, some, a,
                       worker_at(k, k->w->delta, block, token + t), kv);
            const lti_poles args = {.poles =
                                        part->poles + own * (n / 2) * LTI_POLE_FLOATS * CPU_LANES,
                                    .d = part->d + own * CPU_LANES,
                                    .u = kv,
                                    .weight = q,
                                    .y = y,
                                    .s = s + (size_t)a * n * CPU_LANES,
                                    .n = (int32_t)n / 2,
                                    .count = some,
                                    .fresh = fresh && t == 0};
            k->m->kernels->lti->poles(&args);
        }
    }
}

// One block of a segment: as a convolution while there is enough for one, then the rest.
static void recur_block(const cpu_worker *k, int32_t layer, const ssm_segment *segment,
                        int32_t block, float *s) {
    for (int32_t done = 0; done < segment->count;) {
        const int32_t token = segment->first + done, left = segment->count - done;
        const int32_t whole = left / LTI_PAIRS * LTI_PAIRS;
        const bool fresh = segment->fresh && done == 0, convolve = whole >= k->m->lti_least;
        const int32_t count = convolve ? whole : worker_run(k, token, left);
        if (convolve)
            cpu_lti_convolve_pairs(k, layer, block, token, count, fresh, s);
        else
            scan_pairs(k, &k->t->parts[layer].lti, block, token, count, fresh, s);
        done += count;
    }
}

void cpu_lti_recur_pairs(const cpu_worker *k, int32_t layer) {
    const size_t state = (size_t)k->m->g.head_dim * (size_t)k->m->g.d_state * CPU_LANES;
    for (int32_t j = 0; j < k->step->plan->n_segments; j++) {
        const ssm_segment *segment = &k->step->plan->segments[j];
        float *s = worker_slot(k, segment->slot, layer) + cpu_slot_conv_floats(k->m);
        for (int32_t b = k->t->model.first; b < k->t->model.end; b++)
            recur_block(k, layer, segment, b, s + (size_t)b * state);
    }
}
