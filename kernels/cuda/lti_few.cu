// SPDX-License-Identifier: Apache-2.0
// Products for few decode rows of the LTI models, with what comes before and after; and the gate
// alone, after a product of many rows.
//
//   H3        norm, [q k v] with bias; out_proj with bias, residual
//   S4D, S4   both halves of out_proj with bias, gate, residual
//   all       final norm, lm_head
//
// A warp makes one output (or one of each half) of all rows: its lanes take 16 bytes of a weight
// row each, the first of them asked for before the kernel waits for its predecessor, and the token
// rows lie in shared memory in fp32. Everything is in L2: what is left is the launch, two trips to
// L2 and the sums. skinny.cu's products read large models from memory and take bf16 alone; these
// take any type and any shape.
#include "lti.cuh"

namespace ssm {

enum {
    FEW_THREADS = 256,
    FEW_WARPS = FEW_THREADS / 32,
    BLOCK_ROWS = 8, // of a block; more rows are more blocks
    AHEAD = 2,
    FEW_NUMBERS = 64 * 384, // of all token rows: past it cuBLASLt and a gate are faster
};
enum few_end { FEW_STORE, FEW_ADD, FEW_GATE };
static const size_t FEW_SHARED = 48 << 10;

struct lti_few_args {
    const void *weight; // T [outputs, or twice that][cols]
    const float *bias;  // or NULL
    const void *x;      // T, with a norm fp32 [rows][cols]
    const float *norm;
    float eps;
    float *out; // [rows][outputs]
    int cols, outputs;
};

// Token rows to shared memory; with a norm, a warp a row.
template <class T, int ROWS, bool NORM>
__device__ __forceinline__ void stage(const lti_few_args &a, int row, float *x) {
    if (!NORM) {
        for (int i = threadIdx.x; i < ROWS * a.cols; i += FEW_THREADS)
            x[i] = to_float(((const T *)a.x)[(size_t)row * a.cols + i]);
    } else {
        const int r = threadIdx.x >> 5, lane = threadIdx.x & 31;
        if (r < ROWS) {
            const float *from = (const float *)a.x + (size_t)(row + r) * a.cols;
            const float scale = rsqrtf(square_sum(from, a.cols) / a.cols + a.eps);
#pragma unroll 4
            for (int k = lane; k < a.cols; k += 32)
                x[r * a.cols + k] = from[k] * scale * a.norm[k];
        }
    }
    __syncthreads();
}

// PER outputs a warp.
template <class T, int ROWS, int PER, bool NORM, few_end END>
__global__ void __launch_bounds__(FEW_THREADS) few_kernel(lti_few_args a) {
    constexpr int V = 16 / sizeof(T), HALVES = END == FEW_GATE ? 2 : 1, W = PER * HALVES;
    extern __shared__ float x[]; // [ROWS][cols]
    dependents_start();
    const int lane = threadIdx.x & 31;
    const int o = (blockIdx.x * FEW_WARPS + (threadIdx.x >> 5)) * PER, row = blockIdx.y * ROWS;
    const T *w[W]; // by output, by half
    uint4 ahead[W][AHEAD];
    const bool vectors = a.cols % V == 0;
#pragma unroll
    for (int j = 0; j < W; j++) {
        const int one = min(o + j / HALVES, a.outputs - 1);
        w[j] = (const T *)a.weight + (size_t)(one + j % HALVES * a.outputs) * a.cols;
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
            const int k = (i * 32 + lane) * V;
            ahead[j][i] = make_uint4(0, 0, 0, 0);
            if (vectors && k < a.cols)
                ahead[j][i] = load_once(w[j] + k);
        }
    }
    float bias[W], old[PER]; // asked for before they are needed; lane r has row r's
#pragma unroll
    for (int j = 0; j < W; j++)
        bias[j] =
            a.bias ? a.bias[min(o + j / HALVES, a.outputs - 1) + j % HALVES * a.outputs] : 0.f;
    dependency_wait();
    float *out = a.out + (size_t)(row + min(lane, ROWS - 1)) * a.outputs;
#pragma unroll
    for (int p = 0; p < PER; p++)
        old[p] = END == FEW_STORE ? 0.f : out[min(o + p, a.outputs - 1)];
    stage<T, ROWS, NORM>(a, row, x);
    if (o >= a.outputs)
        return;
    float sum[W][ROWS] = {};
    const auto add = [&](int k, const float(&v)[W][V]) {
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            float in[V];
            load<V>(x + r * a.cols + k, in);
#pragma unroll
            for (int j = 0; j < W; j++) {
#pragma unroll
                for (int e = 0; e < V; e++)
                    sum[j][r] = fmaf(v[j][e], in[e], sum[j][r]);
            }
        }
    };
    if (vectors) {
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
            const int k = (i * 32 + lane) * V;
            float v[W][V];
#pragma unroll
            for (int j = 0; j < W; j++)
                load<V>((const T *)&ahead[j][i], v[j]);
            if (k < a.cols)
                add(k, v);
        }
        for (int k = (AHEAD * 32 + lane) * V; k < a.cols; k += 32 * V) {
            float v[W][V];
#pragma unroll
            for (int j = 0; j < W; j++)
                load<V>(w[j] + k, v[j]);
            add(k, v);
        }
    } else {
        for (int k = lane; k < a.cols; k += 32) {
#pragma unroll
            for (int j = 0; j < W; j++) {
                const float v = to_float(w[j][k]);
#pragma unroll
                for (int r = 0; r < ROWS; r++)
                    sum[j][r] = fmaf(v, x[r * a.cols + k], sum[j][r]);
            }
        }
    }
    float one[W] = {};
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
#pragma unroll
        for (int j = 0; j < W; j++) {
            const float all = warp_sum(sum[j][r]);
            if (lane == r)
                one[j] = all;
        }
    }
    if (lane >= ROWS)
        return;
