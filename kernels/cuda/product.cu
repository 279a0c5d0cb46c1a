// SPDX-License-Identifier: Apache-2.0
// Products with weights through cuBLASLt: y [n][rows] = x [n][cols] W^T, fp32 sums.
//
// Weights are row-major as in the file, which cuBLASLt reads as a transposed column-major A; token
// rows are its columns. Token rows are rounded up to a bucket (step_bucket), so every product that
// a step can need is known at open: its algorithm is chosen there, by timing what the heuristic
// offers over different layers' weights, so that the timing sees a cold L2 as a step does, unless
// another opening has chosen before, in this process or any other (algorithms.c): algorithms differ
// in bits, so all openings take the first one's. Rows are independent: what the rows past n hold
// never reaches another row.
//
// out_proj accumulates straight into the fp32 residual (beta 1), which saves a pass over it.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

extern "C" {
#include "algorithms.h"
}
#include "cuda.h"
#include "types.cuh"
#include "util.cuh"

namespace ssm {

static_assert(sizeof(cublasLtMatmulAlgo_t) == ALGORITHM_BYTES, "a line of the file holds one");

enum { MAX_BUCKETS = 64, CANDIDATES = 16, TUNE_LAYERS = 6 };
static const size_t WORKSPACE = (size_t)64 << 20;

struct lt_choice {
    bool usable;
    cublasLtMatmulAlgo_t algo;
    float microseconds;
};

struct lt_plan {
    cublasLtHandle_t handle;
    void *workspace;
    cublasLtMatmulDesc_t operation;
    cublasLtMatrixLayout_t weight[PRODUCT_KINDS];
    cublasLtMatrixLayout_t x[PRODUCT_KINDS][MAX_BUCKETS], y[PRODUCT_KINDS][MAX_BUCKETS];
    int32_t buckets[MAX_BUCKETS];
    int n_buckets;
    lt_choice choices[PRODUCT_KINDS][MAX_BUCKETS];
    algorithm_list remembered;
};

// A plain product for shapes that cuBLASLt has nothing for. A warp an output.
template <class T, class Y>
__global__ void plain_kernel(const T *w, const T *x, Y *y, int rows, int cols, float beta) {
    const int r = blockIdx.x * (blockDim.x >> 5) + (threadIdx.x >> 5), lane = threadIdx.x & 31;
    if (r >= rows)
        return;
    const T *a = w + (size_t)r * cols, *b = x + (size_t)blockIdx.y * cols;
    float sum = 0;
    for (int k = lane; k < cols; k += 32)
        sum += to_float(a[k]) * to_float(b[k]);
    sum = warp_sum(sum);
    Y *out = y + (size_t)blockIdx.y * rows + r;
    if (lane == 0)
        *out = from_float<Y>(beta == 0 ? sum : sum + beta * to_float(*out));
}

struct shape {
    int32_t rows, cols;
    bool fp32_out;
    float beta;
};

static shape shape_of(const device *d, product_kind kind) {
    const ssm_geometry &g = d->g;
    switch (kind) {
    case PRODUCT_IN:
        return {d->n_in, g.d_model, is_lti(d), 0};
    case PRODUCT_X:
        return {d->n_x, g.d_inner, true, 0};
    case PRODUCT_OUT:
        if (is_lti(d) && g.kind != SSM_BLOCK_H3) // both halves, before the gate
            return {d->n_in, g.d_model, true, 0};
        return {g.d_model, is_lti(d) ? g.d_model : g.d_inner, true, 1};
    default:
        return {g.vocab_size, g.d_model, true, 0};
    }
}

static cudaDataType_t cuda_type(ssm_dtype t) {
    return t == SSM_DTYPE_BF16 ? CUDA_R_16BF : t == SSM_DTYPE_F16 ? CUDA_R_16F : CUDA_R_32F;
}

static int lt_check(device *d, cublasStatus_t rc, const char *what, ssm_error *err) {
    if (rc == CUBLAS_STATUS_SUCCESS)
        return 0;
    d->failed = true;
    return ssm_error_set(err, SSM_EDEVICE, NULL, "cuBLASLt: %s: %s", what,
                         cublasLtGetStatusName(rc));
}

static int bucket_index(const lt_plan *p, int32_t n) {
    int i = 0;
    while (i < p->n_buckets - 1 && p->buckets[i] < n)
        i++;
    return i;
}

static cublasStatus_t run_algo(device *d, product_kind kind, int bucket, const void *w,
                               const void *x, void *y, const cublasLtMatmulAlgo_t *algo) {
    lt_plan *p = d->lt;
    const float alpha = 1, beta = shape_of(d, kind).beta;
    return cublasLtMatmul(p->handle, p->operation, &alpha, w, p->weight[kind], x,
                          p->x[kind][bucket], &beta, y, p->y[kind][bucket], y, p->y[kind][bucket],
                          algo, p->workspace, WORKSPACE, d->stream);
}

static cudaError_t run_plain(device *d, product_kind kind, const void *w, const void *x, void *y,
                             int32_t n) {
    const shape s = shape_of(d, kind);
    return with_type(d->weight_type, [&](auto t) {
        typedef decltype(t) T;
        const dim3 grid((unsigned)ceil_div(s.rows, 8), (unsigned)n);
        if (s.fp32_out)
            return launch(d, plain_kernel<T, float>, grid, 256, 0, false, (const T *)w,
                          (const T *)x, (float *)y, s.rows, s.cols, s.beta);
        return launch(d, plain_kernel<T, T>, grid, 256, 0, false, (const T *)w, (const T *)x,
                      (T *)y, s.rows, s.cols, s.beta);
    });
}

int product(device *d, product_kind kind, const void *weight, const void *x, void *y, int32_t n,
            ssm_error *err) {
    const int bucket = bucket_index(d->lt, n);
    const lt_choice &c = d->lt->choices[kind][bucket];
    if (!c.usable)
        return device_check(d, run_plain(d, kind, weight, x, y, n), "product", err);
    return lt_check(d, run_algo(d, kind, bucket, weight, x, y, &c.algo), "cublasLtMatmul", err);
}

// ---- choosing

static const void *weight_of(const device *d, product_kind kind, int layer) {
    const layer_weights &w = d->layers[layer];
    const void *all[] = {w.in_proj, w.x_proj, w.out_proj, d->lm_head};
    return all[kind];
}

// Mean microseconds over some layers, each after another layer's weights went through the cache.
static int time_algo(device *d, product_kind kind, int bucket, const void *x, void *y,
                     const cublasLtMatmulAlgo_t *algo, cudaEvent_t from, cudaEvent_t to, float *out,
                     ssm_error *err) {
    const int layers = d->g.n_layers < TUNE_LAYERS ? d->g.n_layers : TUNE_LAYERS;
    *out = -1;
    if (run_algo(d, kind, bucket, weight_of(d, kind, 0), x, y, algo) != CUBLAS_STATUS_SUCCESS)
        return 0;
    SSM_CUDA(d, cudaEventRecord(from, d->stream), err);
    for (int i = 1; i <= layers; i++)
        run_algo(d, kind, bucket, weight_of(d, kind, i % d->g.n_layers), x, y, algo);
    SSM_CUDA(d, cudaEventRecord(to, d->stream), err);
    SSM_CUDA(d, cudaEventSynchronize(to), err);
    float ms;
    SSM_CUDA(d, cudaEventElapsedTime(&ms, from, to), err);
    *out = ms * 1e3f / layers;
    return 0;
}

// One word that says all that the choice of an algorithm depends on.
static void shape_name(const device *d, product_kind kind, int bucket, char *out, size_t size) {
    const shape s = shape_of(d, kind);
    snprintf(out, size, "%dx%dx%d,%s,%s,%g", s.rows, s.cols, d->lt->buckets[bucket],
             ssm_dtype_name(d->weight_type), s.fp32_out ? "f32" : "same", (double)s.beta);
}

static algorithm to_remember(const device *d, product_kind kind, int bucket) {
    const lt_choice &c = d->lt->choices[kind][bucket];
    algorithm a = {};
    shape_name(d, kind, bucket, a.shape, sizeof a.shape);
    a.product = kind * MAX_BUCKETS + bucket, a.microseconds = c.microseconds;
    memcpy(a.bytes, &c.algo, sizeof a.bytes);
    return a;
}

static void take(device *d, const algorithm &a) {
    lt_choice &c = d->lt->choices[a.product / MAX_BUCKETS][a.product % MAX_BUCKETS];
    c.usable = true, c.microseconds = a.microseconds;
    memcpy(&c.algo, a.bytes, sizeof a.bytes);
}

static bool still_usable(void *context, const algorithm *a) {
    lt_plan *p = ((device *)context)->lt;
    const int kind = a->product / MAX_BUCKETS, bucket = a->product % MAX_BUCKETS;
    cublasLtMatmulAlgo_t algo;
    cublasLtMatmulHeuristicResult_t result;
    memcpy(&algo, a->bytes, sizeof algo);
    return cublasLtMatmulAlgoCheck(p->handle, p->operation, p->weight[kind], p->x[kind][bucket],
                                   p->y[kind][bucket], p->y[kind][bucket], &algo,
                                   &result) == CUBLAS_STATUS_SUCCESS &&
           result.workspaceSize <= WORKSPACE;
}

static int time_candidates(device *d, product_kind kind, int bucket,
                           cublasLtMatmulPreference_t preference, cudaEvent_t from, cudaEvent_t to,
                           ssm_error *err) {
    lt_plan *p = d->lt;
    cublasLtMatmulHeuristicResult_t found[CANDIDATES];
    int n = 0;
    if (cublasLtMatmulAlgoGetHeuristic(p->handle, p->operation, p->weight[kind], p->x[kind][bucket],
                                       p->y[kind][bucket], p->y[kind][bucket], preference,
                                       CANDIDATES, found, &n) != CUBLAS_STATUS_SUCCESS)
        n = 0;
    const void *inputs[] = {d->u, d->xc, d->y, d->u};
    const shape s = shape_of(d, kind);
    void *outputs[] = {d->xz, d->xdb, s.beta == 0 ? d->xz : d->residual, d->logits};
    lt_choice &best = p->choices[kind][bucket];
    for (int i = 0; i < n; i++) {
        float us = -1;
        if (found[i].state != CUBLAS_STATUS_SUCCESS)
            continue;
        SSM_TRY(time_algo(d, kind, bucket, inputs[kind], outputs[kind], &found[i].algo, from, to,
                          &us, err));
        if (us >= 0 && (!best.usable || us < best.microseconds))
            best = {true, found[i].algo, us};
    }
    return 0;
}

static int choose(device *d, product_kind kind, int bucket, cublasLtMatmulPreference_t preference,
                  cudaEvent_t from, cudaEvent_t to, ssm_error *err) {
    algorithm a = to_remember(d, kind, bucket);
    if (!algorithms_find(&d->lt->remembered, &a))
        return time_candidates(d, kind, bucket, preference, from, to, err);
    take(d, a);
    return 0;
}

// What was timed, for all openings, or what others timed meanwhile.
static int settle(device *d, ssm_error *err) {
    lt_plan *p = d->lt;
    algorithm *all = (algorithm *)malloc(PRODUCT_KINDS * MAX_BUCKETS * sizeof *all);
    int n = 0;
    if (!all)
        return ssm_error_set(err, SSM_ENOMEM, NULL, "no memory for the products' plans");
    for (int kind = 0; kind < PRODUCT_KINDS; kind++) {
        for (int i = 0; i < p->n_buckets; i++) {
            if (p->choices[kind][i].usable)
                all[n++] = to_remember(d, (product_kind)kind, i);
        }
    }
    algorithms_settle(&p->remembered, all, n);
    for (int i = 0; i < n; i++)
        take(d, all[i]);
    free(all);
    return 0;
}

static int layouts(device *d, product_kind kind, ssm_error *err) {
    lt_plan *p = d->lt;
    const shape s = shape_of(d, kind);
    const cudaDataType_t in = cuda_type(d->weight_type), out = s.fp32_out ? CUDA_R_32F : in;
    SSM_TRY(lt_check(d,
                     cublasLtMatrixLayoutCreate(&p->weight[kind], in, (uint64_t)s.cols,
                                                (uint64_t)s.rows, s.cols),
                     "layout", err));
    for (int i = 0; i < p->n_buckets; i++) {
        const uint64_t n = (uint64_t)p->buckets[i];
        SSM_TRY(
            lt_check(d, cublasLtMatrixLayoutCreate(&p->x[kind][i], in, (uint64_t)s.cols, n, s.cols),
                     "layout", err));
        SSM_TRY(lt_check(
            d, cublasLtMatrixLayoutCreate(&p->y[kind][i], out, (uint64_t)s.rows, n, s.rows),
            "layout", err));
    }
    return 0;
}

static int choose_all(device *d, cublasLtMatmulPreference_t preference, cudaEvent_t from,
                      cudaEvent_t to, ssm_error *err) {
    lt_plan *p = d->lt;
    for (int k = 0; k < PRODUCT_KINDS; k++) {
        const product_kind kind = (product_kind)k;
        if (!weight_of(d, kind, 0)) // no such product in this kind of layer
            continue;
        SSM_TRY(layouts(d, kind, err));
        const int32_t most = step_bucket(kind == PRODUCT_HEAD ? d->max_rows : d->max_tokens);
        for (int i = 0; i < p->n_buckets && p->buckets[i] <= most; i++) {
            if (kind == PRODUCT_HEAD && head_fits(d, p->buckets[i]))
                continue; // never asked for
            SSM_TRY(choose(d, kind, i, preference, from, to, err));
        }
    }
    return settle(d, err);
}

int products_create(device *d, ssm_error *err) {
    lt_plan *p = d->lt = (lt_plan *)calloc(1, sizeof *p);
    if (!p)
        return ssm_error_set(err, SSM_ENOMEM, NULL, "no memory for the products' plans");
    const int32_t most = d->max_tokens > d->max_rows ? d->max_tokens : d->max_rows;
    for (int32_t n = 1; p->n_buckets < MAX_BUCKETS; n = p->buckets[p->n_buckets - 1] + 1) {
        p->buckets[p->n_buckets++] = step_bucket(n);
        if (step_bucket(n) >= most)
            break;
    }
    if (p->buckets[p->n_buckets - 1] < most)
        return ssm_error_set(err, SSM_EUNSUPPORTED, "max_tokens",
                             "the CUDA backend takes at most %d tokens a step, not %d",
                             p->buckets[p->n_buckets - 1], most);
    SSM_TRY(device_alloc(d, &p->workspace, WORKSPACE, err));
    SSM_TRY(lt_check(d, cublasLtCreate(&p->handle), "cublasLtCreate", err));
    SSM_TRY(lt_check(d, cublasLtMatmulDescCreate(&p->operation, CUBLAS_COMPUTE_32F, CUDA_R_32F),
                     "descriptor", err));
    int driver = 0;
    SSM_CUDA(d, cudaDriverGetVersion(&driver), err);
    char key[ALGORITHM_KEY];
    algorithms_key(key, d->name, driver, cublasLtGetVersion());
    algorithms_load(&p->remembered, key, still_usable, d);
    const cublasOperation_t transposed = CUBLAS_OP_T;
    SSM_TRY(lt_check(d,
                     cublasLtMatmulDescSetAttribute(p->operation, CUBLASLT_MATMUL_DESC_TRANSA,
                                                    &transposed, sizeof transposed),
                     "descriptor", err));
    cublasLtMatmulPreference_t preference = NULL;
    cudaEvent_t from = NULL, to = NULL;
    int rc = lt_check(d, cublasLtMatmulPreferenceCreate(&preference), "preference", err);
    if (rc == 0)
        rc = lt_check(d,
                      cublasLtMatmulPreferenceSetAttribute(preference,
                                                           CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                                           &WORKSPACE, sizeof WORKSPACE),
                      "preference", err);
    if (rc == 0)
        rc = device_check(d, cudaEventCreate(&from), "event", err);
    if (rc == 0)
        rc = device_check(d, cudaEventCreate(&to), "event", err);
    if (rc == 0)
        rc = choose_all(d, preference, from, to, err);
    if (from)
        cudaEventDestroy(from);
    if (to)
        cudaEventDestroy(to);
    if (preference)
        cublasLtMatmulPreferenceDestroy(preference);
    return rc;
}

void products_free(device *d) {
    lt_plan *p = d->lt;
    if (!p)
        return;
    for (int k = 0; k < PRODUCT_KINDS; k++) {
        if (p->weight[k])
            cublasLtMatrixLayoutDestroy(p->weight[k]);
        for (int i = 0; i < p->n_buckets; i++) {
            if (p->x[k][i])
                cublasLtMatrixLayoutDestroy(p->x[k][i]);
            if (p->y[k][i])
                cublasLtMatrixLayoutDestroy(p->y[k][i]);
        }
    }
    if (p->operation)
        cublasLtMatmulDescDestroy(p->operation);
    if (p->handle)
        cublasLtDestroy(p->handle);
    algorithms_free(&p->remembered);
    free(p);
    d->lt = NULL;
}

} // namespace ssm
