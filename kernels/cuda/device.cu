// SPDX-License-Identifier: Apache-2.0
// The CUDA backend: what it owns, opening and closing, and what happens when the device fails.
//
// One device struct holds one model on one GPU: weights as stored (bf16, f16 or fp32; vectors in
// fp32), some once more in 12 bits (packed.cu), the slots' states, one step's activations, the
// logits of the last step and those that are kept. Everything is allocated in open. All work goes
// to one stream, so step, sample and copies follow each other without waiting; plans, draws and
// states cross the bus beside it (step.cu, transfer.cu). The host waits in collect, slot_read,
// slot_write, ticket_wait, logits_read and logits_write alone.
//
// Numbers: activations have the projections' type, sums, norms, scans and the residual are fp32,
// the state is fp32 or fp16 (saturating; bf16 at the same size is refused because it is worse).
//
// Shared object: all of kernels/cuda is built into libssm_cuda.so, which loader.c opens when a CUDA
// device is asked for. The program itself so needs neither CUDA's libraries nor a driver and
// serves from the CPU on any machine; a GPU host needs its driver and the toolkit's libcublasLt.
//
// Ladder: one H200, bf16 weights, ms a step; 2.8b and mamba2-2.7b from b64 on with fp16 state.
//
//                                        130m b1  2.8b b1  2.8b b64  2.8b b512  2.7b b512
//   official code (bf16 state)           0.716    3.27     4.66      13.9       53.6
//   cuBLASLt, graphs, fused advance      0.64     3.28
//   + skinny products, PDL (predicted    0.30     2.50     4.81      17.0       32.0
//     0.18 and 1.48 at b1)
//   + trips to L2 issued at once         0.30     2.17     4.49      14.5       31.1
//   + one softplus a row and channel     0.30     2.27     4.08      13.1       31.4
//   + states under way through every     0.30     2.27     3.8       9.4        31.4
//     phase (advance.cu; predicted 8.5
//     at b512)
//   + rings of bulk copies, three        0.209    1.68
//     launches a layer (few.cu)
//   + one row in one launch (solo.cu;    0.111    1.54
//     predicted 0.085 to 0.105;
//     solo_large.cu)
//   + weights in 12 bits (packed.cu;              1.16
//     predicted 1.25 to 1.3)
//     b2 1.85, and 1.48 so (few_packed.cu)
//   + the head's, too (head_packed.cu;     0.100    1.147
//     predicted 0.105 and 1.15)
//   + products of 9 to 64 rows                              3.45      9.4
//     (medium.cu; predicted 2.4 at b64)
//   + all layers in one launch                              2.78
//     (resident.cu; predicted 2.1 to 2.5)
//   + Mamba-2 states written every 16                                           17.4
//     tokens (replay.cu; predicted 17)
//   mamba2-2.7b's b1, b8, b64: 1.86, 3.18, 4.34; one row in one launch, weights in 12 bits
//     (solo_large_mamba2.cu; predicted 1.25), medium.cu's products: 1.27, 2.29, 4.15
//
// Prompts of 2,048, one / eight, ms:        130m          2.8b         mamba2-130m   2.7b
//   official code                           13.3 / 19.6   36.8 / 234      - / 27.2      - / 207
//   scans in tiles (scan.cu, ssd.cu)         3.3 / 19.5   33 / 220
//   + two channels a lane                    3.1 / 17.9   30 / 184       7.2 / 16.8   34.4 / 184
//   + lanes of C channels, Mamba-2 by        2.73 / 12.9   30.1 / 186    2.20 / 10.8   22.2 / 173
//     wgmma and in pieces, norms a warp a
//     row, convolution and tails in one
//   + warps in roles (scan_roles.cu)         2.71 / 10.7  24.9 / 181     - / 10.6      22.2 / 170
//   + products with the norm (wide.cuh),     2.02 / 9.9   22.1 / 166 to 173
//     quarters, conv_xproj.cu
//   + decays in the states (scan_wgmma.cu)                22.0 / 165 to 170
//
// A traced layer of the step before the last, us: 2.8b 8 x 2,048: in_proj 1,038 (827 TFLOP/s), scan
// 996, out_proj 555 (774), convolution 134, norm 73, x_proj 53; one prompt: 132, 206 in three
// launches, 71, 18, 10, 12, and 16 between kernels. The products are at the card's ceiling.
//
// Read out of it: PDL gave half of what was predicted, since a skinny kernel holds 64 to 80 KB an
// SM in registers before its wait, and few.cu's rings as much again in shared memory. The advance
// was bound neither by bytes nor by instructions but by its phases, one after the other, each a
// trip to L2 (ncu: 64% of stalls on loads, a third of the bandwidth). In-place reads and writes of
// states have a ceiling of their own: 3.5 TB/s whatever the width, depth and policy, 47 us a layer.
//
// Tried and dropped: asking L2 for the next matrix (out_proj during x_proj, 12 to 24 MB of in_proj
// during out_proj): -2% to +5% at 2.8b, +2% to +6% at 130m; three or four blocks an SM for in_proj
// (+3% to +10%); 16 and 8 rows of states ahead instead of 4 in the advance (+-2%).
//
// Open: the advance takes 58 us of its 47; scans 95 us a layer for 2,048 tokens of eight prompts,
// the exponential unit 56 (latencies with two warps a scheduler); no graphs for mixed steps.
//
// Failure: CUDA reports an error of a kernel at some later call. Whichever call sees it remembers
// it (device.failed) and gives SSM_EDEVICE, as does every call after; waiting calls return too,
// since a failed stream counts as done.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "wide.h"

