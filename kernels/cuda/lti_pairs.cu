// SPDX-License-Identifier: Apache-2.0
// Spans of H3 as a convolution, in blocks of LTI_PAIRS tokens between exact states.
//
// All pairs (a, b) of a head have one kernel K, so what k'[a] v[b] are convolved to and q[a] hears
// is a small triangular product, and states are products with factors that no pair changes:
//     y[b](t)  =  sum_j K(t - j) (q(t) . k'(j)) v[b](j)  +  sum_a,n q[a](t) O[n](t) S[a,b,n]
//     S[a,b]   =  Ab^L S[a,b]  +  sum_j I[n](j) k'[a](j) v[b](j)
// O, I and K come from the host, made in fp64. A block of threads takes ROWS channels b of a head
// and one piece of a span, its tokens LTI_PAIRS at a time, the states in shared memory all the
// while. For y a lane is a token: what it multiplies states and v by it makes once for all ROWS of
// them; warps share out the a and the j, and their sums are added in a fixed order. For the states
// a thread is a number of the pairs (a, .).
//
// Multiply-adds of a head of d channels with N numbers a state, a token and channel: 32 (1 + (d +
// 1) / ROWS) for the triangle, of which half are with zeros, and d N (1 + 1 / ROWS) each to hear
// old states and to make new ones (d = 8, N = 16: 356), where a scan has 4 d N (512). Pieces, and
// what carries states from one to the next, are the scan's (lti_scan.cu); the first of its two runs
// over a piece makes states alone.
//
// Prompts of up to 2,048 tokens of a published model take 5 to 11% less time than by the scan,
// longer ones the same (lti.cu chooses): they are launches more than sums.
#include "lti.cuh"

