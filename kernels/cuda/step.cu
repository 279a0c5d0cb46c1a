// SPDX-License-Identifier: Apache-2.0
// A step: from the plan to launches.
//
// The host turns a plan into a few small arrays (tokens, decode rows, spans and their pieces) in
// one of STAGES pinned blocks, which crosses in one copy; nothing else crosses, nothing waits. So
// the host may be STAGES steps ahead, and a token that is not known yet is a reference to what the
// device drew for its slot.
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
// (LEAST_COPY). A kernel in front of the graph's, which finds its block by a counter: 1.5 to 2.9
// from the device, 2.6 to 6.8 from pinned memory. A node's parameters, set before each launch: 0,
// but layers of many kernels have many nodes. In steps, ms before and after, draws' copies with
// them (sample.cu): 130m b1 0.111, 0.108, greedy 0.121, 0.116; b8 0.316, 0.317, greedy 0.328,
// 0.326; b64 0.435, 0.427, greedy 0.455, 0.435; b1024 1.913, 1.900, greedy 2.008, 1.981.
//
// A plan of decode rows alone is one launch of a graph, captured at open for every bucket of rows;
// rows that fill up a bucket have slot -1 and touch no state. Anything else (prefill, or both) goes
// out as single launches: its kernels are long enough to hide them.
//
// What a sequence comes to depends on others only through the size of the step: the bucket chooses
// the products' algorithms, and the number of spans whether a scan is cut into pieces. Within a
// bucket no row's result depends on any other row, its place or its slot, bit for bit.
#include <stdlib.h>
#include <string.h>

#include "cuda.h"

