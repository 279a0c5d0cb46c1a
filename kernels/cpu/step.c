// SPDX-License-Identifier: Apache-2.0
// One step: every thread runs this file's function from the embedding to the logits and meets the
// others where a vector must be whole.
//
//   Mamba-1 layer   norm, in_proj of own channels, convolution | x_proj rows | dt_proj, recurrence
//                   and gate of own channels | out_proj rows into the residual |
//   Mamba-2 layer   norm, in_proj, convolution | recurrence and gate of own channels | gate norm,
//                   out_proj rows into the residual |
//
// Each bar is a barrier: 4 and 3 a layer. x_proj could be summed by channels instead of rows to
// save one, but then its sums would depend on the number of threads, which one
// barrier is not worth. With more than CPU_FEW_TOKENS tokens the norms are shared out by tokens,
// which takes a barrier more.
#include "step.h"

#include <assert.h>
#include <math.h>
#include <string.h>

// A phase that is not bound by memory leaves it idle: with few tokens, where a step is one pass
// over the weights, the recurrence and every wait fetch what the next product reads first.
static void look_ahead(cpu_worker *k, const cpu_slice *next) {
    const size_t room = k->tokens <= CPU_FEW_TOKENS ? k->m->ahead_bytes : 0;
    k->ahead.at = next->data;
    k->ahead.end = k->ahead.at + (next->bytes < room ? next->bytes : room);
}

static void meet(cpu_worker *k) {
    cpu_pool_barrier(k->step->pool, &k->ahead);
}

static int32_t token_at(const cpu_step *s, const ssm_segment *segment, int32_t i) {
    const int32_t id = s->tokens[segment->first + i];
    return id == SSM_TOKEN_SAMPLED ? s->drawn[segment->slot] : id;
}

// Own blocks of every token's row of the embedding.
static void embed(const cpu_worker *k) {
    const ssm_tensor *embedding = &k->m->weights->embedding;
    const int32_t dm = k->m->g.d_model;
    for (int32_t i = 0; i < k->step->n_segments; i++) {
        const ssm_segment *segment = &k->step->cut[i];
        for (int32_t j = 0; j < segment->count; j++) {
            const size_t row = (size_t)token_at(k->step, segment, j) * (size_t)dm;
            const size_t t = (size_t)(segment->first + j);
            for (int32_t b = k->t->model.first; b < k->t->model.end; b++) {
                const int32_t left = dm - b * CPU_LANES;
                float *to = k->w->residual + ((size_t)b * (size_t)k->tokens + t) * CPU_LANES;
                if (left < CPU_LANES)
                    memset(to, 0, CPU_LANES * sizeof *to);
                ssm_tensor_read(embedding, row + (size_t)b * CPU_LANES,
                                (size_t)(left < CPU_LANES ? left : CPU_LANES), to);
            }
        }
    }
}

// ---- inputs of projections

typedef struct source {
    const float *x; // [blocks][tokens][16]
    int32_t n;      // features
    bool has_norm;
    const float *weight; // of the norm
    int32_t groups;
    float eps;
    const int32_t *rows; // the head: tokens wanted, else NULL
    int32_t n_out;       // tokens that come out
} source;

// The norm itself leaves bf16, unless its parts are not whole blocks.
static bool is_direct(const cpu_worker *k, const source *s) {
    return k->m->form == CPU_X_BF16 && s->has_norm && s->n / s->groups % CPU_LANES == 0;
}

static void norm_rows(const cpu_worker *k, const source *s, const cpu_stage *stage, int32_t first,
                      int32_t count) {
    cpu_norm args = {.x = s->x,
                     .weight = s->weight,
                     .out = stage->f32,
                     .bf16 = is_direct(k, s) ? stage->bytes : NULL,
                     .n = s->n,
                     .groups = s->groups,
                     .tokens = k->tokens,
                     .out_tokens = s->n_out,
                     .first = first,
                     .count = count,
                     .out_first = first,
                     .eps = s->eps};
    if (!s->rows) {
        k->m->kernels->norm(&args);
        return;
    }
    args.count = 1;
    for (int32_t i = first; i < first + count; i++) {
        args.first = s->rows[i];
        args.out_first = i;
        k->m->kernels->norm(&args);
    }
}

