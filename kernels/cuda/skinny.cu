// SPDX-License-Identifier: Apache-2.0
// Products for up to 16 rows, where few.cu (up to 8, on Hopper) and medium.cu do not fit, and a
// step is the time to read the weights once: each with what comes before and after it, so that a
// layer is four launches (Mamba-2: three).
//
//   in_proj    RMS norm before (its scale multiplies the sums), convolution and SiLU after
//   x_proj     columns split over blocks; the partial sums are added where they are used
//   out_proj   onto the fp32 residual; Mamba-2's gated norm before it, its scale likewise
//   lm_head    final norm before
//
// Shape. A block takes a contiguous range of weight rows (the split is even to single rows), its
// eight warps an eighth of the columns each. Weights stay as the file has them: a lane loads 16
// bytes of one row, eight rows by 64 bytes a warp, which are exactly the matrix instruction's
// second operand for two of them, as long as the token rows' columns are permuted the same way (a
// sum does not mind). Weights go from memory to registers, two chunks ahead; the first two chunks
// of a kernel are asked for before it waits for its predecessor: 64 KB or more an SM are under way
// while the kernel before drains. Token rows are staged once, by each warp for itself, in shared
// memory: one trip to L2 is exposed, not one a chunk. Partial sums of the warps are added in a
// fixed order: the same bits in every run.
//
// Bytes: the weights, once. What bounds it: the floor is weights / 4.4 TB/s; each launch exposes
// the trip of its token rows through L2 (about 1 us) and its tail.
#include "skinny.cuh"

