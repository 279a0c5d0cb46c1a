// SPDX-License-Identifier: Apache-2.0
// Before and after a convolution in blocks (lti_block.cu), which has neighbouring tokens side by
// side: the norm writes u by channel, and a transposition brings y back to token rows.
#include "lti_block.cuh"

namespace ssm {

enum { WIDE = 128 }; // channels of a block of the norm

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

cudaError_t lti_by_channel(device *d, int layer, const batch &b) {
    const int width = d->g.d_model;
    const dim3 tiles((unsigned)ceil_div(b.n, 32), (unsigned)ceil_div(width, WIDE));
    return launch(d, norm_by_channel_kernel, tiles, 256, 0, false, (const float *)d->residual,
                  d->layers[layer].norm, d->lti_u, width, b.n, (size_t)b.n, d->g.norm_eps);
}

cudaError_t lti_by_token(device *d, const batch &b) {
    const int width = d->g.d_model;
    return with_type(d->weight_type, [&](auto t) {
        typedef decltype(t) T;
        const dim3 grid((unsigned)ceil_div(b.n, 32), (unsigned)ceil_div(width, 32));
        return launch(d, by_token_kernel<T>, grid, 256, 0, false, (const float *)d->xz, (T *)d->y,
                      width, b.n, (size_t)b.n);
    });
}

} // namespace ssm