namespace ssm {

enum { BLOCK = LTI_PAIRS, THREADS = 128, WARPS = THREADS / 32, ROWS = 8, PITCH = BLOCK + 1 };
static_assert(BLOCK == 32, "a lane is a token");

struct pairs_args {
    pole_args p;
    const float *kernel, *in, *out; // [head]: [BLOCK], [BLOCK][N], [N][BLOCK]
    const float *q, *v;             // [token row][pitch]
    const float *k;                 // k' [token row][width]
    int pitch;
    float2 *carry; // [piece][slot_pairs]
    void *y;       // T [token row][width]
    const span *spans;
    const piece *pieces;
    bool split;
};

// Shared memory, in floats. What float4 reads comes first.
struct pairs_layout {
    float *s;                         // [a][N][ROWS]
    float *v, *sums;                  // [BLOCK][ROWS], [WARPS][ROWS][BLOCK]
    float *in, *out, *kernel, *power; // [BLOCK][N], [N][BLOCK], [BLOCK zeros, BLOCK], [N]
    float *q, *k;                     // [a][PITCH]
    __device__ pairs_layout(float *p, int dim, int numbers)
        : s(p), v(s + dim * numbers * ROWS), sums(v + BLOCK * ROWS),
          in(sums + WARPS * ROWS * BLOCK), out(in + BLOCK * numbers), kernel(out + numbers * BLOCK),
          power(kernel + 2 * BLOCK), q(power + numbers), k(q + dim * PITCH) {
    }
    static size_t bytes(size_t dim, size_t numbers) {
        return sizeof(float) * (dim * numbers * ROWS + BLOCK * ROWS + WARPS * ROWS * BLOCK +
                                2 * BLOCK * numbers + 2 * BLOCK + numbers + 2 * dim * PITCH);
    }
};

// What a block of threads works on.
struct pairs_place {
    int head, row, rows; // its channels b: [row, row + rows)
    int first, count;    // token rows, at most BLOCK
};

__device__ __forceinline__ void read_factors(const pairs_args &a, const pairs_layout &l, int head) {
    const int numbers = 2 * a.p.n, all = BLOCK * numbers;
    for (int i = threadIdx.x; i < all; i += THREADS) {
        l.in[i] = a.in[(size_t)head * all + i];
        l.out[i] = a.out[(size_t)head * all + i];
    }
    for (int i = threadIdx.x; i < BLOCK; i += THREADS) {
        l.kernel[i] = 0; // of inputs to come
        l.kernel[BLOCK + i] = a.kernel[head * BLOCK + i];
    }
}

// Ab^count of each pole.
__device__ __forceinline__ void make_powers(const pairs_args &a, const pairs_layout &l, int head,
                                            int count) {
    for (int i = threadIdx.x; i < a.p.n; i += THREADS) {
        const double2 w = pole_power(a.p.ab[head * a.p.n + i], count);
        l.power[2 * i] = (float)w.x, l.power[2 * i + 1] = (float)w.y;
    }
}

// The states of pairs (a, row ..) between memory [a][head_dim][n] and shared memory. Channels that
// only fill up the rows begin with zeros and stay so.
__device__ __forceinline__ void read_states(const pairs_args &a, const pairs_layout &l,
                                            const pairs_place &o, const float2 *from, bool zero) {
    const int n = a.p.n, dim = a.p.head_dim;
    for (int item = threadIdx.x; item < dim * ROWS * n; item += THREADS) {
        const int i = item % n, b = item / n % ROWS, e = item / (n * ROWS);
        float2 s = make_float2(0, 0);
        if (!zero && b < o.rows)
            s = from[((size_t)e * dim + o.row + b) * n + i];
        float *to = l.s + (e * 2 * n + 2 * i) * ROWS + b;
        to[0] = s.x, to[ROWS] = s.y;
    }
}

__device__ __forceinline__ void write_states(const pairs_args &a, const pairs_layout &l,
                                             const pairs_place &o, float2 *to) {
    const int n = a.p.n, dim = a.p.head_dim;
    for (int item = threadIdx.x; item < dim * ROWS * n; item += THREADS) {
        const int i = item % n, b = item / n % ROWS, e = item / (n * ROWS);
        const float *s = l.s + (e * 2 * n + 2 * i) * ROWS + b;
        if (b < o.rows)
            to[((size_t)e * dim + o.row + b) * n + i] = make_float2(s[0], s[ROWS]);
    }
}

// Zeros past the last token and the last channel.
__device__ __forceinline__ void read_inputs(const pairs_args &a, const pairs_layout &l,
                                            const pairs_place &o) {
    const int dim = a.p.head_dim, c = o.head * dim;
    for (int item = threadIdx.x; item < dim * BLOCK; item += THREADS) {
        const int e = item % dim, t = item / dim;
        const bool there = t < o.count;
        const size_t row = (size_t)(o.first + t);
        l.q[e * PITCH + t] = there ? a.q[row * a.pitch + c + e] : 0.f;
        l.k[e * PITCH + t] = there ? a.k[row * a.p.width + c + e] : 0.f;
    }
    for (int item = threadIdx.x; item < BLOCK * ROWS; item += THREADS) {
        const int b = item % ROWS, t = item / ROWS;
        const bool there = t < o.count && b < o.rows;
        l.v[item] = there ? a.v[(size_t)(o.first + t) * a.pitch + c + o.row + b] : 0.f;
    }
}

// sum[b] += x from[b]
__device__ __forceinline__ void add_rows(float (&sum)[ROWS], float x, const float *from) {
#pragma unroll
    for (int b = 0; b < ROWS; b += 4) {
        const float4 f = *(const float4 *)(from + b);
        sum[b] = fmaf(x, f.x, sum[b]), sum[b + 1] = fmaf(x, f.y, sum[b + 1]);
        sum[b + 2] = fmaf(x, f.z, sum[b + 2]), sum[b + 3] = fmaf(x, f.w, sum[b + 3]);
    }
}

// Each warp's part of y at token `lane` of the block.
__device__ __forceinline__ void hear(const pairs_args &a, const pairs_layout &l, int count,
                                     bool silent) {
    const int t = threadIdx.x & 31, warp = threadIdx.x >> 5;
    const int dim = a.p.head_dim, numbers = 2 * a.p.n;
    float sum[ROWS] = {};
    for (int e = warp; e < dim && !silent; e += WARPS) {
        const float q = l.q[e * PITCH + t], *s = l.s + e * numbers * ROWS;
#pragma unroll 4
        for (int i = 0; i < numbers; i++)
            add_rows(sum, q * l.out[i * BLOCK + t], s + i * ROWS);
    }
    for (int j = warp; j < count; j += WARPS) {
        float dot = 0;
        for (int e = 0; e < dim; e++)
            dot = fmaf(l.q[e * PITCH + t], l.k[e * PITCH + j], dot);
        add_rows(sum, dot * l.kernel[BLOCK + t - j], l.v + j * ROWS);
    }
#pragma unroll
    for (int b = 0; b < ROWS; b++)
        l.sums[(warp * ROWS + b) * BLOCK + t] = sum[b];
}

template <class T>
__device__ __forceinline__ void write_y(const pairs_args &a, const pairs_layout &l,
                                        const pairs_place &o) {
    for (int item = threadIdx.x; item < ROWS * BLOCK; item += THREADS) {
        const int t = item % BLOCK, b = item / BLOCK;
        float y = 0;
#pragma unroll
        for (int w = 0; w < WARPS; w++)
            y += l.sums[w * ROWS * BLOCK + item];
        if (t < o.count && b < o.rows)
            ((T *)a.y)[(size_t)(o.first + t) * a.p.width + (o.row + b) * a.p.heads + o.head] =
                from_float<T>(y);
    }
}

// The states past the block. A pole's two numbers are neighbouring threads': both read both first.
__device__ __forceinline__ void advance(const pairs_args &a, const pairs_layout &l, int count) {
    const int numbers = 2 * a.p.n, all = a.p.head_dim * numbers;
    for (int first = 0; first < all; first += THREADS) {
        const int item = first + threadIdx.x, i = item % numbers, e = item / numbers;
        const bool inside = item < all;
        float *s = l.s + item * ROWS, sum[ROWS] = {};
        if (inside) {
            const float re = l.power[i & ~1], im = l.power[i | 1];
            add_rows(sum, re, s);
            add_rows(sum, i & 1 ? im : -im, l.s + (item ^ 1) * ROWS);
        }
        __syncwarp();
        if (!inside)
            continue;
        const float *in = l.in + (BLOCK - count) * numbers + i, *k = l.k + e * PITCH;
#pragma unroll 4
        for (int j = 0; j < count; j++)
            add_rows(sum, in[j * numbers] * k[j], l.v + j * ROWS);
#pragma unroll
        for (int b = 0; b < ROWS; b++)
            s[b] = sum[b];
    }
}

// LOCAL: from zeros, what the piece leaves goes to carry and nothing else is written.
template <class T, bool LOCAL>
__global__ void __launch_bounds__(THREADS) pairs_kernel(pairs_args a) {
    extern __shared__ float4 pairs_shared[];
    const int dim = a.p.head_dim, tiles = (dim + ROWS - 1) / ROWS;
    const pairs_layout l((float *)pairs_shared, dim, 2 * a.p.n);
    const piece piece = a.pieces[blockIdx.y];
    const span span = a.spans[piece.span];
    const bool is_last = piece.first + piece.count == span.first + span.count;
    pairs_place o = {(int)blockIdx.x / tiles, (int)blockIdx.x % tiles * ROWS, 0, piece.first, 0};
    o.rows = min((int)ROWS, dim - o.row);
    const size_t at = (size_t)o.head * dim * dim * a.p.n;
    float2 *slot = a.p.state + (size_t)span.slot * a.p.slot_pairs + at;
    float2 *own = LOCAL || a.split ? a.carry + (size_t)piece.index * a.p.slot_pairs + at : slot;
    const bool zero = LOCAL || (!a.split && span.fresh);
    read_factors(a, l, o.head);
    read_states(a, l, o, own, zero);
    for (int t0 = 0; t0 < piece.count; t0 += BLOCK) {
        o.first = piece.first + t0, o.count = min((int)BLOCK, piece.count - t0);
        read_inputs(a, l, o);
        if (t0 == 0 || o.count < BLOCK)
            make_powers(a, l, o.head, o.count);
        __syncthreads();
        if (!LOCAL) {
            hear(a, l, o.count, zero && t0 == 0);
            __syncthreads();
            write_y<T>(a, l, o);
        }
        advance(a, l, o.count);
        __syncthreads();
    }
    if (LOCAL || is_last)
        write_states(a, l, o, LOCAL ? own : slot);
}

// ---- launches

static pairs_args arguments(const device *d, int layer, const batch &b) {
    const lti_weights &w = d->layers[layer].lti;
    pairs_args a = {};
    a.p = poles_of(d, layer);
    a.kernel = w.kernel, a.in = w.in, a.out = w.out;
    a.q = (const float *)d->xz, a.v = a.q + 2 * a.p.width, a.pitch = 3 * a.p.width;
    a.k = d->lti_u;
    a.carry = (float2 *)d->carry, a.y = d->y;
    a.spans = b.spans, a.pieces = b.pieces, a.split = b.split;
    return a;
}

bool lti_pairs_fit(const device *d) {
    int most = 0;
    cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, d->index);
    return d->g.kind == SSM_BLOCK_H3 &&
           pairs_layout::bytes((size_t)d->g.head_dim, (size_t)d->g.d_state) <= (size_t)most;
}

template <class T, bool LOCAL>
static cudaError_t run_pairs(device *d, const batch &b, const pairs_args &a) {
    const size_t shared = pairs_layout::bytes((size_t)a.p.head_dim, (size_t)d->g.d_state);
    const dim3 grid((unsigned)(a.p.heads * ceil_div(a.p.head_dim, ROWS)), (unsigned)b.n_pieces);
    const cudaError_t rc = cudaFuncSetAttribute(
        pairs_kernel<T, LOCAL>, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared);
    if (rc != cudaSuccess)
        return rc;
    return launch(d, pairs_kernel<T, LOCAL>, grid, THREADS, shared, false, a);
}

cudaError_t lti_convolve_pairs(device *d, int layer, const batch &b) {
    const pairs_args a = arguments(d, layer, b);
    return with_type(d->weight_type, [&](auto t) {
        typedef decltype(t) T;
        if (a.split) {
            cudaError_t rc = run_pairs<T, true>(d, b, a);
            if (rc == cudaSuccess)
                rc = lti_carry(d, layer, b);
            if (rc != cudaSuccess)
                return rc;
        }
        return run_pairs<T, false>(d, b, a);
    });
}

} // namespace ssm
