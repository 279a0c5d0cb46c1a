// SPDX-License-Identifier: Apache-2.0
// What convolutions of prompts need besides the recurrence's numbers (template_convolution.h; H3's
// are lti_pairs.c's), and when they are worth it.
//
// Costs in vector operations of 16 channels, n poles a channel or a dense state of N:
//                   recurrence, a token     convolution, a block      and a token of it
//     poles         8 n                     18,000                    7 n  (counted: 5 n)
//     dense         N^2 (lower: half)       18,000                    4 N + 2 N^2 / 32 (half)
// 7 is what was measured (avx512, one thread, 16,384 tokens): with n = 64 (copying-s4d) both
// forms take 1.75 us a token, where 5 n would have made convolution 1.5 times as fast; the sums
// that make and hear the states wait for loads and stores, the recurrence lives in registers. So
// poles pay from 18,000 / n tokens on, if that is within a block: n > 70 only. A dense state of 64
// pays from 10 on: copying-lssl reads 272,000 tokens a second instead of 43,000. A run of tokens
// shorter than that, and what is left of one past a multiple of LTI_PART, goes by the recurrence,
// bit for bit as it always does.
//
// H3's heads of d channels, the same unit for 16 channels of them (all d of a wider head's):
//                   recurrence, a token     convolution, a run        and a token of it
//     pairs         9 d n + 170             20 d n                    4.5 d n + 130 + 32 (16 / d)
// Counted where d n stands; 170 lays q and k' beside the lanes, 130 and 32 a head turn tokens and
// do the triangle, both from measurements of the two kernels alone (one thread of an Ice Lake that
// others worked on, least of 60,000 runs, ticks of 2.8 GHz a token and 16 channels; recurrence with
// what it lays beside, convolution without turning):
//     d, n        8, 8        4, 8        1, 8        16, 8        8, 32
//     avx512      516, 233    310, 169    162, 188    1014, 430    1532, 764
//     avx2        767, 351    416, 200    169, 243    1542, 646    2661, 1183
//     portable    1949, 1352  1067, 796   383, 513    3910, 2532   7049, 4715
// Whole steps of models of one layer said the same: 1.3 to 1.4 times as fast with heads of 8 (32
// tokens and 256), even with heads of 4, slower below. A fifth is asked for, since a convolution's
// bits depend on how a prompt is cut: with 8 pairs of poles heads of 5 and more convolve, from one
// block on. NEON was not measured.
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/fft.h"
#include "lti.h"
#include "lti_kernels.h"

static const double block_cost = 18000;

static int32_t pairs_threshold(const cpu_model *m) {
    const double d = (double)m->g.head_dim, n = (double)m->g.d_state / 2;
    const double scan = 9 * d * n + 170, run = 20 * d * n;
    const double block = 4.5 * d * n + 130 + 32 * fmax(1, CPU_LANES / d), worth = 1.2;
    return scan <= worth * block ? INT32_MAX : (int32_t)ceil(worth * run / (scan - worth * block));
}

// Tokens from which a convolution is faster; INT32_MAX: none.
static int32_t threshold(const cpu_model *m) {
    const double n = (double)m->g.d_state;
    double scan = 8 * n / 2, block = 7 * n / 2;
    if (m->g.kind == SSM_BLOCK_S4) {
        scan = n * n / (m->is_lower ? 2 : 1);
        block = 4 * n + 2 * scan / LTI_PART;
    }
    if (m->prompt_form == SSM_PROMPT_SCAN)
        return INT32_MAX;
    if (m->prompt_form == SSM_PROMPT_CONVOLUTION)
        return m->g.kind == SSM_BLOCK_H3 ? LTI_PAIRS : LTI_PART;
    if (m->g.kind == SSM_BLOCK_H3)
        return pairs_threshold(m);
    if (block_cost + block * LTI_BLOCK > scan * LTI_BLOCK)
        return INT32_MAX;
    return (int32_t)ceil(block_cost / (scan - block));
}

void cpu_lti_choose_form(cpu_model *m) {
    m->lti_least = threshold(m);
    for (int32_t j = 0; j < LTI_BLOCK; j++) {
        const double angle = -2 * M_PI * j / LTI_BLOCK;
        m->lti_twiddles[j][0] = (float)cos(angle);
        m->lti_twiddles[j][1] = (float)sin(angle);
    }
}

// ---- one channel's spectrum

typedef struct spectrum {
    double kernel[LTI_BLOCK];
    double z[LTI_BLOCK][2], w[LTI_BLOCK / 2][2];
    float out[LTI_SPECTRUM_FLOATS];
} spectrum;