#pragma unroll
    for (int j = 0; j < W; j++)
        one[j] += bias[j];
#pragma unroll
    for (int p = 0; p < PER; p++) {
        const float sums =
            END == FEW_GATE ? gate(one[p * HALVES], one[p * HALVES + HALVES - 1]) : one[p];
        if (o + p < a.outputs)
            out[o + p] = old[p] + sums;
    }
}

// Weights are read again for every eight rows: small ones, which stay in L2.
bool lti_few_fits(const device *d, int32_t n) {
    const size_t each = (size_t)d->g.d_model * sizeof(float);
    if (n <= BLOCK_ROWS)
        return (n & (n - 1)) == 0 && n * each <= FEW_SHARED;
    return n % BLOCK_ROWS == 0 && n * d->g.d_model <= FEW_NUMBERS && d->g.vocab_size <= 16384;
}

template <bool NORM, few_end END>
static cudaError_t run_few(device *d, int32_t n, const lti_few_args &a) {
    const int rows = n < BLOCK_ROWS ? n : BLOCK_ROWS, per = n <= BLOCK_ROWS ? 1 : 2;
    const dim3 grid((unsigned)ceil_div(a.outputs, FEW_WARPS * per), (unsigned)(n / rows));
    const size_t shared = (size_t)rows * a.cols * sizeof(float);
    return with_type(d->weight_type, [&](auto t) {
        typedef decltype(t) T;
        const auto run = [&](auto kernel) {
            return launch(d, kernel, grid, FEW_THREADS, shared, true, a);
        };
        return n == 1   ? run(few_kernel<T, 1, 1, NORM, END>)
               : n == 2 ? run(few_kernel<T, 2, 1, NORM, END>)
               : n == 4 ? run(few_kernel<T, 4, 1, NORM, END>)
               : n == 8 ? run(few_kernel<T, 8, 1, NORM, END>)
                        : run(few_kernel<T, 8, 2, NORM, END>);
    });
}

cudaError_t lti_few_in(device *d, int layer, const batch &b) {
    const layer_weights &w = d->layers[layer];
    const lti_few_args a = {w.in_proj,     w.in_bias,      d->residual,  w.norm,
                            d->g.norm_eps, (float *)d->xz, d->g.d_model, d->n_in};
    return run_few<true, FEW_STORE>(d, b.n, a);
}

cudaError_t lti_few_out(device *d, int layer, const batch &b) {
    const layer_weights &w = d->layers[layer];
    const lti_few_args a = {w.out_proj, w.out_bias,  d->y,         NULL,
                            0,          d->residual, d->g.d_model, d->g.d_model};
    return d->g.kind == SSM_BLOCK_H3 ? run_few<false, FEW_ADD>(d, b.n, a)
                                     : run_few<false, FEW_GATE>(d, b.n, a);
}

cudaError_t lti_few_head(device *d, const batch &b) {
    const lti_few_args a = {d->lm_head,    NULL,      d->residual,  d->norm_f,
                            d->g.norm_eps, d->logits, d->g.d_model, d->g.vocab_size};
    return run_few<true, FEW_STORE>(d, b.n, a);
}

// ---- the gate alone

// ab [n][2 width] fp32: residual += (a + bias) sigmoid(b + bias). V channels a thread.
template <int V>
__global__ void gate_kernel(const float *ab, const float *bias, float *residual, int width,
                            size_t n) {
    const size_t step = (size_t)gridDim.x * blockDim.x * V;
    for (size_t i = ((size_t)blockIdx.x * blockDim.x + threadIdx.x) * V; i < n; i += step) {
        const size_t row = i / width;
        const int c = (int)(i - row * width);
        float a[V], b[V], bias_a[V], bias_b[V], r[V];
        load<V>(ab + row * 2 * width + c, a);
        load<V>(ab + row * 2 * width + width + c, b);
        load<V>(bias + c, bias_a);
        load<V>(bias + width + c, bias_b);
        load<V>(residual + i, r);
#pragma unroll
        for (int k = 0; k < V; k++)
            r[k] += gate(a[k] + bias_a[k], b[k] + bias_b[k]);
        store<V>(residual + i, r);
    }
}

cudaError_t lti_gate(device *d, int layer, int32_t n) {
    const size_t all = (size_t)n * d->g.d_model;
    const int v = d->g.d_model % 4 == 0 ? 4 : 1;
    const int32_t blocks = ceil_div((int64_t)all, 256 * v), most = 16 * d->n_sms;
    return launch(d, v == 4 ? gate_kernel<4> : gate_kernel<1>,
                  dim3((unsigned)(blocks < most ? blocks : most)), 256, 0, false,
                  (const float *)d->xz, d->layers[layer].out_bias, d->residual, d->g.d_model, all);
}

} // namespace ssm