// The source normed and in the form that the large projections take. Ends with a barrier if the
// work was shared out.
static cpu_input prepare(cpu_worker *k, const source *s) {
    const cpu_form form = k->m->form;
    const bool few = s->n_out <= CPU_FEW_TOKENS;
    const cpu_stage *stage = few ? &k->w->own[k->id] : &k->w->shared;
    const cpu_range range = few ? (cpu_range){0, s->n_out} : cpu_share(s->n_out, k->id, k->n);
    const float *x = s->x;
    if (s->has_norm) {
        norm_rows(k, s, stage, range.first, range.end - range.first);
        x = stage->f32;
    }
    if (form != CPU_X_F32 && !is_direct(k, s))
        k->m->kernels->convert(form, x, cpu_blocks(s->n), s->n_out, range.first,
                               range.end - range.first, stage->bytes, stage->scale, stage->sum);
    if (!few && (s->has_norm || form != CPU_X_F32))
        meet(k);
    return (cpu_input){.data = form == CPU_X_F32 ? (const void *)x : stage->bytes,
                       .scale = stage->scale,
                       .sum = stage->sum,
                       .scratch = k->w->own[k->id].scratch,
                       .tokens = s->n_out};
}

static cpu_output blocked(const cpu_worker *k, float *data, bool add) {
    return (cpu_output){.data = data,
                        .block_stride = (size_t)k->tokens * CPU_LANES,
                        .token_stride = CPU_LANES,
                        .add = add};
}

static void project(const cpu_worker *k, const cpu_slice *slice, const cpu_input *x, float *to) {
    const cpu_output out = blocked(k, to, false);
    k->m->kernels->product(slice, x, &out);
}

static float *block_of(const cpu_worker *k, float *data, int32_t block, int32_t token) {
    return data + ((size_t)block * (size_t)k->tokens + (size_t)token) * CPU_LANES;
}

// ---- states

static float *slot_layer(const cpu_worker *k, int32_t slot, int32_t layer) {
    const size_t floats = cpu_slot_conv_floats(k->m) + cpu_slot_ssm_floats(k->m);
    return k->step->slots + (size_t)slot * k->step->slot_floats + (size_t)layer * floats;
}

// Blocks [0, count) of `data` from `block` on, which are blocks `slot_block`.. of the slot's.
static void convolve(const cpu_worker *k, int32_t layer, float *data, int32_t block, int32_t count,
                     int32_t slot_block, const float *weight, const float *bias) {
    const int32_t width = k->m->g.d_conv;
    const size_t tail = (size_t)(width - 1) * CPU_LANES;
    for (int32_t i = 0; i < count; i++) {
        for (int32_t j = 0; j < k->step->n_segments; j++) {
            const ssm_segment *segment = &k->step->cut[j];
            float *x = block_of(k, data, block + i, segment->first);
            const cpu_conv args = {.weight = weight + (size_t)i * (size_t)width * CPU_LANES,
                                   .bias = bias + (size_t)i * CPU_LANES,
                                   .tail = slot_layer(k, segment->slot, layer) +
                                           (size_t)(slot_block + i) * tail,
                                   .x = x,
                                   .out = x,
                                   .width = width,
                                   .count = segment->count,
                                   .fresh = segment->fresh};
            k->m->kernels->conv(&args);
        }
    }
}

static bool is_mixed(const int32_t first[CPU_LANES]) {
    for (int i = 1; i < CPU_LANES; i++) {
        if (first[i] != first[0])
            return true;
    }
    return false;
}

// Blocks from the i-th on that the recurrence takes together: two of one group.
static int32_t blocks_together(const cpu_worker *k, int32_t i) {
    const int32_t(*group)[CPU_LANES] = k->m->lane_group;
    if (k->m->g.kind == SSM_BLOCK_MAMBA || i + 1 >= k->t->inner.end || is_mixed(group[i]))
        return 1;
    return memcmp(group[i], group[i + 1], sizeof group[i]) == 0 ? 2 : 1;
}

