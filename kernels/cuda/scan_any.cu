// SPDX-License-Identifier: Apache-2.0
// Mamba-1 over many tokens in shapes and types that scan.cu does not take: a thread a channel, its
// states in registers where there are 16, in memory otherwise. Right, not tuned.
#include "mamba.cuh"

namespace ssm {

enum { SCAN_THREADS = 128 };

// One piece of a prompt. Y: with outputs, from the true state; otherwise its end alone, from zero.
// carry [piece][N + 1][channels]: such ends and the sums of delta.
template <class T, class S, int N, bool Y>
__device__ __forceinline__ void scan_piece(const mamba_args &a, const span &sp, const piece &p,
                                           float *carry, float *shared) {
    const int first = blockIdx.x * SCAN_THREADS, channel = first + threadIdx.x;
    const bool live = channel < a.channels, begins = p.index == sp.first_piece;
    const size_t pitch = (size_t)(N + 1) * a.channels;
    const shared_tile s = carve(shared, a.rank, N, 0);
    S *state = (S *)a.state + ((size_t)sp.slot * a.channels + channel) * N;

    float decay[N] = {}, h[N] = {}, skip = 0, bias = 0, sum = 0;
    if (live) {
        load<N>(a.decay + (size_t)channel * N, decay);
        skip = a.skip[channel], bias = a.dt_bias[channel];
        if (Y && begins && !sp.fresh)
            load<N>(state, h);
        for (int k = sp.first_piece; Y && k < p.index; k++) {
            const float *end = carry + k * pitch + channel;
#pragma unroll
            for (int i = 0; i < N; i++)
                h[i] = exp2_fast(end[(size_t)N * a.channels] * decay[i]) * h[i] +
                       end[(size_t)i * a.channels];
        }
    }
    for (int t = 0; t < p.count; t += TILE) {
        const int n = min((int)TILE, p.count - t), at = p.first + t;
        __syncthreads();
        stage_xdb(
            a, n, [&](int r) { return at + r; }, s.dt, s.dt_pitch, s.bc);
        __syncthreads();
        make_delta<T>(a, s.dt, s.dt_pitch, first, SCAN_THREADS, n, s.delta);
        if (!live)
            continue;
        const T *x_at = (const T *)a.x + (size_t)at * a.channels + channel;
        const T *z_at = (const T *)a.xz + ((size_t)at * 2 + 1) * a.channels + channel;
        T *y_at = (T *)a.y + (size_t)at * a.channels + channel;
        for (int r = 0; r < n; r++) {
            const float x = to_float(x_at[(size_t)r * a.channels]);
            const float delta = softplus(s.delta[r * SCAN_THREADS + threadIdx.x] + bias);
            const float *bc = s.bc + r * 2 * N;
            const float input = delta * x;
            float y = skip * x;
            if (!Y)
                sum += delta;
#pragma unroll
            for (int i = 0; i < N; i++) {
                h[i] = exp2_fast(delta * decay[i]) * h[i] + input * bc[i];
                if (Y)
                    y += h[i] * bc[N + i];
            }
            if (Y)
                y_at[(size_t)r * a.channels] =
                    from_float<T>(y * silu(to_float(z_at[(size_t)r * 2 * a.channels])));
        }
    }
    if (!live)
        return;
    if (p.first + p.count == sp.first + sp.count) {
        store<N>(state, h);
    } else if (!Y || begins) {
        float *end = carry + p.index * pitch + channel;
        for (int i = 0; i < N; i++)
            end[(size_t)i * a.channels] = h[i];
        end[(size_t)N * a.channels] = sum;
    }
}

template <class T, class S, int N, scan_pass PASS>
__global__ void __launch_bounds__(SCAN_THREADS)
    scan_plain_kernel(mamba_args a, const span *spans, const piece *pieces, float *carry) {
    extern __shared__ __align__(16) float shared[];
    const piece p = pieces[blockIdx.y];
    const span sp = spans[p.span];
    if (PASS == SCAN_WHOLE || (p.index == sp.first_piece) == (PASS == SCAN_FIRST))
        scan_piece<T, S, N, true>(a, sp, p, carry, shared);
    else if (PASS == SCAN_FIRST && p.first + p.count != sp.first + sp.count)
        scan_piece<T, S, N, false>(a, sp, p, carry, shared);
}

// Any number of states: the states stay in memory. One pass over whole spans.
template <class T, class S>
__global__ void __launch_bounds__(SCAN_THREADS) scan_any_kernel(mamba_args a, const span *spans) {
    extern __shared__ __align__(16) float shared[];
    const int first = blockIdx.x * SCAN_THREADS, channel = first + threadIdx.x;
    const span sp = spans[blockIdx.y];
    const shared_tile s = carve(shared, a.rank, a.states, 0);
    S *h = (S *)a.state + ((size_t)sp.slot * a.channels + channel) * a.states;
    const float *decay = a.decay + (size_t)channel * a.states;
    for (int t = 0; t < sp.count; t += TILE) {
        const int n = min((int)TILE, sp.count - t), at = sp.first + t;
        __syncthreads();
        stage_xdb(
            a, n, [&](int r) { return at + r; }, s.dt, s.dt_pitch, s.bc);
        __syncthreads();
        make_delta<T>(a, s.dt, s.dt_pitch, first, SCAN_THREADS, n, s.delta);
        for (int r = 0; r < n && channel < a.channels; r++) {
            const size_t i = (size_t)(at + r) * a.channels + channel;
            const float x = to_float(((const T *)a.x)[i]);
            const float delta =
                softplus(s.delta[r * SCAN_THREADS + threadIdx.x] + a.dt_bias[channel]);
            const float *bc = s.bc + r * 2 * a.states;
            float y = a.skip[channel] * x;
            for (int v = 0; v < a.states; v++) {
                const float before = sp.fresh && t + r == 0 ? 0.f : to_float(h[v]);
                const float now = exp2_fast(delta * decay[v]) * before + delta * x * bc[v];
                h[v] = from_float<S>(now);
                y += now * bc[a.states + v];
            }
            const float z = to_float(
                ((const T *)a.xz)[(size_t)(at + r) * 2 * a.channels + a.channels + channel]);
            ((T *)a.y)[i] = from_float<T>(y * silu(z));
        }
    }
}

template <class T, class S>
static cudaError_t run(device *d, int layer, const batch &b, scan_pass pass) {
    const mamba_args a = mamba_arguments(d, layer, 1);
    const size_t shared = tile_bytes(a.rank, a.states, SCAN_THREADS);
    const unsigned blocks = (unsigned)ceil_div(a.channels, SCAN_THREADS);
    if (a.states != 16)
        return launch(d, scan_any_kernel<T, S>, dim3(blocks, (unsigned)b.n_spans), SCAN_THREADS,
                      shared, false, a, b.spans);
    auto kernel = pass == SCAN_WHOLE   ? scan_plain_kernel<T, S, 16, SCAN_WHOLE>
                  : pass == SCAN_FIRST ? scan_plain_kernel<T, S, 16, SCAN_FIRST>
                                       : scan_plain_kernel<T, S, 16, SCAN_FINAL>;
    return launch(d, kernel, dim3(blocks, (unsigned)b.n_pieces), SCAN_THREADS, shared, false, a,
                  b.spans, b.pieces, d->carry);
}

cudaError_t mamba_scan_any(device *d, int layer, const batch &b, scan_pass pass) {
    return with_type(d->weight_type, [&](auto t) {
        return with_state_type(d->state_type, [&](auto s) {
            return run<decltype(t), decltype(s)>(d, layer, b, pass);
        });
    });
}

} // namespace ssm
