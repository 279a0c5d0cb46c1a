// SPDX-License-Identifier: Apache-2.0
// Device-side pieces that every kernel here uses: number formats, 16-byte vectors, reductions, the
// matrix instruction and programmatic dependent launch.
#ifndef SSM_KERNELS_CUDA_UTIL_CUH
#define SSM_KERNELS_CUDA_UTIL_CUH

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <math.h>
#include <stdint.h>

namespace ssm {

typedef __nv_bfloat16 bf16;
typedef __half f16;

// ---- programmatic dependent launch
//
// Every kernel of a decode graph lets its successor start at once, fetches what no kernel of this
// step writes (weights, constants, the state it owns), and only then waits for its predecessor.
// Nothing is stored before the wait: a buffer may still be read by the kernel before.

__device__ __forceinline__ void dependents_start() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

__device__ __forceinline__ void dependency_wait() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// ---- tokens

// A token of a step's list. One that the host did not know is -1 - slot there: what was drawn last
// for the slot.
__device__ __forceinline__ int32_t known_token(int32_t token, const int32_t *drawn) {
    if (token < 0)
        token = max(drawn[-1 - token], 0);
    return token;
}

// ---- numbers

__device__ __forceinline__ float to_float(float v) {
    return v;
}
__device__ __forceinline__ float to_float(bf16 v) {
    return __bfloat162float(v);
}
__device__ __forceinline__ float to_float(f16 v) {
    return __half2float(v);
}

template <class T> __device__ __forceinline__ T from_float(float v);
template <> __device__ __forceinline__ float from_float<float>(float v) {
    return v;
}
template <> __device__ __forceinline__ bf16 from_float<bf16>(float v) {
    return __float2bfloat16(v);
}
// fp16 saturates (NaN stays): an overflow to infinity would poison a recurrence for ever.
template <> __device__ __forceinline__ f16 from_float<f16>(float v) {
    return __float2half(v != v ? v : fminf(fmaxf(v, -65504.f), 65504.f));
}

__device__ __forceinline__ float low_half(uint32_t pair) {
    return __uint_as_float(pair << 16);
}
__device__ __forceinline__ float high_half(uint32_t pair) {
    return __uint_as_float(pair & 0xffff0000u);
}
__device__ __forceinline__ uint32_t pack_bf16(float low, float high) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    return *(const uint32_t *)&pair;
}
__device__ __forceinline__ uint4 pack_bf16(const float (&v)[8]) {
    return make_uint4(pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3]), pack_bf16(v[4], v[5]),
                      pack_bf16(v[6], v[7]));
}

// N consecutive numbers, aligned to min(16, their bytes).
template <int N> struct alignas(N % 4 == 0 ? 16 : 4) floats { float v[N]; };

template <int N> __device__ __forceinline__ void load(const float *p, float (&out)[N]) {
    if constexpr (N % 4 == 0) {
#pragma unroll
        for (int i = 0; i < N / 4; i++) {
            const float4 q = ((const float4 *)p)[i];
            out[4 * i] = q.x, out[4 * i + 1] = q.y, out[4 * i + 2] = q.z, out[4 * i + 3] = q.w;
        }
    } else {
#pragma unroll
        for (int i = 0; i < N; i++)
            out[i] = p[i];
    }
}

template <int N> __device__ __forceinline__ void store(float *p, const float (&v)[N]) {
    if constexpr (N % 4 == 0) {
#pragma unroll
        for (int i = 0; i < N / 4; i++)
            ((float4 *)p)[i] = make_float4(v[4 * i], v[4 * i + 1], v[4 * i + 2], v[4 * i + 3]);
    } else {
#pragma unroll
        for (int i = 0; i < N; i++)
            p[i] = v[i];
    }
}

// A 16-bit vector travels as words: 16 bytes at once for eight numbers, 8 for four.
template <int N> struct words { uint32_t w[N]; };

template <int N> __device__ __forceinline__ words<N> load_words(const void *p) {
    words<N> r;
    if constexpr (N == 4) {
        const uint4 q = *(const uint4 *)p;
        r.w[0] = q.x, r.w[1] = q.y, r.w[2] = q.z, r.w[3] = q.w;
    } else if constexpr (N == 2) {
        const uint2 q = *(const uint2 *)p;
        r.w[0] = q.x, r.w[1] = q.y;
    } else {
#pragma unroll
        for (int i = 0; i < N; i++)
            r.w[i] = ((const uint32_t *)p)[i];
    }
    return r;
}

template <int N> __device__ __forceinline__ void store_words(void *p, const words<N> &r) {
    if constexpr (N == 4) {
        *(uint4 *)p = make_uint4(r.w[0], r.w[1], r.w[2], r.w[3]);
    } else if constexpr (N == 2) {
        *(uint2 *)p = make_uint2(r.w[0], r.w[1]);
    } else {
#pragma unroll
        for (int i = 0; i < N; i++)
            ((uint32_t *)p)[i] = r.w[i];
    }
}

template <int N> __device__ __forceinline__ void load(const bf16 *p, float (&out)[N]) {
    if constexpr (N % 2 == 0) {
        const words<N / 2> r = load_words<N / 2>(p);
#pragma unroll
        for (int i = 0; i < N / 2; i++)
            out[2 * i] = low_half(r.w[i]), out[2 * i + 1] = high_half(r.w[i]);
    } else {
#pragma unroll
        for (int i = 0; i < N; i++)
            out[i] = to_float(p[i]);
    }
}

