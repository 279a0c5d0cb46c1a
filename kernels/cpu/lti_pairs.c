// SPDX-License-Identifier: Apache-2.0
// H3's prompt as a convolution, in blocks of LTI_PAIRS tokens (template_pairs.h): what a head needs
// for it, made in fp64 when weights are loaded, and a run of a thread's block of 16 channels.
//
// A head's channels in the block are a matter of their own, whether they are some of it, all of it
// or a part of a wider head, so that any head_dim goes, and the bits do not depend on how many
// threads share the blocks. For the run the states of its pairs lie in the thread's memory, a
// state's numbers together; a block's q, k', v and y have a channel's tokens together. So all is
// turned by 4 x 4 numbers on its way in and out: one operation a number, of states once a run.
#include <stdlib.h>
#include <string.h>

#include "lti.h"
#include "lti_kernels.h"
#include "lti_worker.h"
#include "turn.h"

// Floats of a head's numbers, one after the other, and of a pair's state while a run lasts.
typedef struct layout {
    size_t n, wide,
        stride; // of a state: its numbers, filled up to 16, and with the real ones again
    size_t output, input, power, all; // where they begin; the kernel does at 0
} layout;

static size_t whole_lanes(size_t n) {
    return (n + CPU_LANES - 1) / CPU_LANES * CPU_LANES;
}

static layout layout_of(const cpu_model *m) {
    layout l = {.n = (size_t)m->g.d_state};
    l.wide = whole_lanes(l.n);
    const size_t other = whole_lanes(l.n / 2) + l.wide, again = l.n + whole_lanes(l.n / 2);
    l.stride = whole_lanes(other > again ? other : again);
    l.output = CPU_LANES + LTI_PAIRS;
    l.input = l.output + l.n * LTI_PAIRS;
    l.power = l.input + l.wide * LTI_PAIRS;
    l.all = l.power + 2 * l.wide;
    return l;
}

// ---- loading

static void pack_pole(const double ab[2], const double bb[2], const double c[2], size_t i,
                      const layout *l, double *kernel, float *to) {
    const size_t half = l->n / 2;
    double re = 1, im = 0; // Ab^t
    for (size_t t = 0; t < LTI_PAIRS; t++) {
        const double in[2] = {re * bb[0] - im * bb[1], re * bb[1] + im * bb[0]};
        float *input = to + l->input + (LTI_PAIRS - 1 - t) * l->wide;
        input[i] = (float)in[0];
        input[half + i] = (float)in[1];
        kernel[t] += 2 * (c[0] * in[0] - c[1] * in[1]);
        const double next = re * ab[0] - im * ab[1];
        im = re * ab[1] + im * ab[0];
        re = next;
        to[l->output + i * LTI_PAIRS + t] = (float)(2 * (c[0] * re - c[1] * im));
        to[l->output + (half + i) * LTI_PAIRS + t] = (float)(-2 * (c[0] * im + c[1] * re));
    }
    float *same = to + l->power, *other = same + l->wide;
    same[i] = same[half + i] = (float)re;
    other[i] = (float)-im;
    other[half + i] = (float)im;
}

static void pack_head(const lti_diagonal *d, size_t head, const layout *l, float *to) {
    double kernel[LTI_PAIRS] = {d->d[head]};
    for (size_t i = 0; i < d->n; i++) {
        const size_t at = 2 * (head * d->n + i);
        pack_pole(d->ab + at, d->bb + at, d->c + at, i, l, kernel, to);
    }
    for (size_t t = 0; t < LTI_PAIRS; t++)
        to[CPU_LANES + t] = (float)kernel[t];
}

void cpu_lti_pack_pairs(const cpu_model *m, cpu_thread *t, int32_t layer) {
    const layout l = layout_of(m);
    const int32_t dim = m->g.head_dim, end = worker_least(t->model.end * CPU_LANES, m->g.d_model);
    const int32_t first = t->model.first * CPU_LANES / dim, past = (end + dim - 1) / dim;
    const size_t heads = past > first ? (size_t)(past - first) : 0;
    float *to = cpu_arena_take(&t->arena, heads * l.all * sizeof *to);
    t->parts[layer].lti.pairs = to;
    if (!to)
        return;
    memset(to, 0, heads * l.all * sizeof *to);
    for (size_t h = 0; h < heads; h++)
        pack_head(&m->diagonal[layer], (size_t)first + h, &l, to + h * l.all);
}

// ---- running

// Of a thread: q and k' [head_dim][LTI_PAIRS], v and y [16][LTI_PAIRS], mixed
// [LTI_PAIRS][LTI_PAIRS] and the states of a run [head_dim][16][stride].
size_t cpu_lti_pairs_floats(const cpu_model *m) {
    const size_t dim = (size_t)m->g.head_dim;
    return (2 * dim + 2 * CPU_LANES + LTI_PAIRS) * LTI_PAIRS +
           dim * CPU_LANES * layout_of(m).stride;
}

// Some channels of a block of the thread.
typedef struct channels {
    int32_t first, count;
    int32_t block, lane; // of the first one
} channels;

static channels channels_from(int32_t first, int32_t count) {
    return (channels){first, count, first / CPU_LANES, first % CPU_LANES};
}

