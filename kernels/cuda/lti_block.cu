// SPDX-License-Identifier: Apache-2.0
// Spans of S4D and S4 as a convolution, in blocks of PART tokens.
//
// A block of threads takes one channel of a piece and treats PART tokens as one column of a matrix,
// COLUMNS of them at a time:
//     S = P U      P[.][j] = Ab^(PART-1-j) Bb: what each column leaves
//     states       each column begins with Ab^PART times the one before and what that left
//     Y = K U + Q S    K[t][j] = K_(t-j), D in K_0; Q[t][.] = C Ab^(t+1): what the state still says
// P, Q and K stay in shared memory for all columns; a lane takes a column (or two), a warp 16 rows,
// whose factors every lane reads at once. S4D makes the powers itself, in fp64 by squaring, of the
// poles as the recurrence has them: a table of them would be ten times the model. Its states are a
// shuffle scan over columns. S4's P and Q come from the host, its states one after the other.
//
// Multiply-adds a token, N numbers a state: 2 N + 36, where a scan has 4 N, and 3 N more for spans
// cut into pieces; S4: 2 N + N^2 / 64 + 36 instead of N^2.
//
// Why no FFT: new states and what the old one still says are 2 N of those multiply-adds with it as
// well, so it could replace the 36; its kernel of L numbers costs N L more, and zero-padded past 2
// L the transforms alone take longer. cuFFT from PyTorch, 384 channels of 65,536 (8,192) tokens on
// an H200: 2.1 (0.22) ms a layer, 1.5 (0.15) with the kernel's spectrum at hand; here a whole layer
// with its product takes 0.70 (0.10). And it would be a library of 280 MB to carry.
//
// Measured, H200, this kernel for 8,192 tokens of shakespeare-s4d: 60 us, then 46 with a tile's
// loads all under way, four poles' shuffles side by side and Q's rows padded; the multiply-adds
// need 18. A block's start is what is left: some 20 us for a single short prompt.
//
// Neighbouring tokens must lie side by side: the norm writes u by channel, and a transposition of
// its own brings y back to token rows.
#include "lti.cuh"

