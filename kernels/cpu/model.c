// SPDX-License-Identifier: Apache-2.0
// Loading: who owns what, and the packing of it.
//
// A thread owns a range of 16-channel blocks of d_inner: the rows of in_proj that make them, their
// convolution, their rows of dt_proj, their states. So a layer's first barrier comes after the
// convolution, and states and tails stay in the caches of one core. The rows of the other
// projections are shared out evenly. Each thread packs what it owns into memory of its own, so that
// pages lie on its node, in the order in which a step reads them.
#include "model.h"

#include "lti.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

cpu_range cpu_share(int32_t blocks, int i, int n) {
    return (cpu_range){(int32_t)((int64_t)blocks * i / n),
                       (int32_t)((int64_t)blocks * (i + 1) / n)};
}

size_t cpu_slot_conv_floats(const cpu_model *m) {
    return (size_t)m->conv_blocks * (size_t)(m->g.d_conv - 1) * CPU_LANES;
}

size_t cpu_slot_ssm_floats(const cpu_model *m) {
    return (size_t)m->inner_blocks * (size_t)m->g.d_state * CPU_LANES;
}

uint64_t cpu_model_bytes(const cpu_model *m) {
    uint64_t bytes = m->shared.used;
    for (int i = 0; i < m->n_threads; i++)
        bytes += m->threads[i].arena.used;
    return bytes;
}

// ---- choices

static cpu_format format_of(ssm_dtype dtype) {
    switch (dtype) {
    case SSM_DTYPE_F16:
        return CPU_W_F16;
    case SSM_DTYPE_BF16:
        return CPU_W_BF16;
    case SSM_DTYPE_INT8:
        return CPU_W_INT8;
    case SSM_DTYPE_INT4:
        return CPU_W_INT4;
    case SSM_DTYPE_INT5:
        return CPU_W_INT5;
    case SSM_DTYPE_INT6:
        return CPU_W_INT6;
    default:
        return CPU_W_F32;
    }
}

static void count_blocks(cpu_model *m) {
    const ssm_geometry *g = &m->g;
    m->model_blocks = cpu_blocks(g->d_model);
    m->inner_blocks = cpu_blocks(g->d_inner);
    m->vocab_blocks = cpu_blocks(g->vocab_size);
    m->conv_blocks = m->inner_blocks;
    if (ssm_block_is_lti(g->kind)) {
        m->conv_blocks = m->model_blocks;
        m->inner_blocks = m->model_blocks * (g->kind == SSM_BLOCK_H3 ? g->head_dim : 1);
    } else if (g->kind == SSM_BLOCK_MAMBA) {
        m->dt_block = 0;
        m->b_block = cpu_blocks(g->dt_rank);
        m->c_block = m->b_block + cpu_blocks(g->d_state);
        m->bc_blocks = m->c_block + cpu_blocks(g->d_state);
    } else {
        const int32_t states = cpu_blocks((int64_t)g->n_groups * g->d_state);
        m->b_block = 0;
        m->c_block = states;
        m->dt_block = 2 * states;
        m->bc_blocks = m->dt_block + cpu_blocks(g->n_heads);
        m->conv_blocks += 2 * states;
    }
}

// Activations in 16 bits: bf16 where the processor multiplies it, integers where it multiplies
// those twice as fast as fp32, else rounded to bf16 and multiplied as fp32.
static void choose_halves(cpu_model *m) {
    if (!m->kernels->has_bf16_dot && m->kernels->has_word_dot) {
        m->form = CPU_X_WORD;
        m->format = CPU_W_WORD;
        return;
    }
    m->form = CPU_X_BF16;
    m->format = m->kernels->has_bf16_dot ? CPU_W_BF16_DOT : CPU_W_BF16;
    if (m->g.kind == SSM_BLOCK_MAMBA)
        m->small_form = CPU_X_BF16;
}