static void recur(cpu_worker *k, int32_t layer) {
    enum { AHEAD_LINES = 20 }; // what memory gives in the time of one block's token
    const cpu_model *m = k->m;
    const cpu_part *part = &k->t->parts[layer];
    const bool per_state = m->g.kind == SSM_BLOCK_MAMBA;
    const size_t n = (size_t)m->g.d_state, rates = per_state ? n : 1;
    look_ahead(k, &part->out_proj);
    for (int32_t j = 0; j < k->step->n_segments; j++) {
        const ssm_segment *segment = &k->step->cut[j];
        for (int32_t i = k->t->inner.first, blocks; i < k->t->inner.end; i += blocks) {
            const size_t own = (size_t)(i - k->t->inner.first);
            cpu_scan args = {.a = part->a + own * rates * CPU_LANES,
                             .d = part->d + own * CPU_LANES,
                             .stride = (size_t)k->tokens * CPU_LANES,
                             .mixed = is_mixed(m->lane_group[i]),
                             .n = m->g.d_state,
                             .per_state = per_state};
            memcpy(args.first, m->lane_group[i], sizeof args.first);
            args.blocks = blocks = blocks_together(k, i);
            args.delta = block_of(k, k->w->delta, i, segment->first);
            args.x = args.y = block_of(k, k->w->x, i, segment->first);
            args.z = block_of(k, k->w->z, i, segment->first);
            args.b = block_of(k, k->w->bc, m->b_block, segment->first);
            args.c = block_of(k, k->w->bc, m->c_block, segment->first);
            args.h = slot_layer(k, segment->slot, layer) + cpu_slot_conv_floats(m) +
                     (size_t)i * n * CPU_LANES;
            args.count = segment->count;
            args.fresh = segment->fresh;
            m->kernels->scan(&args);
            cpu_ahead_fetch(&k->ahead, AHEAD_LINES * blocks);
        }
    }
}

// ---- layers

// falcon_mamba: dt, B and C normed in place, tokens shared out.
static void norm_bc_dt(cpu_worker *k) {
    const cpu_model *m = k->m;
    const cpu_range range = cpu_share(k->tokens, k->id, k->n);
    const int32_t block[3] = {m->dt_block, m->b_block, m->c_block};
    const int32_t n[3] = {m->g.dt_rank, m->g.d_state, m->g.d_state};
    for (int i = 0; i < 3; i++) {
        float *x = block_of(k, k->w->bc, block[i], 0);
        const cpu_norm args = {.x = x,
                               .out = x,
                               .n = n[i],
                               .groups = 1,
                               .tokens = k->tokens,
                               .out_tokens = k->tokens,
                               .first = range.first,
                               .count = range.end - range.first,
                               .out_first = range.first,
                               .eps = m->g.bc_dt_eps};
        m->kernels->norm(&args);
    }
    meet(k);
}

// Blocks [first, end) of `data` in the form of x_proj's and dt_proj's inputs, into `bytes`; nothing
// to do where they take fp32.
static void convert_small(const cpu_worker *k, const float *data, cpu_range blocks, void *bytes) {
    if (k->m->small_form == CPU_X_F32 || blocks.first >= blocks.end)
        return;
    const size_t at = (size_t)blocks.first * (size_t)k->tokens * CPU_LANES;
    const size_t width = k->m->kernels->has_bf16_dot ? sizeof(uint16_t) : sizeof(float);
    k->m->kernels->convert(k->m->small_form, data + at, blocks.end - blocks.first, k->tokens, 0,
                           k->tokens, (char *)bytes + at * width, NULL, NULL);
}

static cpu_input small_input(const cpu_worker *k, const float *data, const void *bytes) {
    return (cpu_input){.data = k->m->small_form == CPU_X_F32 ? (const void *)data : bytes,
                       .scratch = k->w->own[k->id].scratch,
                       .tokens = k->tokens};
}

