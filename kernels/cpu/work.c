// SPDX-License-Identifier: Apache-2.0
#include "step.h"

#include "lti.h"
#include "lti_kernels.h"

#include <stdlib.h>
#include <string.h>

static float *blocks_of(cpu_work *w, int32_t blocks, int32_t tokens) {
    return cpu_arena_take(&w->arena, (size_t)blocks * (size_t)tokens * CPU_LANES * sizeof(float));
}

// Of x, z and delta: an LTI layer works on as many channels as the residual has.
static int32_t mixing_blocks(const cpu_model *m) {
    return ssm_block_is_lti(m->g.kind) ? m->model_blocks : m->inner_blocks;
}

static void take_stage(cpu_work *w, const cpu_model *m, int32_t tokens, cpu_stage *s) {
    const int32_t inner = mixing_blocks(m);
    const int32_t widest = inner > m->model_blocks ? inner : m->model_blocks;
    s->f32 = blocks_of(w, widest, tokens);
    s->bytes = m->form == CPU_X_F32 ? NULL : blocks_of(w, widest + 1, tokens);
    s->scale = cpu_arena_take(&w->arena, (size_t)tokens * sizeof *s->scale);
    s->sum = cpu_arena_take(&w->arena, (size_t)(widest + 1) * (size_t)tokens * sizeof *s->sum);
}

static size_t lti_work_floats(const cpu_model *m) {
    const size_t states = (LTI_BLOCK / LTI_PART + 3) * ((size_t)m->g.d_state + LTI_ROWS);
    return m->g.kind == SSM_BLOCK_H3 ? cpu_lti_pairs_floats(m)
                                     : (4 * LTI_BLOCK + states) * CPU_LANES;
}

static void take_all(cpu_work *w, const cpu_model *m) {
    const bool is_lti = ssm_block_is_lti(m->g.kind);
    const int32_t inner = mixing_blocks(m);
    w->residual = blocks_of(w, m->model_blocks, w->max_tokens);
    w->x = blocks_of(w, inner, w->max_tokens);
    w->z = blocks_of(w, inner, w->max_tokens);
    w->bc = blocks_of(w, is_lti ? inner : m->bc_blocks, w->max_tokens);
    w->delta = blocks_of(w, inner, w->max_tokens);
    take_stage(w, m, w->max_tokens, &w->shared);
    for (int i = 0; i < m->n_threads; i++) {
        take_stage(w, m, CPU_FEW_TOKENS, &w->own[i]);
        w->own[i].scratch = cpu_arena_take(&w->arena, CPU_SCRATCH_BYTES);
    }
    for (int i = 0; m->g.kind == SSM_BLOCK_S4 && i < m->n_threads; i++)
        w->lti_next[i] = blocks_of(w, 1, m->g.d_state + LTI_ROWS);
    for (int i = 0; m->lti_least != INT32_MAX && is_lti && i < m->n_threads; i++)
        w->lti_work[i] = cpu_arena_take(&w->arena, lti_work_floats(m) * sizeof **w->lti_work);
    w->logits = blocks_of(w, m->vocab_blocks, w->max_rows + w->kept_rows);
    if (m->small_form == CPU_X_F32)
        return;
    w->x_bytes = blocks_of(w, m->inner_blocks, w->max_tokens);
    for (int i = 0; i < m->n_threads; i++)
        w->own[i].dt_bytes = blocks_of(w, m->b_block, w->max_tokens);
}

int cpu_work_init(cpu_work *w, const cpu_model *m, int32_t max_tokens, int32_t max_rows,
                  int32_t kept_rows) {
    *w = (cpu_work){.max_tokens = max_tokens, .max_rows = max_rows, .kept_rows = kept_rows};
    w->own = calloc((size_t)m->n_threads, sizeof *w->own);
    w->lti_next = calloc((size_t)m->n_threads, sizeof *w->lti_next);
    w->lti_work = calloc((size_t)m->n_threads, sizeof *w->lti_work);
    if (!w->own || !w->lti_next || !w->lti_work)
        return SSM_ENOMEM;
    take_all(w, m);
    const size_t size = w->arena.used;
    w->arena = (cpu_arena){.base = cpu_map(size), .size = size};
    if (!w->arena.base)
        return SSM_ENOMEM;
    take_all(w, m);
    return 0;
}

void cpu_work_dispose(cpu_work *w) {
    cpu_unmap(w->arena.base, w->arena.size);
    free(w->own);
    free(w->lti_next);
    free(w->lti_work);
    *w = (cpu_work){0};
}
