// SPDX-License-Identifier: Apache-2.0
// A step: from the plan to launches.
//
// The host turns a plan into a few small arrays (lists.cu: tokens, decode rows, spans and their
// pieces) in one of STAGES pinned blocks, which crosses in one copy; nothing else crosses, nothing
// waits. So the host may be STAGES steps ahead, and a token that is not known yet is a reference to
// what the device drew for its slot.
//
// A copy that stands in the stream between two steps costs more than it takes, for the one engine
// waits for the other, twice. So copies have a stream of their own (device.ahead) and go to one of
// TURNS blocks on the device, while the step before is under way:
//
//     ahead    [wait: the step TURNS before has ended] pinned block -> the turn's
//     stream   [wait: it is there] the step, which reads the turn's block
//
// What a graph reads lies where it lay at its capture, so that there is a graph for every turn.
//
// From the end of one graph to the next (H200, a bench of two kernels a graph, us more than without
// anything in between): copy and event in the stream 1.6 to 2.1 to 4 KB, where the driver does
// without the copy engine, 8.6 to 11 beyond; ahead 1.2 to 1.6 and 0.1 to 1.0; so no copy is smaller
// (LEAST_COPY, cuda.h). A kernel in front of the graph's, which finds its block by a counter: 1.5
// to 2.9 from the device, 2.6 to 6.8 from pinned memory. A node's parameters, set before each
// launch: 0, but layers of many kernels have many nodes. In steps, ms before and after, draws'
// copies with them (sample.cu): 130m b1 0.111, 0.108, greedy 0.121, 0.116; b8 0.316, 0.317, greedy
// 0.328, 0.326; b64 0.435, 0.427, greedy 0.455, 0.435; b1024 1.913, 1.900, greedy 2.008, 1.981.
//
// A plan of decode rows alone is one launch of a graph, captured at open for every bucket of rows;
// rows that fill up a bucket have slot -1 and touch no state. Anything else (prefill, or both) goes
// out as single launches: its kernels are long enough to hide them.
//
// What a sequence comes to depends on others only through the size of the step: the bucket chooses
// the products' algorithms, and the number of spans whether a scan is cut into pieces. Within a
// bucket no row's result depends on any other row, its place or its slot, bit for bit.
#include <stdlib.h>

#include "lists.h"

