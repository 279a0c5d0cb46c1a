// SPDX-License-Identifier: Apache-2.0
// A model's weights on the device: projections in one type, vectors in fp32, constants computed
// once. Tensors go up as they lie in the file (16-bit straight to their place) and are converted by
// a kernel where the types differ, so that loading runs at the bus's speed whatever was asked for.
#include <stdlib.h>

#include "cuda.h"
#include "types.cuh"
#include "util.cuh"

namespace ssm {

static const size_t STAGING = (size_t)64 << 20;

template <class From, class To> __global__ void convert_kernel(const From *in, To *out, size_t n) {
    const size_t step = (size_t)gridDim.x * blockDim.x;
    for (size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += step)
        out[i] = from_float<To>(to_float(in[i]));
}

__global__ void decay_kernel(float *a, size_t n) { // A_log -> A log2 e, in double
    const size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n)
        a[i] = (float)(-exp((double)a[i]) * 1.4426950408889634074);
}

__global__ void transpose_kernel(const float *in, float *out, int rows, int cols) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < rows * cols)
        out[(i % cols) * rows + i / cols] = in[i];
}

static size_t count(const ssm_tensor *t) {
    return t->data ? (size_t)t->rows * (size_t)t->cols : 0;
}

int upload_into(uploader *u, const ssm_tensor *t, ssm_dtype type, void *out) {
    device *d = u->d;
    const size_t n = count(t), each = type_bytes(t->dtype);
    if (t->dtype == type) {
        SSM_CUDA(d, cudaMemcpyAsync(out, t->data, n * each, cudaMemcpyHostToDevice, d->stream),
                 u->err);
        return 0;
    }
    const size_t chunk = STAGING / each;
    for (size_t i = 0; i < n; i += chunk) {
        const size_t m = n - i < chunk ? n - i : chunk;
        SSM_CUDA(d,
                 cudaMemcpyAsync(u->staging, (const char *)t->data + i * each, m * each,
                                 cudaMemcpyHostToDevice, d->stream),
                 u->err);
        const cudaError_t rc = with_type(t->dtype, [&](auto from) {
            return with_type(type, [&](auto to) {
                typedef decltype(from) F;
                typedef decltype(to) T;
                return launch(d, convert_kernel<F, T>, dim3(1024), 256, 0, false,
                              (const F *)u->staging, (T *)out + i, m);
            });
        });
        SSM_CUDA(d, rc, u->err);
        SSM_CUDA(d, cudaStreamSynchronize(d->stream), u->err);
    }
    return 0;
}

int upload(uploader *u, const ssm_tensor *t, ssm_dtype type, const void **out) {
    *out = NULL;
    if (!t->data)
        return 0;
    // rows of the last tile may be read to a whole vector: room for it
    const size_t bytes = (count(t) * type_bytes(type) + 255) / 256 * 256;
    void *p = NULL;
    SSM_CUDA(u->d, cudaMalloc(&p, bytes), u->err);
    *out = p;
    u->d->weight_bytes += bytes;
    return upload_into(u, t, type, p);
}

int upload_vector(uploader *u, const ssm_tensor *t, const float **out) {
    return upload(u, t, SSM_DTYPE_F32, (const void **)out);
}

static int upload_decay(uploader *u, const ssm_tensor *t, const float **out) {
    SSM_TRY(upload_vector(u, t, out));
    const size_t n = count(t);
    SSM_CUDA(u->d,
             launch(u->d, decay_kernel, dim3((unsigned)ceil_div((int64_t)n, 256)), 256, 0, false,
                    (float *)*out, n),
             u->err);
    return 0;
}

