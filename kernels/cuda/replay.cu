// SPDX-License-Identifier: Apache-2.0
// Mamba-2's decode step without writing states every token ("replay"), for heads of 64 with 128
// states, bf16 weights, Hopper and later; everything else takes mamba2.cu's plain advance.
//
// A slot keeps a base state S0 as of some token and what came since: x after convolution and SiLU
// (bf16), B (bf16) and delta (fp32) of up to 15 tokens. With c_t the running sum of delta A log2 e,
//
//     y_t = exp2(c_t) S0 C_t + sum over j <= t of exp2(c_t - c_j) delta_j (B_j . C_t) x_j + D x_t
//
// All exponents are <= 0. Every 16th token the base takes them all: S0 = exp2(c) S0 + (w x)^T B,
// and that is the only time it is written. So a step's states cost 1 read + 1/16 write + 7.5
// entries, 1.15 passes instead of 2, and an fp16 state is rounded once in 16 tokens.
//
// When: a base is written where its sequence comes to a multiple of 16 tokens (lists.cu,
// take_entry), counted from the sequence's start, or from where its state was written by
// slot_write. This depends on a sequence's own history alone, so alone and in company it comes to
// the same bits (in a bucket), and sequences of different lengths write in different steps. A state
// that was read and restored has another history: it agrees within the rounding of the base's type
// (1e-5 in fp32), a fork has its source's and goes on with the same bits. A fresh row's base is
// written at once (what lies in the slot is not read). Prompts take and leave whole bases
// (replay_fold.cu).
//
// A decode step of up to 8 rows where few.cu or resident_heads.cu takes it, of models of 512
// channels and more, and one of one row where solo_large_mamba2.cu does, writes states as the plain
// advance does, and folds first what a slot still holds: at few rows states are little beside
// weights, and this kernel's 200 KB of shared memory an SM keep the next product's weights from
// being fetched ahead (one row of 2.7b: 3.38 ms instead of 1.97). So a sequence also depends on
// others through the size of the step, as it does through the products. From 9 to 64 rows of fp16
// states of published widths resident_heads_replay.cu does what this does.
//
// Work: an item is one head of one row (half of one in fp32), 16 KB of base, in one piece. A warp
// runs through a range of items alone: a bulk copy brings base and earlier x into its stage of
// shared memory, the matrix units multiply (replay_item.cuh), 64 numbers of y leave, gated. No
// barrier, no partner; twelve warps an SM hide each other's arithmetic, 200 KB of copies. B . C of
// the entries is made once a row and group and stays in registers, as do B's fragments for the
// fold. The host cuts all heads of a step's rows into ranges of equal cost by what each row will do
// (replay_plan): with equal lengths a step where some rows write took 276 us instead of 199, the
// warps with those rows coming last.
//
// Results do not depend on the cut: an item is the same arithmetic wherever it runs.
//
// Bytes a row and layer of 2.7b, fp16 base: 1.31 MB read, 82 KB written (1/16), 79 KB of entries
// read, 11 KB appended. Memory a slot: 169 KB a layer more, 13% of an fp16 state, 6.5% of fp32.
//
// Ladder, one H200, one layer of 2.7b, fp16 base, us at 512 / 64 rows: mean of 16 steps where all
// rows write in the same one (in brackets: rows at all phases)
//
//   plain advance (read + write, 3.5 TB/s)                380 / 52
//   6 warps of 2 stages, products by FMA, equal lengths   211 (276) / 32 (46)
//   C by HMMA, ranges of equal cost                       214 (199) / 31 (30)
//   an entry of a head in one piece of 128 bytes; base    199 (190) / 29 (28)
//     fragments without moves, banks without conflicts
//   12 warps of one stage, a fold's cost 3.5, not 2.15    196 (197) / 28 (27)
//   the same copies with no arithmetic at all             158 / 24
//
// fp32 base, 256 / 64 rows: plain 360 / 92, this 188 (191) / 50 (49). One row: 4.0, plain 4.0; 8
// rows 6.1 and 9.6. Whole model, fp16 states, ms a step, 64 / 512 rows at all phases: 2.7b plain
// 6.24 / 31.6, 6 warps of 2 stages above 128 rows and 12 of one below 4.41 / 17.6, 12 of one at 512
// rows (cost 2.15) 17.9 (predicted 3.1 to 3.9 / 17); 130m 0.86 / 3.69, then 0.76 / 2.16. All before
// products of 9 to 64 rows had kernels of their own; this file's one form for all sizes, with the
// cost 3.5, was timed by layer only.
//
// Read out of it: how entries lie decided most. As [16 rows][entry] an append was four writes of
// 32 bytes a head, 164,000 lone sectors between the reads of a layer: 12 us. What is left of the
// distance to bare copies: appends (8 us at 512 rows), the fold's writes, warps that end late.
//
// Tried and dropped: 6 warps and half of an SM's memory, so that the next product's blocks fill
// their rings beside it (2.7b, fp16, whole steps beside 12 warps, by medium.cu: b8 2.27 ms
// for 2.31, but b16 2.57 for 2.56, b32 3.14 for 3.04, b64 4.40 for 4.24; 130m b16 0.447 for 0.406:
// those begin 12 us earlier and end when they did); 4 warps of 3 stages (+5%), half items with 8 or
// 12 warps (+10 to 25%: an item's scalar work counts twice), items dealt in eights by an atomic
// counter (no gain over ranges), evict_first on the base (none), quarter items for one row (-0.3
// us, slower from 8 rows on).
#include "replay_kernel.cuh"
#include "types.cuh"

