// SPDX-License-Identifier: Apache-2.0
// States in and out of the device.
//
// A slot keeps sixteen channels side by side, as the kernels want them: [block][k][16]. Canonical
// form has a channel's numbers together: [channel][k]. So a block of either part of a state, the
// convolution's tail (k < d_conv - 1) and the recurrence (k < d_state), is one small transpose in
// cache, 4 x 4 numbers at a time in registers (3 x 4 for the tail of four taps that every published
// model has); what is left over at odd sizes goes one by one. Bytes moved: the state read once and
// written once. Lanes past the last channel are written as zeros.
//
// Measured (tests/bench/bench_state.c, mamba-130m, one state of 2.67 MiB, Zen 4), times those of a
// memcpy of it (0.062 ms, in cache): number by number 7.0 out, 7.4 in; so 1.34 and 1.6 on one
// thread, 0.8 and 0.8 with layers shared out over two.
#include "slots.h"

#include <string.h>

#include "kernels.h"
#include "lti.h"
#include "turn.h"

// ---- tiles: `far` is the distance between rows of from, `to` has the other

// Four channels of three numbers each, back to back, to three rows.
static inline void split_3x4(const float *from, float *to, size_t to_row) {
    const v4 a = v4_load(from), b = v4_load(from + 4), c = v4_load(from + 8); // xyzx yzxy zxyz
    v4_store(to, TURN_MIX(TURN_MIX(a, b, 0, 3, 6, 6), c, 0, 1, 2, 5));
    v4_store(to + to_row, TURN_MIX(TURN_MIX(a, b, 1, 4, 7, 7), c, 0, 1, 2, 6));
    v4_store(to + 2 * to_row, TURN_MIX(TURN_MIX(a, b, 2, 5, 5, 5), c, 0, 1, 4, 7));
}

static inline void merge_3x4(const float *from, size_t from_row, float *to) {
    const v4 x = v4_load(from), y = v4_load(from + from_row), z = v4_load(from + 2 * from_row);
    const v4 xy_low = TURN_MIX(x, y, 0, 4, 1, 5), xy_high = TURN_MIX(x, y, 2, 6, 3, 7);
    v4_store(to, TURN_MIX(TURN_MIX(xy_low, z, 0, 1, 4, 4), x, 0, 1, 2, 5));
    v4_store(to + 4, TURN_MIX(TURN_MIX(y, z, 1, 5, 5, 5), xy_high, 0, 1, 4, 5));
    v4_store(to + 8, TURN_MIX(z, xy_high, 2, 6, 7, 3));
}

// ---- a block of n channels (16 but at an end) of k numbers each

static void read_block(const float *own, float *canonical, size_t n, size_t k) {
    size_t done = 0; // numbers of every channel
    if (n == CPU_LANES && k == 3) {
        for (size_t c = 0; c < CPU_LANES; c += 4)
            merge_3x4(own + c, CPU_LANES, canonical + c * 3);
        return;
    }
    for (; n == CPU_LANES && done + 4 <= k; done += 4) {
        for (size_t c = 0; c < CPU_LANES; c += 4)
            turn_4x4(own + done * CPU_LANES + c, CPU_LANES, canonical + c * k + done, k);
    }
    for (size_t c = 0; c < n; c++) {
        for (size_t i = done; i < k; i++)
            canonical[c * k + i] = own[i * CPU_LANES + c];
    }
}

static void write_block(float *own, const float *canonical, size_t n, size_t k) {
    size_t done = 0;
    if (n == CPU_LANES && k == 3) {
        for (size_t c = 0; c < CPU_LANES; c += 4)
            split_3x4(canonical + c * 3, own + c, CPU_LANES);
        return;
    }
    for (; n == CPU_LANES && done + 4 <= k; done += 4) {
        for (size_t c = 0; c < CPU_LANES; c += 4)
            turn_4x4(canonical + c * k + done, k, own + done * CPU_LANES + c, CPU_LANES);
    }
    if (n < CPU_LANES)
        memset(own, 0, k * CPU_LANES * sizeof *own);
    for (size_t c = 0; c < n; c++) {
        for (size_t i = done; i < k; i++)
            own[i * CPU_LANES + c] = canonical[c * k + i];
    }
}

// ---- a layer

// The channels of the convolution: x, then Mamba-2's B and C, which begin blocks of their own.
typedef struct part {
    size_t first, n; // channels
    size_t block;
} part;

static int conv_parts(const cpu_model *m, part out[3]) {
    const ssm_geometry *g = &m->g;
    const size_t inner = (size_t)g->d_inner, states = (size_t)(g->n_groups * g->d_state);
    out[0] = (part){0, inner, 0};
    if (g->conv_dim == g->d_inner)
        return 1;
    out[1] = (part){inner, states, (size_t)m->inner_blocks};
    out[2] = (part){inner + states, states, (size_t)(m->inner_blocks + m->c_block)};
    return 3;
}

static size_t block_size(const part *p, size_t at) {
    return p->n - at < CPU_LANES ? p->n - at : CPU_LANES;
}

static size_t conv_at(const ssm_geometry *g, int32_t layer) {
    return (size_t)layer * (size_t)g->conv_dim * (size_t)(g->d_conv - 1);
}

static size_t ssm_at(const ssm_geometry *g, int32_t layer) {
    return ssm_state_conv_floats(g) + (size_t)layer * (size_t)g->d_inner * (size_t)g->d_state;
}

void cpu_slot_read(const cpu_model *model, const float *own, float *canonical, int32_t layer) {
    const ssm_geometry *g = &model->g;
    if (g->kind == SSM_BLOCK_H3) {
        cpu_h3_slot_read(model, own, canonical, layer);
        return;
    }
    const size_t taps = (size_t)(g->d_conv - 1), n = (size_t)g->d_state;
    float *conv = canonical + conv_at(g, layer), *ssm = canonical + ssm_at(g, layer);
    part parts[3];
    const int n_parts = conv_parts(model, parts);
    for (int i = 0; i < n_parts; i++) {
        const part *p = &parts[i];
        for (size_t c = 0; c < p->n; c += CPU_LANES)
            read_block(own + p->block * taps * CPU_LANES + c * taps, conv + (p->first + c) * taps,
                       block_size(p, c), taps);
    }
    own += cpu_slot_conv_floats(model);
    for (size_t c = 0; c < parts[0].n; c += CPU_LANES)
        read_block(own + c * n, ssm + c * n, block_size(&parts[0], c), n);
}

void cpu_slot_write(const cpu_model *model, float *own, const float *canonical, int32_t layer) {
    const ssm_geometry *g = &model->g;
    if (g->kind == SSM_BLOCK_H3) {
        cpu_h3_slot_write(model, own, canonical, layer);
        return;
    }
    const size_t taps = (size_t)(g->d_conv - 1), n = (size_t)g->d_state;
    const float *conv = canonical + conv_at(g, layer), *ssm = canonical + ssm_at(g, layer);
    part parts[3];
    const int n_parts = conv_parts(model, parts);
    for (int i = 0; i < n_parts; i++) {
        const part *p = &parts[i];
        for (size_t c = 0; c < p->n; c += CPU_LANES)
            write_block(own + p->block * taps * CPU_LANES + c * taps, conv + (p->first + c) * taps,
                        block_size(p, c), taps);
    }
    own += cpu_slot_conv_floats(model);
    for (size_t c = 0; c < parts[0].n; c += CPU_LANES)
        write_block(own + c * n, ssm + c * n, block_size(&parts[0], c), n);
}
