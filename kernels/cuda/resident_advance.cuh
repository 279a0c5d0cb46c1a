// SPDX-License-Identifier: Apache-2.0
// resident.cu's second half of a layer: the states of the cluster's channels one token on, out_proj
// and the residual.
#ifndef SSM_KERNELS_CUDA_RESIDENT_ADVANCE_CUH
#define SSM_KERNELS_CUDA_RESIDENT_ADVANCE_CUH

#include "resident_x_proj.cuh"

namespace ssm {

#if SSM_HOPPER

// A warp's tokens are every eighth of the rank's; a lane holds 16 bytes of states of a channel in
// each of GROUPS groups of channels. States come through the ring: whole tokens, OF_SLOT at once.
template <int NW, class S> struct resident_states {
    enum {
        V = 16 / sizeof(S),
        LANES = 16 / V,
        OF_GROUP = 32 / LANES,
        GROUPS = (NW + OF_GROUP - 1) / OF_GROUP,
        ENDS = (GROUPS + LANES - 1) / LANES, // sums of y that a lane ends
        TOKENS = HALF_ROWS / 8,
        ROW_BYTES = NW * 16 * sizeof(S), // of a token
        OF_SLOT = resident_shape<NW>::SLOT / ROW_BYTES,
        BIASES = (NW / 8 + 7) / 8
    };
    typedef resident_shape<NW> shape;
    float decay[GROUPS][V], skip[ENDS];
    float2 bias[BIASES]; // of dt_proj: of the channels whose delta this thread makes

    int slot[TOKENS], token[TOKENS]; // slot -1: none
    bool fresh[TOKENS];

    __device__ __forceinline__ resident_states(const resident_args &a, const resident_block<NW> &b,
                                               int warp) {
#pragma unroll
        for (int k = 0; k < TOKENS; k++) {
            token[k] = token_of(b.rank, k * 8 + warp);
            slot[k] = -1, fresh[k] = true;
            if (token[k] < a.tokens) {
                const row r = a.rows[token[k]];
                slot[k] = r.slot, fresh[k] = r.fresh || r.slot < 0;
            }
        }
    }
    static __device__ __forceinline__ int channel(const resident_worker<NW> &w, int i) {
        return i * OF_GROUP + w.lane / LANES;
    }
    static __device__ __forceinline__ int end_channel(const resident_worker<NW> &w, int j) {
        return channel(w, j * LANES + w.lane % LANES);
    }
    // Constants of the layer, asked for ahead of time.
    __device__ __forceinline__ void ask(const resident_args &a, const resident_block<NW> &b,
                                        const resident_worker<NW> &w) {
        const resident_layer &l = a.layers[w.layer];
#pragma unroll
        for (int i = 0; i < GROUPS; i++) {
            const int c = b.cluster * NW + min(channel(w, i), NW - 1);
            const float *from = l.decay + (size_t)c * 16 + w.lane % LANES * V;
#pragma unroll
            for (int v = 0; v < V; v += 4) {
                const uint4 d = load_once(from + v);
                decay[i][v] = __uint_as_float(d.x), decay[i][v + 1] = __uint_as_float(d.y);
                decay[i][v + 2] = __uint_as_float(d.z), decay[i][v + 3] = __uint_as_float(d.w);
            }
        }
#pragma unroll
        for (int j = 0; j < ENDS; j++)
            skip[j] = load_number(l.skip + b.cluster * NW + min(end_channel(w, j), NW - 1));
#pragma unroll
        for (int t = 0; t < BIASES; t++) {
            const int c = min((w.warp + 8 * t) * 8, NW - 8) + 2 * w.q;
            bias[t] = load_pair(l.dt_bias + b.cluster * NW + c);
        }
    }

    // delta and delta x of all channels and the rank's tokens, to shared memory. dt: rows of
    // DT_PITCH bytes.
    __device__ __forceinline__ void deltas(const resident_block<NW> &b, resident_worker<NW> &w,
                                           const char *dt) {
        int slots[2];
#pragma unroll
        for (int i = 0; i < shape::DT_SLOTS; i++)
            slots[i] = next_slot(b, w);
        float *pairs = (float *)b.peer_place(); // [token][channel][2]
        uint32_t bits = 0;
#pragma unroll
        for (int t = 0; t < BIASES; t++) {
            const int tile = w.warp + 8 * t;
            if (tile * 8 >= NW)
                break;
            const char *rows = b.slot(t == 0 ? slots[0] : slots[shape::DT_SLOTS - 1]) +
                               (w.warp * 8 + w.g) * (shape::RANK * 2);
            float c[2][4] = {};
#pragma unroll
            for (int k = 0; k < shape::RANK; k += 32) {
                const bool there = k + w.q * 8 < shape::RANK;
                const uint4 none = make_uint4(0, 0, 0, 0);
                const int at = (k + w.q * 8) * 2;
                const uint4 d = there ? *(const uint4 *)(rows + at) : none;
#pragma unroll
                for (int m = 0; m < 2; m++) {
                    const char *of = dt + (m * 16 + w.g) * shape::DT_PITCH + at;
                    const uint4 lo = there ? *(const uint4 *)of : none;
                    const uint4 hi = there ? *(const uint4 *)(of + 8 * shape::DT_PITCH) : none;
                    mma(c[m], lo.x, hi.x, lo.y, hi.y, d.x, d.y);
                    mma(c[m], lo.z, hi.z, lo.w, hi.w, d.z, d.w);
                }
            }
            bits |= __float_as_uint(c[0][0]) | __float_as_uint(c[1][0]);
            const int channel = tile * 8 + 2 * w.q;
#pragma unroll
            for (int m = 0; m < 4; m++) {
                const int r = m * 8 + w.g;
                const uint32_t x = *(const uint32_t *)(b.x() + r * shape::PITCH + channel);
                const float d0 = softplus(c[m / 2][m % 2 * 2] + bias[t].x);
                const float d1 = softplus(c[m / 2][m % 2 * 2 + 1] + bias[t].y);
                *(float4 *)(pairs + (r * NW + channel) * 2) =
                    make_float4(d0, d0 * low_half(x), d1, d1 * high_half(x));
            }
        }
#pragma unroll
        for (int i = 0; i < shape::DT_SLOTS; i++)
            give_back(b, w, slots[i], bits);
        workers_sync();
    }

    // One token's states, and y in place of its x. bc: rows of BC_PITCH floats.
    __device__ __forceinline__ void token_on(const resident_args &a, const resident_block<NW> &b,
                                             resident_worker<NW> &w, const float *bc, int k) {
        const int r = k * 8 + w.warp, q = w.lane % LANES;
        uint4 raw[GROUPS];
#pragma unroll
        for (int i = 0; i < 8 / OF_SLOT; i++) { // slots of eight tokens
            const int at = next_slot(b, w);
            uint32_t bits = 0;
            if (w.warp / OF_SLOT == i) {
                const uint4 *from =
                    (const uint4 *)(b.slot(at) + w.warp % OF_SLOT * ROW_BYTES) + w.lane;
#pragma unroll
                for (int j = 0; j < GROUPS; j++) {
                    raw[j] = fresh[k] ? make_uint4(0, 0, 0, 0) : from[j * 32];
                    bits |= raw[j].x;
                }
            }
            give_back(b, w, at, bits);
        }
        const float2 *pairs = (const float2 *)b.peer_place() + r * NW;
        float vb[V], vc[V], y[ENDS][LANES] = {};
        load<V>(bc + r * shape::BC_PITCH + q * V, vb);
        load<V>(bc + r * shape::BC_PITCH + 16 + q * V, vc);
        const size_t first = (size_t)max(slot[k], 0) * shape::INNER + b.cluster * NW;
        char *states = a.state + w.layer * a.state_pitch + first * 16 * sizeof(S) + w.lane * 16;
#pragma unroll
        for (int i = 0; i < GROUPS; i++) {
            const float2 pair = pairs[min(channel(w, i), NW - 1)];
            float h[V], sum = 0;
            load<V>((const S *)&raw[i], h);
#pragma unroll
            for (int v = 0; v < V; v++)
                h[v] = exp2_fast(pair.x * decay[i][v]) * h[v] + pair.y * vb[v];
#pragma unroll
            for (int v = 0; v < V; v++)
                sum += h[v] * vc[v];
            store<V>((S *)&raw[i], h);
            y[i / LANES][i % LANES] = sum;
        }
#pragma unroll
        for (int i = 0; i < GROUPS; i++)
            store_state(states + i * 512, raw[i],
                        slot[k] >= 0 && (NW % OF_GROUP == 0 || channel(w, i) < NW));
        bf16 *x = b.x() + r * shape::PITCH;
        const bf16 *z = b.z() + r * shape::PITCH;
#pragma unroll
        for (int j = 0; j < ENDS; j++) {
            spread_sums<LANES>(y[j], q);
            const int c = end_channel(w, j);
            if (c < NW) {
                const float vx = to_float(x[c]), vz = to_float(z[c]);
                x[c] = from_float<bf16>((y[j][0] + skip[j] * vx) * silu(vz));
            }
        }
        __syncwarp();
        if (w.lane < NW / 8)
            *(uint4 *)(a.y + (size_t)token[k] * shape::INNER + b.cluster * NW + w.lane * 8) =
                *(const uint4 *)(x + w.lane * 8);
    }

    __device__ __forceinline__ void advance(const resident_args &a, const resident_block<NW> &b,
                                            resident_worker<NW> &w,
                                            const float (&z)[shape::GROUP_ROWS / 2], float by) {
        barrier_wait(b.open + 8, w.layer & 1);
        char *dt = b.staged();
        float *bc = (float *)(dt + HALF_ROWS * shape::DT_PITCH);
        const bf16 *from_dt = dt_of<NW>(a, b.rank);
        const float *from_bc = bc_of<NW>(a, b.rank);
#pragma unroll 4
        for (int i = threadIdx.x; i < b.mine * (shape::RANK / 8); i += RESIDENT_WORKERS) {
            const int r = i / (shape::RANK / 8), v = i % (shape::RANK / 8);
            copy_async(dt + r * shape::DT_PITCH + v * 16, from_dt + i * 8, true);
        }
        for (int i = threadIdx.x; i < b.mine * 8; i += RESIDENT_WORKERS)
            copy_async(bc + i / 8 * shape::BC_PITCH + i % 8 * 4, from_bc + i * 4, true);
        copies_commit();
        keep_z(b, w, z, by);
        copies_wait();
        workers_sync();
        deltas(b, w, dt);
#pragma unroll
        for (int k = 0; k < TOKENS; k++) {
            if (k * 8 + 8 == b.mine && threadIdx.x == 0) // the last one
                b.ask_up_to(w.first + w.in_layer - shape::OUT_PIECES);
            if (k * 8 < b.mine)
                token_on(a, b, w, bc, k);
        }
        fence_async(); // the peer's copies may follow
        workers_sync();
        if (threadIdx.x == 0) {
            count_up(&a.scratch->counts.y[b.split]);
            b.ask_up_to(NO_LIMIT);
        }
    }
};

// out_proj: this block's share of a tile's sums.
template <int NW>
__device__ __forceinline__ void out_proj_shares(const resident_args &a, const resident_block<NW> &b,
                                                resident_worker<NW> &w) {
    typedef resident_shape<NW> shape;
    float acc[NW / 2] = {};
    columns<NW, NW, 1>(b, w, shape::OUT_PIECES, w.group * NW, w.first + w.in_layer, acc);
    const int t = w.warp % 4 * 16 + w.g;
    float *to = shares_of<NW>(a) + (size_t)(b.split * RESIDENT_ROWS + t) * shape::WIDTH +
                b.tile * shape::TILE_ROWS + w.group * NW;
    // A thread has two rows of the weights of every eight: of two eights its neighbour's two, too.
    const bool odd = w.q % 2;
#pragma unroll
    for (int i = 0; i + 1 < NW / 8; i += 2) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const float *mine = acc + 4 * i + 2 * half;
            const float x = __shfl_xor_sync(~0u, odd ? mine[0] : mine[4], 1);
            const float y = __shfl_xor_sync(~0u, odd ? mine[1] : mine[5], 1);
            if (t + 8 * half < a.tokens)
                *(float4 *)(to + 8 * half * shape::WIDTH + (i + odd) * 8 + w.q / 2 * 4) =
                    odd ? make_float4(x, y, mine[4], mine[5]) : make_float4(mine[0], mine[1], x, y);
        }
    }
    if constexpr (NW / 8 % 2) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            if (t + 8 * half < a.tokens)
                *(float2 *)(to + 8 * half * shape::WIDTH + NW - 8 + 2 * w.q) =
                    make_float2(acc[NW / 2 - 4 + 2 * half], acc[NW / 2 - 3 + 2 * half]);
        }
    }
    workers_sync();
    if (threadIdx.x == 0)
        count_up(&a.scratch->counts.shares[b.tile]);
}

