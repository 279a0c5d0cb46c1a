// SPDX-License-Identifier: Apache-2.0
// Inside of the CUDA backend: the device struct and what its files give each other. See device.cu
// for the design.
#ifndef SSM_KERNELS_CUDA_H
#define SSM_KERNELS_CUDA_H

#include <cublasLt.h>
#include <cuda_runtime.h>
#include <stddef.h>
#include <stdint.h>

extern "C" {
#include "kernels/backend.h"
}

namespace ssm {

// ---- what a step works on. Device arrays, written by the host into one staging block a step.

// One token of one sequence: decode. slot -1: a row that only fills up a bucket.
struct alignas(16) row {
    int32_t at; // token row of the activations
    int32_t slot;
    int32_t ring;  // where the convolution's ring takes its next entry
    int32_t fresh; // the slot's state reads as zero
};

// A run of tokens of one sequence: prefill. A span is a segment, a piece of it is one block's work.
struct alignas(16) span {
    int32_t slot, first, count, ring;
    int32_t fresh, first_piece, n_pieces;
    int32_t held; // of a slot to be folded: entries that its base is still without (replay.cu)
};

struct alignas(16) piece {
    int32_t span, first, count; // first: token row
    int32_t index;              // of all pieces of its list: its place in scratch
};

enum { MAX_CONV = 8 }; // widest convolution
enum { REPLAY_EVERY = 16, REPLAY_HELD = REPLAY_EVERY - 1, REPLAY_MOST_STARTS = 2048 };
enum { ADVANCE_REPLAY_EVERY = 2 }; // Mamba-1

// A scan's launches (pieces.cu): all pieces whole; or first pieces whole and other pieces' ends,
// then all other pieces.
enum scan_pass { SCAN_WHOLE, SCAN_FIRST, SCAN_FINAL };

enum { SSD_CARRY = 64 * 128 + 32 }; // floats a piece and head (ssd_wgmma.cu)

// One pass of all layers: rows and spans together cover the tokens.
struct batch {
    int32_t n;             // token rows, rounded up to a bucket: buffers have room for them
    const int32_t *tokens; // [n] id, or -1 - slot: what was drawn last for that slot
    int32_t n_rows;
    const row *rows;       // [n_rows]
    const int32_t *held;   // [n_rows] entries of the row's slot | 256 if they go into its base
    const int32_t *starts; // [replay_starts] where each warp begins: see replay.cu
    int32_t n_spans;
    const span *spans; // [n_spans]
    int32_t n_tiles;
    const piece *tiles; // convolution: at most CONV_TILE tokens each
    int32_t n_pieces;
    const piece *pieces;         // scan
    bool at_once;                // states are written in this step, not held (lists.cu)
    bool split;                  // some span has several pieces: two launches
    int32_t n_logits;            // rounded up
    const int32_t *logit_tokens; // [n_logits] token row of each logits row; NULL: the same
    int32_t columns;             // LTI: of a convolution, at once; 0: the spans are scanned
    bool decode;                 // rows only, captured: every launch may overlap its predecessor
};

enum { CONV_TILE = 16, SPLIT_ROWS = 64 }; // SPLIT_ROWS: token rows of a partial sum of x_proj
enum { FEW_ROWS = 8, X_COPIES = 4 };      // of x_sums

// ---- weights on the device

struct lti_weights { // S4D, S4, H3; fp32, rounded from fp64. n: pairs of poles, N: numbers of a
                     // state
    const float *ab; // S4D [d_model][n][2], H3 [heads][n][2]; S4 [d_model][N][N], transposed
    const float *bb; // the same; S4 [d_model][N]
    const float *c;  // the same, 2 Re C and -2 Im C; S4 [d_model][N] as it is
    const float *shift_b; // H3 [N][d_model]
    const float *shift_c; // H3 [N][d_model]
    const float *shift_k; // H3 [N][d_model]: what an input l tokens ago still gives, l = 0 with D
    bool lower;           // S4: nothing above the diagonal
    const float *power;   // S4 of at most LTI_DENSE numbers, with LTI_PART = L: Ab^L, as ab
    const float *in;      // [d_model][L][N] Ab^(L - 1 - j) Bb
    const float *out;     // [d_model][N][L] C Ab^(t + 1)
    // H3, a head in place of a channel: in, out (numbers of a pole side by side, C doubled), L =
    // LTI_PAIRS, and the kernel, D in its first
    const float *kernel; // [heads][L]
};

struct layer_weights { // T: the projections' type; the rest fp32
    const float *norm; // [d_model]
    const void *in_proj, *x_proj, *dt_proj, *out_proj;
    const float *in_bias, *out_bias; // or NULL
    const float *conv_weight;        // [d_conv][conv_dim]: by tap
    const float *conv_bias;          // [conv_dim], zeros if the model has none
    const float *dt_bias;
    const float *decay; // -exp(A_log) log2 e; MAMBA [d_inner][N], MAMBA2 [H]
    const float *skip;  // D
    const float *gate_norm;
    const void *packed_in, *packed_out; // if device.weights_packed: packed.cuh
    uint32_t packed_in_by, packed_out_by;
    lti_weights lti;
};

struct replay_slot {
    int32_t held;  // tokens that the base is still without
    int32_t phase; // tokens of the sequence, modulo replay_every; 0 where a state was written
};

enum product_kind { PRODUCT_IN, PRODUCT_X, PRODUCT_OUT, PRODUCT_HEAD, PRODUCT_KINDS };

struct lt_plan; // product.cu: cuBLASLt descriptors and algorithms by kind and bucket

struct device {
    ssm_device base;
    ssm_geometry g;
    ssm_device_options options;
    ssm_dtype weight_type, state_type, ring_type;
    int32_t n_in; // rows of in_proj; S4D, S4: of out_proj
    int32_t n_x;  // rows of x_proj: dt_rank + 2 N
    int32_t vocab_limit;
    int32_t n_slots, max_tokens, kept_rows;
    int32_t max_rows; // a bucket: what fills one up is no kept row
    int32_t index, n_sms, arch;
    size_t shared_sm; // bytes of shared memory an SM
    char name[64];
    bool failed;

