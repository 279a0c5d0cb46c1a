// SPDX-License-Identifier: Apache-2.0
// Spans of S4D and H3 as a scan.
//
// A block takes 32 channels of one piece of a span, a lane a channel: inputs and outputs are whole
// lines. A warp takes POLES poles of each (S4D: of the channel's; H3: of channel (h, b) those for
// one a, whose input is k'_a v_b and whose weight is q_a), their states and coefficients in
// registers through all tokens: eight multiply-adds a pole and token and two trips to shared memory
// a warp. Warps' sums of TILE tokens are added in a fixed order. If there are more poles than warps
// have room for, states wait in memory between tiles.
//
// With few sequences a span is cut into pieces: each runs from zeros (local), a thread a pole then
// goes over the pieces with Ab^count, made in fp64 by squaring, and they run again from the states
// that they should have begun with. Bytes: inputs and outputs, and the states of each piece twice.
// Measured, H200, 8,192 tokens of a layer of shakespeare-s4d: 47, 11 and 78 us.
//
// H3's prompts are launches: 4,096 tokens of induction-h3 take 230 us in 23 of them.
#include "lti.cuh"

namespace ssm {

enum { POLES = 8, TILE = 32, MOST_WARPS = 8 };

struct scan_args {
    pole_args p;
    const float *u; // [token row][u_pitch]: S4D's normed input, H3's v
    const float *q; // H3 [token row][u_pitch]
    const float *k; // H3 k' [token row][width]
    int u_pitch;
    float2 *carry; // [piece][slot_pairs]
    void *y;       // T [token row][width]
    const span *spans;
    const piece *pieces;
    bool split;
};

// residual to fp32, RMS-normed, times weight. A warp a row.
__global__ void norm_kernel(const float *in, const float *weight, float *out, int width, int n,
                            float eps) {
    const int r = blockIdx.x * (blockDim.x >> 5) + (threadIdx.x >> 5), lane = threadIdx.x & 31;
    if (r >= n)
        return;
    const float *x = in + (size_t)r * width;
    const float scale = rsqrtf(square_sum(x, width) / width + eps);
    for (int i = lane; i < width; i += 32)
        out[(size_t)r * width + i] = x[i] * scale * weight[i];
}

cudaError_t lti_norm(device *d, const float *weight, int32_t n) {
    return launch(d, norm_kernel, dim3((unsigned)ceil_div(n, 8)), 256, 0, false,
                  (const float *)d->residual, weight, d->lti_u, d->g.d_model, n, d->g.norm_eps);
}

// Where in a slot POLES poles of group g lie, and whose coefficients they have.
struct group {
    int a, first, coefficient, state; // first: pole
};

template <bool PAIRS> __device__ __forceinline__ group group_of(const pole_args &p, int g, int c) {
    const int a_group = (p.n + POLES - 1) / POLES;
    group o;
    o.a = PAIRS ? g / a_group : 0;
    o.first = (PAIRS ? g % a_group : g) * POLES;
    const int head = PAIRS ? c / p.head_dim : c, b = PAIRS ? c - head * p.head_dim : 0;
    o.coefficient = head * p.n + o.first;
    o.state =
        PAIRS ? ((head * p.head_dim + o.a) * p.head_dim + b) * p.n + o.first : c * p.n + o.first;
    return o;
}

// The sums of WARPS warps, D u, S4D's gelu; out to memory.
template <class T, bool PAIRS>
__device__ __forceinline__ void finish(const scan_args &a, const float *sums, int first, int some,
                                       int warps) {
    const int lane = threadIdx.x & 31, c = blockIdx.x * 32 + lane;
    if (c >= a.p.width)
        return;
    const int head = PAIRS ? c / a.p.head_dim : c, b = PAIRS ? c - head * a.p.head_dim : 0;
    for (int t = threadIdx.x >> 5; t < some; t += blockDim.x >> 5) {
        const size_t row = (size_t)(first + t);
        const float u = a.u[row * a.u_pitch + c];
        float y = 0;
        for (int w = 0; w < warps; w++)
            y += sums[(w * TILE + t) * 32 + lane];
        if (PAIRS) {
            const float *q = a.q + row * a.u_pitch + head * a.p.head_dim;
            const float *k = a.k + row * a.p.width + head * a.p.head_dim;
            float direct = 0;
            for (int e = 0; e < a.p.head_dim; e++)
                direct = fmaf(q[e], k[e], direct);
            y = fmaf(a.p.skip[head] * u, direct, y);
            ((T *)a.y)[row * a.p.width + b * a.p.heads + head] = from_float<T>(y);
        } else {
            y = fmaf(a.p.skip[c], u, y);
            ((T *)a.y)[row * a.p.width + c] = from_float<T>(gelu(y));
        }
    }
}

// LOCAL: from zeros, what the piece leaves goes to carry and nothing else is written.
template <class T, bool PAIRS, bool LOCAL>
__global__ void __launch_bounds__(MOST_WARPS * 32) scan_kernel(scan_args a) {
    extern __shared__ float sums[]; // [warps][TILE][32]
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
    const int c = min(blockIdx.x * 32 + lane, a.p.width - 1); // past the end: the last one again
    const bool inside = blockIdx.x * 32 + lane < a.p.width;
    const piece piece = a.pieces[blockIdx.y];
    const span span = a.spans[piece.span];
    const bool is_last = piece.first + piece.count == span.first + span.count;
    const int head = PAIRS ? c / a.p.head_dim : 0;
    const int groups = (PAIRS ? a.p.head_dim : 1) * ((a.p.n + POLES - 1) / POLES);
    const bool keep = groups <= warps; // in registers from tile to tile
    float2 *slot = a.p.state + (size_t)span.slot * a.p.slot_pairs;
    float2 *work = LOCAL || a.split ? a.carry + (size_t)piece.index * a.p.slot_pairs : slot;
    const bool zero = LOCAL || (!a.split && span.fresh);
    float2 ab[POLES], bb[POLES], cc[POLES], s[POLES];
    for (int t0 = 0; t0 < piece.count; t0 += TILE) {
        const int some = min((int)TILE, piece.count - t0), first = piece.first + t0;
        const bool ends = t0 + TILE >= piece.count;
        for (int g = warp; g < groups; g += warps) {
            const group o = group_of<PAIRS>(a.p, g, c);
            const int count = min((int)POLES, a.p.n - o.first);
            if (!keep || t0 == 0) {
#pragma unroll
                for (int i = 0; i < POLES; i++) {
                    const bool there = i < count;
                    ab[i] = there ? a.p.ab[o.coefficient + i] : make_float2(0, 0);
                    bb[i] = there ? a.p.bb[o.coefficient + i] : make_float2(0, 0);
                    cc[i] = there ? a.p.c[o.coefficient + i] : make_float2(0, 0);
                    s[i] = there && !(zero && t0 == 0) ? work[o.state + i] : make_float2(0, 0);
                }
            }
            const float *u = a.u + (size_t)first * a.u_pitch + c;
            const float *q =
                PAIRS ? a.q + (size_t)first * a.u_pitch + head * a.p.head_dim + o.a : NULL;
            const float *k =
                PAIRS ? a.k + (size_t)first * a.p.width + head * a.p.head_dim + o.a : NULL;
            float *out = sums + warp * TILE * 32 + lane;
#pragma unroll 4
            for (int t = 0; t < some; t++) {
                float in = u[(size_t)t * a.u_pitch];
                if (PAIRS)
                    in *= k[(size_t)t * a.p.width];
                float y = 0;
#pragma unroll
                for (int i = 0; i < POLES; i++)
                    y += pole_step(ab[i], bb[i], cc[i], in, s[i]);
                if (LOCAL)
                    continue;
                if (PAIRS)
                    y *= q[(size_t)t * a.u_pitch];
                out[t * 32] = g == warp ? y : out[t * 32] + y;
            }
            if (!ends && keep)
                continue;
            float2 *to = !LOCAL && a.split && ends ? slot : work;
            if (!inside || (to != work && !is_last))
                continue;
#pragma unroll
            for (int i = 0; i < POLES; i++) {
                if (i < count)
                    to[o.state + i] = s[i];
            }
        }
        if (LOCAL)
            continue;
        __syncthreads();
        finish<T, PAIRS>(a, sums, first, some, min(warps, groups));
        __syncthreads();
    }
}

// carry: from what each piece leaves on its own to what it begins with. A thread a pole of a span.
template <bool PAIRS> __global__ void carry_kernel(scan_args a) {
    const int e = blockIdx.x * blockDim.x + threadIdx.x;
    if (e >= a.p.slot_pairs)
        return;
    const span span = a.spans[blockIdx.y];
    const int head = PAIRS ? e / (a.p.head_dim * a.p.head_dim * a.p.n) : e / a.p.n;
    const float2 ab = a.p.ab[head * a.p.n + e % a.p.n];
    const int length = a.pieces[span.first_piece].count; // all but the last one's
    const double2 w = pole_power(ab, length);
    float2 *carry = a.carry + e;
    const float2 old = a.p.state[(size_t)span.slot * a.p.slot_pairs + e];
    double2 s = span.fresh ? make_double2(0, 0) : make_double2((double)old.x, (double)old.y);
    for (int i = 0; i < span.n_pieces; i++) {
        float2 *at = carry + (size_t)(span.first_piece + i) * a.p.slot_pairs;
        const float2 local = *at;
        *at = make_float2((float)s.x, (float)s.y);
        s = make_double2(w.x * s.x - w.y * s.y + (double)local.x,
                         w.x * s.y + w.y * s.x + (double)local.y);
    }
}

template <bool PAIRS> static cudaError_t run_carry(device *d, const batch &b, const scan_args &a) {
    return launch(d, carry_kernel<PAIRS>,
                  dim3((unsigned)ceil_div(a.p.slot_pairs, 128), (unsigned)b.n_spans), 128, 0, false,
                  a);
}

template <class T, bool PAIRS>
static cudaError_t run_scan(device *d, const batch &b, const scan_args &a) {
    const int groups = (PAIRS ? a.p.head_dim : 1) * ceil_div(a.p.n, POLES);
    const int warps = groups < MOST_WARPS ? groups : MOST_WARPS;
    const dim3 grid((unsigned)ceil_div(a.p.width, 32), (unsigned)b.n_pieces);
    const size_t shared = (size_t)warps * TILE * 32 * sizeof(float);
    if (a.split) {
        cudaError_t rc = launch(d, scan_kernel<T, PAIRS, true>, grid, warps * 32, 0, false, a);
        if (rc == cudaSuccess)
            rc = run_carry<PAIRS>(d, b, a);
        if (rc != cudaSuccess)
            return rc;
    }
    return launch(d, scan_kernel<T, PAIRS, false>, grid, warps * 32, shared, false, a);
}

static scan_args arguments(const device *d, int layer, const batch &b) {
    scan_args a = {};
    a.p = poles_of(d, layer);
    a.u = d->lti_u, a.u_pitch = a.p.width;
    if (d->g.kind == SSM_BLOCK_H3) {
        a.q = (const float *)d->xz, a.u = a.q + 2 * a.p.width, a.k = d->lti_u;
        a.u_pitch = 3 * a.p.width;
    }
    a.carry = (float2 *)d->carry, a.y = d->y;
    a.spans = b.spans, a.pieces = b.pieces, a.split = b.split;
    return a;
}

cudaError_t lti_carry(device *d, int layer, const batch &b) {
    const scan_args a = arguments(d, layer, b);
    return d->g.kind == SSM_BLOCK_H3 ? run_carry<true>(d, b, a) : run_carry<false>(d, b, a);
}

cudaError_t lti_pole_scan(device *d, int layer, const batch &b) {
    const scan_args a = arguments(d, layer, b);
    const bool pairs = d->g.kind == SSM_BLOCK_H3;
    return with_type(d->weight_type, [&](auto t) {
        typedef decltype(t) T;
        return pairs ? run_scan<T, true>(d, b, a) : run_scan<T, false>(d, b, a);
    });
}

} // namespace ssm