static void mix_mamba(cpu_worker *k, int32_t layer) {
    const cpu_part *part = &k->t->parts[layer];
    const int32_t first = k->t->inner.first, own = k->t->inner.end - first;
    convolve(k, layer, k->w->x, first, own, first, part->conv_weight, part->conv_bias);
    convert_small(k, k->w->x, k->t->inner, k->w->x_bytes);
    look_ahead(k, &part->x_proj);
    meet(k);
    const cpu_input x = small_input(k, k->w->x, k->w->x_bytes);
    project(k, &part->x_proj, &x, k->w->bc);
    look_ahead(k, &part->dt_proj);
    meet(k);
    if (k->m->g.bc_dt_norm)
        norm_bc_dt(k);
    float *dt = block_of(k, k->w->bc, k->m->dt_block, 0);
    convert_small(k, dt, (cpu_range){0, k->m->b_block}, k->w->own[k->id].dt_bytes);
    const cpu_input rank = small_input(k, dt, k->w->own[k->id].dt_bytes);
    project(k, &part->dt_proj, &rank, k->w->delta);
    k->m->kernels->softplus(block_of(k, k->w->delta, first, 0),
                            (size_t)own * (size_t)k->tokens * CPU_LANES, 0, INFINITY);
    recur(k, layer);
}

// One head's delta to each of its channels.
static void spread_delta(const cpu_worker *k) {
    const cpu_model *m = k->m;
    const ssm_geometry *g = &m->g;
    for (int32_t i = k->t->inner.first; i < k->t->inner.end; i++) {
        int32_t head[CPU_LANES];
        for (int lane = 0; lane < CPU_LANES; lane++) {
            const int32_t c = i * CPU_LANES + lane;
            head[lane] = (c < g->d_inner ? c : g->d_inner - 1) / g->head_dim;
        }
        float *to = block_of(k, k->w->delta, i, 0);
        if (!is_mixed(head)) {
            const float *from = block_of(k, k->w->bc, m->dt_block + head[0] / CPU_LANES, 0);
            from += head[0] % CPU_LANES;
            for (int32_t t = 0; t < k->tokens; t++, to += CPU_LANES, from += CPU_LANES) {
                for (int lane = 0; lane < CPU_LANES; lane++)
                    to[lane] = *from;
            }
            continue;
        }
        for (int32_t t = 0; t < k->tokens; t++, to += CPU_LANES) {
            for (int lane = 0; lane < CPU_LANES; lane++) {
                const float *from = block_of(k, k->w->bc, m->dt_block + head[lane] / CPU_LANES, t);
                to[lane] = from[head[lane] % CPU_LANES];
            }
        }
    }
}

static void mix_mamba2(cpu_worker *k, int32_t layer) {
    const cpu_model *m = k->m;
    const cpu_part *part = &k->t->parts[layer];
    const int32_t first = k->t->inner.first, bc = k->t->bc.first;
    const int32_t states_end = k->t->bc.end < m->dt_block ? k->t->bc.end : m->dt_block;
    const int32_t dt = bc > m->dt_block ? bc : m->dt_block;
    convolve(k, layer, k->w->x, first, k->t->inner.end - first, first, part->conv_weight,
             part->conv_bias);
    if (states_end > bc)
        convolve(k, layer, k->w->bc, bc, states_end - bc, m->inner_blocks + bc,
                 part->bc_conv_weight, part->bc_conv_bias);
    if (k->t->bc.end > dt)
        m->kernels->softplus(block_of(k, k->w->bc, dt, 0),
                             (size_t)(k->t->bc.end - dt) * (size_t)k->tokens * CPU_LANES,
                             m->g.dt_min, m->g.dt_max);
    meet(k);
    spread_delta(k);
    recur(k, layer);
}

// What out_proj takes, of all channels. Mamba-1 in bf16: each thread converts its own, which are
// still near it.
static cpu_input mixed_input(cpu_worker *k, int32_t layer) {
    const cpu_model *m = k->m;
    const bool is_mamba2 = m->g.kind == SSM_BLOCK_MAMBA2;
    if (!is_mamba2 && m->form == CPU_X_BF16) {
        convert_small(k, k->w->x, k->t->inner, k->w->x_bytes);
        meet(k);
        return small_input(k, k->w->x, k->w->x_bytes);
    }
    meet(k);
    const source y = {.x = k->w->x,
                      .n = m->g.d_inner,
                      .has_norm = is_mamba2,
                      .weight = m->gate_norm[layer],
                      .groups = is_mamba2 ? m->g.n_groups : 1,
                      .eps = m->g.gate_eps,
                      .n_out = k->tokens};
    return prepare(k, &y);
}

