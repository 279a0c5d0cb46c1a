// SPDX-License-Identifier: Apache-2.0
// The kernel of replay.cu, which has the design.
#ifndef SSM_KERNELS_CUDA_REPLAY_KERNEL_CUH
#define SSM_KERNELS_CUDA_REPLAY_KERNEL_CUH

#include "bulk.cuh"
#include "replay_item.cuh"

namespace ssm {

enum { REPLAY_WARPS = 12 }; // of a block, one an SM

// What an item needs besides states and earlier inputs: fetched an item ahead into registers.
template <class S> struct replay_token {
    float x[replay_shape<S>::OWN], z[replay_shape<S>::OWN], dt, ring_dt, decay, skip, dt_bias;

    __device__ __forceinline__ void fetch(const replay_args &a, const replay_place &p) {
        typedef replay_shape<S> shape;
        const int lane = threadIdx.x & 31, head = p.item / shape::PARTS;
        const int channel = head * REPLAY_P + p.item % shape::PARTS * shape::R + shape::own();
        const bf16 *in = a.in + (size_t)p.r.at * a.n_in;
        load<shape::OWN>(a.xc + (size_t)p.r.at * a.conv_dim + channel, x);
        load<shape::OWN>(in + channel, z);
        dt = to_float(in[a.n_in - a.heads + head]);
        ring_dt = 0;
        if (lane < p.held)
            ring_dt = a.dt[((size_t)p.r.slot * REPLAY_HELD + lane) * a.heads + head];
        decay = a.decay[head], skip = a.skip[head], dt_bias = a.dt_bias[head];
    }
};

template <class S>
__device__ __forceinline__ void issue_item(const replay_args &a, const replay_place &p,
                                           uint32_t stage, uint32_t bar) {
    typedef replay_shape<S> shape;
    constexpr int R = shape::R;
    const int lane = threadIdx.x & 31, head = p.item / shape::PARTS, part = p.item % shape::PARTS;
    const size_t at = (size_t)p.r.slot * a.heads + head;
    const uint32_t entries = p.held * R * 2, base = p.r.fresh ? 0 : shape::BASE;
    if (lane == 0) {
        barrier_expect(bar, base + entries);
        if (base)
            copy_run(stage, (const S *)a.state + (at * REPLAY_P + part * R) * REPLAY_N, base, bar);
        if (entries)
            copy_run(stage + shape::BASE, a.x + (at * shape::PARTS + part) * (REPLAY_HELD * R),
                     entries, bar);
    }
}

// What a head's entries weigh: lane j's entry.
struct replay_weights {
    float delta, decay, weight; // of this token; of the base; exp2(decays since) dt