int cpu_model_choose(cpu_model *m, const ssm_weights *w, const ssm_device_options *o,
                     ssm_error *err) {
    const ssm_dtype stored = ssm_weights_dtype(w);
    const ssm_dtype dtype = o->weight_dtype != SSM_DTYPE_AUTO ? o->weight_dtype : stored;
    m->g = w->geometry;
    m->weights = w;
    m->prompt_form = o->prompt_form;
    m->format = format_of(dtype);
    m->form = m->format >= CPU_W_INT4 ? CPU_X_Q15 : m->format == CPU_W_INT8 ? CPU_X_Q16 : CPU_X_F32;
    if (o->state_dtype != SSM_DTYPE_AUTO && o->state_dtype != SSM_DTYPE_F32)
        return ssm_error_set(err, SSM_EUNSUPPORTED, "state_dtype",
                             "the CPU backend keeps states in f32, not %s",
                             ssm_dtype_name(o->state_dtype));
    if (o->activation_dtype == SSM_DTYPE_BF16) {
        if (dtype != SSM_DTYPE_BF16)
            return ssm_error_set(err, SSM_EUNSUPPORTED, "activation_dtype",
                                 "bf16 activations need bf16 weights, these are %s",
                                 ssm_dtype_name(dtype));
        choose_halves(m);
    } else if (o->activation_dtype != SSM_DTYPE_AUTO && o->activation_dtype != SSM_DTYPE_F32) {
        return ssm_error_set(err, SSM_EUNSUPPORTED, "activation_dtype",
                             "activations are f32 or bf16 on a CPU, not %s",
                             ssm_dtype_name(o->activation_dtype));
    }
    if (m->g.d_conv > 64 && !ssm_block_is_lti(m->g.kind))
        return ssm_error_set(err, SSM_EUNSUPPORTED, "conv_kernel",
                             "convolutions of up to 64 taps, not %d", m->g.d_conv);
    count_blocks(m);
    return 0;
}

// ---- packing

// A large projection takes the model's format; all of one device share their activations' form.
static cpu_matrix large(const cpu_model *m, const ssm_tensor *weight, const ssm_tensor *bias) {
    return (cpu_matrix){.weight = weight,
                        .bias = bias,
                        .regions = {{0, (int32_t)weight->rows}},
                        .n_regions = 1,
                        .format = m->format};
}

// x_proj and dt_proj are 4% of the bytes: integers do not pay, they keep the stored type.
static cpu_matrix small(const cpu_model *m, const ssm_tensor *weight, const ssm_tensor *bias) {
    cpu_matrix matrix = large(m, weight, bias);
    if (m->form == CPU_X_Q16 || m->form == CPU_X_Q15)
        matrix.format = format_of(weight->dtype);
    if (m->form == CPU_X_WORD)
        matrix.format = CPU_W_BF16;
    return matrix;
}

static void pack_rows(cpu_arena *arena, cpu_matrix matrix, int32_t row, int32_t rows,
                      cpu_range range, cpu_slice *out) {
    matrix.regions[0] = (cpu_region){row, rows};
    cpu_pack(arena, &matrix, range.first, range.end, out);
}

// Convolution of channels [channel, channel + n) of a layer, by blocks of [width][16].
static void pack_conv(cpu_arena *arena, const ssm_layer *l, int64_t channel, int64_t n,
                      float *weight, float *bias) {
    const size_t width = (size_t)l->conv_weight.cols;
    if (!arena->base)
        return;
    for (int64_t c = 0; c < n; c++) {
        const size_t block = (size_t)(c / CPU_LANES), lane = (size_t)(c % CPU_LANES);
        for (size_t j = 0; j < width; j++)
            weight[(block * width + j) * CPU_LANES + lane] =
                ssm_tensor_get(&l->conv_weight, (size_t)(channel + c) * width + j);
        if (l->conv_bias.data)
            bias[c] = ssm_tensor_get(&l->conv_bias, (size_t)(channel + c));
    }
}

static float *take_zeros(cpu_arena *arena, size_t floats) {
    float *p = cpu_arena_take(arena, floats * sizeof *p);
    return p ? memset(p, 0, floats * sizeof *p) : NULL;
}

static int64_t least(int64_t a, int64_t b) {
    return a < b ? a : b;
}

static void pack_channel_conv(const cpu_model *m, cpu_thread *t, const ssm_layer *l,
                              cpu_part *part) {
    const size_t blocks = (size_t)(t->inner.end - t->inner.first);
    const int64_t first = (int64_t)t->inner.first * CPU_LANES;
    const int64_t end = least((int64_t)t->inner.end * CPU_LANES, m->g.d_inner);
    float *weight = take_zeros(&t->arena, blocks * (size_t)m->g.d_conv * CPU_LANES);
    float *bias = take_zeros(&t->arena, blocks * CPU_LANES);
    pack_conv(&t->arena, l, first, end - first, weight, bias);
    part->conv_weight = weight;
    part->conv_bias = bias;
}

