// SPDX-License-Identifier: Apache-2.0
// Mamba-1, one token of many sequences: the kernel that moves the states, most of a large step,
// where advance_ring.cu does not fit (other cards than Hopper, too few rows for all of its blocks).
//
// Bytes a row and layer: the state twice (327,680 in fp16 at 5,120 channels), x, z and y. What a
// card gives: advance_ring.cu. To come near it the states must be under way all the time, whatever
// else warps wait for. So:
//
// - Work is a list of tiles, 16 rows by 128 channels (64 in fp32), column after column; each of two
//   blocks an SM walks an even share of it.
// - A lane owns 16 bytes of a channel's states in a row, and a ring of DEPTH rows' in registers as
//   they were stored. As soon as a row is done its registers take one further on, of this tile or
//   of the next: loads stay under way through every other phase, 32 KB an SM at depth 4.
// - x, z and x_proj's sums of the next tile come by asynchronous copies, where rows lie two tiles
//   ahead; dt_proj's weights stay in shared memory while a block stays in its column.
// - A warp makes delta for its own channels (matrix units) and finishes its own outputs: a tile
//   needs one barrier.
//
// States are read before the wait for the kernel before (a step ago they were written last).
//
// Ladder, us a layer at 2.8b b512 in fp16:
//   one tile a block, phase after phase (advance_few.cu)             120
//   + this pipeline, 16 rows ahead (predicted 45)                     64.5
//   + no branch on a row: predicated stores, loads from a zero        60
//   + delta out of one bank, 4 rows ahead: no fewer were under way    58.5
// Tried and dropped: blocks of half as many threads, twice as many (b512 11.1 ms a step
// against 9.6, b128 5.4 against 5.1); asking L2 for the states during x_proj (medium.cu). Read by
// ncu: 22 M instructions, 1.6 a cycle of 4; warps wait for shared memory's reads (B and C are read
// for every channel) more than for the states. A predicated load into a register that is cleared
// first waits for itself: hence load_state's zero.
#include "advance.cuh"

