// SPDX-License-Identifier: Apache-2.0
// One step of S4D, S4 or H3. Every thread runs this file's function from the embedding to the
// logits, a thread owning blocks of 16 channels and of every projection's rows.
//
//   S4D, S4 layer   norm | recurrence of own channels, gelu | both halves of own rows of out_proj,
//                   gate, into the residual |
//   H3 layer        norm | q, k, v of own channels, shift SSM on k | diagonal SSM of own channels |
//                   own rows of out_proj into the residual |
//
// Each bar is a barrier. Up to CPU_FEW_TOKENS tokens every thread norms for itself and the first
// one goes.
//
// All tokens of the plan pass through a layer before the next one begins, not a window at a time as
// in step.c: over time only the channels' own states connect tokens, and a convolution wants as
// long a prompt as there is. What lies between, norms and products, is done in windows of
// CPU_WINDOW tokens, so that a window's activations and a panel of weights meet in the caches:
// buffers are [window][block][tokens of the window][16].
#include <math.h>
#include <string.h>

#include "lti.h"
#include "lti_kernels.h"
#include "lti_worker.h"

enum { CHUNK = 64 }; // tokens of a block that pass through all poles together, in first-level cache

static void meet(const cpu_worker *k) {
    cpu_pool_barrier(k->step->pool, NULL);
}

// ---- ends

static void embed(const cpu_worker *k) {
    const ssm_tensor *embedding = &k->m->weights->embedding;
    const int32_t dm = k->m->g.d_model;
    for (int32_t i = 0; i < k->step->plan->n_segments; i++) {
        const ssm_segment *segment = &k->step->plan->segments[i];
        for (int32_t t = segment->first; t < segment->first + segment->count; t++) {
            const int32_t id = k->step->plan->tokens[t];
            const int32_t token = id == SSM_TOKEN_SAMPLED ? k->step->drawn[segment->slot] : id;
            const size_t row = (size_t)token * (size_t)dm;
            for (int32_t b = k->t->model.first; b < k->t->model.end; b++) {
                const int32_t left = worker_least(CPU_LANES, dm - b * CPU_LANES);
                float *to = worker_at(k, k->w->residual, b, t);
                memset(to, 0, CPU_LANES * sizeof *to);
                ssm_tensor_read(embedding, row + (size_t)b * CPU_LANES, (size_t)left, to);
            }
        }
    }
}

// A window's norm, tokens [first, end) of the step, from the residual.
static void norm_tokens(const cpu_worker *k, const float *weight, int32_t first, int32_t end,
                        float *to) {
    for (int32_t t = first; t < end;) {
        const int32_t window = t / CPU_WINDOW * CPU_WINDOW, count = worker_run(k, t, end - t);
        const cpu_norm args = {.x = worker_window(k, k->w->residual, window),
                               .weight = weight,
                               .out = worker_window(k, to, window),
                               .n = k->m->g.d_model,
                               .groups = 1,
                               .tokens = worker_tokens(k, window),
                               .out_tokens = worker_tokens(k, window),
                               .first = t - window,
                               .count = count,
                               .out_first = t - window,
                               .eps = k->m->g.norm_eps};
        k->m->kernels->norm(&args);
        t += count;
    }
}

// The layer's normed input, of all channels of all tokens.
static float *norm_all(const cpu_worker *k, int32_t layer) {
    const float *weight = k->m->norm[layer];
    if (k->tokens <= CPU_FEW_TOKENS) {
        norm_tokens(k, weight, 0, k->tokens, k->w->own[k->id].f32);
        return k->w->own[k->id].f32;
    }
    const cpu_range range = cpu_share(k->tokens, k->id, k->n);
    norm_tokens(k, weight, range.first, range.end, k->w->shared.f32);
    meet(k);
    return k->w->shared.f32;
}

// ---- products