// B's and C's blocks of the convolution follow x's channels in the tensor.
static void pack_bc_conv(const cpu_model *m, cpu_thread *t, const ssm_layer *l, cpu_part *part) {
    const int64_t states = (int64_t)m->g.n_groups * m->g.d_state;
    const size_t width = (size_t)m->g.d_conv, blocks = (size_t)(t->bc.end - t->bc.first);
    float *weight = take_zeros(&t->arena, blocks * width * CPU_LANES);
    float *bias = take_zeros(&t->arena, blocks * CPU_LANES);
    for (int32_t i = t->bc.first; i < t->bc.end && i < m->dt_block; i++) {
        const bool is_c = i >= m->c_block;
        const int64_t at = (int64_t)(is_c ? i - m->c_block : i) * CPU_LANES;
        const size_t to = (size_t)(i - t->bc.first);
        pack_conv(&t->arena, l, m->g.d_inner + (is_c ? states : 0) + at,
                  least(CPU_LANES, states - at), weight + to * width * CPU_LANES,
                  bias + to * CPU_LANES);
    }
    part->bc_conv_weight = weight;
    part->bc_conv_bias = bias;
}

static float decay_rate(const ssm_tensor *a_log, size_t i) {
    return (float)(-exp((double)ssm_tensor_get(a_log, i)) * 1.4426950408889634);
}

static void pack_recurrence(const cpu_model *m, cpu_thread *t, const ssm_layer *l, cpu_part *part) {
    const bool per_state = m->g.kind == SSM_BLOCK_MAMBA;
    const size_t n = per_state ? (size_t)m->g.d_state : 1;
    const size_t blocks = (size_t)(t->inner.end - t->inner.first);
    float *a = take_zeros(&t->arena, blocks * n * CPU_LANES);
    float *d = take_zeros(&t->arena, blocks * CPU_LANES);
    part->a = a;
    part->d = d;
    const int64_t first = (int64_t)t->inner.first * CPU_LANES;
    const int64_t end = least((int64_t)t->inner.end * CPU_LANES, m->g.d_inner);
    for (int64_t c = first; a && c < end; c++) {
        const size_t block = (size_t)((c - first) / CPU_LANES), lane = (size_t)(c % CPU_LANES);
        const size_t head = (size_t)(per_state ? c : c / m->g.head_dim);
        for (size_t s = 0; s < n; s++)
            a[(block * n + s) * CPU_LANES + lane] = decay_rate(&l->A_log, head * n + s);
        d[block * CPU_LANES + lane] = ssm_tensor_get(&l->D, head);
    }
}

static void pack_mamba(const cpu_model *m, cpu_thread *t, const ssm_layer *l, cpu_part *part) {
    const ssm_geometry *g = &m->g;
    const cpu_matrix in = large(m, &l->in_proj, &l->in_bias);
    pack_rows(&t->arena, in, 0, g->d_inner, t->inner, &part->in_x);
    pack_rows(&t->arena, in, g->d_inner, g->d_inner, t->inner, &part->in_z);
    pack_channel_conv(m, t, l, part);
    cpu_matrix x = small(m, &l->x_proj, NULL);
    x.regions[0] = (cpu_region){0, g->dt_rank};
    x.regions[1] = (cpu_region){g->dt_rank, g->d_state};
    x.regions[2] = (cpu_region){g->dt_rank + g->d_state, g->d_state};
    x.n_regions = 3;
    cpu_pack(&t->arena, &x, t->bc.first, t->bc.end, &part->x_proj);
    const cpu_matrix dt = small(m, &l->dt_proj, &l->dt_bias);
    pack_rows(&t->arena, dt, 0, g->d_inner, t->inner, &part->dt_proj);
}

static void pack_mamba2(const cpu_model *m, cpu_thread *t, const ssm_layer *l, cpu_part *part) {
    const ssm_geometry *g = &m->g;
    const int32_t states = g->n_groups * g->d_state;
    const cpu_matrix in = large(m, &l->in_proj, &l->in_bias);
    pack_rows(&t->arena, in, g->d_inner, g->d_inner, t->inner, &part->in_x);
    pack_rows(&t->arena, in, 0, g->d_inner, t->inner, &part->in_z);
    cpu_matrix bc = in;
    bc.bias2 = &l->dt_bias;
    bc.regions[0] = (cpu_region){2 * g->d_inner, states};
    bc.regions[1] = (cpu_region){2 * g->d_inner + states, states};
    bc.regions[2] = (cpu_region){2 * g->d_inner + 2 * states, g->n_heads};
    bc.n_regions = 3;
    cpu_pack(&t->arena, &bc, t->bc.first, t->bc.end, &part->in_bc);
    pack_channel_conv(m, t, l, part);
    pack_bc_conv(m, t, l, part);
}