namespace ssm {

enum {
    PART = LTI_PART,
    THREADS = 128,
    WARPS = THREADS / 32,
    ROWS = 16, // of a warp at once
    SCAN_STEPS = 5,
    WIDE = 128, // channels of a block of the norm
    DENSE_KEPT = LTI_DENSE * LTI_DENSE / THREADS,
};

struct block_args {
    pole_args p;                              // S4D
    const float *power, *in, *out, *c, *skip; // S4 [channel]: [j][i], [PART][n], [n][PART], [n]
    float *dense;                             // S4 [slot][channel][n]
    const float *u;                           // [channel][pitch]
    float *y;                                 // [channel][pitch]
    size_t pitch;
    float2 *carry; // S4D [piece][slot_pairs]
    const span *spans;
    const piece *pieces;
    bool split;
    int n_pieces;
    int numbers; // of a state, rounded up to ROWS
};

// Shared memory, in floats. COLS: columns at a time; a pitch of COLS + COLS / 32 keeps both ways of
// access free of conflicts but for pairs.
template <int COLS> struct layout {
    static constexpr int PITCH = COLS + COLS / 32;
    static constexpr int OUT = PART + 4; // of a row of Q
    float *in, *out, *k, *u, *s, *state, *powers;
    __device__ layout(float *p, int numbers)
        : in(p), out(in + PART * numbers), k(out + numbers * OUT), u(k + 2 * PART),
          s(u + PART * PITCH), state(s + numbers * COLS), powers(state + 2 * numbers) {
    }
    static size_t bytes(int numbers) {
        const size_t n = (size_t)numbers;
        return sizeof(float) *
               ((PART + OUT) * n + 2 * PART + PART * PITCH + n * COLS + 2 * n + n * SCAN_STEPS);
    }
};

__device__ __forceinline__ double2 times(double2 a, double2 b) {
    return make_double2(a.x * b.x - a.y * b.y, a.x * b.y + a.y * b.x);
}

__device__ __forceinline__ float2 times_add(float2 a, float2 b, float2 c) {
    return make_float2(fmaf(a.x, b.x, fmaf(-a.y, b.y, c.x)), fmaf(a.x, b.y, fmaf(a.y, b.x, c.y)));
}

// ---- what stays

template <int COLS>
__device__ __forceinline__ void make_pole_factors(const block_args &a, const layout<COLS> &l) {
    const int ch = blockIdx.x, n = a.p.n;
    enum { EACH = 16 }; // powers a thread makes one from the other
    for (int item = threadIdx.x; item < n * (PART / EACH); item += THREADS) {
        const int i = item % n, r0 = item / n * EACH;
        const float2 abf = a.p.ab[ch * n + i], bbf = a.p.bb[ch * n + i], c = a.p.c[ch * n + i];
        const double2 ab = make_double2((double)abf.x, (double)abf.y);
        const double2 bb = make_double2((double)bbf.x, (double)bbf.y);
        double2 w = make_double2(1, 0), square = ab;
        for (int e = r0; e; e >>= 1, square = times(square, square)) {
            if (e & 1)
                w = times(w, square);
        }
        for (int r = r0; r < r0 + EACH; r++) { // w = ab^r
            const double2 b = times(w, bb);
            float *in = l.in + (PART - 1 - r) * a.numbers + 2 * i;
            in[0] = (float)b.x, in[1] = (float)b.y;
            w = times(w, ab);
            l.out[2 * i * l.OUT + r] = (float)((double)c.x * w.x + (double)c.y * w.y);
            l.out[(2 * i + 1) * l.OUT + r] = (float)((double)c.y * w.x - (double)c.x * w.y);
        }
        if (r0 + EACH == PART) { // w = ab^PART
            for (int k = 0; k < SCAN_STEPS; k++, w = times(w, w)) {
                l.powers[(i * SCAN_STEPS + k) * 2] = (float)w.x;
                l.powers[(i * SCAN_STEPS + k) * 2 + 1] = (float)w.y;
            }
        }
    }
}

template <bool DENSE, int COLS>
__device__ __forceinline__ void make_factors(const block_args &a, const layout<COLS> &l) {
    const int ch = blockIdx.x, lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    const int n = DENSE ? a.p.n : 2 * a.p.n;
    for (int i = threadIdx.x; i < PART * (a.numbers - n); i += THREADS) { // the rows that fill up
        const int r = n + i / PART, t = i % PART;
        l.in[t * a.numbers + r] = 0;
        l.out[r * l.OUT + t] = 0;
    }
    if (DENSE) {
        for (int i = threadIdx.x; i < PART * n; i += THREADS) {
            l.in[i / n * a.numbers + i % n] = a.in[(size_t)ch * PART * n + i];
            l.out[i / PART * l.OUT + i % PART] = a.out[(size_t)ch * PART * n + i];
        }
    } else {
        make_pole_factors(a, l);
    }
    for (int i = threadIdx.x; i < PART; i += THREADS)
        l.k[i] = 0; // of inputs to come
    __syncthreads();
    const float *c = DENSE ? a.c + (size_t)ch * n : (const float *)(a.p.c + (size_t)ch * a.p.n);
#pragma unroll 8
    for (int k = 0; k < PART / WARPS; k++) {
        const int lag = k * WARPS + warp;
        const float *in = l.in + (PART - 1 - lag) * a.numbers;
        float sum = 0;
        for (int i = lane; i < n; i += 32)
            sum = fmaf(c[i], in[i], sum);
        sum = warp_sum(sum);
        if (lane == 0)
            l.k[PART + lag] = sum + (lag ? 0.f : a.skip[ch]);
    }
}

// ---- a tile of columns

// Tokens [0, left) of the tile; zeros after them.
template <int COLS>
__device__ __forceinline__ void read_inputs(const layout<COLS> &l, const float *from, int left) {
#pragma unroll 16
    for (int k = 0; k < PART * COLS / THREADS; k++) {
        const int i = k * THREADS + threadIdx.x;
        l.u[i % PART * l.PITCH + i / PART] = i < left ? from[i] : 0.f;
    }
}

// acc[row][column] += factors [k][stride], 16 rows from two places, times x [k][pitch].
template <int EACH>
__device__ __forceinline__ void multiply(float (&acc)[ROWS][EACH], const float *low,
                                         const float *high, int stride, const float *x, int pitch,
                                         int count) {
    const int lane = threadIdx.x & 31;
#pragma unroll 4
    for (int k = 0; k < count; k++) {
        float f[ROWS], v[EACH];
#pragma unroll
        for (int i = 0; i < ROWS / 2; i += 4) {
            *(float4 *)&f[i] = *(const float4 *)(low + k * stride + i);
            *(float4 *)&f[ROWS / 2 + i] = *(const float4 *)(high + k * stride + i);
        }
#pragma unroll
        for (int e = 0; e < EACH; e++)
            v[e] = x[k * pitch + lane * EACH + e];
#pragma unroll
        for (int i = 0; i < ROWS; i++) {
#pragma unroll
            for (int e = 0; e < EACH; e++)
                acc[i][e] = fmaf(f[i], v[e], acc[i][e]);
        }
    }
}

// S = P U
template <int COLS> __device__ __forceinline__ void leave(const layout<COLS> &l, int numbers) {
    constexpr int EACH = COLS / 32;
    const int lane = threadIdx.x & 31;
    for (int r = (threadIdx.x >> 5) * ROWS; r < numbers; r += WARPS * ROWS) {
        float acc[ROWS][EACH] = {};
        multiply<EACH>(acc, l.in + r, l.in + r + ROWS / 2, numbers, l.u, l.PITCH, PART);
#pragma unroll
        for (int i = 0; i < ROWS; i++) {
#pragma unroll
            for (int e = 0; e < EACH; e++)
                l.s[(r + i) * COLS + lane * EACH + e] = acc[i][e];
        }
    }
}

// S from what each of `whole` columns leaves to what each begins with; the state moves on past
// them. A warp takes some poles together: their shuffles wait side by side.
template <int COLS>
__device__ __forceinline__ void carry_poles(const block_args &a, const layout<COLS> &l, int whole) {
    enum { TOGETHER = 4 };
    const int lane = threadIdx.x & 31;
    for (int i0 = (threadIdx.x >> 5) * TOGETHER; i0 < a.p.n; i0 += WARPS * TOGETHER) {
        float2 old[TOGETHER], x[TOGETHER], w[TOGETHER][SCAN_STEPS];
        int at[TOGETHER]; // past the last pole: the last one again, with the same outcome
#pragma unroll
        for (int p = 0; p < TOGETHER; p++) {
            at[p] = min(i0 + p, a.p.n - 1);
            old[p] = ((const float2 *)l.state)[at[p]];
#pragma unroll
            for (int k = 0; k < SCAN_STEPS; k++)
                w[p][k] = ((const float2 *)l.powers)[at[p] * SCAN_STEPS + k];
        }
        for (int c0 = 0; c0 < COLS; c0 += 32) {
            const int last = min(max(whole - c0, 0), 32) - 1; // of these columns; -1: none
#pragma unroll
            for (int p = 0; p < TOGETHER; p++) {
                const float *s = l.s + 2 * at[p] * COLS + c0 + lane;
                x[p] = make_float2(s[0], s[COLS]);
                if (lane == 0)
                    x[p] = times_add(w[p][0], old[p], x[p]);
            }
#pragma unroll
            for (int k = 0; k < SCAN_STEPS; k++) {
#pragma unroll
                for (int p = 0; p < TOGETHER; p++) {
                    const float2 before = make_float2(__shfl_up_sync(~0u, x[p].x, 1 << k),
                                                      __shfl_up_sync(~0u, x[p].y, 1 << k));
                    if (lane >= 1 << k)
                        x[p] = times_add(w[p][k], before, x[p]);
                }
            }
#pragma unroll
            for (int p = 0; p < TOGETHER; p++) {
                const float2 begins =
                    make_float2(__shfl_up_sync(~0u, x[p].x, 1), __shfl_up_sync(~0u, x[p].y, 1));
                float *s = l.s + 2 * at[p] * COLS + c0 + lane;
                s[0] = lane ? begins.x : old[p].x;
                s[COLS] = lane ? begins.y : old[p].y;
                const float2 after = make_float2(__shfl_sync(~0u, x[p].x, max(last, 0)),
                                                 __shfl_sync(~0u, x[p].y, max(last, 0)));
                if (last >= 0)
                    old[p] = after;
            }
        }
#pragma unroll
        for (int p = 0; p < TOGETHER; p++) {
            if (lane == 0)
                ((float2 *)l.state)[at[p]] = old[p];
        }
    }
}

// The same with a matrix: two threads a row, their numbers of it in registers.
template <int COLS>
__device__ __forceinline__ void carry_dense(const block_args &a, const layout<COLS> &l,
                                            const float (&kept)[DENSE_KEPT], int whole) {
    const int i = threadIdx.x >> 1, q = threadIdx.x & 1, n = a.p.n;
    for (int col = 0; col < COLS; col++) {
        float sum = 0;
#pragma unroll
        for (int k = 0; k < DENSE_KEPT; k++)
            sum = fmaf(kept[k], 2 * k + q < n ? l.state[2 * k + q] : 0.f, sum);
        sum += __shfl_xor_sync(~0u, sum, 1);
        __syncthreads();
        if (q == 0 && i < n) {
            const float left = l.s[i * COLS + col];
            l.s[i * COLS + col] = l.state[i];
            if (col < whole)
                l.state[i] = sum + left;
        }
        __syncthreads();
        if (col >= whole)
            break; // the column after the last whole one has its beginning
    }
}

// acc += K U for eight rows from r on: K's numbers slide through registers.
template <int COLS, int EACH, int FROM>
__device__ __forceinline__ void convolve(const layout<COLS> &l, float (&acc)[ROWS][EACH], int r) {
    const int lane = threadIdx.x & 31;
    for (int j0 = 0; j0 <= r; j0 += 8) {
        float k[16];
#pragma unroll
        for (int i = 0; i < 16; i += 4)
            *(float4 *)&k[i] = *(const float4 *)(l.k + PART + r - j0 - 8 + i);
#pragma unroll
        for (int j = 0; j < 8; j++) {
            float v[EACH];
#pragma unroll
            for (int e = 0; e < EACH; e++)
                v[e] = l.u[(j0 + j) * l.PITCH + lane * EACH + e];
#pragma unroll
            for (int i = 0; i < 8; i++) {
#pragma unroll
                for (int e = 0; e < EACH; e++)
                    acc[FROM + i][e] = fmaf(k[8 + i - j], v[e], acc[FROM + i][e]);
            }
        }
    }
}

// Y = K U + Q S over U. A warp has rows early and late: all warps have as much to do.
template <int COLS> __device__ __forceinline__ void answer(const layout<COLS> &l, int numbers) {
    constexpr int EACH = COLS / 32;
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    const int early = warp * 8, late = PART - 8 - early;
    float acc[ROWS][EACH] = {};
    multiply<EACH>(acc, l.out + early, l.out + late, l.OUT, l.s, COLS, numbers);
    convolve<COLS, EACH, 0>(l, acc, early);
    convolve<COLS, EACH, 8>(l, acc, late);
    __syncthreads();
#pragma unroll
    for (int i = 0; i < ROWS; i++) {
#pragma unroll
        for (int e = 0; e < EACH; e++)
            l.u[((i < 8 ? early : late - 8) + i) * l.PITCH + lane * EACH + e] = acc[i][e];
    }
}

// Poles' states over the tokens of a last column that is not whole.
template <int COLS>
__device__ __forceinline__ void finish_poles(const block_args &a, const layout<COLS> &l, int column,
                                             int count) {
    for (int i = threadIdx.x; i < a.p.n; i += THREADS) {
        const int at = blockIdx.x * a.p.n + i;
        float2 s = ((float2 *)l.state)[i];
        const float2 ab = a.p.ab[at], bb = a.p.bb[at];
        for (int t = 0; t < count; t++)
            pole_step(ab, bb, make_float2(0, 0), l.u[t * l.PITCH + column], s);
        ((float2 *)l.state)[i] = s;
    }
}

// ---- a piece

template <bool DENSE, bool LOCAL, int COLS>
__device__ __forceinline__ void run_piece(const block_args &a, const layout<COLS> &l, int index,
                                          const float (&kept)[DENSE_KEPT]) {
    const int ch = blockIdx.x, n = DENSE ? a.p.n : 2 * a.p.n;
    const piece piece = a.pieces[index];
    const span span = a.spans[piece.span];
    const bool is_last = piece.first + piece.count == span.first + span.count;
    float *slot = DENSE ? a.dense + ((size_t)span.slot * a.p.width + ch) * n
                        : (float *)(a.p.state + (size_t)span.slot * a.p.slot_pairs) + ch * n;
    float *own = (float *)(a.carry + (size_t)piece.index * a.p.slot_pairs) + ch * n;
    for (int i = threadIdx.x; i < n; i += THREADS)
        l.state[i] = LOCAL || (!a.split && span.fresh) ? 0.f : a.split ? own[i] : slot[i];
    // S4 leaves what is no whole column to its scan, which goes on from the state left here
    const int tokens = DENSE ? piece.count / PART * PART : piece.count;
    for (int t0 = 0; t0 < tokens; t0 += PART * COLS) {
        const int left = min(tokens - t0, PART * COLS), whole = left / PART;
        const size_t at = ch * a.pitch + piece.first + t0;
        __syncthreads();
        read_inputs<COLS>(l, a.u + at, left);
        __syncthreads();
        leave<COLS>(l, a.numbers);
        __syncthreads();
        if (DENSE)
            carry_dense<COLS>(a, l, kept, whole);
        else
            carry_poles<COLS>(a, l, whole);
        __syncthreads();
        if (!DENSE && left % PART != 0 && is_last)
            finish_poles<COLS>(a, l, whole, left % PART);
        if (LOCAL)
            continue;
        answer<COLS>(l, a.numbers);
        __syncthreads();
#pragma unroll 4
        for (int i = threadIdx.x; i < left; i += THREADS)
            a.y[at + i] = gelu(l.u[i % PART * l.PITCH + i / PART]);
    }
    __syncthreads();
    float *to = LOCAL ? own : slot;
    for (int i = threadIdx.x; i < n && (LOCAL || is_last); i += THREADS)
        to[i] = l.state[i];
    __syncthreads();
}

template <bool DENSE, bool LOCAL, int COLS>
__global__ void __launch_bounds__(THREADS, DENSE        ? 2
                                           : COLS == 32 ? 4
                                                        : 3) block_kernel(block_args a) {
    extern __shared__ float4 shared[];
    const layout<COLS> l((float *)shared, a.numbers);
    float kept[DENSE_KEPT];
    if (DENSE) {
        const int i = threadIdx.x >> 1, n = a.p.n;
        const float *power = a.power + (size_t)blockIdx.x * n * n;
#pragma unroll
        for (int k = 0; k < DENSE_KEPT; k++) {
            const int j = 2 * k + (threadIdx.x & 1);
            kept[k] = i < n && j < n ? power[(size_t)j * n + i] : 0.f;
        }
    }
    make_factors<DENSE, COLS>(a, l);
    for (int index = blockIdx.y; index < a.n_pieces; index += gridDim.y)
        run_piece<DENSE, LOCAL, COLS>(a, l, index, kept);
}

// ---- by channel and back

// residual, RMS-normed, times weight, to [channel][pitch]. A block 32 token rows and 128 channels.
__global__ void __launch_bounds__(256)
    norm_by_channel_kernel(const float *in, const float *weight, float *out, int width, int n,
                           size_t pitch, float eps) {
    __shared__ float tile[32][WIDE + 1], scale[32];
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, first = blockIdx.x * 32;
    const int c0 = blockIdx.y * WIDE, own = threadIdx.x % WIDE, c = min(c0 + own, width - 1);
    float x[32 * WIDE / 256];
#pragma unroll
    for (int k = 0; k < 32 * WIDE / 256; k++) {
        const int t = 256 / WIDE * k + threadIdx.x / WIDE;
        x[k] = in[(size_t)min(first + t, n - 1) * width + c];
    }
#pragma unroll
    for (int k = 0; k < 4; k++) {
        const int t = 8 * k + warp;
        const float sum = square_sum(in + (size_t)min(first + t, n - 1) * width, width);
        if (lane == 0)
            scale[t] = rsqrtf(sum / width + eps);
    }
    const float w = weight[c];
    __syncthreads();
#pragma unroll
    for (int k = 0; k < 32 * WIDE / 256; k++) {
        const int t = 256 / WIDE * k + threadIdx.x / WIDE;
        tile[t][own] = x[k] * scale[t] * w;
    }
    __syncthreads();
#pragma unroll
    for (int k = 0; k < WIDE / 8; k++) {
        const int i = 8 * k + warp;
        if (c0 + i < width && first + lane < n)
            out[(size_t)(c0 + i) * pitch + first + lane] = tile[lane][i];
    }
}

template <class T>
__global__ void __launch_bounds__(256)
    by_token_kernel(const float *in, T *out, int width, int n, size_t pitch) {
    __shared__ float tile[32][33];
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    const int t0 = blockIdx.x * 32, c0 = blockIdx.y * 32;
#pragma unroll
    for (int i = warp; i < 32; i += 8) {
        if (c0 + i < width && t0 + lane < n)
            tile[i][lane] = in[(size_t)(c0 + i) * pitch + t0 + lane];
    }
    __syncthreads();
    for (int t = warp; t < 32; t += 8) {
        if (t0 + t < n && c0 + lane < width)
            out[(size_t)(t0 + t) * width + c0 + lane] = from_float<T>(tile[lane][t]);
    }
}

// ---- launches

static block_args arguments(const device *d, int layer, const batch &b) {
    const ssm_geometry &g = d->g;
    const layer_weights &w = d->layers[layer];
    const bool dense = g.kind == SSM_BLOCK_S4;
    block_args a = {};
    a.p = poles_of(d, layer);
    if (dense) {
        a.p.n = g.d_state;
        a.dense = (float *)d->state + (size_t)layer * d->n_slots * g.d_model * g.d_state;
    }
    a.power = w.lti.power, a.in = w.lti.in, a.out = w.lti.out, a.c = w.lti.c, a.skip = w.skip;
    a.u = d->lti_u, a.y = (float *)d->xz, a.pitch = (size_t)b.n;
    a.carry = (float2 *)d->carry, a.spans = b.spans, a.pieces = b.pieces, a.split = b.split;
    a.n_pieces = b.n_pieces;
    a.numbers = ceil_div(g.d_state, ROWS) * ROWS;
    return a;
}

bool lti_block_fits(const device *d) {
    const int numbers = ceil_div(d->g.d_state, ROWS) * ROWS;
    if (d->g.kind == SSM_BLOCK_H3)
        return false;
    if (d->g.kind == SSM_BLOCK_S4)
        return d->g.d_state <= LTI_DENSE;
    int most = 0;
    cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, d->index);
    return layout<64>::bytes(numbers) <= (size_t)most;
}