namespace ssm {

enum { STAGES = 4, TURNS = STEP_TURNS, MAX_GRAPHS = 48 };
enum { LEAST_COPY = 4096 }; // bytes: see above

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

static size_t align16(size_t n) {
    return (n + 15) & ~(size_t)15;
}

size_t step_staging_bytes(int32_t max_tokens, int32_t n_slots, int32_t max_rows) {
    const size_t tokens = (size_t)step_bucket(max_tokens), slots = (size_t)step_bucket(n_slots);
    const size_t pieces = tokens / 16 + 2 * slots, tiles = tokens / CONV_TILE + slots;
    return tokens * sizeof(int32_t) + slots * (sizeof(row) + 2 * sizeof(span) + sizeof(int32_t)) +
           REPLAY_MOST_STARTS * sizeof(int32_t) + (pieces + tiles) * sizeof(piece) +
           (size_t)step_bucket(max_rows) * sizeof(int32_t) + 16 * 11;
}
static_assert(LEAST_COPY <= REPLAY_MOST_STARTS * sizeof(int32_t), "a block has as many");

// ---- the staging block

struct block {
    char *host, *device;
    size_t used, capacity;
};

template <class T> static T *reserve(block *b, size_t n, const T **on_device) {
    T *host = (T *)(b->host + b->used);
    *on_device = (const T *)(b->device + b->used);
    b->used += align16(n * sizeof(T));
    return b->used <= b->capacity ? host : NULL;
}

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

// ---- filling it

static int32_t token_code(int32_t token, int32_t slot) {
    return token == SSM_TOKEN_SAMPLED ? -1 - slot : token;
}

// Where the slot's ring stands before this segment; moves it on.
static int32_t ring_of(device *d, const ssm_segment *s) {
    if (is_lti(d)) // no ring: H3's shift SSM keeps sums, not inputs
        return 0;
    const int32_t kept = d->g.d_conv > 1 ? d->g.d_conv - 1 : 1;
    const int32_t at = s->fresh ? 0 : d->ring_at[s->slot];
    d->ring_at[s->slot] = (at + s->count) % kept;
    return at;
}

static row row_of(device *d, const ssm_segment *s) {
    return {s->first, s->slot, ring_of(d, s), s->fresh};
}

// Entries that the slot's base is without (replay.cu, advance_replay.cu), with 256 if it then is
// without none. Bases are written where a sequence comes to a multiple of replay_every tokens,
// counted from its start or from where its state was written: nothing but the sequence's own
// history decides.
static int32_t take_entry(device *d, const ssm_segment *s) {
    replay_slot *slot = &d->held[s->slot];
    if (!d->replays)
        return 0;
    if (s->fresh)
        *slot = {};
    const int32_t held = slot->held;
    slot->phase = (slot->phase + s->count) % d->replay_every;
    const bool fold = s->fresh || slot->phase == 0;
    slot->held = fold || s->count > 1 ? 0 : held + 1;
    return held + (fold ? 256 : 0);
}

// Mamba-1: all but advance_replay.cu. Mamba-2: few rows of a model whose weights are what a step
// reads (replay.cu, When).
static bool writes_at_once(const device *d, int32_t n_rows, bool decode) {
    if (d->g.kind == SSM_BLOCK_MAMBA)
        return d->replays && !advance_replay_fits(d, n_rows);
    return d->replays && decode && d->g.d_model >= 512 && n_rows <= FEW_ROWS && few_fits(d, n_rows);
}

// In such a step: the entries that the slot's base is without until it begins.
static int32_t take_whole(device *d, const ssm_segment *s) {
    replay_slot *slot = &d->held[s->slot];
    if (s->fresh)
        *slot = {};
    const int32_t held = slot->held;
    slot->held = 0;
    slot->phase = (slot->phase + 1) % d->replay_every;
    return held;
}

// Slots whose states are made whole before a step.
struct folds {
    span *spans;
    batch b;
};

static bool reserve_folds(block *block, size_t n, folds *f) {
    f->b = {};
    f->spans = reserve(block, n, &f->b.spans);
    return f->spans != NULL;
}

static void fold_first(folds *f, const ssm_segment *s, int32_t held) {
    if (held == 0)
        return;
    span *to = &f->spans[f->b.n_spans++];
    *to = {};
    to->slot = s->slot, to->held = held;
}

static int run_folds(device *d, const folds *f, ssm_error *err) {
    for (int i = 0; f->b.n_spans > 0 && i < d->g.n_layers; i++)
        SSM_CUDA(d, replay_fold(d, i, f->b), err);
    return 0;
}

struct decode_lists {
    int32_t *tokens, *held, *starts;
    row *rows;
};

static decode_lists decode_arrays(const device *d, block *b, int32_t bucket, batch *out) {
    decode_lists lists;
    *out = {};
    out->n = out->n_rows = out->n_logits = bucket;
    out->decode = true;
    out->at_once = writes_at_once(d, bucket, true);
    lists.tokens = reserve(b, (size_t)bucket, &out->tokens);
    lists.rows = reserve(b, (size_t)bucket, &out->rows);
    lists.held = reserve(b, (size_t)bucket, &out->held);
    lists.starts = reserve(b, replay_starts(d), &out->starts);
    return lists;
}

static bool is_decode(const device *d, const ssm_plan *plan) {
    for (int32_t i = 0; i < plan->n_segments; i++) {
        if (plan->segments[i].count != 1 || plan->segments[i].want == SSM_WANT_NONE)
            return false;
    }
    return plan->n_segments <= d->max_rows;
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
    SSM_TRY(take_block(d, &b, err));
    batch like_captured;
    folds folds;
    const decode_lists lists = decode_arrays(d, &b, g->bucket, &like_captured);
    reserve_folds(&b, (size_t)g->bucket, &folds);
    for (int32_t i = 0; i < plan->n_segments; i++) {
        const ssm_segment *s = &plan->segments[i];
        lists.tokens[i] = token_code(plan->tokens[s->first], s->slot);
        lists.rows[i] = row_of(d, s);
        lists.rows[i].at = i;
        if (like_captured.at_once)
            fold_first(&folds, s, take_whole(d, s));
        else
            lists.held[i] = take_entry(d, s);
    }
    for (int32_t i = plan->n_segments; i < g->bucket; i++) {
        lists.tokens[i] = 0;
        lists.rows[i] = {i, -1, 0, 1};
    }
    if (!like_captured.at_once)
        replay_plan(d, lists.held, plan->n_segments, lists.starts);
    SSM_TRY(send_block(d, &b, err));
    SSM_TRY(run_folds(d, &folds, err));
    SSM_CUDA(d, cudaGraphLaunch(g->exec[d->steps->turn], d->stream), err);
    return end_step(d, err);
}

// ---- mixed steps

static int32_t cut(piece *out, int32_t at, const span *s, int32_t index, int32_t length) {
    int32_t n = 0;
    for (int32_t done = 0; done < s->count; n++) {
        const int32_t count = s->count - done < length ? s->count - done : length;
        if (out)
            out[at + n] = {index, s->first + done, count, at + n};
        done += count;
    }
    return n;
}

static bool fill_spans(device *d, const ssm_plan *plan, block *block, batch *b, folds *folds) {
    int32_t n_rows = 0, n_spans = 0, prefill = 0, longest = 0;
    for (int32_t i = 0; i < plan->n_segments; i++) {
        const int32_t count = plan->segments[i].count;
        const bool one = count == 1;
        n_rows += one;
        n_spans += !one;
        prefill += one ? 0 : count;
        longest = count > longest ? count : longest;
    }
    row *rows = reserve(block, (size_t)n_rows, &b->rows);
    int32_t *held = reserve(block, (size_t)n_rows, &b->held);
    int32_t *starts = reserve(block, replay_starts(d), &b->starts);
    span *spans = reserve(block, (size_t)n_spans, &b->spans);
    if (!rows || !spans || !held || !starts ||
        !reserve_folds(block, (size_t)plan->n_segments, folds))
        return false;
    b->at_once = writes_at_once(d, n_rows, false);
    const int32_t length = is_lti(d) ? lti_plan_spans(d, n_spans, prefill, b)
                                     : piece_length(d, n_spans, prefill, longest);
    for (int32_t i = 0; i < plan->n_segments; i++) {
        const ssm_segment *s = &plan->segments[i];
        if (s->count == 1) {
            if (b->at_once)
                fold_first(folds, s, take_whole(d, s));
            else
                held[b->n_rows] = take_entry(d, s);
            rows[b->n_rows++] = row_of(d, s);
            continue;
        }
        span *p = &spans[b->n_spans++];
        *p = {s->slot, s->first, s->count, ring_of(d, s), s->fresh, b->n_pieces, 0, 0};
        fold_first(folds, s, take_entry(d, s) & 255);
        p->n_pieces = ceil_div(s->count, length);
        b->n_pieces += p->n_pieces;
        b->n_tiles += ceil_div(s->count, CONV_TILE);
        b->split |= p->n_pieces > 1;
    }
    replay_plan(d, held, n_rows, starts);
    piece *tiles = reserve(block, (size_t)b->n_tiles, &b->tiles);
    piece *pieces = reserve(block, (size_t)b->n_pieces, &b->pieces);
    if (!tiles || !pieces)
        return false;
    for (int32_t i = 0, t = 0, p = 0; i < b->n_spans; i++) {
        t += cut(tiles, t, &spans[i], i, CONV_TILE);
        p += cut(pieces, p, &spans[i], i, length);
    }
    return true;
}

static bool fill_logits(const ssm_plan *plan, block *block, batch *b) {
    int32_t n = 0;
    for (int32_t i = 0; i < plan->n_segments; i++) {
        const ssm_segment *s = &plan->segments[i];
        n += s->want == SSM_WANT_ALL ? s->count : s->want == SSM_WANT_LAST;
    }
    b->n_logits = n == 0 ? 0 : step_bucket(n);
    int32_t *tokens = reserve(block, (size_t)b->n_logits, &b->logit_tokens);
    if (!tokens)
        return false;
    int32_t at = 0;
    for (int32_t i = 0; i < plan->n_segments; i++) {
        const ssm_segment *s = &plan->segments[i];
        const int32_t wanted = s->want == SSM_WANT_ALL ? s->count : s->want == SSM_WANT_LAST;
        for (int32_t k = s->count - wanted; k < s->count; k++)
            tokens[at++] = s->first + k;
    }
    while (at < b->n_logits)
        tokens[at++] = 0;
    return true;
}

static int mixed_step(device *d, const ssm_plan *plan, ssm_error *err) {
    block block;
    SSM_TRY(take_block(d, &block, err));
    batch b = {};
    folds folds = {};
    b.n = step_bucket(plan->n_tokens);
    int32_t *tokens = reserve(&block, (size_t)b.n, &b.tokens);
    bool fits = tokens != NULL;
    for (int32_t i = 0; fits && i < plan->n_segments; i++) {
        const ssm_segment *s = &plan->segments[i];
        for (int32_t k = 0; k < s->count; k++)
            tokens[s->first + k] = token_code(plan->tokens[s->first + k], s->slot);
    }
    for (int32_t i = plan->n_tokens; fits && i < b.n; i++)
        tokens[i] = 0;
    fits = fits && fill_spans(d, plan, &block, &b, &folds) && fill_logits(plan, &block, &b);
    if (!fits)
        return ssm_error_set(err, SSM_EINVAL, NULL, "a plan of %d tokens in %d segments is too big",
                             plan->n_tokens, plan->n_segments);
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
        return ssm_error_set(err, SSM_EINVAL, NULL, "a plan of %d tokens in %d segments is too big",
                             plan->n_tokens, plan->n_segments);
    const graph *g = is_decode(d, plan) ? find_graph(d->steps, plan->n_segments) : NULL;
    return g ? decode_step(d, plan, g, err) : mixed_step(d, plan, err);
}

// ---- graphs

static int capture(device *d, int32_t bucket, int turn, cudaGraphExec_t *out, ssm_error *err) {
    step_state *s = d->steps;
    block b = {s->pinned[0], s->on_device[turn], 0, s->capacity};
    batch batch;
    decode_arrays(d, &b, bucket, &batch);
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

int steps_create(device *d, ssm_error *err) {
    step_state *s = d->steps = (step_state *)calloc(1, sizeof *s);
    if (!s)
        return ssm_error_set(err, SSM_ENOMEM, NULL, "no memory for the steps");
    s->capacity = step_staging_bytes(d->max_tokens, d->n_slots, d->max_rows);
    for (int i = 0; i < TURNS; i++) {
        SSM_TRY(device_alloc(d, (void **)&s->on_device[i], s->capacity, err));
        SSM_CUDA(d, cudaEventCreateWithFlags(&s->ended[i], cudaEventDisableTiming), err);
    }
    for (int i = 0; i < STAGES; i++) {
        SSM_CUDA(d, cudaMallocHost((void **)&s->pinned[i], s->capacity), err);
        SSM_CUDA(d, cudaEventCreateWithFlags(&s->copied[i], cudaEventDisableTiming), err);
    }
    int32_t most = d->n_slots < d->max_rows ? d->n_slots : d->max_rows;
    most = most < d->max_tokens ? most : d->max_tokens;
    for (int32_t n = 0; n < most && s->n_graphs < MAX_GRAPHS; s->n_graphs++) {
        graph *g = &s->graphs[s->n_graphs];
        n = g->bucket = step_bucket(n + 1);
        for (int i = 0; i < TURNS; i++)
            SSM_TRY(capture(d, n, i, &g->exec[i], err));
    }
    return 0;
}

static void free_event(cudaEvent_t event) {
    if (event)
        cudaEventDestroy(event);
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
        free_event(s->copied[i]);
    }
    for (int i = 0; i < TURNS; i++)
        free_event(s->ended[i]);
    free(s);
    d->steps = NULL;
}

} // namespace ssm