// Those of the kernel's even and odd numbers from one transform, with the transforms' scales.
static void transform(spectrum *s) {
    const double scale = 1.0 / (4 * LTI_BLOCK); // E and O come doubled, here and in the kernel
    memset(s->z, 0, sizeof s->z);
    memcpy(s->z, s->kernel, sizeof s->kernel);
    fft_transform(LTI_BLOCK, s->w[0], s->z[0], 0);
    for (int32_t f = 0; f <= LTI_BLOCK / 2; f++) {
        const double *a = s->z[f], *b = s->z[(LTI_BLOCK - f) % LTI_BLOCK];
        s->out[4 * f] = (float)((a[0] + b[0]) * scale);
        s->out[4 * f + 1] = (float)((a[1] - b[1]) * scale);
        s->out[4 * f + 2] = (float)((a[1] + b[1]) * scale);
        s->out[4 * f + 3] = (float)((b[0] - a[0]) * scale);
    }
}

// Writes n numbers of a channel, 16 apart.
static void spread(float *lane, const float *from, size_t n) {
    for (size_t i = 0; lane && i < n; i++)
        lane[i * CPU_LANES] = from[i];
}

static float *take(cpu_arena *arena, size_t floats) {
    float *p = cpu_arena_take(arena, floats * sizeof *p);
    return p ? memset(p, 0, floats * sizeof *p) : NULL;
}

// ---- poles

static void pole_kernel(const lti_diagonal *d, size_t ch, double kernel[LTI_BLOCK]) {
    memset(kernel, 0, LTI_BLOCK * sizeof *kernel);
    for (size_t i = 2 * ch * d->n; i < 2 * (ch + 1) * d->n; i += 2) {
        double re = d->bb[i], im = d->bb[i + 1];
        for (int32_t t = 0; t < LTI_BLOCK; t++) {
            kernel[t] += 2 * (d->c[i] * re - d->c[i + 1] * im);
            const double next = d->ab[i] * re - d->ab[i + 1] * im;
            im = d->ab[i] * im + d->ab[i + 1] * re;
            re = next;
        }
    }
    kernel[0] += d->d[ch];
}

static void pole_power(const double ab[2], float *lane) {
    double re = ab[0], im = ab[1];
    for (int32_t r = 1; r < LTI_PART; r *= 2) {
        const double next = re * re - im * im;
        im = 2 * re * im;
        re = next;
    }
    lane[0] = (float)re;
    lane[CPU_LANES] = (float)im;
}

static void pack_poles(const lti_diagonal *d, size_t first, size_t end, float *spectra,
                       float *powers, spectrum *s) {
    for (size_t ch = first; ch < end; ch++) {
        const size_t block = (ch - first) / CPU_LANES, lane = (ch - first) % CPU_LANES;
        pole_kernel(d, ch, s->kernel);
        transform(s);
        spread(spectra + block * LTI_SPECTRUM_FLOATS * CPU_LANES + lane, s->out,
               LTI_SPECTRUM_FLOATS);
        for (size_t i = 0; i < d->n; i++)
            pole_power(d->ab + 2 * (ch * d->n + i),
                       powers + (block * d->n + i) * 2 * CPU_LANES + lane);
    }
}

// ---- dense

typedef struct dense_tables {
    float *spectra, *powers, *input, *output;
    double *x, *row, *next; // [n]
    double *power, *square; // [n][n]
} dense_tables;

static void advance_column(size_t n, const double *ab, double *x, double *next) { // x = Ab x
    for (size_t i = 0; i < n; i++) {
        double sum = 0;
        for (size_t j = 0; j < n; j++)
            sum += ab[i * n + j] * x[j];
        next[i] = sum;
    }
    memcpy(x, next, n * sizeof *x);
}

static void advance_row(size_t n, const double *ab, double *x, double *next) { // x = x Ab
    memset(next, 0, n * sizeof *next);
    for (size_t i = 0; i < n; i++) {
        for (size_t j = 0; j < n; j++)
            next[j] += x[i] * ab[i * n + j];
    }
    memcpy(x, next, n * sizeof *x);
}

static double dot(size_t n, const double *a, const double *b) {
    double sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += a[i] * b[i];
    return sum;
}

// power = Ab^LTI_PART
static void raise(const lti_dense *d, size_t ch, dense_tables *t) {
    const size_t size = d->n * d->n;
    memcpy(t->power, d->ab + ch * size, size * sizeof *t->power);
    for (int32_t r = 1; r < LTI_PART; r *= 2) {
        lti_multiply(d->n, t->power, t->power, t->square);
        memcpy(t->power, t->square, size * sizeof *t->power);
    }
}

