// SPDX-License-Identifier: Apache-2.0
// Barriers in shared memory (mbarrier), by address, named ones of some of a block's threads, and
// Hopper's bulk copies, whose bytes the first count: one thread asks for up to all of shared
// memory. Stores go the other way in groups that their thread waits for.
//
// A barrier's phase is over when all arrivals that it was made for and all bytes that were expected
// are there; who waits knows the parity of the phase. Ampere has barriers without bytes.
#ifndef SSM_KERNELS_CUDA_BULK_CUH
#define SSM_KERNELS_CUDA_BULK_CUH

#include "util.cuh"

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
#define SSM_BULK 1
#else
#define SSM_BULK 0
#endif

namespace ssm {

// ---- barriers

__device__ __forceinline__ void barrier_init(uint32_t at, int arrivals) {
    asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(at), "r"(arrivals) : "memory");
}
__device__ __forceinline__ void barrier_arrive(uint32_t at) {
    asm volatile("{\n.reg .b64 token;\n"
                 "mbarrier.arrive.shared.b64 token, [%0];\n}" ::"r"(at)
                 : "memory");
}
// As so many arrivals.
template <int N> __device__ __forceinline__ void barrier_arrive_as(uint32_t at) {
    asm volatile("{\n.reg .b64 token;\n"
                 "mbarrier.arrive.shared.b64 token, [%0], %1;\n}" ::"r"(at),
                 "n"(N)
                 : "memory");
}
// Whether the phase is over.
__device__ __forceinline__ bool barrier_test(uint32_t at, uint32_t parity) {
    uint32_t done;
    asm volatile("{\n.reg .pred p;\n"
                 "mbarrier.test_wait.parity.shared.b64 p, [%1], %2;\n"
                 "selp.u32 %0, 1, 0, p;\n}"
                 : "=r"(done)
                 : "r"(at), "r"(parity)
                 : "memory");
    return done != 0;
}
#if SSM_BULK
#define TRY_WAIT "mbarrier.try_wait.parity.shared.b64 p, " // sleeps for a while
#else
#define TRY_WAIT "mbarrier.test_wait.parity.shared.b64 p, "
#endif
__device__ __forceinline__ bool barrier_try(uint32_t at, uint32_t parity) {
    uint32_t done;
    asm volatile("{\n.reg .pred p;\n" TRY_WAIT "[%1], %2;\n"
                 "selp.u32 %0, 1, 0, p;\n}"
                 : "=r"(done)
                 : "r"(at), "r"(parity)
                 : "memory");
    return done != 0;
}
__device__ __forceinline__ void barrier_wait(uint32_t at, uint32_t parity) {
    asm volatile("{\n.reg .pred p;\n"
                 "again:\n" TRY_WAIT "[%0], %1;\n"
                 "@!p bra again;\n}" ::"r"(at),
                 "r"(parity)
                 : "memory");
}
#undef TRY_WAIT

// Named barriers: `threads` in all take part.
__device__ __forceinline__ void named_sync(int id, int threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
__device__ __forceinline__ void named_arrive(int id, int threads) {
    asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

#if SSM_BULK

__device__ __forceinline__ void barriers_ready() { // to other threads, the copy engine, the cluster
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
// Arrives, too.
__device__ __forceinline__ void barrier_expect(uint32_t at, uint32_t bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(at), "r"(bytes)
                 : "memory");
}
// Once `sum` is there, and so all that it was made of: an arrive alone overtakes reads of shared
// memory that queue (few.cu). No sum is this NaN.
__device__ __forceinline__ void barrier_arrive_after(uint32_t at, float sum) {
    asm volatile("{\n.reg .pred p;\n"
                 "setp.ne.b32 p, %1, 0x7fc12345;\n"
                 "@p mbarrier.arrive.shared::cta.b64 _, [%0];\n}" ::"r"(at),
                 "r"(__float_as_uint(sum))
                 : "memory");
}
// What this thread wrote to shared memory becomes visible to the copy engine and the matrix units
// after a barrier.
__device__ __forceinline__ void fence_async() {
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// A word of which the compiler does not know how it was made: a shared address that it would make
// anew from where shared memory begins, which takes longer than keeping it.
__device__ __forceinline__ uint32_t kept_word(uint32_t word) {
    asm volatile("" : "+r"(word));
    return word;
}

// ---- copies of bytes in a row

__device__ __forceinline__ void copy_run(uint32_t to, const void *from, uint32_t bytes,
                                         uint32_t barrier) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], "
                 "%2, [%3];" ::"r"(to),
                 "l"(from), "r"(bytes), "r"(barrier)
                 : "memory");
}
// Of what is read once a step: first to leave L2.
__device__ __forceinline__ uint64_t policy_once() {
    uint64_t policy;
    asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    return policy;
}
__device__ __forceinline__ void copy_run(uint32_t to, const void *from, uint32_t bytes,
                                         uint32_t barrier, uint64_t policy) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes"
                 ".L2::cache_hint [%0], [%1], %2, [%3], %4;" ::"r"(to),
                 "l"(from), "r"(bytes), "r"(barrier), "l"(policy)
                 : "memory");
}
// To L2 alone.
__device__ __forceinline__ void prefetch_run(const void *from, uint32_t bytes) {
    asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(from), "r"(bytes) : "memory");
}

// ---- stores, in groups: each is what a thread has asked for since the last

__device__ __forceinline__ void store_run(void *to, uint32_t from, uint32_t bytes) {
    asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(to), "r"(from),
                 "r"(bytes)
                 : "memory");
}
__device__ __forceinline__ void stores_commit() {
    asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}
// All groups but the LEFT last ones have read shared memory, which may be written again.
template <int LEFT> __device__ __forceinline__ void stores_read() {
    asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(LEFT) : "memory");
}
// All are there, as if this thread had written them.
__device__ __forceinline__ void stores_done() {
    asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
}

#endif

} // namespace ssm

#endif