// Adds them up for an eighth of the tokens, a warp a token, onto the residual; the next layer's
// input and its sums of squares.
template <int NW>
__device__ __forceinline__ void residual(const resident_args &a, const resident_block<NW> &b,
                                         const resident_worker<NW> &w) {
    typedef resident_shape<NW> shape;
    enum { UNITS = NW / 2, A_LANE = (UNITS + 31) / 32 }; // of four rows of the tile
    const int eighth = a.tokens / 8, token = b.split * eighth + w.warp;
    const bool live = w.warp < eighth;
    const float *next_norm = a.layers[w.layer].next_norm;
    float *out = a.residual + (size_t)token * shape::WIDTH + b.tile * shape::TILE_ROWS;
    float4 v[A_LANE], norm[A_LANE];
    if (live) {
#pragma unroll
        for (int i = 0; i < A_LANE; i++) {
            const int at = min(i * 32 + w.lane, UNITS - 1) * 4;
            v[i] = load_shared_sum(out + at);
            if (next_norm)
                norm[i] = load_shared_sum(next_norm + b.tile * shape::TILE_ROWS + at);
        }
    }
    workers_wait(&a.scratch->counts.shares[b.tile], RESIDENT_SPLITS * (w.layer + 1));
    if (live) {
        const float *from =
            shares_of<NW>(a) + (size_t)token * shape::WIDTH + b.tile * shape::TILE_ROWS;
        float4 sum[A_LANE][RESIDENT_SPLITS];
        float square = 0;
#pragma unroll
        for (int i = 0; i < A_LANE; i++) {
            const int at = min(i * 32 + w.lane, UNITS - 1) * 4;
#pragma unroll
            for (int s = 0; s < RESIDENT_SPLITS; s++)
                sum[i][s] = load_shared_sum(from + (size_t)s * RESIDENT_ROWS * shape::WIDTH + at);
        }
#pragma unroll
        for (int i = 0; i < A_LANE; i++) {
            const int at = (i * 32 + w.lane) * 4;
            if (at >= UNITS * 4)
                break;
#pragma unroll
            for (int s = 1; s < RESIDENT_SPLITS; s++)
                add4(sum[i][0], sum[i][s]);
            add4(v[i], sum[i][0]);
            square += (v[i].x * v[i].x + v[i].y * v[i].y) + (v[i].z * v[i].z + v[i].w * v[i].w);
            *(float4 *)(out + at) = v[i];
            if (next_norm)
                *(uint2 *)(a.u + (size_t)token * shape::WIDTH + b.tile * shape::TILE_ROWS + at) =
                    make_uint2(pack_bf16(v[i].x * norm[i].x, v[i].y * norm[i].y),
                               pack_bf16(v[i].z * norm[i].z, v[i].w * norm[i].w));
        }
        square = warp_sum(square);
        if (w.lane == 0)
            a.scratch->squares[token][b.tile] = square;
    }
    workers_sync();
    if (threadIdx.x == 0) {
        count_up(&a.scratch->counts.input);
        b.ask_up_to(NO_LIMIT);
    }
}

#endif

} // namespace ssm

#endif