namespace ssm {

static const size_t RESERVE = (size_t)768 << 20; // graphs, modules, other programs' growth
enum { DEFAULT_TOKENS = 8192, MOST_SLOTS = 4096 };

int device_check(device *d, cudaError_t rc, const char *what, ssm_error *err) {
    if (rc == cudaSuccess)
        return 0;
    if (rc == cudaErrorMemoryAllocation)
        return ssm_error_set(err, SSM_ENOMEM, NULL, "the device's memory is full");
    d->failed = true;
    char call[64] = "";
    snprintf(call, sizeof call, "%.*s", (int)strcspn(what, "("), what);
    return ssm_error_set(err, SSM_EDEVICE, NULL, "CUDA device %d: %s (%s)", d->index,
                         cudaGetErrorString(rc), call);
}

int device_refuse(const device *d, ssm_error *err) {
    if (d->failed)
        return ssm_error_set(err, SSM_EDEVICE, NULL, "CUDA device %d has failed", d->index);
    cudaSetDevice(d->index); // a thread starts out on device 0
    return 0;
}

int device_alloc(device *d, void **out, size_t bytes, ssm_error *err) {
    const size_t max = sizeof d->blocks / sizeof d->blocks[0];
    if ((size_t)d->n_blocks == max)
        return ssm_error_set(err, SSM_EINTERNAL, NULL, "too many device blocks");
    bytes = bytes ? (bytes + 255) / 256 * 256 : 256;
    SSM_CUDA(d, cudaMalloc(out, bytes), err);
    d->blocks[d->n_blocks++] = *out;
    d->allocated += bytes;
    return 0;
}

// ---- what was asked for

static int choose_types(device *d, const ssm_weights *w, ssm_error *err) {
    const ssm_device_options *o = &d->options;
    d->weight_type = o->weight_dtype != SSM_DTYPE_AUTO       ? o->weight_dtype
                     : o->activation_dtype != SSM_DTYPE_AUTO ? o->activation_dtype
                                                             : ssm_weights_dtype(w);
    d->state_type = o->state_dtype == SSM_DTYPE_AUTO ? SSM_DTYPE_F32 : o->state_dtype;
    if (d->weight_type != SSM_DTYPE_F32 && d->weight_type != SSM_DTYPE_F16 &&
        d->weight_type != SSM_DTYPE_BF16)
        return ssm_error_set(err, SSM_EUNSUPPORTED, "weight_dtype",
                             "the CUDA backend has no %s weights: f32, f16 or bf16",
                             ssm_dtype_name(d->weight_type));
    if (d->state_type != SSM_DTYPE_F32 && d->state_type != SSM_DTYPE_F16)
        return ssm_error_set(err, SSM_EUNSUPPORTED, "state_dtype",
                             "the CUDA backend has no %s states: f32 or f16",
                             ssm_dtype_name(d->state_type));
    if (o->activation_dtype != SSM_DTYPE_AUTO && o->activation_dtype != d->weight_type)
        return ssm_error_set(err, SSM_EUNSUPPORTED, "activation_dtype",
                             "the CUDA backend computes %s weights with %s activations, not %s",
                             ssm_dtype_name(d->weight_type), ssm_dtype_name(d->weight_type),
                             ssm_dtype_name(o->activation_dtype));
    d->ring_type = is_lti(d) ? SSM_DTYPE_F32 : d->weight_type;
    return is_lti(d) ? lti_check_options(d, err) : 0;
}

static int find_device(device *d, ssm_error *err) {
    int n = 0;
    const cudaError_t rc = cudaGetDeviceCount(&n);
    if (rc != cudaSuccess || n == 0)
        return ssm_error_set(err, SSM_EUNSUPPORTED, "device", "no CUDA device can be used: %s",
                             rc ? cudaGetErrorString(rc) : "none is there");
    if (d->options.index < 0 || d->options.index >= n)
        return ssm_error_set(err, SSM_EINVAL, "device", "there is no CUDA device %d, only %d",
                             d->options.index, n);
    d->index = d->options.index;
    SSM_CUDA(d, cudaSetDevice(d->index), err);
    cudaDeviceProp p;
    SSM_CUDA(d, cudaGetDeviceProperties(&p, d->index), err);
    d->n_sms = p.multiProcessorCount;
    d->arch = p.major * 10 + p.minor;
    d->shared_sm = p.sharedMemPerMultiprocessor;
    snprintf(d->name, sizeof d->name, "%.63s", p.name);
    SSM_CUDA(d, cudaStreamCreateWithFlags(&d->stream, cudaStreamNonBlocking), err);
    SSM_CUDA(d, cudaStreamCreateWithFlags(&d->ahead, cudaStreamNonBlocking), err);
    return 0;
}

// ---- memory

static size_t slot_bytes(const device *d) {
    const ssm_geometry *g = &d->g;
    const size_t ring = (size_t)g->conv_dim * (g->d_conv - 1) * type_bytes(d->ring_type);
    const size_t state = (size_t)g->d_inner * g->d_state * type_bytes(d->state_type);
    const replay_sizes replay = d->replays ? replay_bytes(d) : replay_sizes();
    return g->n_layers * (ring + state + replay.x + replay.b + replay.dt);
}

static size_t carry_bytes(const device *d) {
    const ssm_geometry *g = &d->g;
    const size_t a_piece = g->kind == SSM_BLOCK_MAMBA ? (size_t)g->d_inner * (g->d_state + 1)
                                                      : (size_t)g->n_heads * SSD_CARRY;
    return a_piece * sizeof(float) * (size_t)carry_pieces(d);
}

enum { ACTIVATIONS = 20 }; // at most

static int list_activations(device *d, activation *out) {
    if (is_lti(d))
        return lti_list_activations(d, out);
    const ssm_geometry *g = &d->g;
    const size_t t = type_bytes(d->weight_type), f = sizeof(float);
    const size_t n = (size_t)step_bucket(d->max_tokens), rows = (size_t)d->max_rows;
    const size_t most = n > rows ? n : rows;
    const bool mamba = g->kind == SSM_BLOCK_MAMBA;
    const size_t splits = (size_t)SPLIT_ROWS * skinny_x_splits(d);
    int i = 0;
    out[i++] = {(void **)&d->residual, n * g->d_model * f};
    out[i++] = {&d->u, most * g->d_model * t};
    out[i++] = {&d->xz, n * d->n_in * t};
    out[i++] = {&d->xc, n * g->conv_dim * t};
    out[i++] = {(void **)&d->xdb, (n > splits ? n : splits) * d->n_x * f};
    out[i++] = {&d->y, n * g->d_inner * t};
    out[i++] = {(void **)&d->squares, mamba ? 0 : SPLIT_ROWS * g->n_heads * f};
    const size_t squares = wide_most_squares(d, (int32_t)n),
                 medium = (size_t)SPLIT_ROWS * medium_tiles(d);
    out[i++] = {(void **)&d->row_norms, (squares > medium ? squares : medium) * f};
    out[i++] = {&d->resident, resident_bytes(d)};
    out[i++] = {(void **)&d->out_squares, (size_t)FEW_ROWS * d->n_sms * f};
    out[i++] = {(void **)&d->x_sums, (size_t)X_COPIES * FEW_ROWS * d->n_x * sizeof *d->x_sums};
    out[i++] = {(void **)&d->x_broken, FEW_ROWS * sizeof *d->x_broken};
    // Behind x_sums: what comes before them makes 8 rows 7% faster or slower (few.cu).
    out[i++] = {&d->solo, solo_bytes(d)};
    out[i++] = {(void **)&d->carry, carry_bytes(d)};
    out[i++] = {(void **)&d->logits, (rows + d->kept_rows) * g->vocab_size * f};
    out[i++] = {&d->tickets, wide_places_bytes(d)};
    out[i++] = {&d->resident_tall, d->resident_tall_room ? resident_tall_bytes(d) : 0};
    return i;
}

static size_t activation_bytes(device *d) {
    activation list[ACTIVATIONS];
    size_t sum = 0;
    for (int i = list_activations(d, list); i-- > 0;)
        sum += list[i].bytes + 256;
    return sum + transfers_bytes(d) +
           STEP_TURNS * step_staging_bytes(d->max_tokens, d->n_slots, d->max_rows);
}

static void set_slots(device *d, int32_t n_slots) {
    const ssm_device_options *o = &d->options;
    d->n_slots = n_slots;
    d->max_rows = step_bucket(o->max_rows > 0 ? o->max_rows : n_slots + 128);
    d->kept_rows = ssm_kept_rows(o, n_slots);
}

// Bytes of everything but the weights, for so many slots: sets them to ask, and leaves them so.
static size_t bytes_for(device *d, int32_t n_slots) {
    set_slots(d, n_slots);
    return activation_bytes(d) + (size_t)n_slots * d->slot_bytes + RESERVE;
}

static int32_t slots_that_fit(device *d, size_t free_bytes) {
    int32_t low = 0, high = MOST_SLOTS; // low fits, high + 1 is not wanted
    while (low < high) {
        const int32_t middle = low + (high - low + 1) / 2;
        if (bytes_for(d, middle) <= free_bytes)
            low = middle;
        else
            high = middle - 1;
    }
    return low;
}

// Whether states are held, which costs memory a slot. Mamba-1: if there can be steps so large.
static void choose_replay(device *d) {
    const int32_t slots = d->options.n_slots > 0 ? d->options.n_slots : MOST_SLOTS;
    const bool mamba = d->g.kind == SSM_BLOCK_MAMBA;
    d->replay_every = mamba ? (int32_t)ADVANCE_REPLAY_EVERY : (int32_t)REPLAY_EVERY;
    d->replays = mamba ? advance_replay_fits(d, step_bucket(slots)) : replay_fits(d);
}

static int allocate(device *d, ssm_error *err) {
    choose_replay(d);
    d->resident_room = resident_room(d);
    d->resident_tall_room = d->resident_room && resident_tall_room(d);
    d->solo_room = solo_room(d);
    d->slot_bytes = slot_bytes(d);
    d->max_tokens = d->options.max_tokens > 0 ? d->options.max_tokens : DEFAULT_TOKENS;
    SSM_TRY(weights_pack(d, err));
    size_t free_bytes = 0, total = 0;
    SSM_CUDA(d, cudaMemGetInfo(&free_bytes, &total), err);
    int32_t fit = slots_that_fit(d, free_bytes);
    if (d->packed_bytes > 0 && bytes_for(d, d->options.n_slots) > free_bytes) { // sessions first
        weights_unpack(d);
        SSM_CUDA(d, cudaMemGetInfo(&free_bytes, &total), err);
        fit = slots_that_fit(d, free_bytes);
    }
    const int32_t slots = d->options.n_slots > 0 ? d->options.n_slots : fit;
    if (slots == 0 || (slots > fit && bytes_for(d, slots) > free_bytes))
        return ssm_error_set(err, SSM_ENOMEM, "max_sessions",
                             "%d sessions of %.1f MB do not fit beside the model in %.1f GB: %d "
                             "would",
                             slots > 0 ? slots : 1, d->slot_bytes / 1e6, total / 1e9, fit);
    set_slots(d, slots);
    activation list[ACTIVATIONS];
    const int n = list_activations(d, list);
    for (int i = 0; i < n; i++) {
        SSM_TRY(device_alloc(d, list[i].at, list[i].bytes, err));
        SSM_CUDA(d, cudaMemsetAsync(*list[i].at, 0, list[i].bytes, d->stream), err);
    }
    d->ring_at = (int32_t *)calloc((size_t)d->n_slots, sizeof *d->ring_at);
    d->held = (replay_slot *)calloc((size_t)d->n_slots, sizeof *d->held);
    if (!d->ring_at || !d->held)
        return ssm_error_set(err, SSM_ENOMEM, NULL, "no memory for the slots");
    return slots_alloc(d, err);
}

// ---- open, close, info

static void close_device(ssm_device *dev) {
    device *d = (device *)dev;
    if (!d)
        return;
    cudaSetDevice(d->index);
    if (d->ahead)
        cudaStreamSynchronize(d->ahead);
    if (d->stream)
        cudaStreamSynchronize(d->stream);
    steps_free(d);
    transfers_free(d);
    sampler_free(d);
    products_free(d);
    for (int i = 0; i < d->n_blocks; i++)
        cudaFree(d->blocks[i]);
    weights_free(d);
    if (d->ahead)
        cudaStreamDestroy(d->ahead);
    if (d->stream)
        cudaStreamDestroy(d->stream);
    free(d->ring_at);
    free(d->held);
    free(d->gpcs);
    free(d);
}

static int open_all(device *d, const ssm_weights *w, ssm_error *err) {
    SSM_TRY(choose_types(d, w, err));
    if (d->g.d_conv > MAX_CONV && !is_lti(d))
        return ssm_error_set(err, SSM_EUNSUPPORTED, "d_conv",
                             "the CUDA backend convolves over at most %d tokens, not %d", MAX_CONV,
                             d->g.d_conv);
    SSM_TRY(find_device(d, err));
    SSM_TRY(weights_upload(d, w, err));
    SSM_TRY(allocate(d, err));
    SSM_CUDA(d, wide_places_find(d), err);
    SSM_TRY(products_create(d, err));
    SSM_TRY(sampler_create(d, err));
    SSM_TRY(transfers_create(d, err));
    SSM_TRY(steps_create(d, err));
    SSM_CUDA(d, cudaStreamSynchronize(d->stream), err);
    return 0;
}

extern "C" __attribute__((visibility("default"))) const ssm_backend ssm_backend_cuda_library;

static int open_device(const ssm_weights *w, const ssm_device_options *o, ssm_device **out,
                       ssm_error *err) {
    device *d = (device *)calloc(1, sizeof *d);
    if (!d)
        return ssm_error_set(err, SSM_ENOMEM, NULL, "no memory for the device");
    d->base.backend = &ssm_backend_cuda_library;
    d->g = w->geometry;
    d->base.state_floats = ssm_state_conv_floats(&d->g) + ssm_state_ssm_floats(&d->g);
    d->options = *o;
    const ssm_geometry *g = &d->g;
    d->n_in = g->kind == SSM_BLOCK_MAMBA ? 2 * g->d_inner
              : g->kind == SSM_BLOCK_H3  ? 3 * g->d_model
              : is_lti(d)                ? 2 * g->d_model
                          : 2 * g->d_inner + 2 * g->n_groups * g->d_state + g->n_heads;
    d->n_x = g->kind == SSM_BLOCK_MAMBA ? g->dt_rank + 2 * g->d_state : 0;
    d->vocab_limit =
        o->vocab_limit > 0 && o->vocab_limit < g->vocab_size ? o->vocab_limit : g->vocab_size;
    const int rc = open_all(d, w, err);
    if (rc != 0) {
        close_device(&d->base);
        return rc;
    }
    *out = &d->base;
    return 0;
}

static const char *packed_text(const device *d) {
    return d->weights_packed ? d->packed_head ? " (in_proj, out_proj and lm_head in 12 bits, too)"
                                              : " (in_proj and out_proj in 12 bits, too)"
           : d->packed_head  ? " (lm_head in 12 bits, too)"
                             : "";
}

static void get_info(const ssm_device *dev, ssm_device_info *out) {
    const device *d = (const device *)dev;
    *out = {};
    snprintf(out->text, sizeof out->text, "cuda:%d %s, %s weights%s and activations, %s state",
             d->index, d->name, ssm_dtype_name(d->weight_type), packed_text(d),
             ssm_dtype_name(d->state_type));
    out->n_slots = d->n_slots, out->max_tokens = d->max_tokens;
    out->max_rows = d->max_rows, out->kept_rows = d->kept_rows;
    out->slot_bytes = d->slot_bytes, out->weight_bytes = d->weight_bytes;
    out->packed_bytes = d->packed_bytes;
    out->run_ahead = true;
}

// ---- logits

static int logits_read(ssm_device *dev, int32_t row, float *out, ssm_error *err) {
    device *d = (device *)dev;
    const size_t width = (size_t)d->g.vocab_size;
    SSM_TRY(device_refuse(d, err));
    SSM_CUDA(d,
             cudaMemcpyAsync(out, d->logits + row * width, width * sizeof(float),
                             cudaMemcpyDeviceToHost, d->stream),
             err);
    SSM_CUDA(d, cudaStreamSynchronize(d->stream), err);
    return 0;
}

static int logits_write(ssm_device *dev, int32_t row, const float *logits, ssm_error *err) {
    device *d = (device *)dev;
    const size_t width = (size_t)d->g.vocab_size;
    SSM_TRY(device_refuse(d, err));
    SSM_CUDA(d,
             cudaMemcpyAsync(d->logits + row * width, logits, width * sizeof(float),
                             cudaMemcpyHostToDevice, d->stream),
             err);
    SSM_CUDA(d, cudaStreamSynchronize(d->stream), err);
    return 0;
}

extern "C" const ssm_backend ssm_backend_cuda_library = {
    "cuda",     open_device, close_device, get_info,    step,        sample,       collect,
    slots_copy, slot_read,   slot_write,   logits_copy, logits_read, logits_write, nullptr,
    host_alloc, host_free,   slot_export,  slot_import, ticket_wait,
};

} // namespace ssm