// Windows of x [blocks][tokens][16] in the form that products take. Forms other than fp32 are made
// of all tokens first, shared out, and a barrier ends that.
static cpu_input input_of(const cpu_worker *k, const cpu_stage *stage, float *x, int32_t first) {
    const size_t blocks = (size_t)k->m->model_blocks;
    const bool plain = k->m->form == CPU_X_F32;
    const char *bytes = (const char *)stage->bytes;
    return (cpu_input){.data =
                           plain ? (const void *)worker_window(k, x, first)
                                 : bytes + (size_t)first * (blocks + 1) * CPU_LANES * sizeof(float),
                       .scale = stage->scale + first,
                       .sum = stage->sum + (size_t)first * (blocks + 1),
                       .scratch = k->w->own[k->id].scratch,
                       .tokens = worker_tokens(k, first)};
}

static const cpu_stage *convert(const cpu_worker *k, float *x) {
    const bool few = k->tokens <= CPU_FEW_TOKENS;
    const cpu_stage *stage = few ? &k->w->own[k->id] : &k->w->shared;
    if (k->m->form == CPU_X_F32)
        return stage;
    for (int32_t first = 0; first < k->tokens; first += CPU_WINDOW) {
        const cpu_input to = input_of(k, stage, x, first);
        const cpu_range range = few ? (cpu_range){0, to.tokens} : cpu_share(to.tokens, k->id, k->n);
        k->m->kernels->convert(k->m->form, worker_window(k, x, first), k->m->model_blocks,
                               to.tokens, range.first, range.end - range.first, (void *)to.data,
                               (float *)to.scale, (int32_t *)to.sum);
    }
    if (!few)
        meet(k);
    return stage;
}

static void multiply(const cpu_worker *k, const cpu_slice *slice, const cpu_stage *stage, float *x,
                     int32_t first, float *to, bool add) {
    const cpu_input in = input_of(k, stage, x, first);
    const cpu_output out = {.data = worker_window(k, to, first),
                            .block_stride = (size_t)in.tokens * CPU_LANES,
                            .token_stride = CPU_LANES,
                            .add = add};
    k->m->kernels->product(slice, &in, &out);
}

// ---- layers

// A run of tokens of one channel block through its SSM: u to y, gelu taken, the state moved on.
static void scan_run(const cpu_worker *k, const cpu_lti_part *part, int32_t own, const float *u,
                     float *y, int32_t count, bool fresh, float *s) {
    const size_t n = (size_t)k->m->g.d_state, rows = (n + LTI_ROWS - 1) / LTI_ROWS * LTI_ROWS;
    const float *d = part->d + (size_t)own * CPU_LANES;
    const cpu_lti_kernels *kernels = k->m->kernels->lti;
    float out[CHUNK * CPU_LANES];
    for (int32_t t = 0; t < count; t += CHUNK) {
        const int32_t some = worker_least(CHUNK, count - t);
        const float *from = u + (size_t)t * CPU_LANES;
        if (k->m->g.kind == SSM_BLOCK_S4) {
            const lti_dense_scan args = {.ab = part->ab + (size_t)own * rows * n * CPU_LANES,
                                         .bb = part->bb + (size_t)own * rows * CPU_LANES,
                                         .c = part->c + (size_t)own * n * CPU_LANES,
                                         .d = d,
                                         .u = from,
                                         .y = out,
                                         .s = s,
                                         .next = k->w->lti_next[k->id],
                                         .n = (int32_t)n,
                                         .count = some,
                                         .is_lower = k->m->is_lower,
                                         .fresh = fresh && t == 0};
            kernels->dense(&args);
        } else {
            const size_t poles = n / 2 * LTI_POLE_FLOATS * CPU_LANES;
            const lti_poles args = {.poles = part->poles + (size_t)own * poles,
                                    .d = d,
                                    .u = from,
                                    .y = out,
                                    .s = s,
                                    .n = (int32_t)n / 2,
                                    .count = some,
                                    .fresh = fresh && t == 0};
            kernels->poles(&args);
        }
        kernels->gelu(out, (size_t)some * CPU_LANES);
        memcpy(y + (size_t)t * CPU_LANES, out, (size_t)some * CPU_LANES * sizeof *y);
    }
}

// Tokens [token, token + count) of a block between a buffer's windows and one array.
static void gather(const cpu_worker *k, float *buffer, int32_t block, int32_t token, int32_t count,
                   float *to) {
    for (int32_t done = 0, some; done < count; done += some) {
        some = worker_run(k, token + done, count - done);
        memcpy(to + (size_t)done * CPU_LANES, worker_at(k, buffer, block, token + done),
               (size_t)some * CPU_LANES * sizeof *to);
    }
}

