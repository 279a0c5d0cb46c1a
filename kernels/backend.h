// SPDX-License-Identifier: Apache-2.0
// What a backend is: a const table of functions that advance sessions' states by a plan.
//
// A device holds one model's weights in its own layout, an array of state slots, the logits of the
// last step, and rows of logits that are kept beyond it. It is used by one thread at a time (the
// engine's); it may run threads of its own. A backend never logs and never exits: every failure is
// a code and a ssm_error. After SSM_EDEVICE the device can only be closed. Nothing but open
// allocates.
//
// A step takes a plan: tokens of several sequences, back to back, cut into segments. A decode row
// is a segment of one token, a prompt is any number of segments over any number of steps; the
// backend sees no difference but the count. There is no padding: every token of a plan enters a
// recurrence. What a sequence's logits and state come to must not depend on the other segments of
// its steps, bit for bit; on how its own tokens were cut into segments, within rounding (CPU
// backends: bit for bit, unless a prompt runs as a convolution).
//
// Order: step, then sample for rows of that step, then collect. step and sample may return before
// the device is done (collect waits), so that a GPU runs one step ahead of the host: a token of
// SSM_TOKEN_SAMPLED stands for what `sample` last drew for that segment's slot.
#ifndef SSM_KERNELS_BACKEND_H
#define SSM_KERNELS_BACKEND_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <ssm/error.h>
#include <ssm/sampling.h>

#include "weights.h"

enum { SSM_TOKEN_SAMPLED = -1 };

typedef enum ssm_want { SSM_WANT_NONE, SSM_WANT_LAST, SSM_WANT_ALL } ssm_want;

typedef struct ssm_segment {
    int32_t slot;  // 0 .. n_slots-1, the state that is read and written; once a plan
    int32_t first; // of its tokens in plan.tokens; segments cover tokens in order without gaps
    int32_t count; // >= 1
    bool fresh;    // begin from the zero state: the slot is not read
    ssm_want want; // logits of no, the last, or every token
} ssm_segment;

typedef struct ssm_plan {
    const int32_t
        *tokens;      // [n_tokens] ids below vocab_size (the caller checked), or SSM_TOKEN_SAMPLED
    int32_t n_tokens; // <= max_tokens
    const ssm_segment *segments;
    int32_t n_segments; // <= n_slots
} ssm_plan;             // logits rows are numbered 0.. in token order; <= max_rows

typedef struct ssm_token_count {
    int32_t id;
    int32_t generated; // times generated so far
    bool in_prompt;
} ssm_token_count;

// One draw (or one look) at a row of logits. Arrays are borrowed until collect.
typedef struct ssm_sample {
    int32_t row;             // of the last step, or of logits_write
    int32_t slot;            // remembers the token for SSM_TOKEN_SAMPLED; -1: none does
    int32_t target;          // >= 0: nothing is drawn, this id is looked up; -1: draw
    int32_t n_top;           // 0..SSM_MAX_LOGPROBS entries of top logprobs; -1: no logprob at all
    uint64_t seed, position; // Philox key and counter
    const ssm_sampling *params; // its bad_words are the caller's business: see banned
    const int32_t *banned;      // ids that may not be drawn now
    int32_t n_banned;
    const ssm_token_count *counts; // every id that a penalty may touch, once each
    int32_t n_counts;
} ssm_sample;

typedef struct ssm_sampled {
    int32_t token; // -1: the logits were not finite, or nothing was allowed
    float logprob;
    int32_t n_top;
    int32_t top_ids[SSM_MAX_LOGPROBS]; // likeliest first, ties by lower id
    float top_logprobs[SSM_MAX_LOGPROBS];
} ssm_sampled;

// How a linear time-invariant layer runs a prompt: as a recurrence, as a convolution from one exact
// state to the next (CPU: by FFT, H3 in blocks; CUDA: in blocks, H3 where asked for alone), or
// as whichever is faster for its length.
typedef enum ssm_prompt_form {
    SSM_PROMPT_AUTO,
    SSM_PROMPT_SCAN,
    SSM_PROMPT_CONVOLUTION,
} ssm_prompt_form;

typedef struct ssm_device_options {
    int32_t index;      // which device of the kind
    int32_t n_slots;    // 0: what fits (a GPU), 64 (a CPU)
    int32_t max_tokens; // a step; 0: the backend's choice
    int32_t max_rows;   // logits rows a step, at least; 0: n_slots + 128
    int32_t kept_rows;  // more of them, numbered from info's max_rows on: no step writes there;
                        // n_slots at most; -1: a fourth of them, 4 at least
    int32_t threads;    // CPU; 0: one a usable core
    bool pin_threads;
    int32_t vocab_limit; // ids from here on are never drawn or listed; 0: vocab_size
    ssm_dtype weight_dtype, state_dtype, activation_dtype;
    ssm_prompt_form prompt_form;
    bool unpacked; // no weights a second time in fewer bits (CUDA, where kernels read such ones
                   // and they take little of the memory)
} ssm_device_options;

typedef struct ssm_device_info {
    char text[192]; // for people: "cpu avx512bf16, 2 threads, bf16 weights, f32 activations"
    int32_t n_slots, max_tokens, max_rows, kept_rows;
    uint64_t slot_bytes, weight_bytes; // resident
    uint64_t packed_bytes;             // of weight_bytes: those that are there a second time
    bool run_ahead; // step and sample return early: plan the next before collecting
} ssm_device_info;