template <int N> __device__ __forceinline__ void store(bf16 *p, const float (&v)[N]) {
    if constexpr (N % 2 == 0) {
        words<N / 2> r;
#pragma unroll
        for (int i = 0; i < N / 2; i++)
            r.w[i] = pack_bf16(v[2 * i], v[2 * i + 1]);
        store_words<N / 2>(p, r);
    } else {
#pragma unroll
        for (int i = 0; i < N; i++)
            p[i] = from_float<bf16>(v[i]);
    }
}

template <int N> __device__ __forceinline__ void load(const f16 *p, float (&out)[N]) {
    if constexpr (N % 2 == 0) {
        const words<N / 2> r = load_words<N / 2>(p);
#pragma unroll
        for (int i = 0; i < N / 2; i++) {
            const float2 f = __half22float2(*(const __half2 *)&r.w[i]);
            out[2 * i] = f.x, out[2 * i + 1] = f.y;
        }
    } else {
#pragma unroll
        for (int i = 0; i < N; i++)
            out[i] = to_float(p[i]);
    }
}

template <int N> __device__ __forceinline__ void store(f16 *p, const float (&v)[N]) {
    if constexpr (N % 2 == 0) {
        words<N / 2> r;
#pragma unroll
        for (int i = 0; i < N / 2; i++) {
            asm("cvt.rn.satfinite.f16x2.f32 %0, %1, %2;" // high half first
                : "=r"(r.w[i])
                : "f"(v[2 * i + 1]), "f"(v[2 * i]));
        }
        store_words<N / 2>(p, r);
    } else {
#pragma unroll
        for (int i = 0; i < N; i++)
            p[i] = from_float<f16>(v[i]);
    }
}

// 16 bytes that are read once and must be asked for where this stands, before a wait.
__device__ __forceinline__ uint4 load_once(const void *p) {
    uint4 v;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(p)
                 : "memory");
    return v;
}

// ---- functions

constexpr float LOG2E = 1.4426950408889634f;

// 2^x, 2 ulp; large negative x give 0.
__device__ __forceinline__ float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// 1 / x, 1 ulp, for x that is not denormal: a division checks for that, four instructions a value.
__device__ __forceinline__ float reciprocal(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

__device__ __forceinline__ float silu(float v) {
    return v * reciprocal(1.f + exp2_fast(-LOG2E * v));
}

// log(1 + e^v), relative error below 6e-6. Small e^v by the series: delta down to 1e-6 decides how
// long a state lasts. A third of log1pf's instructions, which bound the scans.
__device__ __forceinline__ float softplus(float v) {
    const float e = exp2_fast(v * LOG2E);
    float log2;
    asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(log2) : "f"(1.f + e));
    const float series = e * (1.f - e * (0.5f - e * (1.f / 3 - e * 0.25f)));
    const float both = e < 0x1p-5f ? series : log2 * 0.69314718f;
    return v > 20.f ? v : both;
}

// ---- reductions

__device__ __forceinline__ float warp_sum(float v) {
#pragma unroll
    for (int o = 16; o; o >>= 1)
        v += __shfl_xor_sync(~0u, v, o);
    return v;
}

// Sum over a block of up to 1,024 threads; scratch holds 32 floats and is free again on return.
__device__ __forceinline__ float block_sum(float v, float *scratch) {
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, n = (blockDim.x + 31) >> 5;
    v = warp_sum(v);
    if (lane == 0)
        scratch[warp] = v;
    __syncthreads();
    float sum = 0;
    for (int i = 0; i < n; i++)
        sum += scratch[i];
    __syncthreads();
    return sum;
}

// ---- matrix instruction: c[16 x 8] += a[16 x 16] b[16 x 8], bf16 operands, fp32 sums
//
// Lane l, g = l / 4, q = l % 4: a0 (row g, k 2q..), a1 (row g + 8), a2 (row g, k 8 + 2q..), a3 (row
// g + 8); b0 (k 2q.., column g), b1 (k 8 + 2q..); c0, c1 (row g, columns 2q, 2q + 1), c2, c3 (row g
// + 8). A sum does not care for the order of k: where both operands come from rows in memory, lane
// q takes eight consecutive k of a block of 32 by one 16-byte load and feeds two instructions.
__device__ __forceinline__ void mma(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2,
                                    uint32_t a3, uint32_t b0, uint32_t b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
        "{%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// ---- shared memory: addresses, copies of 16 bytes a thread, matrices

__device__ __forceinline__ uint32_t shared_address(const void *p) {
    return (uint32_t)__cvta_generic_to_shared(p);
}

// 16 bytes, or zeros where `live` is not set.
__device__ __forceinline__ void copy_async(void *to, const void *from, bool live) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)),
                 "l"(from), "r"(live ? 16 : 0)
                 : "memory");
}
__device__ __forceinline__ void copies_commit() {
    asm volatile("cp.async.commit_group;" ::: "memory");
}
// At a barrier in shared memory, as one of its arrivals, when all of this thread's are there.
__device__ __forceinline__ void copies_arrive(uint32_t barrier) {
    asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(barrier) : "memory");
}
// Until all groups of this thread but the last LEFT are there.
template <int LEFT = 0> __device__ __forceinline__ void copies_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory");
}

// Four 8 x 8 matrices of 16-bit numbers from shared memory; lane l gives row l % 8 of matrix l / 8.
__device__ __forceinline__ void ldmatrix(uint32_t (&r)[4], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row)));
}

__device__ __forceinline__ void ldmatrix_transposed(uint32_t (&r)[4], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row)));
}

} // namespace ssm

#endif