static void scatter(const cpu_worker *k, const float *from, int32_t block, int32_t token,
                    int32_t count, float *buffer) {
    for (int32_t done = 0, some; done < count; done += some) {
        some = worker_run(k, token + done, count - done);
        memcpy(worker_at(k, buffer, block, token + done), from + (size_t)done * CPU_LANES,
               (size_t)some * CPU_LANES * sizeof *from);
    }
}

// The same as scan_run for a block of a convolution, across windows.
static void convolve_run(const cpu_worker *k, const cpu_lti_part *part, int32_t block, float *u,
                         float *y, int32_t token, int32_t count, bool fresh, float *s) {
    const size_t n = (size_t)k->m->g.d_state, rows = (n + LTI_ROWS - 1) / LTI_ROWS * LTI_ROWS;
    const size_t own = (size_t)(block - k->t->model.first), lanes = own * CPU_LANES;
    const bool is_dense = k->m->g.kind == SSM_BLOCK_S4;
    float *work = k->w->lti_work[k->id];
    const lti_block args = {.spectrum = part->spectra + lanes * LTI_SPECTRUM_FLOATS,
                            .twiddles = k->m->lti_twiddles[0],
                            .poles =
                                is_dense ? NULL : part->poles + lanes * (n / 2 * LTI_POLE_FLOATS),
                            .powers = part->powers + lanes * (is_dense ? rows * n : n),
                            .input = is_dense ? part->input + lanes * LTI_PART * n : NULL,
                            .output = is_dense ? part->output + lanes * LTI_PART * n : NULL,
                            .u = work,
                            .y = work + LTI_BLOCK * CPU_LANES,
                            .work = work + 2 * LTI_BLOCK * CPU_LANES,
                            .states = work + 4 * LTI_BLOCK * CPU_LANES,
                            .s = s,
                            .n = (int32_t)(is_dense ? n : n / 2),
                            .count = count,
                            .is_lower = k->m->is_lower,
                            .fresh = fresh};
    const cpu_lti_kernels *kernels = k->m->kernels->lti;
    gather(k, u, block, token, count, args.u);
    (is_dense ? kernels->block_dense : kernels->block_poles)(&args);
    kernels->gelu(args.y, (size_t)count * CPU_LANES);
    scatter(k, args.y, block, token, count, y);
}

// One channel block of a segment, u to y: blocks of a convolution while they pay, then the rest.
static void recur_block(const cpu_worker *k, int32_t layer, const ssm_segment *segment,
                        int32_t block, float *u, float *y) {
    const cpu_lti_part *part = &k->t->parts[layer].lti;
    float *s =
        worker_slot(k, segment->slot, layer) + (size_t)block * (size_t)k->m->g.d_state * CPU_LANES;
    for (int32_t done = 0; done < segment->count;) {
        const int32_t token = segment->first + done, left = segment->count - done;
        const int32_t whole = worker_least(left, LTI_BLOCK) / LTI_PART * LTI_PART;
        const bool fresh = segment->fresh && done == 0;
        const int32_t count = whole >= k->m->lti_least ? whole : worker_run(k, token, left);
        if (whole >= k->m->lti_least)
            convolve_run(k, part, block, u, y, token, count, fresh, s);
        else
            scan_run(k, part, block - k->t->model.first, worker_at(k, u, block, token),
                     worker_at(k, y, block, token), count, fresh, s);
        done += count;
    }
}

// Own channels of every segment: u to y.
static void recur(const cpu_worker *k, int32_t layer, float *u, float *y) {
    for (int32_t j = 0; j < k->step->plan->n_segments; j++) {
        for (int32_t b = k->t->model.first; b < k->t->model.end; b++)
            recur_block(k, layer, &k->step->plan->segments[j], b, u, y);
    }
}