// One thread's walk over everything that it owns, counting or packing.
static void walk(const cpu_model *m, cpu_thread *t) {
    for (int32_t i = 0; i < m->g.n_layers; i++) {
        const ssm_layer *l = &m->weights->layers[i];
        if (ssm_block_is_lti(m->g.kind)) {
            cpu_lti_pack(m, t, i);
            continue;
        }
        if (m->g.kind == SSM_BLOCK_MAMBA)
            pack_mamba(m, t, l, &t->parts[i]);
        else
            pack_mamba2(m, t, l, &t->parts[i]);
        pack_recurrence(m, t, l, &t->parts[i]);
        const cpu_matrix out = large(m, &l->out_proj, &l->out_bias);
        cpu_pack(&t->arena, &out, t->model.first, t->model.end, &t->parts[i].out_proj);
    }
    const cpu_matrix head = large(m, &m->weights->lm_head, NULL);
    cpu_pack(&t->arena, &head, t->vocab.first, t->vocab.end, &t->head);
}

static void walk_shared(cpu_model *m) {
    for (int32_t i = 0; i < m->g.n_layers; i++) {
        const ssm_layer *l = &m->weights->layers[i];
        m->norm[i] = cpu_pack_vector(&m->shared, &l->norm, 0, m->g.d_model);
        m->gate_norm[i] =
            l->gate_norm.data ? cpu_pack_vector(&m->shared, &l->gate_norm, 0, m->g.d_inner) : NULL;
    }
    m->norm_f = cpu_pack_vector(&m->shared, &m->weights->norm_f, 0, m->g.d_model);
}

static bool arena_open(cpu_arena *a) {
    const size_t size = a->size > a->used ? a->size : a->used;
    *a = (cpu_arena){.base = cpu_map(size), .size = size};
    return a->base != NULL;
}

static void walk_thread(void *arg, int i) {
    const cpu_model *m = arg;
    walk(m, &m->threads[i]);
}

// B's first row for every lane: the group of its head.
static void fill_lane_groups(cpu_model *m) {
    const ssm_geometry *g = &m->g;
    for (int32_t c = 0; c < m->inner_blocks * CPU_LANES; c++) {
        const int32_t channel = c < g->d_inner ? c : g->d_inner - 1;
        int32_t row = 0;
        if (g->kind == SSM_BLOCK_MAMBA2)
            row = channel / g->head_dim / (g->n_heads / g->n_groups) * g->d_state;
        m->lane_group[c / CPU_LANES][c % CPU_LANES] = row;
    }
}

// Half of a core's second-level cache; 128 KB where the system does not say.
static size_t ahead_bytes(void) {
#ifdef _SC_LEVEL2_CACHE_SIZE
    const long bytes = sysconf(_SC_LEVEL2_CACHE_SIZE);
    if (bytes > 0)
        return (size_t)bytes / 2;
#endif
    return 128 << 10;
}

int cpu_model_load(cpu_model *m, cpu_pool *pool) {
    const size_t layers = (size_t)m->g.n_layers;
    m->n_threads = cpu_pool_threads(pool);
    m->ahead_bytes = ahead_bytes();
    m->threads = calloc((size_t)m->n_threads, sizeof *m->threads);
    m->norm = calloc(layers, sizeof *m->norm);
    m->gate_norm = calloc(layers, sizeof *m->gate_norm);
    m->lane_group = calloc((size_t)m->inner_blocks, sizeof *m->lane_group);
    if (!m->threads || !m->norm || !m->gate_norm || !m->lane_group)
        return SSM_ENOMEM;
    fill_lane_groups(m);
    walk_shared(m);
    if (!arena_open(&m->shared))
        return SSM_ENOMEM;
    walk_shared(m);
    for (int i = 0; i < m->n_threads; i++) {
        cpu_thread *t = &m->threads[i];
        t->inner = cpu_share(m->inner_blocks, i, m->n_threads);
        t->bc = cpu_share(m->bc_blocks, i, m->n_threads);
        t->model = cpu_share(m->model_blocks, i, m->n_threads);
        t->vocab = cpu_share(m->vocab_blocks, i, m->n_threads);
        t->parts = calloc(layers, sizeof *t->parts);
        if (!t->parts)
            return SSM_ENOMEM;
        walk(m, t);
        if (!arena_open(&t->arena))
            return SSM_ENOMEM;
    }
    cpu_pool_run(pool, walk_thread, m);
    cpu_lti_forget(m);
    for (int i = 0; i < m->n_threads; i++) {
        if (m->threads[i].failed)
            return SSM_ENOMEM;
    }
    return 0;
}

void cpu_model_dispose(cpu_model *m) {
    for (int i = 0; m->threads && i < m->n_threads; i++) {
        free(m->threads[i].parts);
        cpu_unmap(m->threads[i].arena.base, m->threads[i].arena.size);
    }
    cpu_unmap(m->shared.base, m->shared.size);
    cpu_lti_forget(m);
    free(m->threads);
    free(m->norm);
    free(m->gate_norm);
    free(m->lane_group);
    *m = (cpu_model){0};
}
