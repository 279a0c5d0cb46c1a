// SPDX-License-Identifier: Apache-2.0
// few.cu's in_proj and out_proj of larger published models (1.4b, 2.8b; Mamba-2's 1.3b, 2.7b) with
// weights in 12 bits (packed.cuh): the same launches, the same ends (few_end.cuh), three quarters
// of the bytes. Mamba-2's rows of B, C and dt stay in bf16 and have warps of their own, one row of
// each a block (few_rest).
//
// 128 blocks have what solo_large.cu's blocks have, in the order in which it lies for them: a slot
// of the ring is one copy, all of the block's rows (in_proj: of x, then of z; 2.8b 40) by 256
// columns, or out_proj's (20) by 512. Two groups of four warps take slots in turns, a warp its
// quarter of the columns; a lane's sixteen weights of a row are the matrix instruction's second
// operand once they are unpacked. A warp keeps the sums of all its columns, as few.cu's does, and
// hands them on when a run of rows is done.
//
// Token rows are the first operand, eight of them; of out_proj's 128 columns the second 64 are its
// rows 8 to 15, for a tile of weights may have rows of both (packed_place_of). They come from L2 to
// the slots, each part once, and are multiplied by 2^90 in registers: weights come times 2^-base,
// some of them subnormal.
//
// H200, fp16 states, ms a step, in turns in one run with few.cu's (b8: resident.cu's, the same
// run):
//                                                   2.8b b2    b4    1.4b b2    b4
//   few.cu                                          1.852   2.549    1.023   1.123
//   token rows from L2 to registers, a slot ahead   1.705   1.967    0.941   1.069
//   through the slots, by copies behind the weights' 1.605  1.980    0.906   1.044
//   out_proj four slots, in_proj the rest (2.8b: six
//     and not four)                                 1.486            0.870   1.016
//   two slots under way and not three               1.488            0.835   0.998
//   (resident.cu, eight rows                                1.784            1.062)
// So 2.8b takes that from three rows on, as 1.4b since (resident.cu, fewest), and Mamba-2 from two.
// 790m: two rows 0.682 (few.cu 0.679), four 0.804 (0.756).
// Mamba-2, so too, before and with this: 2.7b b2 2.02 and 1.65, b4 2.23 (medium.cu) and 2.01; 1.3b
// b2 1.10 and 0.99, b4 1.32 and 1.21. Slots of in_proj and out_proj, 2.8b b2: 8 and 2 1.624, 6 and
// 2 1.602; 1.4b b2: 10 and 4 0.866, 8 and 4 0.876, 10 and 2 0.922.
#include "few_end.cuh"
#include "packed.cuh"

