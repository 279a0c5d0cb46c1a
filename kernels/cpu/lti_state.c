// SPDX-License-Identifier: Apache-2.0
// Slots of H3, a layer: [blocks][N][16] of the shift SSM, then [blocks][head_dim][N / 2][2][16] of
// the diagonal one, where a lane is the channel (h, b) and the index before N is a of the pair (a,
// b). S4D's and S4's, [blocks][N / 2][2][16] and [blocks][N][16], are as slots.c has them.
//
// Numbers are those of the canonical form, moved: a snapshot comes back bit for bit.
#include "lti.h"

#include <string.h>

// Where channel c's first number lies among blocks of `floats` numbers a channel.
static size_t lane_of(size_t c, size_t floats) {
    return c / CPU_LANES * floats * CPU_LANES + c % CPU_LANES;
}

// Calls move(own, canonical, n) for every n numbers that are 16 apart in `own` and together in
// `canonical`.
static void visit(const cpu_model *m, int32_t layer, void *arg,
                  void (*move)(void *arg, size_t own, size_t canonical, size_t n)) {
    const ssm_geometry *g = &m->g;
    const size_t n = (size_t)g->d_state, width = (size_t)g->d_model, dim = (size_t)g->head_dim;
    size_t shift = (size_t)layer * width * n;
    size_t pair = ssm_state_conv_floats(g) + (size_t)layer * width * dim * n;
    for (size_t c = 0; c < width; c++, shift += n)
        move(arg, lane_of(c, n), shift, n);
    const size_t pairs = cpu_slot_conv_floats(m);
    for (size_t i = 0; i < width * dim; i++, pair += n) { // i = (h dim + a) dim + b
        const size_t c = i / (dim * dim) * dim + i % dim, a = i / dim % dim;
        move(arg, pairs + lane_of(c, dim * n) + a * n * CPU_LANES, pair, n);
    }
}

typedef struct copy {
    const float *from;
    float *to;
} copy;

static void to_canonical(void *arg, size_t own, size_t canonical, size_t n) {
    const copy *c = arg;
    for (size_t i = 0; i < n; i++)
        c->to[canonical + i] = c->from[own + i * CPU_LANES];
}

static void to_slot(void *arg, size_t own, size_t canonical, size_t n) {
    const copy *c = arg;
    for (size_t i = 0; i < n; i++)
        c->to[own + i * CPU_LANES] = c->from[canonical + i];
}

void cpu_h3_slot_read(const cpu_model *model, const float *own, float *canonical, int32_t layer) {
    visit(model, layer, &(copy){own, canonical}, to_canonical);
}

void cpu_h3_slot_write(const cpu_model *model, float *own, const float *canonical, int32_t layer) {
    if (model->g.d_model % CPU_LANES != 0) // lanes past the last channel
        memset(own, 0, (cpu_slot_conv_floats(model) + cpu_slot_ssm_floats(model)) * sizeof *own);
    visit(model, layer, &(copy){canonical, own}, to_slot);
}