// The device's ceilings, measured: a pure read of memory, and multiply-adds counted as two
// operations in the arithmetic of this device's projections.
typedef struct ssm_ceilings {
    double read_bytes_per_second;
    double product_flops_per_second;
} ssm_ceilings;

typedef struct ssm_backend ssm_backend;

// The first member of every backend's own device struct.
typedef struct ssm_device {
    const ssm_backend *backend;
    size_t state_floats; // of a slot in canonical form
} ssm_device;

struct ssm_backend {
    const char *name; // "reference", "cpu", "cuda"

    // Loads weights (borrowed for the device's life) and allocates everything. SSM_ENOMEM's message
    // says how many slots would fit; SSM_EUNSUPPORTED names what this backend or machine lacks.
    int (*open)(const ssm_weights *weights, const ssm_device_options *options, ssm_device **out,
                ssm_error *err);
    void (*close)(ssm_device *device);
    void (*info)(const ssm_device *device, ssm_device_info *out);

    // Advances every segment's slot by its tokens and leaves the wanted logits in rows.
    int (*step)(ssm_device *device, const ssm_plan *plan, ssm_error *err);

    // Draws n tokens from rows of the last step. A row may be drawn from any number of times.
    int (*sample)(ssm_device *device, const ssm_sample *samples, int32_t n, ssm_error *err);

    // Waits, then copies what the oldest uncollected sample call drew: n as it was there.
    int (*collect)(ssm_device *device, ssm_sampled *out, int32_t n, ssm_error *err);

    // State of src[i] to dst[i]; no slot is both a source and a destination.
    int (*slots_copy)(ssm_device *device, const int32_t *src, const int32_t *dst, int32_t n,
                      ssm_error *err);

    // One slot's state in canonical form (weights.h): ssm_state_conv_floats + ssm_state_ssm_floats.
    int (*slot_read)(ssm_device *device, int32_t slot, float *out, ssm_error *err);
    int (*slot_write)(ssm_device *device, int32_t slot, const float *state, ssm_error *err);

    // Row src[i] of logits to row dst[i]; no row is both a source and a destination.
    int (*logits_copy)(ssm_device *device, const int32_t *src, const int32_t *dst, int32_t n,
                       ssm_error *err);

    // One row of logits, [vocab_size] fp32.
    int (*logits_read)(ssm_device *device, int32_t row, float *out, ssm_error *err);
    int (*logits_write)(ssm_device *device, int32_t row, const float *logits, ssm_error *err);

    // For benchmarks; NULL: this backend measures none. May allocate, takes about a second.
    int (*ceilings)(ssm_device *device, ssm_ceilings *out, ssm_error *err);

    // Of a backend whose slots are not in the host's memory; all five or none. States then cross
    // beside the steps, between the slots and memory of host_alloc (page-locked; with any other the
    // calls wait). host_alloc gives NULL if there is none; it takes milliseconds.
    void *(*host_alloc)(ssm_device *device, size_t bytes); // any thread
    void (*host_free)(ssm_device *device, void *memory);   // any thread

    // slot_read and slot_write that return at once. With row >= 0 that row of logits goes with the
    // state, right behind it in `out` or `state`. Slot and row are as they will be for all later
    // calls; `out` is not to be read, nor `out` or `state` written or given back, before the ticket
    // is due. `after`: 0, or the ticket of the export that fills `state`.
    int (*slot_export)(ssm_device *device, int32_t slot, int32_t row, float *out, uint64_t *ticket,
                       ssm_error *err);
    int (*slot_import)(ssm_device *device, int32_t slot, int32_t row, const float *state,
                       uint64_t after, uint64_t *ticket, ssm_error *err);
    int (*ticket_wait)(ssm_device *device, uint64_t ticket, ssm_error *err); // any thread; 0 is due
};

// For backends: how many rows the options ask for.
static inline int32_t ssm_kept_rows(const ssm_device_options *o, int32_t n_slots) {
    const int32_t fourth = n_slots / 4 > 4 ? n_slots / 4 : 4;
    const int32_t rows = o->kept_rows >= 0 ? o->kept_rows : fourth;
    return rows < n_slots ? rows : n_slots;
}

// The same for every backend: where states are in the host's memory anyway they wait, and tickets
// are 0.
int ssm_slot_export(const ssm_backend *b, ssm_device *device, int32_t slot, int32_t row, float *out,
                    uint64_t *ticket, ssm_error *err);
int ssm_slot_import(const ssm_backend *b, ssm_device *device, int32_t slot, int32_t row,
                    const float *state, uint64_t after, uint64_t *ticket, ssm_error *err);
int ssm_ticket_wait(const ssm_backend *b, ssm_device *device, uint64_t ticket,
                    ssm_error *err); // any thread

extern const ssm_backend ssm_backend_reference; // plain C, one thread, the oracle
extern const ssm_backend ssm_backend_cpu;       // vectorised, threads
#ifdef SSM_WITH_CUDA
extern const ssm_backend ssm_backend_cuda;
#endif

// By name ("reference", "cpu", "cuda"), or NULL.
const ssm_backend *ssm_backend_find(const char *name);

#endif
