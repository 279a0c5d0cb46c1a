// SPDX-License-Identifier: Apache-2.0
// The kernel of conv_xproj.cu, which has the design, by role.
#ifndef SSM_KERNELS_CUDA_CONV_XPROJ_KERNEL_CUH
#define SSM_KERNELS_CUDA_CONV_XPROJ_KERNEL_CUH

#include "conv_xproj.cuh"

namespace ssm {

#if SSM_HOPPER

// One thread: weights.
template <class S>
__device__ __forceinline__ void cx_ask_weights(const cx_maps &maps, const cx_args &a,
                                               const cx_block<S> &b, int from, int to) {
    for (int p = from; p < to; p++) {
        b.template room<S::W_STAGES>(b.empty_w, p);
        const uint32_t full = b.full_w + p % S::W_STAGES * 8;
        barrier_expect(full, (uint32_t)(a.n_x * CX_ROW));
        copy_box(b.w_at(p), &maps.w, (b.first + p) * CX_PIECE, 0, full);
    }
}

// One thread: inputs, with the tokens before them, and the taps.
template <class S>
__device__ __forceinline__ void cx_ask_inputs(const cx_maps &maps, const cx_args &a,
                                              const cx_block<S> &b) {
    const int n = b.lists->n_in;
    const uint32_t bytes = (uint32_t)(b.lists->in_rows * CX_ROW + CX_TAPS);
#pragma unroll 1
    for (int p = 0; p < b.n; p++) {
        b.template room<S::X_STAGES>(b.empty_x, p);
        const uint32_t full = b.full_x + p % S::X_STAGES * 8, at = b.x_at(p);
        const int column = (b.first + p) * CX_PIECE;
        barrier_expect(full, bytes);
#pragma unroll 1
        for (int i = 0; i < n; i++) {
            const cx_copy c = b.lists->in[i];
            copy_box(at + (c.at & 0xffff) * CX_ROW, &maps.x[c.at >> 16], column, c.from, full);
        }
        copy_box(at + S::X_ROWS * CX_ROW, &maps.taps, column, 0, full);
        copy_run(at + S::X_ROWS * CX_ROW + 4 * CX_PIECE * 4, a.bias + column, CX_PIECE * 4, full);
    }
}

// One thread: x_proj's inputs as another kernel has left them.
template <class S>
__device__ __forceinline__ void cx_ask_outputs(const cx_maps &maps, const cx_block<S> &b,
                                               int token0) {
#pragma unroll 1
    for (int p = 0; p < b.n; p++) {
        b.template room<S::TILES>(b.empty_t, p);
        const uint32_t full = b.full_t + p % S::TILES * 8;
        barrier_expect(full, S::TILE_BYTES);
        copy_box(b.tile_at(p), &maps.out[CX_WHOLE], (b.first + p) * CX_PIECE, token0, full);
    }
}

// One thread: the tiles to memory.
template <class S>
__device__ __forceinline__ void cx_store(const cx_maps &maps, const cx_block<S> &b) {
    const int n = b.lists->n_out;
#pragma unroll 1
    for (int p = 0; p < b.n; p++) {
        b.template there<S::TILES>(b.full_t, p);
        const uint32_t at = b.tile_at(p);
#pragma unroll 1
        for (int i = 0; i < n; i++) {
            const cx_copy c = b.lists->out[i];
            store_box(&maps.out[c.at >> 16], (b.first + p) * CX_PIECE, c.from,
                      at + (c.at & 0xffff) * CX_ROW);
        }
        stores_commit();
        if (p > 0) {
            stores_read<1>();
            barrier_arrive(b.empty_t + (p - 1) % S::TILES * 8);
        }
    }
    stores_read<0>();
}

// A group of four warps: every GROUPS-th piece. A thread has four channels of RUN neighbouring
// rows.
template <class S> __device__ __forceinline__ void cx_convolve(const cx_block<S> &b, int group) {
    const int thread = threadIdx.x & 127, lane = thread & 31, q = thread & 15, run = thread >> 4;
#pragma unroll 1
    for (int p = group; p < b.n; p += S::GROUPS) {
        const char *stage = b.shared + (b.x_at(p) - b.w);
        b.template there<S::X_STAGES>(b.full_x, p);
        const float *taps = (const float *)(stage + S::X_ROWS * CX_ROW) + q * 4;
        float w[4][4], bias[4]; // w[j]: of the input j tokens ago
#pragma unroll
        for (int j = 0; j < 4; j++)
            load<4>(taps + (3 - j) * CX_PIECE, w[j]);
        load<4>(taps + 4 * CX_PIECE, bias);
        const char *from = stage + run * S::RUN * CX_ROW + q * 8;
        uint2 in[S::GROUP + 3];
        float x[4][4];
        uint32_t to = 0;
#pragma unroll
        for (int i = 0; i < S::RUN; i++) {
            if (i % S::GROUP == 0) { // all of some rows before the first is used
#pragma unroll
                for (int k = i ? 3 : 0; k < S::GROUP + 3; k++)
                    in[k] = *(const uint2 *)(from + (i + k) * CX_ROW);
                if (i + S::GROUP >= S::RUN) {
                    __syncwarp();
                    if (lane == 0)
                        barrier_arrive(b.empty_x + p % S::X_STAGES * 8);
                }
                if (i == 0) {
#pragma unroll
                    for (int j = 1; j < 4; j++) // as it will have moved
                        load<4>((const bf16 *)&in[3 - j], x[j - 1]);
                    b.template room<S::TILES>(b.empty_t, p);
                    to = b.tile_at(p) + run * S::RUN * CX_ROW + (q & 1) * 8;
                }
            }
#pragma unroll
            for (int j = 3; j > 0; j--) {
#pragma unroll
                for (int k = 0; k < 4; k++)
                    x[j][k] = x[j - 1][k];
            }
            load<4>((const bf16 *)&in[i % S::GROUP + 3], x[0]);
            float sum[4];
#pragma unroll
            for (int k = 0; k < 4; k++) // in conv4.cuh's order
                sum[k] = silu(bias[k] + w[0][k] * x[0][k] + w[1][k] * x[1][k] + w[2][k] * x[2][k] +
                              w[3][k] * x[3][k]);
            const int row = S::RUN % 8 == 0 ? i : run * S::RUN + i;
            // orders nothing, so that several tokens are under way; fence_async() does
            asm volatile("st.shared.v2.u32 [%0], {%1,%2};" ::"r"(to + i * CX_ROW +
                                                                 ((q >> 1 ^ row) & 7) * 16),
                         "r"(pack_bf16(sum[0], sum[1])), "r"(pack_bf16(sum[2], sum[3])));
        }
        fence_async();
        __syncwarp();
        if (lane == 0) {
            barrier_arrive(b.full_t + p % S::TILES * 8);
        }
    }
}

// The group that multiplies: weight rows by the tile's rows.
template <class S>
__device__ __forceinline__ void cx_multiply(const cx_block<S> &b, float (&acc)[S::MT][S::N / 2]) {
    const int lane = threadIdx.x & 31;
#pragma unroll
    for (int m = 0; m < S::MT; m++) {
#pragma unroll
        for (int i = 0; i < S::N / 2; i++)
            acc[m][i] = 0;
    }
    const auto give = [&](int p) {
        if (lane == 0) {
            barrier_arrive(b.empty_w + p % S::W_STAGES * 8);
            barrier_arrive(b.empty_t + p % S::TILES * 8);
        }
    };
#pragma unroll 1
    for (int p = 0; p < b.n; p++) {
        b.template there<S::W_STAGES>(b.full_w, p);
        b.template there<S::TILES>(b.full_t, p);
        const uint64_t w = tile_at(b.w_at(p)), x = tile_at(b.tile_at(p));
        wgmma_fence();
#pragma unroll
        for (int k = 0; k < 4; k++) { // 16 columns are 32 bytes
#pragma unroll
            for (int m = 0; m < S::MT; m++)
                wgmma(acc[m], w + m * (64 * CX_ROW / 16) + k * 2, x + k * 2);
        }
        wgmma_commit();
        wgmma_wait<1>();
        if (p > 0)
            give(p - 1);
    }
    wgmma_wait<0>();
#pragma unroll
    for (int m = 0; m < S::MT; m++)
        wgmma_touch(acc[m]);
}

// The sums' way to memory. Of a cluster each block adds up its share of the tile's pairs of tokens,
// as a tree: others send theirs to its shared memory.
template <class S>
__device__ __forceinline__ void cx_finish(const cx_args &a, const cx_block<S> &b,
                                          const float (&acc)[S::MT][S::N / 2]) {
    const int lane = threadIdx.x & 31, g = lane >> 2, q = lane & 3;
    const int row0 = threadIdx.x / 32 * 16 + g;
    constexpr int SPLITS = S::SPLITS;
    if constexpr (SPLITS > 1) {
        cluster_wait(); // the peers' barriers are there
#pragma unroll
        for (int j = 0; j < S::N / 8; j++) {
            const int pair = 4 * j + q, owner = pair / S::PAIRS;
            if (owner == b.split)
                continue;
            const int slot = b.split < owner ? b.split : b.split - 1;
            const uint32_t at =
                b.sums + (slot * S::PAIRS + pair - owner * S::PAIRS) * S::PAIR_BYTES;
            const uint32_t to = peer_address(at + row0 * 8, owner);
            const uint32_t arrived = peer_address(b.arrived, owner);
#pragma unroll
            for (int m = 0; m < S::MT; m++) {
#pragma unroll
                for (int h = 0; h < 2; h++)
                    store_to_peer(to + m * 512 + h * 64,
                                  make_float2(acc[m][4 * j + 2 * h], acc[m][4 * j + 2 * h + 1]),
                                  arrived);
            }
        }
        __syncwarp();
        barrier_wait(b.arrived, 0);
    }
#pragma unroll
    for (int j = 0; j < S::N / 8; j++) {
        const int pair = 4 * j + q, own = pair - b.split * S::PAIRS;
        if (own < 0 || own >= S::PAIRS)
            continue;
        const int2 token = *(const int2 *)(b.lists->token + 2 * pair);
#pragma unroll
        for (int m = 0; m < S::MT; m++) {
#pragma unroll
            for (int h = 0; h < 2; h++) {
                const int row = m * 64 + row0 + h * 8;
                float2 part[SPLITS];
#pragma unroll
                for (int s = 0; s < SPLITS; s++) {
                    part[s] = make_float2(acc[m][4 * j + 2 * h], acc[m][4 * j + 2 * h + 1]);
                    if (s != b.split)
                        part[s] = load_shared(
                            b.sums + ((s < b.split ? s : s - 1) * S::PAIRS + own) * S::PAIR_BYTES +
                            row * 8);
                }
#pragma unroll
                for (int step = 1; step < SPLITS; step *= 2) {
#pragma unroll
                    for (int s = 0; s + step < SPLITS; s += 2 * step)
                        part[s].x += part[s + step].x, part[s].y += part[s + step].y;
                }
                if (row >= a.n_x)
                    continue;
                if (token.x >= 0)
                    a.sums[(size_t)token.x * a.n_x + row] = part[0].x;
                if (token.y >= 0)
                    a.sums[(size_t)token.y * a.n_x + row] = part[0].y;
            }
        }
    }
}

// Spans' last inputs to their rings: of the pieces whose history this group has had, which nobody
// else reads.
template <class S>
__device__ __forceinline__ void cx_leave_tails(const cx_args &a, const cx_block<S> &b, int group) {
    const int pieces = (b.n - group + S::GROUPS - 1) / S::GROUPS;
    for (int i = 0; i < b.lists->n_begins; i++) {
        const span s = a.spans[b.lists->begins[i]];
        for (int k = threadIdx.x & 127; k < pieces * 24; k += 128) {
            const int p = k / 24 * S::GROUPS + group, j = k % 24 / 8; // j: before the span's end
            const int c = (b.first + p) * CX_PIECE + k % 8 * 8;
            const int e = ((s.ring + s.count - 1 - j) % 3 + 3) % 3;
            uint4 v = make_uint4(0, 0, 0, 0);
            if (j < s.count)
                v = *(const uint4 *)(a.in + (size_t)(s.first + s.count - 1 - j) * a.in_pitch + c);
            if (j < s.count || s.fresh)
                *(uint4 *)(a.ring + ((size_t)s.slot * 3 + e) * a.channels + c) = v;
        }
    }
}

#endif

template <class S>
__global__ void __launch_bounds__(S::THREADS, 1)
    conv_xproj_kernel(const __grid_constant__ cx_maps maps, const __grid_constant__ cx_args a) {
#if SSM_HOPPER
    extern __shared__ __align__(1024) char shared[];
    constexpr int COPIES = 4 + 4 * S::GROUPS; // first warp that copies
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, tile = blockIdx.x / S::SPLITS;
    cx_block<S> b;
    b.shared = shared, b.lists = (cx_lists<S> *)(shared + S::LISTS_AT);
    b.w = shared_address(shared), b.tiles = b.w + S::W_STAGES * S::W_BYTES;
    b.x = b.tiles + S::TILES * S::TILE_BYTES, b.sums = b.w + S::SUMS_AT;
    b.full_w = b.w + S::BARRIERS_AT, b.empty_w = b.full_w + 64, b.full_t = b.empty_w + 64;
    b.empty_t = b.full_t + 64, b.full_x = b.empty_t + 64, b.empty_x = b.full_x + 64;
    b.arrived = b.empty_x + 64;
    b.split = blockIdx.x % S::SPLITS, b.first = a.pieces * b.split / S::SPLITS;
    b.n = a.pieces * (b.split + 1) / S::SPLITS - b.first;
    const int ahead = min(b.n, S::W_STAGES);
    if (warp == COPIES + 1 && lane == 0) {
        for (int i = 0; i < S::W_STAGES; i++)
            barrier_init(b.full_w + i * 8, 1), barrier_init(b.empty_w + i * 8, 4);
        for (int i = 0; i < S::TILES; i++) {
            barrier_init(b.full_t + i * 8, S::CONV ? 4 : 1);
            barrier_init(b.empty_t + i * 8, S::CONV ? 5 : 4);
        }
        for (int i = 0; i < S::X_STAGES; i++)
            barrier_init(b.full_x + i * 8, 1), barrier_init(b.empty_x + i * 8, 4);
        barrier_init(b.arrived, 1);
        barriers_ready();
        if (S::SPLITS > 1)
            barrier_expect(b.arrived, (S::SPLITS - 1) * S::PAIRS * S::MT * 64 * 8);
        map_prefetch(&maps.w);
        cx_ask_weights(maps, a, b, 0, ahead); // weights depend on nothing
    } else if (warp == COPIES) {
        if (lane == 0)
            map_prefetch(S::CONV ? &maps.x[CX_WHOLE] : &maps.out[CX_WHOLE]);
        if constexpr (S::CONV) {
            cx_list<S>(a, tile, *b.lists);
        } else {
            for (int i = lane; i < S::N; i += 32) {
                const int token = tile * S::N + i;
                b.lists->token[i] = token < a.tokens ? token : -1;
            }
        }
    }
    __syncthreads();
    if (S::CONV && b.lists->n_out == 0) { // behind the last one: no block of the cluster has work
        if (warp == COPIES + 1 && lane == 0) {
            for (int p = 0; p < ahead; p++)
                b.template there<S::W_STAGES>(b.full_w, p);
        }
        return;
    }
    if (S::SPLITS > 1)
        cluster_arrive();
    if (warp < 4) {
        if constexpr (S::CONV)
            more_registers<S::MULTIPLYING>();
        float acc[S::MT][S::N / 2];
        cx_multiply<S>(b, acc);
        cx_finish<S>(a, b, acc);
        return;
    }
    if (S::SPLITS > 1)
        cluster_wait();
    if (warp < COPIES) {
        if constexpr (S::CONV) {
            fewer_registers<S::CONVOLVING>();
            cx_convolve<S>(b, warp / 4 - 1);
            dependency_wait(); // long over: for what these threads read
            cx_leave_tails<S>(a, b, warp / 4 - 1);
        }
    } else {
        if constexpr (S::CONV)
            fewer_registers<S::COPYING>();
        if (lane == 0) {
            if (warp == COPIES) {
                dependency_wait();
                if constexpr (S::CONV)
                    cx_ask_inputs<S>(maps, a, b);
                else
                    cx_ask_outputs<S>(maps, b, tile * S::N);
            } else if (warp == COPIES + 1) {
                cx_ask_weights<S>(maps, a, b, ahead, b.n);
            } else if (warp == COPIES + 2 && S::CONV) {
                cx_store<S>(maps, b);
                stores_done();
            }
        }
    }
#endif
}

} // namespace ssm

#endif