template <bool DENSE, bool LOCAL>
static cudaError_t run_block(device *d, const batch &b, const block_args &a) {
    // P, Q and K are made once a block: no more blocks than fill the card, if pieces are short
    const int32_t fill = 3 * d->n_sms < a.p.width ? 1 : 3 * d->n_sms / a.p.width;
    const dim3 grid((unsigned)a.p.width, (unsigned)(b.n_pieces < fill ? b.n_pieces : fill));
    const auto run = [&](auto kernel, size_t shared) {
        const cudaError_t rc =
            cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared);
        if (rc != cudaSuccess)
            return rc;
        return launch(d, kernel, grid, THREADS, shared, false, a);
    };
    return b.columns == 32 ? run(block_kernel<DENSE, LOCAL, 32>, layout<32>::bytes(a.numbers))
                           : run(block_kernel<DENSE, LOCAL, 64>, layout<64>::bytes(a.numbers));
}

cudaError_t lti_convolve(device *d, int layer, const batch &b) {
    const block_args a = arguments(d, layer, b);
    const bool dense = d->g.kind == SSM_BLOCK_S4;
    const dim3 tiles((unsigned)ceil_div(b.n, 32), (unsigned)ceil_div(a.p.width, WIDE));
    cudaError_t rc =
        launch(d, norm_by_channel_kernel, tiles, 256, 0, false, (const float *)d->residual,
               d->layers[layer].norm, d->lti_u, a.p.width, b.n, a.pitch, d->g.norm_eps);
    if (rc == cudaSuccess && b.split) {
        rc = run_block<false, true>(d, b, a);
        if (rc == cudaSuccess)
            rc = lti_carry(d, layer, b);
    }
    if (rc == cudaSuccess)
        rc = dense ? run_block<true, false>(d, b, a) : run_block<false, false>(d, b, a);
    if (rc != cudaSuccess)
        return rc;
    return with_type(d->weight_type, [&](auto t) {
        typedef decltype(t) T;
        const dim3 grid((unsigned)ceil_div(b.n, 32), (unsigned)ceil_div(a.p.width, 32));
        return launch(d, by_token_kernel<T>, grid, 256, 0, false, (const float *)a.y, (T *)d->y,
                      a.p.width, b.n, a.pitch);
    });
}

} // namespace ssm