static void pack_channel(const lti_dense *d, size_t ch, size_t own, dense_tables *t, spectrum *s) {
    const size_t n = d->n, rows = (n + LTI_ROWS - 1) / LTI_ROWS * LTI_ROWS;
    const size_t block = own / CPU_LANES, lane = own % CPU_LANES;
    const double *ab = d->ab + ch * n * n;
    float *input = t->input + block * LTI_PART * n * CPU_LANES + lane;
    float *output = t->output + block * LTI_PART * n * CPU_LANES + lane;
    float *powers = t->powers + block * rows * n * CPU_LANES + lane;
    memcpy(t->x, d->bb + ch * n, n * sizeof *t->x);
    memcpy(t->row, d->c + ch * n, n * sizeof *t->row);
    for (size_t r = 0; r < LTI_BLOCK; r++) {
        s->kernel[r] = dot(n, d->c + ch * n, t->x);
        for (size_t i = 0; r < LTI_PART && i < n; i++)
            input[(r * n + i) * CPU_LANES] = (float)t->x[i];
        advance_column(n, ab, t->x, t->next);
        if (r >= LTI_PART)
            continue;
        advance_row(n, ab, t->row, t->next);
        for (size_t i = 0; i < n; i++)
            output[(r * n + i) * CPU_LANES] = (float)t->row[i];
    }
    s->kernel[0] += d->d[ch];
    transform(s);
    spread(t->spectra + block * LTI_SPECTRUM_FLOATS * CPU_LANES + lane, s->out,
           LTI_SPECTRUM_FLOATS);
    raise(d, ch, t);
    for (size_t i = 0; i < n; i++) {
        for (size_t j = 0; j < n; j++)
            powers[((i / LTI_ROWS * n + j) * LTI_ROWS + i % LTI_ROWS) * CPU_LANES] =
                (float)t->power[i * n + j];
    }
}

static bool pack_dense(const lti_dense *d, size_t first, size_t end, dense_tables *t, spectrum *s) {
    double *work = malloc((3 * d->n + 2 * d->n * d->n) * sizeof *work);
    if (!work)
        return false;
    t->x = work, t->row = t->x + d->n, t->next = t->row + d->n;
    t->power = t->next + d->n, t->square = t->power + d->n * d->n;
    for (size_t ch = first; ch < end; ch++)
        pack_channel(d, ch, ch - first, t, s);
    free(work);
    return true;
}

// ---- a thread's part of a layer

bool cpu_lti_pack_blocks(const cpu_model *m, cpu_thread *t, int32_t layer) {
    cpu_lti_part *part = &t->parts[layer].lti;
    const size_t blocks = (size_t)(t->model.end - t->model.first), n = (size_t)m->g.d_state;
    const size_t first = (size_t)t->model.first * CPU_LANES;
    const size_t past = (size_t)t->model.end * CPU_LANES, width = (size_t)m->g.d_model;
    const size_t end = past < width ? past : width;
    const bool is_dense = m->g.kind == SSM_BLOCK_S4;
    const size_t rows = (n + LTI_ROWS - 1) / LTI_ROWS * LTI_ROWS;
    if (m->lti_least == INT32_MAX)
        return true;
    if (m->g.kind == SSM_BLOCK_H3) {
        cpu_lti_pack_pairs(m, t, layer);
        return true;
    }
    dense_tables tables = {.spectra = take(&t->arena, blocks * LTI_SPECTRUM_FLOATS * CPU_LANES)};
    tables.powers = take(&t->arena, blocks * (is_dense ? rows * n : n) * CPU_LANES);
    if (is_dense) {
        tables.input = take(&t->arena, blocks * LTI_PART * n * CPU_LANES);
        tables.output = take(&t->arena, blocks * LTI_PART * n * CPU_LANES);
    }
    part->spectra = tables.spectra;
    part->powers = tables.powers;
    part->input = tables.input;
    part->output = tables.output;
    if (!t->arena.base || blocks == 0)
        return true;
    spectrum *s = malloc(sizeof *s);
    bool done = s != NULL;
    if (done) {
        fft_twiddles(LTI_BLOCK, s->w[0]);
        if (is_dense)
            done = pack_dense(&m->dense[layer], first, end, &tables, s);
        else
            pack_poles(&m->diagonal[layer], first, end, tables.spectra, tables.powers, s);
    }
    free(s);
    return done;
}
