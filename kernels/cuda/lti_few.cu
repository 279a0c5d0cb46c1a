// SPDX-License-Identifier: Apache-2.0
// Products for up to 8 decode rows of the LTI models, with what comes before and after; and the
// gate alone, after a product of many rows.
//
//   H3    norm, [q k v] with bias          S4D, S4   both halves of out_proj with bias, gate,
//   residual
//         out_proj with bias, residual     all       final norm, lm_head
//
// A warp makes one output (or one of each half) of all rows: its lanes take 16 bytes of a weight
// row each, the first of them asked for before the kernel waits for its predecessor, and the token
// rows lie in shared memory in fp32. Everything is in L2: what is left is the launch, two trips to
// L2 and the sums. skinny.cu's products read large models from memory and take bf16 alone; these
// take any type and any shape.
#include "lti.cuh"

namespace ssm {

enum { FEW_THREADS = 256, FEW_WARPS = FEW_THREADS / 32, FEW_ROWS = 8, AHEAD = 2 };
enum few_end { FEW_STORE, FEW_ADD, FEW_GATE };
static const size_t FEW_SHARED = 48 << 10;

struct few_args {
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
__device__ __forceinline__ void stage(const few_args &a, float *x) {
    if (!NORM) {
        for (int i = threadIdx.x; i < ROWS * a.cols; i += FEW_THREADS)
            x[i] = to_float(((const T *)a.x)[i]);
    } else {
        const int r = threadIdx.x >> 5, lane = threadIdx.x & 31;
        if (r < ROWS) {
            const float *from = (const float *)a.x + (size_t)r * a.cols;
            float sum = 0;
            for (int k = lane; k < a.cols; k += 32) {
                const float v = from[k];
                x[r * a.cols + k] = v * a.norm[k];
                sum += v * v;
            }
            const float scale = rsqrtf(warp_sum(sum) / a.cols + a.eps);
            for (int k = lane; k < a.cols; k += 32)
                x[r * a.cols + k] *= scale;
        }
    }
    __syncthreads();
}

template <class T, int ROWS, bool NORM, few_end END>
__global__ void __launch_bounds__(FEW_THREADS) few_kernel(few_args a) {
    constexpr int V = 16 / sizeof(T), HALVES = END == FEW_GATE ? 2 : 1;
    extern __shared__ float x[]; // [ROWS][cols]
    dependents_start();
    const int lane = threadIdx.x & 31, o = blockIdx.x * FEW_WARPS + (threadIdx.x >> 5);
    const bool inside = o < a.outputs;
    const T *w[HALVES];
    uint4 ahead[HALVES][AHEAD];
    const bool vectors = a.cols % V == 0;
#pragma unroll
    for (int h = 0; h < HALVES; h++) {
        w[h] = (const T *)a.weight + (size_t)((inside ? o : 0) + h * a.outputs) * a.cols;
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
            const int k = (i * 32 + lane) * V;
            ahead[h][i] = make_uint4(0, 0, 0, 0);
            if (vectors && k < a.cols)
                ahead[h][i] = load_once(w[h] + k);
        }
    }
    dependency_wait();
    stage<T, ROWS, NORM>(a, x);
    if (!inside)
        return;
    float sum[HALVES][ROWS] = {};
    const auto add = [&](int h, int k, const float(&v)[V]) {
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            float in[V];
            load<V>(x + r * a.cols + k, in);
#pragma unroll
            for (int e = 0; e < V; e++)
                sum[h][r] = fmaf(v[e], in[e], sum[h][r]);
        }
    };
    if (vectors) {
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
            const int k = (i * 32 + lane) * V;
#pragma unroll
            for (int h = 0; h < HALVES; h++) {
                float v[V];
                load<V>((const T *)&ahead[h][i], v);
                if (k < a.cols)
                    add(h, k, v);
            }
        }
        for (int k = (AHEAD * 32 + lane) * V; k < a.cols; k += 32 * V) {
#pragma unroll
            for (int h = 0; h < HALVES; h++) {
                float v[V];
                load<V>(w[h] + k, v);
                add(h, k, v);
            }
        }
    } else {
        for (int k = lane; k < a.cols; k += 32) {
#pragma unroll
            for (int h = 0; h < HALVES; h++) {
                const float v = to_float(w[h][k]);
#pragma unroll
                for (int r = 0; r < ROWS; r++)
                    sum[h][r] = fmaf(v, x[r * a.cols + k], sum[h][r]);
            }
        }
    }
    float one[HALVES] = {}; // lane r keeps row r's
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
#pragma unroll
        for (int h = 0; h < HALVES; h++) {
            const float all = warp_sum(sum[h][r]);
            if (lane == r)
                one[h] = all;
        }
    }
    if (lane >= ROWS)
        return;
