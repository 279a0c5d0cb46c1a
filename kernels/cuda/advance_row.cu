// SPDX-License-Identifier: Apache-2.0
// Mamba-1, one token of up to eight sequences: the advance of few.cu's step.
//
// A warp takes eight channels of all rows, four lanes a channel, four states a lane. States,
// dt_proj's weights (operands of the matrix unit as they lie) and constants are asked for before
// the step's data is there. Then one trip to L2, x_proj's sums (fixed point, a few copies to spread
// the blocks that add to them) and the channels' x and z; one barrier; and everything else stays
// within the warp. falcon_mamba's norms of dt, B and C are made here too.
//
// At most one block an SM, of 64 registers a thread for one and two rows: it must fit beside the
// blocks of both products, or the out_proj behind it starts too late to fetch ahead.
#include "few.cuh"
#include "mamba.cuh"

namespace ssm {

struct few_row_args {
    mamba_args m;
    const unsigned long long *x_sums; // [X_COPIES][FEW_ROWS][n_x]
    const unsigned *x_broken;
    const row *rows;
    float norm_eps; // falcon_mamba's norms of dt, B and C; below zero: none
};

// dt [ROWS][pitch bytes] bf16, bc [ROWS][32]
template <int ROWS>
__device__ __forceinline__ void stage_sums(const few_row_args &a, char *dt, int pitch, float *bc) {
    constexpr int AT_ONCE = 1; // pairs
    const int n_x = a.m.n_x, n = ROWS * n_x / 2;
#pragma unroll 1
    for (int i = threadIdx.x; i < n; i += AT_ONCE * blockDim.x) {
        ulonglong2 v[AT_ONCE][X_COPIES];
#pragma unroll
        for (int j = 0; j < AT_ONCE; j++) {
            const int at = i + j * blockDim.x;
#pragma unroll
            for (int c = 0; c < X_COPIES; c++) {
                v[j][c] = make_ulonglong2(0, 0);
                if (at < n)
                    v[j][c] =
                        __ldcg((const ulonglong2 *)(a.x_sums + (size_t)c * FEW_ROWS * n_x) + at);
            }
        }
#pragma unroll
        for (int j = 0; j < AT_ONCE; j++) {
            const int at = (i + j * blockDim.x) * 2;
            if (at >= 2 * n)
                break;
            unsigned long long sum = v[j][0].x, odd = v[j][0].y;
#pragma unroll
            for (int c = 1; c < X_COPIES; c++)
                sum += v[j][c].x, odd += v[j][c].y;
            const float v0 = (float)(long long)sum * (1 / X_ONE);
            const float v1 = (float)(long long)odd * (1 / X_ONE);
            const int token = at / n_x, col = at - token * n_x;
            if (col < a.m.rank)
                *(uint32_t *)(dt + token * pitch + col * 2) = pack_bf16(v0, v1);
            else
                *(float2 *)(bc + token * 32 + col - a.m.rank) = make_float2(v0, v1);
        }
    }
}

// The same with each part scaled to a mean square of one; `all` holds ROWS * n_x numbers.
template <int ROWS>
__device__ __forceinline__ void stage_normed(const few_row_args &a, char *dt, int pitch, float *bc,
                                             float *all) {
    const int n_x = a.m.n_x, lane = threadIdx.x & 31, warps = blockDim.x >> 5;
#pragma unroll 1
    for (int i = threadIdx.x; i < ROWS * n_x; i += blockDim.x) {
        unsigned long long sum = 0;
#pragma unroll
        for (int c = 0; c < X_COPIES; c++)
            sum += __ldcg(a.x_sums + (size_t)c * FEW_ROWS * n_x + i);
        all[i] = (float)(long long)sum * (1 / X_ONE);
    }
    __syncthreads();
#pragma unroll 1
    for (int part = threadIdx.x >> 5; part < ROWS * 3; part += warps) {
        const int token = part / 3, of = part - token * 3;
        const int first = of == 0 ? 0 : a.m.rank + (of - 1) * 16, width = of == 0 ? a.m.rank : 16;
        const float *v = all + token * n_x + first;
        float sum = 0;
#pragma unroll 1
        for (int i = lane; i < width; i += 32)
            sum += v[i] * v[i];
        const float scale = rsqrtf(warp_sum(sum) / width + a.norm_eps);
#pragma unroll 1
        for (int i = lane; i < width; i += 32) {
            if (of == 0)
                *(bf16 *)(dt + token * pitch + i * 2) = from_float<bf16>(v[i] * scale);
            else
                bc[token * 32 + (of - 1) * 16 + i] = v[i] * scale;
        }
    }
}

template <class S, int ROWS, int RK>
__global__ void __launch_bounds__(256, ROWS > 2  ? 2
                                       : RK <= 5 ? 4
                                                 : 3) advance_row_kernel(few_row_args a) {
    extern __shared__ __align__(16) char shared[];
    __shared__ __align__(16) float bc[ROWS][32];
    __shared__ unsigned broken[ROWS];
    dependents_start();
    const int lane = threadIdx.x & 31, q = lane & 3, g = lane >> 2;
    const int channel = (blockIdx.x * (blockDim.x >> 5) + (threadIdx.x >> 5)) * 8 + g;
    const int pitch = weight_pitch(a.m.rank);
    const bool live = channel < a.m.channels;
    const int c = live ? channel : 0;

    // States were written a step ago, long before this graph began: they need not wait.
    S *states = (S *)a.m.state + (size_t)c * 16 + q * 4;
    const size_t slot_pitch = (size_t)a.m.channels * 16;
    int slot[ROWS];
    constexpr int AHEAD = ROWS < 4 ? ROWS : 4;
    words<sizeof(S)> h[AHEAD];
    auto fetch = [&](int t) {
        const row r = a.rows[t];
        slot[t] = live ? r.slot : -1;
#pragma unroll
        for (int i = 0; i < (int)sizeof(S); i++)
            h[t % AHEAD].w[i] = 0;
        if (slot[t] >= 0 && !r.fresh)
            h[t % AHEAD] = load_words<sizeof(S)>(states + (size_t)slot[t] * slot_pitch);
    };
#pragma unroll
    for (int t = 0; t < AHEAD; t++)
        fetch(t);
    float decay[4];
    load<4>(a.m.decay + (size_t)c * 16 + q * 4, decay);
    uint4 w[RK];
#pragma unroll
    for (int k = 0; k < RK; k++) {
        w[k] = make_uint4(0, 0, 0, 0);
        if (k * 32 + q * 8 < a.m.rank)
            w[k] = load_once((const bf16 *)a.m.dt_proj + (size_t)c * a.m.rank + k * 32 + q * 8);
    }
    const float skip = a.m.skip[c], bias = a.m.dt_bias[c];

    dependency_wait();
    unsigned short x[ROWS], z[ROWS];
#pragma unroll
    for (int t = 0; t < ROWS; t++) {
        x[t] = __ldcg((const unsigned short *)a.m.x + (size_t)t * a.m.channels + c);
        z[t] = __ldcg((const unsigned short *)a.m.xz + ((size_t)t * 2 + 1) * a.m.channels + c);
    }
    if (threadIdx.x < ROWS)
        broken[threadIdx.x] = __ldcg(a.x_broken + threadIdx.x);
    if (a.norm_eps >= 0)
        stage_normed<ROWS>(a, shared, pitch, bc[0], (float *)(shared + ROWS * pitch));
    else
        stage_sums<ROWS>(a, shared, pitch, bc[0]);
    __syncthreads();

    float c0[4] = {}, c1[4] = {}; // dt_proj dt of token g, channels 2 q and 2 q + 1
#pragma unroll
    for (int k = 0; k < RK; k++) {
        uint4 dt = make_uint4(0, 0, 0, 0);
        if (g < ROWS && k * 32 + q * 8 < a.m.rank)
            dt = *(const uint4 *)(shared + g * pitch + k * 64 + q * 16);
        mma(c0, dt.x, 0, dt.y, 0, w[k].x, w[k].y);
        mma(c1, dt.z, 0, dt.w, 0, w[k].z, w[k].w);
    }
#pragma unroll
    for (int t = 0; t < ROWS; t++) {
        const float even = __shfl_sync(~0u, c0[0] + c1[0], t * 4 + (lane >> 3));
        const float odd = __shfl_sync(~0u, c0[1] + c1[1], t * 4 + (lane >> 3));
        const float delta = softplus(broken[t] ? NAN : (g & 1 ? odd : even) + bias);
        const float xt = low_half(x[t]), input = delta * xt;
        float now[4], b[4], v[4], y = 0;
        load<4>((const S *)&h[t % AHEAD], now);
        if (t + AHEAD < ROWS)
            fetch(t + AHEAD);
        load<4>(bc[t] + q * 4, b);
        load<4>(bc[t] + 16 + q * 4, v);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            now[i] = exp2_fast(delta * decay[i]) * now[i] + input * b[i];
            y += now[i] * v[i];
        }
        y += __shfl_xor_sync(~0u, y, 1);
        y += __shfl_xor_sync(~0u, y, 2);
        if (slot[t] < 0)
            continue;
        store<4>(states + (size_t)slot[t] * slot_pitch, now);
        if (q == 0)
            ((bf16 *)a.m.y)[(size_t)t * a.m.channels + c] =
                from_float<bf16>((y + skip * xt) * silu(low_half(z[t])));
    }
}