namespace ssm {

enum { THREADS = 256, ROW_TILES = 4 };

struct stream_shared {
    char *dt_proj;  // [channels] rows of weight_pitch bytes
    float *delta;   // [TILE][channels + 8] before softplus; the padding keeps rows' banks apart
    float2 *pair;   // [TILE][channels] delta, delta x
    float *xdb;     // [2][TILE][xdb_pitch]
    bf16 *x, *z;    // [2][TILE][channels]; x becomes y
    row_tile *rows; // [ROW_TILES]
};

static size_t stream_bytes(int rank, int n_x, int channels) {
    return (size_t)channels * weight_pitch(rank) + TILE * (channels + 8) * sizeof(float) +
           TILE * channels * sizeof(float2) +
           2 * TILE * (xdb_pitch(n_x) * sizeof(float) + 2 * channels * sizeof(bf16)) +
           ROW_TILES * sizeof(row_tile);
}

__device__ __forceinline__ stream_shared carve_stream(char *p, int rank, int n_x, int channels) {
    stream_shared s;
    s.dt_proj = p, p += channels * weight_pitch(rank);
    s.delta = (float *)p, p += TILE * (channels + 8) * sizeof(float);
    s.pair = (float2 *)p, p += TILE * channels * sizeof(float2);
    s.xdb = (float *)p, p += 2 * TILE * xdb_pitch(n_x) * sizeof(float);
    s.x = (bf16 *)p, p += 2 * TILE * channels * sizeof(bf16);
    s.z = (bf16 *)p, p += 2 * TILE * channels * sizeof(bf16);
    s.rows = (row_tile *)p;
    return s;
}

// x, z and x_proj's sums of a tile's rows.
template <int CHANNELS>
__device__ __forceinline__ void stage_inputs(const mamba_args &a, const stream_shared &s,
                                             int buffer, const row_tile &rows, int first) {
    const int t = threadIdx.x % TILE; // 16 threads a row
#pragma unroll
    for (int r = threadIdx.x / TILE; r < TILE; r += THREADS / TILE) {
        const bool live = rows.at[r] >= 0;
        const size_t at = live ? (size_t)rows.at[r] : 0;
        const int to = (buffer * TILE + r) * CHANNELS + t * 8;
        if (t < CHANNELS / 8) {
            copy_async(s.x + to, (const bf16 *)a.x + at * a.channels + first + t * 8, live);
            copy_async(s.z + to, (const bf16 *)a.xz + (at * 2 + 1) * a.channels + first + t * 8,
                       live);
        }
        float *xdb = s.xdb + (buffer * TILE + r) * xdb_pitch(a.n_x);
        for (int v = t; v < a.n_x / 4; v += TILE)
            copy_async(xdb + v * 4, a.xdb + at * a.n_x + v * 4, live);
    }
}

template <class S, int DEPTH>
__global__ void __launch_bounds__(THREADS, 2)
    advance_stream_kernel(mamba_args a, const row *rows, int n_rows) {
    typedef stream_shape<S, THREADS> shape;
    constexpr int V = shape::V, LANES = shape::LANES, CHANNELS = shape::CHANNELS,
                  OF_WARP = shape::OF_WARP;
    extern __shared__ __align__(16) char memory[];
    dependents_start();
    const stream_shared s = carve_stream(memory, a.rank, a.n_x, CHANNELS);
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    const int q = lane % LANES, j = warp * OF_WARP + lane / LANES; // this lane's part of channel j
    const int n_tiles = (n_rows + TILE - 1) / TILE, n_items = n_tiles * (a.channels / CHANNELS);
    const int begin = (int)((int64_t)blockIdx.x * n_items / gridDim.x);
    const int end = (int)((int64_t)(blockIdx.x + 1) * n_items / gridDim.x);
    auto rows_of = [&](int item) -> row_tile & { return s.rows[(item - begin) % ROW_TILES]; };
    auto first_of = [&](int item) { return item / n_tiles * CHANNELS; };
    auto states_of = [&](int item) { // this lane's, of slot 0
        return (char *)a.state + ((size_t)(first_of(item) + j) * 16 + q * V) * sizeof(S);
    };
    const uint32_t slot_units = (uint32_t)(a.channels * 16 / V);
    auto describe = [&](int item) { // thread i: row i of the item's tile
        const int at = item % n_tiles * TILE + threadIdx.x;
        row r = {-1, -1, 0, 0};
        if (threadIdx.x < TILE && item < end && at < n_rows)
            r = rows[at];
        return r;
    };
    auto put_rows = [&](int item, const row &r) {
        if (threadIdx.x >= TILE)
            return;
        row_tile &to = rows_of(item);
        const uint32_t unit = r.slot < 0 ? (uint32_t)row_tile::NONE : (uint32_t)r.slot * slot_units;
        to.from[threadIdx.x] = r.fresh ? (uint32_t)row_tile::NONE : unit;
        to.to[threadIdx.x] = unit;
        to.at[threadIdx.x] = r.slot < 0 ? -1 : r.at;
    };
    uint4 raw[DEPTH]; // a ring: rows of this tile, then of the next
    auto fetch4 = [&](const row_tile &r, const char *states, int k, int u) { // row k + u
        const uint4 from = *(const uint4 *)(r.from + k);
        const uint32_t unit = u == 0 ? from.x : u == 1 ? from.y : u == 2 ? from.z : from.w;
        const void *at = states + (size_t)unit * 16;
        raw[(k + u) % DEPTH] = load_state(unit != row_tile::NONE ? at : &no_state);
    };

    {
        const row r0 = describe(begin), r1 = describe(begin + 1);
        put_rows(begin, r0);
        put_rows(begin + 1, r1);
    }
    __syncthreads();
#pragma unroll
    for (int k = 0; k < DEPTH; k++)
        fetch4(rows_of(begin), states_of(begin), k & ~3, k & 3);
    int first;
    float decay[V], bias, skip;
    auto begin_column = [&](int item) {
        first = first_of(item);
        stage_dt_proj(a, s.dt_proj, first, CHANNELS);
        load<V>(a.decay + (size_t)(first + j) * 16 + q * V, decay);
        skip = a.skip[first + j];
        bias = a.dt_bias[first + warp * OF_WARP + lane % OF_WARP];
    };
    begin_column(begin);
    dependency_wait();
    stage_inputs<CHANNELS>(a, s, 0, rows_of(begin), first_of(begin));
    copies_commit();
    for (int item = begin, buffer = 0; item < end; item++, buffer ^= 1) {
        const bool more = item + 1 < end;
        if (first != first_of(item)) {
            __syncthreads(); // nobody reads the old column's weights any more
            begin_column(item);
            copies_commit();
        }
        copies_wait();
        __syncthreads(); // this tile is there, and nobody works on the one before any more
        if (more)
            stage_inputs<CHANNELS>(a, s, buffer ^ 1, rows_of(item + 1), first_of(item + 1));
        const row coming = describe(item + 2);
        copies_commit();

        const int pitch = xdb_pitch(a.n_x);
        const float *xdb = s.xdb + buffer * TILE * pitch;
        bf16 *x_tile = s.x + buffer * TILE * CHANNELS + warp * OF_WARP;
        const bf16 *z_tile = s.z + buffer * TILE * CHANNELS + warp * OF_WARP;
        float2 *pair = s.pair + warp * OF_WARP;
        float *delta_tile = s.delta + warp * OF_WARP;
        delta_of_warp<OF_WARP / 8>(a, s.dt_proj + warp * OF_WARP * weight_pitch(a.rank), xdb, pitch,
                                   [&](int r, int c, float v0, float v1) {
                                       *(float2 *)(delta_tile + r * (CHANNELS + 8) + c) =
                                           make_float2(v0, v1);
                                   });
        __syncwarp();
#pragma unroll 4
        for (int r = lane / OF_WARP; r < TILE; r += 32 / OF_WARP) {
            const int at = r * CHANNELS + lane % OF_WARP;
            const float delta = softplus(delta_tile[r * (CHANNELS + 8) + lane % OF_WARP] + bias);
            pair[at] = make_float2(delta, delta * to_float(x_tile[at]));
        }
        __syncwarp();

        const row_tile &now = rows_of(item), &next = rows_of(item + 1);
        char *states = states_of(item);
        const char *next_states = states_of(more ? item + 1 : item);
        const int c = lane / LANES;
        float part[LANES];
#pragma unroll
        for (int k = 0; k < TILE; k++) {
            const float y = advance_row<S>(raw[k % DEPTH], pair[k * CHANNELS + c],
                                           xdb + k * pitch + a.rank + q * V, decay);
            const uint4 to = *(const uint4 *)(now.to + (k & ~3));
            const uint32_t unit = (k & 3) == 0   ? to.x
                                  : (k & 3) == 1 ? to.y
                                  : (k & 3) == 2 ? to.z
                                                 : to.w;
            store_state(states + (size_t)unit * 16, raw[k % DEPTH], unit != row_tile::NONE);
            const int then = (k + DEPTH) % TILE;
            if (k + DEPTH < TILE)
                fetch4(now, states, then & ~3, then & 3);
            else
                fetch4(next, next_states, then & ~3, then & 3);
            part[k % LANES] = y;
            if (k % LANES < LANES - 1)
                continue;
            spread_sums<LANES>(part, q);
            const int at = (k - (LANES - 1) + q) * CHANNELS + c;
            const float x = to_float(x_tile[at]), z = to_float(z_tile[at]);
            x_tile[at] = from_float<bf16>((part[0] + skip * x) * silu(z));
        }
        __syncwarp();
        constexpr int PARTS = OF_WARP / 8; // 16-byte parts of a row that is the warp's
        if (lane < TILE * PARTS) {
            const int k = lane / PARTS, part = lane % PARTS * 8;
            if (now.at[k] >= 0)
                *(uint4 *)((bf16 *)a.y + (size_t)now.at[k] * a.channels + first + warp * OF_WARP +
                           part) = *(const uint4 *)(x_tile + k * CHANNELS + part);
        }
        put_rows(item + 2, coming);
    }
}

static bool stream_fits(const device *d, const batch &b, int32_t n_splits, int channels) {
    const ssm_geometry &g = d->g;
    return b.n_rows > TILE && n_splits == 1 && d->weight_type == SSM_DTYPE_BF16 && d->arch >= 80 &&
           g.d_state == 16 && g.dt_rank % 8 == 0 && g.dt_rank <= 256 && g.d_inner % channels == 0;
}

template <class S> static cudaError_t stream(device *d, int layer, const batch &b) {
    constexpr int CHANNELS = stream_shape<S, THREADS>::CHANNELS;
    constexpr int DEPTH = sizeof(S) == 4 ? 8 : 4; // f32: 13.0 ms with 4
    const mamba_args a = row_arguments(d, layer, b, 1);
    const int64_t items = (int64_t)ceil_div(b.n_rows, TILE) * (a.channels / CHANNELS);
    const unsigned blocks = (unsigned)(items < 2 * d->n_sms ? items : 2 * d->n_sms);
    const size_t shared = stream_bytes(a.rank, a.n_x, CHANNELS);
    auto kernel = advance_stream_kernel<S, DEPTH>;
    const cudaError_t rc =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared);
    return rc ? rc
              : launch(d, kernel, dim3(blocks), THREADS, shared, b.decode, a, b.rows, b.n_rows);
}

// A row's x is read by the thread, or the block, that writes its y there, and by nobody behind it:
// so much less has to stay in L2 until out_proj (tests/bench/results/large-steps.md, "What L2 keeps
// of a layer"). Smaller steps have kernels of their own, and beside spans y is the scan's, too.
void *mamba_y(const device *d, const batch &b) {
    return b.decode && b.n > SPLIT_ROWS ? d->xc : d->y;
}

cudaError_t mamba_advance(device *d, int layer, const batch &b, int32_t n_splits) {
    if (short_fits(d, b, n_splits))
        return mamba_advance_short(d, layer, b);
    if (d->replays && !b.at_once)
        return advance_replay(d, layer, b);
    if (advance_ring_fits(d, b, n_splits))
        return mamba_advance_ring(d, layer, b);
    return with_state_type(d->state_type, [&](auto s) {
        typedef decltype(s) S;
        return stream_fits(d, b, n_splits, stream_shape<S, THREADS>::CHANNELS)
                   ? stream<S>(d, layer, b)
                   : mamba_advance_few(d, layer, b, n_splits);
    });
}

} // namespace ssm