#pragma unroll
    for (int h = 0; h < HALVES; h++)
        one[h] += a.bias ? a.bias[o + h * a.outputs] : 0.f;
    float *out = a.out + (size_t)lane * a.outputs + o;
    if (END == FEW_STORE)
        *out = one[0];
    else
        *out += END == FEW_ADD ? one[0] : gate(one[0], one[HALVES - 1]);
}

bool lti_few_fits(const device *d, int32_t n) {
    return n <= FEW_ROWS && (n & (n - 1)) == 0 &&
           (size_t)n * d->g.d_model * sizeof(float) <= FEW_SHARED;
}

template <bool NORM, few_end END>
static cudaError_t run_few(device *d, int32_t n, const few_args &a) {
    const dim3 grid((unsigned)ceil_div(a.outputs, FEW_WARPS));
    const size_t shared = (size_t)n * a.cols * sizeof(float);
    return with_type(d->weight_type, [&](auto t) {
        typedef decltype(t) T;
        const auto run = [&](auto kernel) {
            return launch(d, kernel, grid, FEW_THREADS, shared, true, a);
        };
        return n == 1   ? run(few_kernel<T, 1, NORM, END>)
               : n == 2 ? run(few_kernel<T, 2, NORM, END>)
               : n == 4 ? run(few_kernel<T, 4, NORM, END>)
                        : run(few_kernel<T, 8, NORM, END>);
    });
}

cudaError_t lti_few_in(device *d, int layer, const batch &b) {
    const layer_weights &w = d->layers[layer];
    const few_args a = {w.in_proj,     w.in_bias,      d->residual,  w.norm,
                        d->g.norm_eps, (float *)d->xz, d->g.d_model, d->n_in};
    return run_few<true, FEW_STORE>(d, b.n, a);
}

cudaError_t lti_few_out(device *d, int layer, const batch &b) {
    const layer_weights &w = d->layers[layer];
    const few_args a = {w.out_proj, w.out_bias,  d->y,         NULL,
                        0,          d->residual, d->g.d_model, d->g.d_model};
    return d->g.kind == SSM_BLOCK_H3 ? run_few<false, FEW_ADD>(d, b.n, a)
                                     : run_few<false, FEW_GATE>(d, b.n, a);
}

cudaError_t lti_few_head(device *d, const batch &b) {
    const few_args a = {d->lm_head,    NULL,      d->residual,  d->norm_f,
                        d->g.norm_eps, d->logits, d->g.d_model, d->g.vocab_size};
    return run_few<true, FEW_STORE>(d, b.n, a);
}

// ---- the gate alone

// ab [n][2 width] fp32: residual += (a + bias) sigmoid(b + bias)
__global__ void gate_kernel(const float *ab, const float *bias, float *residual, int width,
                            size_t n) {
    const size_t step = (size_t)gridDim.x * blockDim.x;
    for (size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += step) {
        const size_t row = i / width;
        const int c = (int)(i - row * width);
        const float *p = ab + row * 2 * width + c;
        residual[i] += gate(p[0] + bias[c], p[width] + bias[width + c]);
    }
}

cudaError_t lti_gate(device *d, int layer, int32_t n) {
    const size_t all = (size_t)n * d->g.d_model;
    const int32_t blocks = ceil_div((int64_t)all, 256), most = 16 * d->n_sms;
    return launch(d, gate_kernel, dim3((unsigned)(blocks < most ? blocks : most)), 256, 0, false,
                  (const float *)d->xz, d->layers[layer].out_bias, d->residual, d->g.d_model, all);
}

} // namespace ssm