// Tokens [token, token + LTI_PAIRS) of channels [first, first + count), which may lie in several
// blocks: [count][LTI_PAIRS].
static void take_tokens(const cpu_worker *k, float *buffer, int32_t first, int32_t count,
                        int32_t token, float *to) {
    for (int32_t c = 0, some; c < count; c += some) {
        const channels from = channels_from(first + c, count - c);
        some = worker_least(count - c, CPU_LANES - from.lane);
        for (int32_t done = 0, n; done < LTI_PAIRS; done += n) {
            n = worker_run(k, token + done, LTI_PAIRS - done);
            turn(worker_at(k, buffer, from.block, token + done) + from.lane, CPU_LANES, (size_t)n,
                 (size_t)some, to + (size_t)c * LTI_PAIRS + done, LTI_PAIRS);
        }
    }
}

static void give_tokens(const cpu_worker *k, const float *from, const channels *own, int32_t token,
                        float *buffer) {
    for (int32_t done = 0, n; done < LTI_PAIRS; done += n) {
        n = worker_run(k, token + done, LTI_PAIRS - done);
        turn(from + done, LTI_PAIRS, (size_t)own->count, (size_t)n,
             worker_at(k, buffer, own->block, token + done) + own->lane, CPU_LANES);
    }
}

// In the slot a state's number (n, part) is 16 apart from the next.
static void take_states(const lti_pairs *p, const channels *own, const float *s) {
    const size_t n = (size_t)p->n, rows = (size_t)p->rows, stride = (size_t)p->stride;
    for (size_t a = 0; a < (size_t)p->dim; a++, s += n * CPU_LANES) {
        float *to = p->s + a * rows * stride;
        for (size_t part = 0; part < 2; part++)
            turn(s + part * CPU_LANES + own->lane, 2 * CPU_LANES, n / 2, rows, to + part * (n / 2),
                 stride);
        for (size_t r = 0; r < rows; r++, to += stride)
            memcpy(to + n, to, n / 2 * sizeof *to);
    }
}

static void give_states(const lti_pairs *p, const channels *own, float *s) {
    const size_t n = (size_t)p->n, rows = (size_t)p->rows, stride = (size_t)p->stride;
    for (size_t a = 0; a < (size_t)p->dim; a++, s += n * CPU_LANES) {
        for (size_t part = 0; part < 2; part++)
            turn(p->s + a * rows * stride + part * (n / 2), stride, rows, n / 2,
                 s + part * CPU_LANES + own->lane, 2 * CPU_LANES);
    }
}

static void convolve_head(const cpu_worker *k, const float *numbers, const channels *own,
                          int32_t token, int32_t count, bool fresh, float *s) {
    const layout l = layout_of(k->m);
    const int32_t dim = k->m->g.head_dim, head = own->first / dim * dim;
    float *q = k->w->lti_work[k->id], *key = q + dim * LTI_PAIRS, *v = key + dim * LTI_PAIRS;
    float *y = v + CPU_LANES * LTI_PAIRS, *mixed = y + CPU_LANES * LTI_PAIRS;
    lti_pairs args = {.kernel = numbers,
                      .output = numbers + l.output,
                      .input = numbers + l.input,
                      .power = numbers + l.power,
                      .q = q,
                      .k = key,
                      .v = v,
                      .y = y,
                      .mixed = mixed,
                      .s = mixed + LTI_PAIRS * LTI_PAIRS,
                      .dim = dim,
                      .rows = own->count,
                      .n = (int32_t)l.n,
                      .wide = (int32_t)l.wide,
                      .stride = (int32_t)l.stride,
                      .fresh = fresh};
    if (!fresh)
        take_states(&args, own, s);
    for (int32_t done = 0; done < count; done += LTI_PAIRS, args.fresh = false) {
        take_tokens(k, k->w->z, head, dim, token + done, q);
        take_tokens(k, k->w->bc, head, dim, token + done, key);
        take_tokens(k, k->w->delta, own->first, own->count, token + done, v);
        k->m->kernels->lti->pairs(&args);
        give_tokens(k, y, own, token + done, k->w->x);
    }
    give_states(&args, own, s);
}

// Lanes past the last channel, which products read.
static void clear_rest(const cpu_worker *k, int32_t block, int32_t token, int32_t count, bool fresh,
                       float *s) {
    for (int32_t done = 0, some; done < count; done += some) {
        some = worker_run(k, token + done, count - done);
        memset(worker_at(k, k->w->x, block, token + done), 0, (size_t)some * CPU_LANES * sizeof *s);
    }
    if (fresh)
        memset(s, 0, (size_t)k->m->g.head_dim * (size_t)k->m->g.d_state * CPU_LANES * sizeof *s);
}

void cpu_lti_convolve_pairs(const cpu_worker *k, int32_t layer, int32_t block, int32_t token,
                            int32_t count, bool fresh, float *s) {
    const int32_t dim = k->m->g.head_dim, first = block * CPU_LANES;
    const int32_t end = worker_least(first + CPU_LANES, k->m->g.d_model);
    const int32_t head = k->t->model.first * CPU_LANES / dim; // the thread's first
    const float *numbers = k->t->parts[layer].lti.pairs;
    if (end < first + CPU_LANES)
        clear_rest(k, block, token, count, fresh, s);
    for (int32_t c = first, past; c < end; c = past) {
        past = worker_least(c / dim * dim + dim, end);
        const channels own = channels_from(c, past - c);
        convolve_head(k, numbers + (size_t)(c / dim - head) * layout_of(k->m).all, &own, token,
                      count, fresh, s);
    }
}