    template <class S>
    __device__ __forceinline__ replay_weights(const replay_args &a, const replay_token<S> &t,
                                              int held) {
        const int lane = threadIdx.x & 31;
        delta = fminf(fmaxf(softplus(t.dt + t.dt_bias), a.dt_min), a.dt_max);
        weight = entry_weight(lane < held    ? t.ring_dt
                              : lane == held ? delta
                                             : 0.f,
                              t.decay, &decay);
    }
};

template <class S>
__device__ __forceinline__ void put_entry(bf16 *to, int entry, const replay_token<S> &t) {
    typedef replay_shape<S> shape;
#pragma unroll
    for (int i = 0; i < shape::OWN; i++)
        to[replay_position<shape::R>(entry, shape::own() + i)] = from_float<bf16>(t.x[i]);
}

// This token's inputs into the ring.
template <class S>
__device__ __forceinline__ void append(const replay_args &a, const replay_place &p,
                                       const replay_token<S> &t, float delta) {
    typedef replay_shape<S> shape;
    const int lane = threadIdx.x & 31, head = p.item / shape::PARTS, part = p.item % shape::PARTS;
    const int each = a.heads / a.groups;
    const size_t at = (size_t)p.r.slot * a.heads + head;
    put_entry(a.x + ((at * shape::PARTS + part) * REPLAY_HELD + p.held) * shape::R, p.held, t);
    if (part != 0)
        return;
    if (lane == 0)
        a.dt[((size_t)p.r.slot * REPLAY_HELD + p.held) * a.heads + head] = delta;
    if (head % each == 0 && lane < 16) {
        const int n = lane * 8, of = head / each;
        *(uint4 *)(a.b + (((size_t)p.r.slot * a.groups + of) * REPLAY_HELD + p.held) * REPLAY_N +
                   n) =
            *(const uint4 *)(a.xc + (size_t)p.r.at * a.conv_dim + a.d_inner + of * REPLAY_N + n);
    }
}

template <class S>
__device__ __forceinline__ void run_item(const replay_args &a, const replay_place &p,
                                         const replay_token<S> &t, const replay_weights &w,
                                         const replay_group<S> &group, char *stage, float *square) {
    typedef replay_shape<S> shape;
    constexpr int OWN = shape::OWN;
    const int lane = threadIdx.x & 31, head = p.item / shape::PARTS, part = p.item % shape::PARTS;
    if (p.r.fresh) {
        for (int i = lane; i < shape::BASE / 16; i += 32)
            ((uint4 *)stage)[i] = make_uint4(0, 0, 0, 0);
        __syncwarp();
    }
    float y[OWN];
    read_base(stage, group, y);
    const float coefficient = w.weight * group.dot;
    const float now = __shfl_sync(~0u, coefficient, p.held) + t.skip;
#pragma unroll
    for (int i = 0; i < OWN; i++)
        y[i] = w.decay * y[i] + now * t.x[i];
    if (p.held > 0)
        read_entries<S>((const bf16 *)(stage + shape::BASE), coefficient, p.held, y);
    const int channel = head * REPLAY_P + part * shape::R + shape::own();
    *square = part == 0 ? 0.f : *square;
#pragma unroll
    for (int i = 0; i < OWN; i++) {
        y[i] *= silu(t.z[i]);
        *square += y[i] * y[i];
        if (a.squares)
            y[i] *= a.gate_norm[channel + i];
    }
    store<OWN>(a.y + (size_t)p.r.at * a.d_inner + channel, y);
    if (a.squares && part == shape::PARTS - 1) {
        const float sum = warp_sum(*square);
        if (lane == 0)
            a.squares[(size_t)p.r.at * a.heads + head] = sum;
    }
    if (!p.fold) {
        append(a, p, t, w.delta);
        return;
    }
    put_entry((bf16 *)(stage + shape::BASE) + p.held * shape::R, p.held, t);
    __syncwarp();
    fold_item<S>(stage, w.decay, w.weight, group.b);
    fence_async();
    __syncwarp();
    if (lane == 0) {
        store_run((S *)a.state +
                      (((size_t)p.r.slot * a.heads + head) * REPLAY_P + part * shape::R) * REPLAY_N,
                  shared_address(stage), shape::BASE);
        stores_commit();
    }
}

template <class S>
__global__ void __launch_bounds__(REPLAY_WARPS * 32) replay_kernel(replay_args a) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
    typedef replay_shape<S> shape;
    extern __shared__ __align__(128) char memory[];
    dependents_start();
    const int lane = threadIdx.x & 31, warp = __shfl_sync(~0u, threadIdx.x >> 5, 0);
    char *stage = memory + warp * shape::STAGE;
    const uint32_t bar = shared_address(memory + REPLAY_WARPS * shape::STAGE + warp * 8);
    const int items = a.heads * shape::PARTS, each = a.heads / a.groups;
    const int *range = a.starts + blockIdx.x * REPLAY_WARPS + warp;
    const int first = __ldg(range) * shape::PARTS, end = __ldg(range + 1) * shape::PARTS;
    if (first >= end) {
        dependency_wait(); // a kernel may not end before those before it
        return;
    }
    if (lane == 0)
        barrier_init(bar, 1);
    fence_async();
    __syncwarp();
    replay_place next;
    next.start(a, first, items);
    issue_item<S>(a, next, shared_address(stage), bar);
    dependency_wait();
    replay_token<S> now, then;
    replay_group<S> group;
    then.fetch(a, next);
    int of = -1;
    float square = 0;
    for (int k = first; k < end; k++) {
        now = then;
        const replay_place here = next;
        const bool more = k + 1 < end;
        next.next(a, items, more);
        if (more)
            then.fetch(a, next);
        const int g = here.item / shape::PARTS / each;
        if (here.item == 0 || g != of) {
            group.load_row(a, here, g);
            of = g;
        }
        const replay_weights weights(a, now, here.held);
        barrier_wait(bar, (k - first) & 1);
        run_item<S>(a, here, now, weights, group, stage, &square);
        __syncwarp();
        if (!more)
            break;
        if (here.fold) {
            if (lane == 0)
                stores_read<0>();
            __syncwarp();
        }
        issue_item<S>(a, next, shared_address(stage), bar);
    }
    if (lane == 0)
        stores_done();
#endif
}

} // namespace ssm

#endif