    cudaStream_t stream;
    cudaStream_t ahead;    // copies of what the next step or draw reads, beside what is under way
    layer_weights *layers; // host array
    const void *embedding, *lm_head;
    const float *norm_f;
    size_t weight_bytes, slot_bytes;
    void *packed;          // in_proj and out_proj of all layers once more, in 12 bits a weight
    bool weights_packed;   // they are there
    void *packed_head;     // lm_head once more, likewise, or NULL
    float *packed_head_by; // [vocab] what its rows' sums are multiplied by
    size_t packed_bytes;   // of weight_bytes

    // state: [layer][slot][...]
    void *ring;       // T [layer][slot][d_conv - 1][conv_dim]; H3: fp32, the shift SSM's state
    void *state;      // S [layer][slot][d_inner][N]
    int32_t *drawn;   // [slot]
    int32_t *ring_at; // host [slot]

    bool resident_room;                    // all of resident.cu's blocks are there at once
    bool resident_tall_room;               // and resident_tall.cu's
    bool solo_room;                        // and solo.cu's
    bool replays;                          // states are not written every token: replay.cu,
                                           // advance_replay.cu
    int32_t replay_every;                  // tokens
    void *replay_x, *replay_b, *replay_dt; // [layer][slot][...] what they are still without
    struct replay_slot *held;              // host [slot]

    // activations, [token row][...]
    float *residual;            // [d_model]
    void *u;                    // T [d_model]
    void *xz;                   // T [n_in]
    void *xc;                   // T [conv_dim] after the convolution
    float *xdb;                 // [split][token row][n_x] sums of x_proj
    void *y;                    // T [d_inner]
    float *squares;             // MAMBA2 [token row][H] partial sums of squares
    float *row_norms;           // [token row][tiles] partial sums of the residual's squares
    void *resident;             // resident.cu's scratch
    void *resident_tall;        // resident_tall.cu's
    void *solo;                 // solo.cu's
    void *tickets;              // wide_places.cu's
    void *gpcs;                 // its table, of the host
    float *out_squares;         // [FEW_ROWS][n_sms] partial sums of the residual's squares
    unsigned long long *x_sums; // MAMBA [X_COPIES][FEW_ROWS][n_x] x_proj in fixed point
    unsigned *x_broken;         // [FEW_ROWS] sums that are no numbers
    float *carry;     // scans' end states and sums by piece: MAMBA [piece][N + 1][d_inner], MAMBA2
                      // [piece][H][SSD_CARRY]
    float *lti_u;     // S4D, S4 [token row][d_model] normed; H3: k after the shift SSM
    float *logits;    // [max_rows + kept_rows][vocab]
    float *canonical; // transfer.cu: where the next slots_convert reads or writes