static void run_gated(const cpu_worker *k, int32_t layer) {
    const cpu_lti_part *part = &k->t->parts[layer].lti;
    const size_t own = (size_t)(k->t->model.end - k->t->model.first);
    float *u = norm_all(k, layer);
    recur(k, layer, u, k->w->x);
    meet(k);
    const cpu_stage *stage = convert(k, k->w->x);
    for (int32_t first = 0; first < k->tokens; first += CPU_WINDOW) {
        multiply(k, &part->out_a, stage, k->w->x, first, k->w->z, false);
        multiply(k, &part->out_b, stage, k->w->x, first, k->w->delta, false);
        const int32_t block = k->t->model.first;
        k->m->kernels->lti->gate(worker_at(k, k->w->z, block, first),
                                 worker_at(k, k->w->delta, block, first),
                                 own * (size_t)worker_tokens(k, first) * CPU_LANES,
                                 worker_at(k, k->w->residual, block, first));
    }
    meet(k);
}

static void run_h3(const cpu_worker *k, int32_t layer) {
    const cpu_lti_part *part = &k->t->parts[layer].lti;
    float *u = norm_all(k, layer);
    const cpu_stage *stage = convert(k, u);
    for (int32_t first = 0; first < k->tokens; first += CPU_WINDOW) {
        multiply(k, &part->q, stage, u, first, k->w->z, false);
        multiply(k, &part->k, stage, u, first, k->w->bc, false);
        multiply(k, &part->v, stage, u, first, k->w->delta, false);
    }
    cpu_lti_shift_keys(k, layer, k->w->bc);
    meet(k);
    cpu_lti_recur_pairs(k, layer);
    meet(k);
    stage = convert(k, k->w->x);
    for (int32_t first = 0; first < k->tokens; first += CPU_WINDOW)
        multiply(k, &part->out, stage, k->w->x, first, k->w->residual, true);
    meet(k);
}

// ---- head

static void run_head(const cpu_worker *k) {
    const cpu_model *m = k->m;
    const int32_t wanted = k->step->n_wanted;
    const bool few = wanted <= CPU_FEW_TOKENS;
    const cpu_stage *stage = few ? &k->w->own[k->id] : &k->w->shared;
    const cpu_range range = few ? (cpu_range){0, wanted} : cpu_share(wanted, k->id, k->n);
    if (wanted == 0)
        return;
    for (int32_t i = range.first; i < range.end; i++) {
        const int32_t t = k->step->wanted[i], window = t / CPU_WINDOW * CPU_WINDOW;
        const cpu_norm args = {.x = worker_window(k, k->w->residual, window),
                               .weight = m->norm_f,
                               .out = stage->f32,
                               .n = m->g.d_model,
                               .groups = 1,
                               .tokens = worker_tokens(k, window),
                               .out_tokens = wanted,
                               .first = t - window,
                               .count = 1,
                               .out_first = i,
                               .eps = m->g.norm_eps};
        m->kernels->norm(&args);
    }
    if (m->form != CPU_X_F32)
        m->kernels->convert(m->form, stage->f32, m->model_blocks, wanted, range.first,
                            range.end - range.first, stage->bytes, stage->scale, stage->sum);
    if (!few)
        meet(k);
    const cpu_input x = {.data = m->form == CPU_X_F32 ? (const void *)stage->f32 : stage->bytes,
                         .scale = stage->scale,
                         .sum = stage->sum,
                         .scratch = k->w->own[k->id].scratch,
                         .tokens = wanted};
    const cpu_output out = {.data = k->w->logits,
                            .block_stride = CPU_LANES,
                            .token_stride = (size_t)m->vocab_blocks * CPU_LANES};
    m->kernels->product(&k->t->head, &x, &out);
}

// ---- the step

static void run_thread(void *arg, int id) {
    cpu_step *s = arg;
    const cpu_worker k = cpu_worker_of(s, id, s->plan->n_tokens);
    embed(&k);
    meet(&k);
    for (int32_t i = 0; i < s->model->g.n_layers; i++) {
        if (s->model->g.kind == SSM_BLOCK_H3)
            run_h3(&k, i);
        else
            run_gated(&k, i);
    }
    run_head(&k);
}

void cpu_lti_step_run(cpu_step *s) {
    s->first_row = 0;
    cpu_step_list_wanted(s, s->plan->segments, s->plan->n_segments);
    cpu_pool_run(s->pool, run_thread, s);
}