namespace ssm {

enum { WARPS = 8, THREADS = WARPS * 32, MAX_ROWS = 16, MAX_GROUPS = 6 };

// Eight columns of a token row; with a norm, times its weight, their squares added to sum.
struct piece8 {
    float x[8], w[8];
    uint4 packed;
};

template <bool NORM>
__device__ __forceinline__ void read_piece(const skinny_args &a, int token, int k, piece8 &p) {
    if (NORM) {
        load<8>((const float *)a.x + (size_t)token * a.n_cols + k, p.x);
        load<8>(a.norm + k, p.w);
    } else {
        p.packed = *(const uint4 *)((const bf16 *)a.x + (size_t)token * a.n_cols + k);
    }
}

template <bool NORM> __device__ __forceinline__ float pack_piece(piece8 &p) {
    float sum = 0;
    if (NORM) {
#pragma unroll
        for (int i = 0; i < 8; i++) {
            sum += p.x[i] * p.x[i];
            p.x[i] *= p.w[i];
        }
        p.packed = pack_bf16(p.x);
    }
    return sum;
}

// A warp's columns [first, end) of all token rows to its part of shared memory as bf16, row pitch
// in bytes; with a norm, the rows' sums of squares to squares[token]. Lanes share out the rows, so
// that all loads are under way at once however many rows there are.
template <bool NORM>
__device__ __forceinline__ void stage(const skinny_args &a, int first, int end, char *to, int pitch,
                                      float *squares) {
    constexpr int AT_ONCE = NORM ? 2 : 4;
    const int lane = threadIdx.x & 31;
    const int share = a.batch == 1 ? 32 : a.batch == 2 ? 16 : a.batch <= 4 ? 8 : 4; // lanes a row
    const int sub = lane & (share - 1);
    for (int t0 = 0; t0 < a.batch; t0 += 32 / share) {
        const int token = t0 + lane / share;
        float sum = 0;
        for (int k = first + sub * 8; k < end; k += AT_ONCE * share * 8) {
            piece8 p[AT_ONCE];
#pragma unroll
            for (int i = 0; i < AT_ONCE; i++) {
                const int at = k + i * share * 8;
                if (token < a.batch && at < end && at < a.n_cols)
                    read_piece<NORM>(a, token, at, p[i]);
            }
#pragma unroll
            for (int i = 0; i < AT_ONCE; i++) {
                const int at = k + i * share * 8;
                if (token >= a.batch || at >= end)
                    continue;
                if (at < a.n_cols)
                    sum += pack_piece<NORM>(p[i]);
                else
                    p[i].packed = make_uint4(0, 0, 0, 0);
                *(uint4 *)(to + (size_t)token * pitch + (at - first) * 2) = p[i].packed;
            }
        }
        if (NORM) {
            for (int o = share >> 1; o; o >>= 1)
                sum += __shfl_xor_sync(~0u, sum, o);
            if (sub == 0 && token < a.batch)
                squares[token] = sum;
        }
    }
    __syncwarp();
}

// NG: groups of eight weight rows a block, UN: blocks of 32 columns a chunk
template <int NG> struct unroll {
    enum { N = NG == 1 ? 4 : NG <= 3 ? 2 : 1 };
};

template <int NG, bool NORM, bool WIDE>
__global__ void __launch_bounds__(THREADS, 2) skinny_kernel(skinny_args a) {
    constexpr int UN = unroll<NG>::N, TOKENS = WIDE ? 16 : 8, SUMS = NG * 8 * TOKENS;
    extern __shared__ __align__(16) char shared[];
    __shared__ float squares[WARPS][MAX_ROWS], scale[MAX_ROWS];
    dependents_start();
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, q = lane & 3;
    const int64_t b = blockIdx.x;
    const int r0 = a.rows_a_block ? (int)b * a.rows_a_block : (int)(b * a.n_rows / gridDim.x);
    const int r1 =
        a.rows_a_block ? min(r0 + a.rows_a_block, a.n_rows) : (int)((b + 1) * a.n_rows / gridDim.x);
    const int blocks = (a.n_cols + 31) / 32, units = WARPS * gridDim.y;
    const int unit = blockIdx.y * WARPS + warp;
    const int k0 = blocks * unit / units, k1 = blocks * (unit + 1) / units; // blocks of 32
    const int most = (blocks + units - 1) / units, pitch = (most | 1) * 64;
    float *sums = (float *)shared;
    char *mine = shared + WARPS * SUMS * sizeof(float) + (size_t)warp * a.batch * pitch;

    const bf16 *w = a.weight + (size_t)(r0 + g) * a.n_cols + q * 8;
    auto fetch = [&](uint4(&v)[UN][NG], int k) {
#pragma unroll
        for (int u = 0; u < UN; u++) {
#pragma unroll
            for (int i = 0; i < NG; i++) {
                v[u][i] = make_uint4(0, 0, 0, 0);
                if (k + u < k1 && r0 + i * 8 + g < r1 && (k + u) * 32 + q * 8 < a.n_cols)
                    v[u][i] = load_once(w + (size_t)i * 8 * a.n_cols + (k + u) * 32);
            }
        }
    };
    uint4 v0[UN][NG], v1[UN][NG];
    fetch(v0, k0);
    fetch(v1, k0 + UN);
    const int n_out = (r1 - r0) * a.batch, first = threadIdx.x;
    ahead p = {};
    if (first < n_out)
        p = look_ahead(a, r0 + first % (r1 - r0), first / (r1 - r0));

    dependency_wait();
    if (a.after == AFTER_OUT && first < n_out)
        p.residual = a.out[(size_t)(first / (r1 - r0)) * a.n_rows + r0 + first % (r1 - r0)];
    if (a.squares) {
        for (int t = warp; t < a.batch; t += WARPS) {
            float sum = 0;
            for (int h = lane; h < a.heads; h += 32)
                sum += a.squares[(size_t)t * a.heads + h];
            sum = warp_sum(sum);
            if (lane == 0)
                scale[t] = rsqrtf(sum / a.n_cols + a.eps);
        }
    }
    stage<NORM>(a, k0 * 32, k1 * 32, mine, pitch, squares[warp]);

    float c[NG][4];
#pragma unroll
    for (int i = 0; i < NG; i++)
        c[i][0] = c[i][1] = c[i][2] = c[i][3] = 0;
    auto multiply = [&](const uint4(&v)[UN][NG], int k) {
#pragma unroll
        for (int u = 0; u < UN; u++) {
            if (k + u >= k1)
                break;
            uint4 lo = make_uint4(0, 0, 0, 0), hi = lo;
            const char *x = mine + (k + u - k0) * 64 + q * 16;
            if (g < a.batch)
                lo = *(const uint4 *)(x + g * pitch);
            if (WIDE && g + 8 < a.batch)
                hi = *(const uint4 *)(x + (g + 8) * pitch);
#pragma unroll
            for (int i = 0; i < NG; i++) {
                mma(c[i], lo.x, hi.x, lo.y, hi.y, v[u][i].x, v[u][i].y);
                mma(c[i], lo.z, hi.z, lo.w, hi.w, v[u][i].z, v[u][i].w);
            }
        }
    };
    for (int k = k0; k < k1; k += 2 * UN) {
        multiply(v0, k);
        fetch(v0, k + 2 * UN);
        multiply(v1, k + UN);
        fetch(v1, k + 3 * UN);
    }
    float *to = sums + warp * SUMS; // [row][token]
#pragma unroll
    for (int i = 0; i < NG; i++) {
        float *at = to + (i * 8 + 2 * q) * TOKENS + g;
        at[0] = c[i][0], at[TOKENS] = c[i][1];
        if (WIDE)
            at[8] = c[i][2], at[TOKENS + 8] = c[i][3];
    }
    __syncthreads();
    if (NORM && threadIdx.x < a.batch) {
        float sum = 0;
        for (int i = 0; i < WARPS; i++)
            sum += squares[i][threadIdx.x];
        scale[threadIdx.x] = rsqrtf(sum / a.n_cols + a.eps);
    }
    if (NORM)
        __syncthreads();
    for (int o = first; o < n_out; o += THREADS) {
        const int n = o % (r1 - r0), token = o / (r1 - r0);
        float sum = 0;
#pragma unroll
        for (int i = 0; i < WARPS; i++)
            sum += sums[i * SUMS + n * TOKENS + token];
        if (NORM || a.squares)
            sum *= scale[token];
        if (o != first) {
            p = look_ahead(a, r0 + n, token);
            if (a.after == AFTER_OUT)
                p.residual = a.out[(size_t)token * a.n_rows + r0 + n];
        }
        finish(a, p, r0 + n, token, sum);
    }
}

// ---- host side

template <int NG, bool NORM, bool WIDE>
static cudaError_t run(const device *d, const skinny_args &a, dim3 grid) {
    const int blocks = ceil_div(a.n_cols, 32), units = WARPS * (int)grid.y;
    const int pitch = (ceil_div(blocks, units) | 1) * 64;
    const size_t shared =
        WARPS * ((size_t)NG * 8 * (WIDE ? 16 : 8) * sizeof(float) + (size_t)a.batch * pitch);
    if (shared > 40 * 1024) {
        const cudaError_t rc =
            cudaFuncSetAttribute(skinny_kernel<NG, NORM, WIDE>,
                                 cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared);
        if (rc != cudaSuccess)
            return rc;
    }
    return launch(d, skinny_kernel<NG, NORM, WIDE>, grid, THREADS, shared, true, a);
}

template <int NG> static cudaError_t run_groups(const device *d, const skinny_args &a, dim3 grid) {
    if (a.batch > 8)
        return a.norm ? run<NG, true, true>(d, a, grid) : run<NG, false, true>(d, a, grid);
    return a.norm ? run<NG, true, false>(d, a, grid) : run<NG, false, false>(d, a, grid);
}

static cudaError_t run_any(const device *d, const skinny_args &a, dim3 grid, int most_rows) {
    switch (ceil_div(most_rows, 8)) {
    case 1:
        return run_groups<1>(d, a, grid);
    case 2:
        return run_groups<2>(d, a, grid);
    case 3:
        return run_groups<3>(d, a, grid);
    case 4:
        return run_groups<4>(d, a, grid);
    case 5:
        return run_groups<5>(d, a, grid);
    default:
        return run_groups<6>(d, a, grid);
    }
}

// One or two blocks an SM that share the rows evenly; more only where they would get too many.
static cudaError_t run_even(const device *d, const skinny_args &a) {
    int blocks = 2 * d->n_sms;
    if (a.n_rows < 12 * blocks)
        blocks = d->n_sms;
    if (a.n_rows < blocks)
        blocks = a.n_rows;
    if (a.n_rows > blocks * MAX_GROUPS * 8)
        blocks = ceil_div(a.n_rows, 40);
    return run_any(d, a, dim3((unsigned)blocks), ceil_div(a.n_rows, blocks));
}

bool skinny_fits(const device *d, int32_t n) {
    const ssm_geometry &g = d->g;
    return d->weight_type == SSM_DTYPE_BF16 && d->arch >= 80 && n <= MAX_ROWS &&
           g.d_model % 8 == 0 && g.d_inner % 8 == 0 && g.d_inner <= 8192 && g.d_conv <= 4;
}

int32_t skinny_x_splits(const device *d) {
    const int32_t blocks = ceil_div(d->g.d_inner, 32 * WARPS);
    return blocks < 8 ? blocks : 8;
}

// With many rows the fp32 residual would cross to every block: it is normed to bf16 once instead.
static cudaError_t with_norm(device *d, const batch &b, const float *weight, skinny_args *a) {
    if (b.n <= 8) {
        a->x = d->residual, a->norm = weight;
        return cudaSuccess;
    }
    a->x = d->u;
    return norm(d, weight, d->residual, NULL, d->u, b.n, true);
}

cudaError_t skinny_in(device *d, int layer, const batch &b) {
    const layer_weights &w = d->layers[layer];
    skinny_args a = skinny_arguments(d, b, w.in_proj, NULL, d->n_in, d->g.d_model, AFTER_IN);
    const cudaError_t rc = with_norm(d, b, w.norm, &a);
    if (rc != cudaSuccess)
        return rc;
    skinny_in_fill(d, layer, b, &a);
    return run_even(d, a);
}

cudaError_t skinny_x(device *d, int layer, const batch &b) {
    const ssm_geometry &g = d->g;
    const layer_weights &w = d->layers[layer];
    skinny_args a = skinny_arguments(d, b, w.x_proj, d->xc, d->n_x, g.d_inner, AFTER_X);
    a.out = d->xdb;
    a.rows_a_block = 8;
    const dim3 grid((unsigned)ceil_div(d->n_x, 8), (unsigned)skinny_x_splits(d));
    return run_any(d, a, grid, 8);
}

cudaError_t skinny_out(device *d, int layer, const batch &b, bool fold_norm) {
    const ssm_geometry &g = d->g;
    const layer_weights &w = d->layers[layer];
    skinny_args a = skinny_arguments(d, b, w.out_proj, d->y, g.d_model, g.d_inner, AFTER_OUT);
    a.out = d->residual, a.bias = w.out_bias;
    if (fold_norm)
        a.squares = d->squares, a.heads = g.n_heads, a.eps = g.gate_eps;
    return run_even(d, a);
}

cudaError_t skinny_head(device *d, const batch &b) {
    skinny_args a =
        skinny_arguments(d, b, d->lm_head, NULL, d->g.vocab_size, d->g.d_model, AFTER_HEAD);
    const cudaError_t rc = with_norm(d, b, d->norm_f, &a);
    a.out = d->logits;
    return rc ? rc : run_even(d, a);
}

} // namespace ssm
