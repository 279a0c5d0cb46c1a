// SPDX-License-Identifier: Apache-2.0
// One step of the CPU backend: what is in memory between its phases, and the step itself.
#ifndef SSM_KERNELS_CPU_STEP_H
#define SSM_KERNELS_CPU_STEP_H

#include "model.h"

// Up to so many tokens every thread makes the projections' inputs for itself instead of meeting at
// a barrier over a share of them.
enum { CPU_FEW_TOKENS = 8 };

// Inputs of a projection: normed fp32 and, where the form asks for it, converted.
typedef struct cpu_stage {
    float *f32;     // [max blocks][tokens][16]
    void *bytes;    // the same in another form, one block more
    float *scale;   // [tokens]
    int32_t *sum;   // [groups][tokens]
    void *scratch;  // own stages: of products
    void *dt_bytes; // own stages: dt_proj's input in another form, [dt blocks][N][16]
} cpu_stage;

// Buffers of a step of N tokens, blocked (kernels.h).
typedef struct cpu_work {
    int32_t max_tokens, max_rows, kept_rows;
    float *residual; // [model_blocks][N][16]
    float *x, *z;    // [inner_blocks][N][16]; x becomes y
    float *bc;       // [bc_blocks][N][16]
    float *delta;    // [inner_blocks][N][16]
    void *x_bytes;   // x in the form that x_proj takes, NULL if that is fp32
    cpu_stage shared;
    cpu_stage *own;   // [threads], of CPU_FEW_TOKENS tokens
    float *logits;    // [max_rows + kept_rows][vocab_blocks * 16]
    float **lti_next; // S4 [threads]: [N filled up to 4][16]
    float **lti_work; // [threads]: of lti_block u, y, work and states; H3: lti_pairs.c
    cpu_arena arena;
} cpu_work;

int cpu_work_init(cpu_work *work, const cpu_model *model, int32_t max_tokens, int32_t max_rows,
                  int32_t kept_rows);
void cpu_work_dispose(cpu_work *work);

// Tokens that pass through all layers together: enough to use each weight many times from the
// caches, few enough for their activations to stay in them. mamba-130m, 2 threads, tokens a second
// at 96, 192, 384, 768 and 2,048: 1,102, 1,110, 1,066, 937, 877 (f32); 1,460 to 1,520 (bf16), all
// alike.
enum { CPU_WINDOW = 192 };

typedef struct cpu_step {
    const cpu_model *model;
    cpu_pool *pool;
    cpu_work *work;
    const ssm_plan *plan;
    ssm_segment *cut;      // [slots] of the window
    const int32_t *tokens; // of the window
    int32_t n_tokens, n_segments;
    int32_t first_row;    // of the window's logits
    const int32_t *drawn; // [slots] what SSM_TOKEN_SAMPLED stands for
    float *slots;         // [slots][slot_floats]
    size_t slot_floats;
    int32_t *wanted; // [max_rows] tokens whose logits are wanted, filled by the step
    int32_t n_wanted;
} cpu_step;

void cpu_step_run(cpu_step *step);

// The tokens among some segments whose logits are wanted, to step->wanted.
void cpu_step_list_wanted(cpu_step *step, const ssm_segment *segments, int32_t n);

// One thread in a step.
typedef struct cpu_worker {
    cpu_step *step;
    const cpu_model *m;
    const cpu_thread *t;
    cpu_work *w;
    int id, n;       // this thread, of so many
    int32_t tokens;  // of the step, or of its window
    cpu_ahead ahead; // weights of the next phase; none
} cpu_worker;

static inline cpu_worker cpu_worker_of(cpu_step *step, int id, int32_t tokens) {
    return (cpu_worker){.step = step,
                        .m = step->model,
                        .t = &step->model->threads[id],
                        .w = step->work,
                        .id = id,
                        .n = step->model->n_threads,
                        .tokens = tokens};
}

#endif