namespace ssm {

enum { STAGES = 4, TURNS = STEP_TURNS, MAX_GRAPHS = 48 };

struct graph {
    int32_t bucket;
    cudaGraphExec_t exec[TURNS];
};

struct step_state {
    char *pinned[STAGES];
    cudaEvent_t copied[STAGES];
    char *on_device[TURNS];
    cudaEvent_t ended[TURNS]; // the step that read the block last
    int stage, turn;          // the next step's
    size_t capacity;
    graph graphs[MAX_GRAPHS];
    int n_graphs;
};

int32_t step_bucket(int32_t n) {
    static const int32_t small[] = {1,  2,   4,   8,   16,  24,  32,  48,  64,
                                    96, 128, 192, 256, 384, 512, 768, 1024};
    for (int32_t b : small) {
        if (n <= b)
            return b;
    }
    const int32_t unit = n <= 4096 ? 512 : n <= 16384 ? 1024 : 8192;
    return ceil_div(n, unit) * unit;
}

// ---- the staging block

static int take_block(device *d, block *b, ssm_error *err) {
    step_state *s = d->steps;
    SSM_CUDA(d, cudaEventSynchronize(s->copied[s->stage]), err); // only if STAGES steps behind
    *b = {s->pinned[s->stage], s->on_device[s->turn], 0, s->capacity};
    return 0;
}

static int send_block(device *d, const block *b, ssm_error *err) {
    step_state *s = d->steps;
    const cudaEvent_t copied = s->copied[s->stage];
    const size_t bytes = b->used > LEAST_COPY ? b->used : (size_t)LEAST_COPY;
    SSM_CUDA(d, cudaStreamWaitEvent(d->ahead, s->ended[s->turn], 0), err);
    SSM_CUDA(d, cudaMemcpyAsync(b->device, b->host, bytes, cudaMemcpyHostToDevice, d->ahead), err);
    SSM_CUDA(d, cudaEventRecord(copied, d->ahead), err);
    SSM_CUDA(d, cudaStreamWaitEvent(d->stream, copied, 0), err);
    s->stage = (s->stage + 1) % STAGES;
    return 0;
}

// Behind the launches of a step.
static int end_step(device *d, ssm_error *err) {
    step_state *s = d->steps;
    SSM_CUDA(d, cudaEventRecord(s->ended[s->turn], d->stream), err);
    s->turn = (s->turn + 1) % TURNS;
    return 0;
}

static int run_folds(device *d, const folds *f, ssm_error *err) {
    for (int i = 0; f->b.n_spans > 0 && i < d->g.n_layers; i++)
        SSM_CUDA(d, replay_fold(d, i, f->b), err);
    return 0;
}

static const graph *find_graph(const step_state *s, int32_t n) {
    for (int i = 0; i < s->n_graphs; i++) {
        if (s->graphs[i].bucket >= n)
            return &s->graphs[i];
    }
    return NULL;
}

static int decode_step(device *d, const ssm_plan *plan, const graph *g, ssm_error *err) {
    block b;
    folds folds;
    SSM_TRY(take_block(d, &b, err));
    lists_decode(d, plan, g->bucket, &b, &folds);
    SSM_TRY(send_block(d, &b, err));
    SSM_TRY(run_folds(d, &folds, err));
    SSM_CUDA(d, cudaGraphLaunch(g->exec[d->steps->turn], d->stream), err);
    return end_step(d, err);
}

static int refuse_plan(const ssm_plan *plan, ssm_error *err) {
    return ssm_error_set(err, SSM_EINVAL, NULL, "a plan of %d tokens in %d segments is too big",
                         plan->n_tokens, plan->n_segments);
}

static int mixed_step(device *d, const ssm_plan *plan, ssm_error *err) {
    block block;
    batch b;
    folds folds;
    SSM_TRY(take_block(d, &block, err));
    if (!lists_mixed(d, plan, &block, &b, &folds))
        return refuse_plan(plan, err);
    SSM_TRY(send_block(d, &block, err));
    SSM_TRY(run_folds(d, &folds, err));
    SSM_TRY(forward(d, b, err));
    return end_step(d, err);
}

int step(ssm_device *dev, const ssm_plan *plan, ssm_error *err) {
    device *d = (device *)dev;
    SSM_TRY(device_refuse(d, err));
    if (plan->n_tokens == 0)
        return 0;
    if (plan->n_tokens > d->max_tokens || plan->n_segments > d->n_slots)
        return refuse_plan(plan, err);
    const graph *g = lists_are_decode(d, plan) ? find_graph(d->steps, plan->n_segments) : NULL;
    return g ? decode_step(d, plan, g, err) : mixed_step(d, plan, err);
}

// ---- graphs

static int capture(device *d, int32_t bucket, int turn, cudaGraphExec_t *out, ssm_error *err) {
    step_state *s = d->steps;
    block b = {s->pinned[0], s->on_device[turn], 0, s->capacity};
    batch batch;
    lists_lay_decode(d, &b, bucket, &batch);
    cudaGraph_t graph = NULL;
    SSM_CUDA(d, cudaStreamBeginCapture(d->stream, cudaStreamCaptureModeThreadLocal), err);
    const int rc = forward(d, batch, err);
    const cudaError_t ended = cudaStreamEndCapture(d->stream, &graph);
    if (rc != 0)
        return rc;
    SSM_CUDA(d, ended, err);
    const cudaError_t made = cudaGraphInstantiate(out, graph, 0);
    cudaGraphDestroy(graph);
    SSM_CUDA(d, made, err);
    SSM_CUDA(d, cudaGraphUpload(*out, d->stream), err);
    return 0;
}

// Rows that n decode rows are rounded up to.
static int32_t decode_bucket(const device *d, int32_t n) {
    const int32_t bucket = step_bucket(n), resident = resident_rows(d, bucket),
                  rows = resident > 0 ? resident : medium_rows(d, bucket);
    return rows > bucket && rows <= d->max_rows && rows <= step_bucket(d->max_tokens) ? rows
                                                                                      : bucket;
}

int steps_create(device *d, ssm_error *err) {
    step_state *s = d->steps = (step_state *)calloc(1, sizeof *s);
    if (!s)
        return ssm_error_set(err, SSM_ENOMEM, NULL, "no memory for the steps");
    s->capacity = step_staging_bytes(d->max_tokens, d->n_slots, d->max_rows);
    for (int i = 0; i < TURNS; i++) {
        SSM_TRY(device_alloc(d, (void **)&s->on_device[i], s->capacity, err));
        SSM_TRY(event_make(d, &s->ended[i], err));
    }
    for (int i = 0; i < STAGES; i++) {
        SSM_CUDA(d, cudaMallocHost((void **)&s->pinned[i], s->capacity), err);
        SSM_TRY(event_make(d, &s->copied[i], err));
    }
    int32_t most = d->n_slots < d->max_rows ? d->n_slots : d->max_rows;
    most = most < d->max_tokens ? most : d->max_tokens;
    for (int32_t n = 0; n < most && s->n_graphs < MAX_GRAPHS; s->n_graphs++) {
        graph *g = &s->graphs[s->n_graphs];
        n = g->bucket = decode_bucket(d, n + 1);
        for (int i = 0; i < TURNS; i++)
            SSM_TRY(capture(d, n, i, &g->exec[i], err));
    }
    return 0;
}

void steps_free(device *d) {
    step_state *s = d->steps;
    if (!s)
        return;
    for (int i = 0; i < MAX_GRAPHS * TURNS; i++) {
        if (s->graphs[i / TURNS].exec[i % TURNS])
            cudaGraphExecDestroy(s->graphs[i / TURNS].exec[i % TURNS]);
    }
    for (int i = 0; i < STAGES; i++) {
        cudaFreeHost(s->pinned[i]);
        event_free(s->copied[i]);
    }
    for (int i = 0; i < TURNS; i++)
        event_free(s->ended[i]);
    free(s);
    d->steps = NULL;
}

} // namespace ssm