namespace ssm {

enum {
    FEW_PACKED_ROWS = 4,
    FEW_REST_WARPS = 3, // of Mamba-2's other rows
    OUT_SLOTS = 4,      // of out_proj's ring
    FLIGHT = 2          // slots asked for at once ahead of the kernels before
};

// M: d_model.
template <int M, bool OUT> struct few_packed_shape {
    enum {
        NW = M / 32,
        TILES = NW / 16,               // packed_tiles(): of a warp's quarter
        SLOT = TILES * 4 * 32 * 24,    // bytes: packed_slot_bytes()
        E_AT = TILES * 4 * 32 * 16,    // where its E begin
        TURNS = M / 256,               // slots of a run of rows
        RUNS = OUT ? 1 : 2,            // of rows: x and z
        ROWS = OUT ? M / 128 : M / 64, // of a run, a block's
        OUT_FULL = ROWS / 8,           // out_proj: tiles of each 64 columns; four rows may be left
        COLS = OUT ? 128 : 64,         // of a warp in a slot
        PARTS = COLS / 64,
        K = OUT ? 2 * M : M,
        X_BYTES = COLS * 4 * 2, // of a token row, of a slot's columns
        X_PITCH = X_BYTES + 16  // so that eight rows' parts meet in no bank
    };
    static __host__ __device__ int place(int batch) { // bytes of a slot and its token rows
        return (SLOT + batch * X_PITCH + 127) / 128 * 128;
    }
    static_assert(TURNS % 2 == 0, "each group begins a run with its own slots");
    static_assert((int)ROWS <= (int)CHUNK, "sums are handed on at once");
};

struct few_packed_args {
    const char *weights;
    float by; // what sums are multiplied by
};

#if SSM_BULK

// The ring: weights and token rows of a slot have a barrier each, for the latter are not there
// before the kernels before are done.
struct few_packed_ring {
    char *slots;
    uint64_t *full, *x_full, *empty;
    int n_slots, place;
};

// The warp that asks. Until somebody multiplies at most `flight` slots are under way.
template <class SHAPE>
__device__ __forceinline__ void few_packed_ask(const few_args &a, const char *weights,
                                               const few_packed_ring &ring) {
    enum { N = SHAPE::RUNS * SHAPE::TURNS };
    const uint64_t policy = policy_once();
    const char *from = weights + (size_t)blockIdx.x * SHAPE::SLOT;
    const int lane = threadIdx.x % 32;
    const auto ask = [&](int i, int at) {
        if (lane == 0) {
            barrier_expect(shared_address(ring.full + at), SHAPE::SLOT);
            copy_run(shared_address(ring.slots + at * ring.place),
                     from + (size_t)i * PACKED_BLOCKS * SHAPE::SLOT, SHAPE::SLOT,
                     shared_address(ring.full + at), policy);
        }
        __syncwarp();
    };
    const auto ask_x = [&](int i, int at) {
        if (lane == 0)
            barrier_expect(shared_address(ring.x_full + at), (uint32_t)a.batch * SHAPE::X_BYTES);
        __syncwarp();
        if (lane < a.batch)
            copy_run(
                shared_address(ring.slots + at * ring.place + SHAPE::SLOT + lane * SHAPE::X_PITCH),
                a.x + (size_t)lane * SHAPE::K + i % SHAPE::TURNS * 4 * SHAPE::COLS, SHAPE::X_BYTES,
                shared_address(ring.x_full + at));
        __syncwarp();
    };
    const int first = min(ring.n_slots, (int)N);
#pragma unroll 1
    for (int i = 0; i < first; i++) {
        if (i >= a.flight)
            barrier_wait(shared_address(ring.full + i - a.flight), 0);
        ask(i, i);
    }
    dependency_wait();
#pragma unroll 1
    for (int i = 0; i < first; i++)
        ask_x(i, i);
    int at = 0, phase = 0;
#pragma unroll 1
    for (int i = first; i < N; i++) {
        barrier_wait(shared_address(ring.empty + at), phase);
        ask(i, at), ask_x(i, at);
        if (++at == ring.n_slots)
            at = 0, phase ^= 1;
    }
}

// A warp that multiplies.
template <class SHAPE> struct few_packed_worker {
    enum { TILES = SHAPE::TILES, PARTS = SHAPE::PARTS };
    const few_args &a;
    int lane, part, group, g, q, at, phase;
    uint32_t zero; // which the compiler does not know
    int x;         // where the lane's token's columns begin in a slot

    __device__ __forceinline__ few_packed_worker(const few_args &args) : a(args) {
        const int warp = threadIdx.x / 32;
        lane = threadIdx.x % 32, part = warp % 4, group = warp / 4, g = lane / 4, q = lane % 4;
        at = group, phase = 0, zero = (uint32_t)a.batch >> 16;
        // Lanes of tokens that are not there do as token 0's: nobody reads their sums.
        x = SHAPE::SLOT + (g < a.batch ? g : 0) * SHAPE::X_PITCH + part * SHAPE::COLS * 2 + q * 32;
    }
    __device__ __forceinline__ void slot(float (&c)[TILES][4], const few_packed_ring &ring) {
        barrier_wait(shared_address(ring.x_full + at), phase);
        const char *from = ring.slots + at * ring.place;
        uint4 v[PARTS][2]; // sixteen columns of each 64
#pragma unroll
        for (int r = 0; r < PARTS; r++) {
#pragma unroll
            for (int u = 0; u < 2; u++)
                v[r][u] = given(*(const uint4 *)(from + x + r * 128 + u * 16));
        }
        barrier_wait(shared_address(ring.full + at), phase);
        const uint4 *s = (const uint4 *)from + part * TILES * 32 + lane;
        const uint2 *e = (const uint2 *)(from + SHAPE::E_AT) + part * TILES * 32 + lane;
        const uint4 none[2] = {};
        uint32_t bits = 0;
#pragma unroll
        for (int t = 0; t < TILES; t++) {
            const uint4 lower = s[t * 32];
            const uint2 upper = e[t * 32];
            if constexpr (PARTS > 1)
                multiply_packed(c[t], v[0], v[1], lower, upper);
            else
                multiply_packed(c[t], v[0], none, lower, upper);
        }
#pragma unroll
        for (int t = 0; t < TILES; t++)
            bits |= __float_as_uint(c[t][0]);
        // An arrive overtakes reads: its address waits for what was made of them (few.cu).
        __syncwarp();
        if (lane == 0)
            barrier_arrive(shared_address(ring.empty + at) + (bits & zero));
        if ((at += 2) >= ring.n_slots)
            at -= ring.n_slots, phase ^= 1;
    }
    // Sums to [row] of the lane's token, times `by`.
    __device__ __forceinline__ void store(const float (&c)[TILES][4], float *mine, float by) const {
        const auto put = [&](int row, float lo, float hi, bool on) {
            if (on && g < a.batch)
                *(float2 *)(mine + row) = make_float2(lo * by, hi * by);
        };
        if constexpr (PARTS == 1) {
#pragma unroll
            for (int t = 0; t < TILES; t++)
                put(t * 8 + 2 * q, c[t][0], c[t][1], true);
        } else {
            // The first 64 columns' sums are in the first rows, the others' in the last.
            enum { FULL = SHAPE::OUT_FULL };
#pragma unroll
            for (int t = 0; t < FULL; t++)
                put(t * 8 + 2 * q, c[t][0] + c[FULL + t][2], c[t][1] + c[FULL + t][3], true);
            if constexpr (SHAPE::ROWS % 8 != 0) {
                const float lo = __shfl_down_sync(~0u, c[TILES - 1][2], 2);
                const float hi = __shfl_down_sync(~0u, c[TILES - 1][3], 2);
                put(FULL * 8 + 2 * q, c[TILES - 1][0] + lo, c[TILES - 1][1] + hi, q < 2);
            }
        }
    }
};

// in_proj's rows of B, C and dt, which stay in bf16: a warp a row, one of each a block. They have
// the time that x and z take.
template <class SHAPE> __device__ __forceinline__ void few_rest(const few_args &a, int warp) {
    enum { M = SHAPE::K, INNER = 2 * M };
    const int lane = threadIdx.x % 32, at = warp * PACKED_BLOCKS + blockIdx.x; // of these rows
    const int row_at = 2 * INNER + at, c = INNER + at, kept = a.width - 1;
    const bool is_dt = warp == 2, on = row_at < a.n_rows, mine = on && lane < a.batch;
    const bf16 *from = a.weight + (size_t)(on ? row_at : 0) * M + lane * 8;
    if (on)
        ask_l2((const char *)(from - lane * 8), M * 2);
    // The lane's token's convolution, without its newest input.
    row r = {-1, -1, 0, 0};
    float before = 0, tap = 0;
    if (mine)
        r = a.rows[lane];
    if (mine && !is_dt) {
        before = a.conv_bias[c], tap = a.conv_weight[(size_t)kept * a.channels + c];
#pragma unroll
        for (int j = 1; j < 4; j++) {
            const int e = r.ring - j < 0 ? r.ring - j + kept : r.ring - j;
            if (j <= kept && r.slot >= 0 && !r.fresh)
                before += a.conv_weight[(size_t)(kept - j) * a.channels + c] *
                          to_float(a.ring[((size_t)r.slot * kept + e) * a.channels + c]);
        }
    }
    dependency_wait();
    if (!on)
        return;
    float sum[FEW_PACKED_ROWS] = {}, scale = 0;
#pragma unroll 2
    for (int i = 0; i < M / 256; i++) {
        float w[8], x[8];
        load<8>(from + i * 256, w);
#pragma unroll
        for (int t = 0; t < FEW_PACKED_ROWS; t++) {
            if (t >= a.batch)
                break;
            const uint4 of = __ldcg((const uint4 *)(a.x + (size_t)t * M + i * 256 + lane * 8));
            load<8>((const bf16 *)&of, x);
#pragma unroll
            for (int k = 0; k < 8; k++)
                sum[t] += w[k] * x[k];
        }
    }
    float v = 0;
#pragma unroll
    for (int t = 0; t < FEW_PACKED_ROWS; t++) {
        if (t >= a.batch)
            break;
        float squares = 0;
#pragma unroll 4
        for (int i = lane; i < a.n_squares; i += 32)
            squares += __ldcg(a.squares + t * a.squares_pitch + i);
        const float all = warp_sum(sum[t]), of = warp_sum(squares);
        if (lane == t)
            v = all, scale = rsqrtf(of / M + a.eps);
    }
    v *= scale;
    if (mine && is_dt)
        a.xz[(size_t)lane * a.width_out + row_at] = from_float<bf16>(v);
    else if (mine && r.slot >= 0)
        a.xc[(size_t)lane * a.channels + c] =
            from_float<bf16>(convolve_last(a, r, c, v, before, tap));
}

#endif

// TWO: Mamba-2, whose in_proj has z's rows before x's.
template <int M, bool OUT, bool TWO>
__global__ void __launch_bounds__(512, 2) few_packed_kernel(few_args a, few_packed_args p) {
#if SSM_BULK
    typedef few_packed_shape<M, OUT> shape;
    constexpr few_kind KIND = OUT ? FEW_OUT : TWO ? FEW_IN_Z : FEW_IN_X;
    extern __shared__ __align__(128) char shared[];
    __shared__ uint64_t barriers[3][BESIDE_SLOTS];
    __shared__ float scale[FEW_ROWS];
    dependents_start();
    const int warp = threadIdx.x / 32;
    row_runs runs;
    runs.first[0] = blockIdx.x * shape::ROWS, runs.first[1] = a.second + runs.first[0];
    if (TWO && !OUT)
        runs.first[1] = runs.first[0], runs.first[0] += 2 * M;
    runs.count[0] = runs.count[1] = shape::ROWS;
    const few_packed_ring ring = {shared,      barriers[0], barriers[1],
                                  barriers[2], a.n_slots,   shape::place(a.batch)};
    if (threadIdx.x == RING_THREADS - 32) {
        for (int i = 0; i < a.n_slots; i++)
            barrier_init(shared_address(ring.full + i), 1),
                barrier_init(shared_address(ring.x_full + i), 1),
                barrier_init(shared_address(ring.empty + i), RING_WARPS / 2);
        barriers_ready();
    }
    __syncthreads();
    if (warp == RING_WARPS + END_WARPS)
        return few_packed_ask<shape>(a, p.weights, ring);
    if constexpr (TWO && !OUT) {
        if (warp > RING_WARPS + END_WARPS)
            return few_rest<shape>(a, warp - (RING_WARPS + END_WARPS + 1));
    }
    const few_shared s = carve(a, shared + (size_t)a.n_slots * ring.place);
    if (warp >= RING_WARPS)
        return end_warps<KIND>(a, s, scale, runs, shape::K);

    few_packed_worker<shape> w(a);
#pragma unroll 1
    for (int run = 0; run < shape::RUNS; run++) {
        float c[shape::TILES][4] = {};
#pragma unroll 1
        for (int i = 0; i < shape::TURNS / 2; i++)
            w.slot(c, ring);
        w.store(c, s.sums + ((run * RING_WARPS + warp) * a.batch + w.g) * CHUNK, p.by);
        named_arrive(FULL_BARRIER + run, RING_CONSUMERS + END_THREADS);
    }
#endif
}

// ---- host side

// Slots of the ring, an even number, so that a place in it is one group's. in_proj takes what
// out_proj leaves; the advance between them has its part.
template <int M, bool OUT> static int slots_for(const device *d, const few_args &a) {
    typedef few_packed_shape<M, true> outs;
    if (OUT)
        return OUT_SLOTS;
    few_args out = {};
    out.batch = a.batch, out.buffers = 1, out.most_rows = outs::ROWS;
    const int all = (int)(d->shared_sm / 1024 - 3 - 8) * 1024;
    const int left = all - OUT_SLOTS * outs::place(a.batch) - (int)few_beside_ring(out) -
                     (int)few_beside_ring(a);
    return min(left / few_packed_shape<M, false>::place(a.batch) / 2 * 2, (int)BESIDE_SLOTS);
}

template <bool OUT, bool TWO, class F> static cudaError_t with_width(int d_model, F f) {
    return d_model == 2048   ? f(few_packed_kernel<2048, OUT, TWO>, few_packed_shape<2048, OUT>())
           : d_model == 2560 ? f(few_packed_kernel<2560, OUT, TWO>, few_packed_shape<2560, OUT>())
                             : cudaErrorInvalidValue;
}

template <bool OUT, bool TWO>
static cudaError_t run(const device *d, int layer, const few_args &args) {
    const layer_weights &w = d->layers[layer];
    const few_packed_args p = {(const char *)(OUT ? w.packed_out : w.packed_in),
                               packed_taken(OUT ? w.packed_out_by : w.packed_in_by)};
    const int threads = RING_THREADS + (TWO ? FEW_REST_WARPS * 32 : 0);
    return with_width<OUT, TWO>(d->g.d_model, [&](auto kernel, auto shape) {
        few_args a = args;
        a.n_slots = slots_for<shape.NW * 32, OUT>(d, a);
        a.flight = FLIGHT;
        const size_t shared = (size_t)a.n_slots * shape.place(a.batch) + few_beside_ring(a);
        const cudaError_t rc = few_prepare(kernel, shared);
        return rc ? rc : launch(d, kernel, dim3(PACKED_BLOCKS), threads, shared, true, a, p);
    });
}

// Of these widths; 790m by few.cu takes as long with two rows and less with four.
bool few_packed_fits(const device *d, int batch) {
    return (d->g.d_model == 2048 || d->g.d_model == 2560) && batch <= FEW_PACKED_ROWS;
}

int few_packed_blocks(void) {
    return PACKED_BLOCKS;
}

cudaError_t few_packed_in(const device *d, int layer, const few_args &a) {
    return d->g.kind == SSM_BLOCK_MAMBA2 ? run<false, true>(d, layer, a)
                                         : run<false, false>(d, layer, a);
}

cudaError_t few_packed_out(const device *d, int layer, const few_args &a) {
    few_args once = a;
    once.buffers = 1; // its rows' sums are handed on at once
    return run<true, false>(d, layer, once);
}

} // namespace ssm