    struct lt_plan *lt;
    struct transfer_state *transfers; // transfer.cu
    struct step_state *steps;         // step.cu
    struct sampler_state *draw;       // sample.cu
    void *blocks[64];                 // every cudaMalloc, freed in close
    int n_blocks;
    size_t allocated;
};

struct activation { // a buffer to be allocated in open
    void **at;
    size_t bytes;
};

inline bool is_lti(const device *d) {
    return ssm_block_is_lti(d->g.kind);
}

// ---- device.cu

// Turns a CUDA error into SSM_EDEVICE (or SSM_ENOMEM) and remembers it: afterwards every call
// fails.
int device_check(device *d, cudaError_t rc, const char *what, ssm_error *err);
int device_refuse(const device *d, ssm_error *err);
int device_alloc(device *d, void **out, size_t bytes, ssm_error *err);

#define SSM_TRY(call)                                                                              \
    do {                                                                                           \
        const int rc_ = (call);                                                                    \
        if (rc_ != 0)                                                                              \
            return rc_;                                                                            \
    } while (0)
#define SSM_CUDA(d, call, err) SSM_TRY(device_check((d), (call), #call, (err)))

// For order between streams, never for time.
inline int event_make(device *d, cudaEvent_t *out, ssm_error *err) {
    SSM_CUDA(d, cudaEventCreateWithFlags(out, cudaEventDisableTiming), err);
    return 0;
}
inline void event_free(cudaEvent_t event) { // or NULL
    if (event)
        cudaEventDestroy(event);
}

// ---- weights.cu

struct uploader {
    device *d;
    void *staging; // device
    ssm_error *err;
};

// A tensor to the device in some type: to new memory (*out NULL: there is no tensor), or to a
// place.
int upload(uploader *u, const ssm_tensor *t, ssm_dtype type, const void **out);
int upload_into(uploader *u, const ssm_tensor *t, ssm_dtype type, void *out);
int upload_vector(uploader *u, const ssm_tensor *t, const float **out);

void weights_free(device *d);
int weights_upload(device *d, const ssm_weights *w, ssm_error *err);
// packed.cu, once it is known which kernels there will be: d->weights_packed says whether
int weights_pack(device *d, ssm_error *err);
void weights_unpack(device *d); // no more, nor a head: the memory is needed
// Memory for what one can do without: NULL where there is little of it.
int packed_alloc(device *d, void **out, size_t bytes, ssm_error *err);
// packed_head.cu: d->packed_head says whether
int head_pack(device *d, ssm_error *err);
void head_unpack(device *d);

// ---- slots.cu

int slots_alloc(device *d, ssm_error *err);
int slots_copy(ssm_device *dev, const int32_t *src, const int32_t *dst, int32_t n, ssm_error *err);
int logits_copy(ssm_device *dev, const int32_t *src, const int32_t *dst, int32_t n, ssm_error *err);
// Between a slot and d->canonical, on the stream.
cudaError_t slots_convert(device *d, int32_t slot, bool write);

// ---- transfer.cu

int transfers_create(device *d, ssm_error *err);
void transfers_free(device *d);
size_t transfers_bytes(const device *d);
int slot_read(ssm_device *dev, int32_t slot, float *out, ssm_error *err);
int slot_write(ssm_device *dev, int32_t slot, const float *state, ssm_error *err);
int slot_export(ssm_device *dev, int32_t slot, int32_t row, float *out, uint64_t *ticket,
                ssm_error *err);
int slot_import(ssm_device *dev, int32_t slot, int32_t row, const float *state, uint64_t after,
                uint64_t *ticket, ssm_error *err);
int ticket_wait(ssm_device *dev, uint64_t ticket, ssm_error *err);
void *host_alloc(ssm_device *dev, size_t bytes);
void host_free(ssm_device *dev, void *memory);

// ---- step.cu, lists.cu

// What crosses to the device ahead of the step that reads it goes to places that take turns, and in
// copies of no fewer bytes (step.cu).
enum { STEP_TURNS = 2, LEAST_COPY = 4096 };

int steps_create(device *d, ssm_error *err);
void steps_free(device *d);
int step(ssm_device *dev, const ssm_plan *plan, ssm_error *err);
int32_t step_bucket(int32_t n); // the number of token rows that n are rounded up to
size_t step_staging_bytes(int32_t max_tokens, int32_t n_slots, int32_t max_rows);

// ---- pieces.cu

struct grain {
    int32_t blocks, card; // blocks of a piece; blocks at once
    int32_t enough;       // blocks from which on whole prompts are faster
    int32_t unit, least;  // tokens that lengths are multiples of, at least so many units
};

// Tokens of a piece for n_spans prompts, INT32_MAX: all whole. longest: of the prompts' lengths.
int32_t piece_length(const device *d, int32_t n_spans, int32_t tokens, int32_t longest);
int32_t carry_pieces(const device *d); // the most pieces that a step can have if any is cut

// scan.cu: false if so many prompts are never cut
bool scan_grain(const device *d, int32_t n_spans, grain *out);

// ---- sample.cu

int sampler_create(device *d, ssm_error *err);
void sampler_free(device *d);
int sample(ssm_device *dev, const ssm_sample *samples, int32_t n, ssm_error *err);
int collect(ssm_device *dev, ssm_sampled *out, int32_t n, ssm_error *err);

// ---- forward.cu: all layers of a batch, enqueued on the stream

int forward(device *d, const batch &b, ssm_error *err);

// ---- lti.cu: S4D, S4 and H3

int lti_check_options(const device *d, ssm_error *err);
int lti_upload_layer(uploader *u, const ssm_layer *from, layer_weights *to);
void lti_free_layer(const layer_weights *w);
int lti_list_activations(device *d, activation *out);
int32_t lti_plan_spans(const device *d, int32_t n_spans, int32_t tokens, batch *b); // piece length
int lti_forward(device *d, const batch &b, ssm_error *err);

// ---- launchers. Each checks nothing but what cannot be known before, allocates nothing, returns
// the launch's error. `overlap`: programmatic dependent launch.

cudaError_t embed(device *d, const batch &b);
cudaError_t embed_norm(device *d, const batch &b); // and the first layer's input, normed
cudaError_t norm(device *d, const float *weight, const float *in, const int32_t *gather, void *out,
                 int32_t n, bool overlap);
cudaError_t gated_norm(device *d, const layer_weights &w, void *y, int32_t n, bool overlap);
cudaError_t add_bias(device *d, const float *bias, void *out, ssm_dtype type, int32_t n,
                     int32_t cols);
cudaError_t small_norms(device *d, int32_t n,
                        int32_t n_splits); // falcon_mamba's of dt, B and C, in xdb
cudaError_t conv(device *d, int layer, const batch &b);
cudaError_t mamba_advance(device *d, int layer, const batch &b, int32_t n_split);
// Where that leaves y, [token][d_inner]: in large steps of rows alone where x was (advance.cu).
void *mamba_y(const device *d, const batch &b);
cudaError_t mamba_advance_few(device *d, int layer, const batch &b, int32_t n_split);
cudaError_t mamba_scan(device *d, int layer, const batch &b);
bool replay_fits(const device *d);
cudaError_t replay_advance(device *d, int layer, const batch &b, bool fold_norm);
cudaError_t mamba2_advance(device *d, int layer, const batch &b, bool fold_norm);
cudaError_t mamba2_scan(device *d, int layer, const batch &b);

bool ssd_fits(const device *d); // ssd.cu: mamba2_scan on the matrix units
cudaError_t ssd_scan(device *d, int layer, const batch &b);
bool ssd_wgmma_fits(const device *d); // ssd_wgmma.cu: the same for Hopper, in pieces too
cudaError_t ssd_wgmma_scan(device *d, int layer, const batch &b);

// product.cu: y = x W^T (out: y += x W^T in fp32), n token rows
int products_create(device *d, ssm_error *err);
void products_free(device *d);
int product(device *d, product_kind kind, const void *weight, const void *x, void *y, int32_t n,
            ssm_error *err);

// Partial sums of tokens' squares, n of each, `pitch` from the next token's: by whose norm the head
// scales what it makes of d->u. NULL: that is normed.
struct row_squares {
    const float *sums;
    int32_t n, pitch;
};

// head.cu: logits of d->u on Hopper
bool head_fits(const device *d, int32_t n);
cudaError_t head(device *d, int32_t n, const row_squares &squares); // n == pitch

// head_packed.cu: the same of up to 64 tokens, if d->packed_head is there
bool head_packed_fits(const device *d, int32_t n);
cudaError_t head_packed(device *d, int32_t n, const row_squares &squares);

// skinny.cu: the same for few rows, with what comes before and after fused in
bool skinny_fits(const device *d, int32_t n);
cudaError_t skinny_in(device *d, int layer, const batch &b);
cudaError_t skinny_x(device *d, int layer, const batch &b);
cudaError_t skinny_out(device *d, int layer, const batch &b, bool fold_norm);
cudaError_t skinny_head(device *d, const batch &b);
int32_t skinny_x_splits(const device *d);

// few.cu, advance_row.cu: all of a step of up to FEW_ROWS rows on Hopper and later
bool few_fits(const device *d, int32_t n);
bool few_head_fits(const device *d); // few_head() alone, of one row
cudaError_t few_embed(device *d, const batch &b);
cudaError_t few_in(device *d, int layer, const batch &b);
cudaError_t few_advance(device *d, int layer, const batch &b);
cudaError_t few_out(device *d, int layer, const batch &b, bool fold_norm);
int few_squares(const device *d, int32_t n); // partial sums of the residual's squares by few_out()
// n_squares: such sums, where somebody else left them; 0: few_out's
cudaError_t few_head(device *d, const batch &b, int n_squares);

// solo.cu: all layers of a step of one row of published models in one launch, on Hopper
bool solo_room(const device *d); // once, at opening: whether the card holds all its blocks
bool solo_fits(const device *d, int32_t n);
bool solo_reads_packed(const device *d); // packed.cuh: where there are any
int solo_squares(const device *d);       // partial sums that it leaves for the head
size_t solo_bytes(const device *d);      // of its scratch; 0: never used
cudaError_t solo_layers(device *d, const batch &b);

// medium.cu: the same for 9 to 64 rows on Hopper, of large Mamba-2 models for 3 or 5 to 64
bool medium_fits(const device *d, int32_t n);
int32_t medium_rows(const device *d, int32_t n); // of a step that is best for n rows; 0: others'
int32_t medium_tiles(const device *d);           // of out_proj, at most; 0: never used
cudaError_t medium_in(device *d, int layer, const batch &b);
cudaError_t medium_x(device *d, int layer, const batch &b);
cudaError_t medium_out(device *d, int layer, const batch &b, bool fold_norm);

// xproj.cu: Mamba-1's x_proj in larger steps on Hopper
bool xproj_fits(const device *d, const batch &b);
cudaError_t xproj(device *d, int layer, const batch &b);

// resident.cu: all layers of such a step of Mamba-1 in one launch
bool resident_room(const device *d);      // once, at opening: whether the card holds all its blocks
bool resident_tall_room(const device *d); // the same of resident_tall.cu, where that is so
size_t resident_tall_bytes(const device *d);
bool resident_fits(const device *d, int32_t n);
int32_t resident_rows(const device *d, int32_t n); // of a step that is best for n rows; 0: others'
size_t resident_bytes(const device *d);            // of its scratch; 0: never used
// left: of the last layer's residual r, whose r w (w: norm_f) is in d->u
cudaError_t resident_layers(device *d, const batch &b, row_squares *left);

// advance_replay.cu, advance_replay_fold.cu: Mamba-1's fp32 states in steps of so many rows, which
// are written every second token
bool advance_replay_fits(const device *d, int32_t n_rows);
cudaError_t advance_replay(device *d, int layer, const batch &b);
struct replay_sizes advance_replay_bytes(const device *d);
cudaError_t advance_replay_fold(device *d, int layer, const batch &b);
cudaError_t advance_replay_read(device *d, int layer, int32_t slot, float *out);

// replay.cu, replay_fold.cu: Mamba-2 states that are written every 16 tokens; sizes, folds and
// reads of both kinds
struct replay_sizes {
    size_t x, b, dt; // bytes of one slot in one layer
};
replay_sizes replay_bytes(const device *d);
size_t replay_starts(const device *d);
void replay_plan(const device *d, const int32_t *held, int32_t n, int32_t *starts);
cudaError_t replay_fold(device *d, int layer, const batch &b); // the spans' slots, in place
cudaError_t replay_read(device *d, int layer, int32_t slot, float *out);

// ---- shared helpers

struct launch_config {
    cudaLaunchConfig_t config;
    cudaLaunchAttribute attribute;

    launch_config(const device *d, dim3 grid, int threads, size_t shared, bool overlap)
        : config(), attribute() {
        config.gridDim = grid;
        config.blockDim = dim3((unsigned)threads);
        config.dynamicSmemBytes = shared;
        config.stream = d->stream;
        attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
        attribute.val.programmaticStreamSerializationAllowed = 1;
        config.attrs = &attribute;
        config.numAttrs = overlap && d->arch >= 90;
    }
};

template <class... P, class... A>
cudaError_t launch(const device *d, void (*kernel)(P...), dim3 grid, int threads, size_t shared,
                   bool overlap, A... args) {
    if (grid.x == 0 || grid.y == 0 || grid.z == 0)
        return cudaSuccess;
    launch_config c(d, grid, threads, shared, overlap);
    return cudaLaunchKernelEx(&c.config, kernel, P(args)...);
}

inline int32_t ceil_div(int64_t a, int64_t b) {
    return (int32_t)((a + b - 1) / b);
}

inline size_t type_bytes(ssm_dtype t) {
    return t == SSM_DTYPE_F32 ? 4 : 2;
}

} // namespace ssm

#endif