namespace ssm {

// ---- host

template <class S> constexpr int replay_shared() {
    return REPLAY_WARPS * (replay_shape<S>::STAGE + 8); // and a barrier each
}

// What a head costs, in hundredths of one without entries (measured: a fold keeps its warp three
// times as long).
static int32_t head_cost(int32_t held) {
    return held < 256 ? 100 + held : 350;
}

bool replay_fits(const device *d) {
    const ssm_geometry &g = d->g;
    int shared = 0;
    cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, d->index);
    return g.kind == SSM_BLOCK_MAMBA2 && d->weight_type == SSM_DTYPE_BF16 && d->arch >= 90 &&
           g.head_dim == REPLAY_P && g.d_state == REPLAY_N && g.conv_dim % 8 == 0 &&
           d->n_in % 2 == 0 && shared >= replay_shared<f16>() &&
           REPLAY_WARPS * d->n_sms < REPLAY_MOST_STARTS;
}

size_t replay_starts(const device *d) {
    return d->replays && d->g.kind == SSM_BLOCK_MAMBA2 ? (size_t)REPLAY_WARPS * d->n_sms + 1 : 0;
}

// The heads of n rows, in order, cut into a range of equal cost for each warp.
void replay_plan(const device *d, const int32_t *held, int32_t n, int32_t *starts) {
    if (replay_starts(d) == 0)
        return;
    const int32_t warps = REPLAY_WARPS * d->n_sms, heads = d->g.n_heads;
    int64_t total = 0, before = 0;
    for (int32_t i = 0; i < n; i++)
        total += (int64_t)head_cost(held[i]) * heads;
    for (int32_t w = 0, i = 0; w <= warps; w++) {
        const int64_t target = total * w / warps;
        while (i < n && before + (int64_t)head_cost(held[i]) * heads <= target)
            before += (int64_t)head_cost(held[i++]) * heads;
        starts[w] = i * heads + (i < n ? (int32_t)(target - before) / head_cost(held[i]) : 0);
    }
}

cudaError_t replay_advance(device *d, int layer, const batch &b, bool fold_norm) {
    const ssm_geometry &g = d->g;
    const layer_weights &w = d->layers[layer];
    const replay_sizes each = replay_bytes(d);
    const size_t slots = (size_t)layer * d->n_slots;
    replay_args a = {};
    a.decay = w.decay, a.skip = w.skip, a.dt_bias = w.dt_bias, a.gate_norm = w.gate_norm;
    a.xc = (const bf16 *)d->xc, a.in = (const bf16 *)d->xz, a.y = (bf16 *)d->y;
    a.squares = fold_norm ? d->squares : NULL;
    a.state = (char *)d->state + slots * g.d_inner * g.d_state * type_bytes(d->state_type);
    a.x = (bf16 *)((char *)d->replay_x + slots * each.x);
    a.b = (bf16 *)((char *)d->replay_b + slots * each.b);
    a.dt = (float *)((char *)d->replay_dt + slots * each.dt);
    a.rows = b.rows, a.held = b.held, a.starts = b.starts;
    a.heads = g.n_heads, a.groups = g.n_groups, a.d_inner = g.d_inner;
    a.conv_dim = g.conv_dim, a.n_in = d->n_in, a.dt_min = g.dt_min, a.dt_max = g.dt_max;
    if (b.n_rows == 0)
        return cudaSuccess;
    return with_state_type(d->state_type, [&](auto s) {
        typedef decltype(s) S;
        const int shared = replay_shared<S>();
        const cudaError_t rc = cudaFuncSetAttribute(
            replay_kernel<S>, cudaFuncAttributeMaxDynamicSharedMemorySize, shared);
        return rc ? rc
                  : launch(d, replay_kernel<S>, dim3((unsigned)d->n_sms), REPLAY_WARPS * 32,
                           (size_t)shared, b.decode, a);
    });
}
} // namespace ssm