static void run_layer(cpu_worker *k, int32_t layer) {
    const cpu_model *m = k->m;
    const ssm_geometry *g = &m->g;
    const cpu_part *part = &k->t->parts[layer];
    const bool is_mamba2 = g->kind == SSM_BLOCK_MAMBA2;
    const source u = {.x = k->w->residual,
                      .n = g->d_model,
                      .has_norm = true,
                      .weight = m->norm[layer],
                      .groups = 1,
                      .eps = g->norm_eps,
                      .n_out = k->tokens};
    const cpu_input in = prepare(k, &u);
    project(k, &part->in_x, &in, k->w->x);
    project(k, &part->in_z, &in, k->w->z);
    if (is_mamba2) {
        project(k, &part->in_bc, &in, k->w->bc);
        mix_mamba2(k, layer);
    } else {
        mix_mamba(k, layer);
    }
    const cpu_input mixed = mixed_input(k, layer);
    const cpu_output to = blocked(k, k->w->residual, true);
    m->kernels->product(&part->out_proj, &mixed, &to);
    look_ahead(k, layer + 1 < g->n_layers ? &part[1].in_x : &k->t->head);
    meet(k);
}

static void run_head(cpu_worker *k) {
    const cpu_model *m = k->m;
    if (k->step->n_wanted == 0)
        return;
    const source u = {.x = k->w->residual,
                      .n = m->g.d_model,
                      .has_norm = true,
                      .weight = m->norm_f,
                      .groups = 1,
                      .eps = m->g.norm_eps,
                      .rows = k->step->wanted,
                      .n_out = k->step->n_wanted};
    const cpu_input x = prepare(k, &u);
    const size_t row = (size_t)m->vocab_blocks * CPU_LANES;
    const cpu_output out = {.data = k->w->logits + (size_t)k->step->first_row * row,
                            .block_stride = CPU_LANES,
                            .token_stride = row};
    m->kernels->product(&k->t->head, &x, &out);
}

static void run_thread(void *arg, int id) {
    cpu_step *s = arg;
    cpu_worker k = cpu_worker_of(s, id, s->n_tokens);
    embed(&k);
    look_ahead(&k, &k.t->parts[0].in_x);
    meet(&k);
    for (int32_t i = 0; i < s->model->g.n_layers; i++)
        run_layer(&k, i);
    run_head(&k);
}

// The part of the plan's segments in tokens [first, end), as segments of the window.
static void cut_segments(cpu_step *s, int32_t first, int32_t end) {
    s->tokens = s->plan->tokens + first;
    s->n_tokens = end - first;
    s->n_segments = 0;
    for (int32_t i = 0; i < s->plan->n_segments; i++) {
        ssm_segment segment = s->plan->segments[i];
        const int32_t begin = segment.first > first ? segment.first : first;
        const int32_t past = segment.first + segment.count;
        const int32_t stop = past < end ? past : end;
        if (stop <= begin)
            continue;
        segment.fresh = segment.fresh && begin == segment.first;
        if (segment.want == SSM_WANT_LAST && stop < past)
            segment.want = SSM_WANT_NONE;
        segment.count = stop - begin;
        segment.first = begin - first;
        s->cut[s->n_segments++] = segment;
    }
}

void cpu_step_list_wanted(cpu_step *s, const ssm_segment *segments, int32_t n) {
    s->n_wanted = 0;
    for (int32_t i = 0; i < n; i++) {
        const int32_t past = segments[i].first + segments[i].count;
        int32_t t = segments[i].want == SSM_WANT_ALL    ? segments[i].first
                    : segments[i].want == SSM_WANT_LAST ? past - 1
                                                        : past;
        for (; t < past; t++) {
            assert(s->first_row + s->n_wanted < s->work->max_rows);
            s->wanted[s->n_wanted++] = t;
        }
    }
}

void cpu_step_run(cpu_step *s) {
    s->first_row = 0;
    for (int32_t first = 0; first < s->plan->n_tokens; first += CPU_WINDOW) {
        const int32_t left = s->plan->n_tokens - first;
        cut_segments(s, first, first + (left < CPU_WINDOW ? left : CPU_WINDOW));
        cpu_step_list_wanted(s, s->cut, s->n_segments);
        cpu_pool_run(s->pool, run_thread, s);
        s->first_row += s->n_wanted;
    }
}