template <class S, int ROWS> static auto kernel_of(int rank) {
    return rank <= 64    ? advance_row_kernel<S, ROWS, 2>
           : rank <= 160 ? advance_row_kernel<S, ROWS, 5>
                         : advance_row_kernel<S, ROWS, 8>;
}

template <class S> static auto kernel_for(int rows, int rank) {
    return rows == 1   ? kernel_of<S, 1>(rank)
           : rows == 2 ? kernel_of<S, 2>(rank)
           : rows <= 4 ? kernel_of<S, 4>(rank)
                       : kernel_of<S, 8>(rank);
}

cudaError_t few_advance(device *d, int layer, const batch &b) {
    const ssm_geometry &g = d->g;
    few_row_args a = {};
    a.m = mamba_arguments(d, layer, 1);
    a.x_sums = d->x_sums, a.x_broken = d->x_broken, a.rows = b.rows;
    a.norm_eps = g.bc_dt_norm ? g.bc_dt_eps : -1.f;
    // One wave: a block that does not fit beside the products would hold up the kernels after it.
    int warps = ceil_div(g.d_inner / 8, d->n_sms);
    if (b.n >= 4 && warps < 4) // enough threads to fetch all sums at once
        warps = 4;
    warps = warps < 8 ? warps : 8;
    const size_t shared =
        (size_t)b.n * (weight_pitch(g.dt_rank) + (g.bc_dt_norm ? d->n_x * sizeof(float) : 0));
    return with_state_type(d->state_type, [&](auto s) {
        typedef decltype(s) S;
        auto kernel = kernel_for<S>(b.n, g.dt_rank);
        const cudaError_t rc = few_prepare(kernel, shared);
        return rc ? rc
                  : launch(d, kernel, dim3((unsigned)ceil_div(g.d_inner / 8, warps)), warps * 32,
                           shared, true, a);
    });
}

} // namespace ssm