// conv_weight by tap, and a bias of zeros where there is none.
static int upload_conv(uploader *u, const ssm_layer *from, layer_weights *to) {
    device *d = u->d;
    const int channels = d->g.conv_dim, taps = d->g.d_conv, n = channels * taps;
    SSM_TRY(upload_into(u, &from->conv_weight, SSM_DTYPE_F32, (char *)u->staging + STAGING));
    void *p = NULL;
    SSM_CUDA(d, cudaMalloc(&p, (size_t)n * sizeof(float)), u->err);
    to->conv_weight = (const float *)p;
    SSM_CUDA(d,
             launch(d, transpose_kernel, dim3((unsigned)ceil_div(n, 256)), 256, 0, false,
                    (const float *)((char *)u->staging + STAGING), (float *)p, channels, taps),
             u->err);
    SSM_CUDA(d, cudaStreamSynchronize(d->stream), u->err);
    if (from->conv_bias.data)
        return upload_vector(u, &from->conv_bias, &to->conv_bias);
    SSM_CUDA(d, cudaMalloc(&p, (size_t)channels * sizeof(float)), u->err);
    to->conv_bias = (const float *)p;
    SSM_CUDA(d, cudaMemsetAsync(p, 0, (size_t)channels * sizeof(float), d->stream), u->err);
    return 0;
}

static int upload_layer(uploader *u, const ssm_layer *from, layer_weights *to) {
    const ssm_dtype type = u->d->weight_type;
    SSM_TRY(upload_vector(u, &from->norm, &to->norm));
    if (is_lti(u->d))
        return lti_upload_layer(u, from, to);
    SSM_TRY(upload(u, &from->in_proj, type, &to->in_proj));
    SSM_TRY(upload_vector(u, &from->in_bias, &to->in_bias));
    SSM_TRY(upload_conv(u, from, to));
    SSM_TRY(upload(u, &from->x_proj, type, &to->x_proj));
    SSM_TRY(upload(u, &from->dt_proj, type, &to->dt_proj));
    SSM_TRY(upload_vector(u, &from->dt_bias, &to->dt_bias));
    SSM_TRY(upload_decay(u, &from->A_log, &to->decay));
    SSM_TRY(upload_vector(u, &from->D, &to->skip));
    SSM_TRY(upload_vector(u, &from->gate_norm, &to->gate_norm));
    SSM_TRY(upload(u, &from->out_proj, type, &to->out_proj));
    return upload_vector(u, &from->out_bias, &to->out_bias);
}

static int upload_all(uploader *u, const ssm_weights *w) {
    device *d = u->d;
    SSM_TRY(upload(u, &w->embedding, d->weight_type, &d->embedding));
    SSM_TRY(upload_vector(u, &w->norm_f, &d->norm_f));
    if (w->lm_head.data == w->embedding.data)
        d->lm_head = d->embedding;
    else
        SSM_TRY(upload(u, &w->lm_head, d->weight_type, &d->lm_head));
    for (int i = 0; i < d->g.n_layers; i++)
        SSM_TRY(upload_layer(u, &w->layers[i], &d->layers[i]));
    SSM_CUDA(d, cudaStreamSynchronize(d->stream), u->err);
    return 0;
}

int weights_upload(device *d, const ssm_weights *w, ssm_error *err) {
    d->layers = (layer_weights *)calloc((size_t)d->g.n_layers, sizeof *d->layers);
    if (!d->layers)
        return ssm_error_set(err, SSM_ENOMEM, NULL, "no memory for the layers");
    uploader u = {d, NULL, err};
    const size_t conv = (size_t)d->g.conv_dim * d->g.d_conv * sizeof(float);
    SSM_CUDA(d, cudaMalloc(&u.staging, STAGING + conv), err);
    const int rc = upload_all(&u, w);
    cudaFree(u.staging);
    return rc;
}

void weights_free(device *d) {
    for (int i = 0; d->layers && i < d->g.n_layers; i++) {
        const layer_weights &l = d->layers[i];
        const void *all[] = {l.norm,    l.in_proj,  l.x_proj,      l.dt_proj,   l.out_proj,
                             l.in_bias, l.out_bias, l.conv_weight, l.conv_bias, l.dt_bias,
                             l.decay,   l.skip,     l.gate_norm};
        for (const void *p : all)
            cudaFree((void *)p);
        lti_free_layer(&l);
    }
    if (d->lm_head != d->embedding)
        cudaFree((void *)d->lm_head);
    cudaFree((void *)d->embedding);
    cudaFree((void *)d->norm_f);
    cudaFree(d->packed);
    cudaFree(d->packed_head);
    free(d->layers);
}

} // namespace ssm
