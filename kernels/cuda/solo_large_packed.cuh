// SPDX-License-Identifier: Apache-2.0
// solo_large.cu's products with weights in 12 bits (packed.cuh), and the warp that asks for them.
//
// A slot is one run of the copy. Two groups of four warps take slots in turns, so that two slots
// are unpacked at a time, a warp its quarter of the columns. A lane's sixteen weights of a row are
// what it gives the matrix instruction as its second operand, in four pairs of registers; x is the
// first one's first row. Where out_proj's tile has rows of two runs of columns, y of these are its
// first and its second row.
#ifndef SSM_KERNELS_CUDA_SOLO_LARGE_PACKED_CUH
#define SSM_KERNELS_CUDA_SOLO_LARGE_PACKED_CUH

#include "solo_large_products.cuh"

namespace ssm {

#if SSM_HOPPER

template <class SHAPE> struct large_packed_asks : large_asks<SHAPE> {
    typedef SHAPE shape;
    using large_asks<SHAPE>::large_asks;

    __device__ __forceinline__ void run(const char *from, int slots) {
        from += (size_t)blockIdx.x * shape::SLOT;
#pragma unroll 1
        for (int i = 0; i < slots; i++, from += shape::BLOCKS * shape::SLOT) {
            this->wait();
            if (one_lane()) {
                barrier_expect(this->full(), shape::SLOT);
                copy_run(this->slot(), from, shape::SLOT, this->full(), this->once);
            }
            __syncwarp();
            this->next();
        }
    }
    // A group's B, C and dt in bf16: of each row what a group of warps has of two slots of in_proj.
    __device__ __forceinline__ void rest(const bf16 *from) {
        const int lane = threadIdx.x % 32;
        from += (size_t)this->b.rest_row(lane) * shape::WIDTH;
#pragma unroll 1
        for (int i = 0; i < shape::REST_SLOTS; i++) {
            this->wait();
            if (lane == 0)
                barrier_expect(this->full(), shape::REST_ROWS * 1024);
            __syncwarp();
            if (lane < shape::REST_ROWS) {
                const uint32_t to = this->slot() + lane * shape::REST_SLOT_PITCH;
                const bf16 *run = from + (i / 2 * 4 + i % 2) * 256;
                copy_run(to, run, 512, this->full(), this->once);
                copy_run(to + 512, run + 512, 512, this->full(), this->once);
            }
            this->next();
        }
    }
    __device__ __forceinline__ void layer(const solo_layer &l) {
        if constexpr (shape::BC_GROUPS > 1)
            rest(l.rest);
        run(l.packed_in, 2 * shape::TURNS);
        run(l.packed_out, shape::TURNS);
    }
};

// The first operand's registers, of lanes that have columns of its first row, or two; others keep
// what they have: zeros.
template <int LANES>
__device__ __forceinline__ void load_first_rows(uint4 &v, uint32_t from, int lane) {
    asm volatile("{\n.reg .pred p;\n"
                 "setp.lt.s32 p, %5, %6;\n"
                 "@p ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];\n}"
                 : "+r"(v.x), "+r"(v.y), "+r"(v.z), "+r"(v.w)
                 : "r"(from), "r"(lane), "n"(LANES)
                 : "memory");
}

template <class SHAPE> struct large_packed : large_worker<SHAPE> {
    typedef SHAPE shape;
    using large_worker<SHAPE>::b, large_worker<SHAPE>::lane, large_worker<SHAPE>::warp,
        large_worker<SHAPE>::g, large_worker<SHAPE>::q;
    enum { TILES = shape::GROUPS, OUT_FULL = shape::OUT_ROWS / 8 }; // of out_proj's, of each run
    enum { AT_ONCE = TILES > 5 ? TILES / 2 : TILES };               // as registers allow
    static_assert(shape::SLOT == TILES * PACKED_TILE, "packed_slot_bytes()");
    static_assert(2 * OUT_FULL + (shape::OUT_ROWS % 8 == 4) == TILES, "rows of two runs");
    int part, group; // of a slot's columns; the slots that the warp takes

    __device__ __forceinline__ large_packed(const solo_args &args, const large_block<SHAPE> &block)
        : large_worker<SHAPE>(args, block), part(warp % 4), group(warp / 4) {
        b.at = group;
    }
    // The chunk-th four of the warp's columns begin here, and lie there.
    __device__ __forceinline__ int in_column(int chunk) const {
        const int slot = chunk / 16 * 2 + group;
        return slot * 256 + part * 64 + chunk % 16 * 4;
    }
    __device__ __forceinline__ int out_column(int chunk) const {
        const int slot = chunk / 32 * 2 + group;
        return slot * 512 + part * 128 + chunk % 32 * 4;
    }
    // Four columns are the first operand's registers as they lie: 16 bytes, [64 columns][4][q].
    static __device__ __forceinline__ int place(int chunk) {
        return chunk / 16 * 256 + chunk % 4 * 64 + chunk % 16 / 4 * 16;
    }
    static __device__ __forceinline__ void put(uint32_t to, int chunk, uint32_t v, uint32_t w) {
        to += place(chunk);
        asm volatile("st.shared.v4.u32 [%0], {%1,%2,%3,%2};" ::"r"(to), "r"(v), "r"(0), "r"(w)
                     : "memory");
    }
    // As large_products': sixteen lanes a group of warps.
    static __device__ __forceinline__ int dealt_column(int i, int lane) {
        const int run = i / (shape::IN_NB / 2), chunks = i % (shape::IN_NB / 2);
        return (chunks * 2 + lane / 16) * 256 + run * 64 + lane % 16 * 4;
    }
    static __device__ __forceinline__ uint2 dealt_input(uint32_t u, int i, int lane) {
        const int run = i / (shape::IN_NB / 2), chunks = i % (shape::IN_NB / 2);
        const uint4 v = load_shared(u + (lane / 16 * 4 + run) * shape::IN_NB * 128 + chunks * 256 +
                                    place(lane % 16));
        return make_uint2(v.x, v.z);
    }
    __device__ __forceinline__ uint32_t u_at() const {
        return b.address(shape::U) + warp * shape::IN_NB * 128;
    }
    __device__ __forceinline__ uint32_t y_at() const {
        return b.address(shape::Y) + warp * shape::OUT_NB * 128;
    }
    __device__ __forceinline__ void put_in(int chunk, uint32_t v, uint32_t w) const {
        put(u_at(), chunk, v, w);
    }
    __device__ __forceinline__ void put_out(int chunk, uint32_t v, uint32_t w) const {
        put(y_at(), chunk, v, w);
    }

    // One slot's products. x: the lane's numbers of the first operand's row g, for the first lanes.
    template <int LANES>
    __device__ __forceinline__ void slot(float (&c)[TILES][4], uint4 (&v)[2], uint32_t x) {
        uint4 s[AT_ONCE];
        uint2 e[AT_ONCE];
        solo_wait(b.full + b.at * 8, b.phase);
        const uint32_t at = b.slots + b.at * shape::SLOT + (part * TILES * 32 + lane) * 16;
        const uint32_t at_e =
            b.slots + b.at * shape::SLOT + TILES * 4 * 32 * 16 + (part * TILES * 32 + lane) * 8;
#pragma unroll
        for (int first = 0; first < TILES; first += AT_ONCE) {
#pragma unroll
            for (int t = 0; t < AT_ONCE; t++)
                s[t] = load_shared(at + (first + t) * 512),
                e[t] = load_shared2(at_e + (first + t) * 256);
#pragma unroll
            for (int k = 0; k < 2; k++) {
                load_first_rows<LANES>(v[0], x + k * 128, lane);
                load_first_rows<LANES>(v[1], x + k * 128 + 64, lane);
#pragma unroll
                for (int t = 0; t < AT_ONCE; t++) {
                    const uint4 w = k ? unpack(make_uint2(s[t].z, s[t].w), e[t].y)
                                      : unpack(make_uint2(s[t].x, s[t].y), e[t].x);
                    mma(c[first + t], v[0].x, v[0].y, v[0].z, v[0].w, w.x, w.y);
                    mma(c[first + t], v[1].x, v[1].y, v[1].z, v[1].w, w.z, w.w);
                }
            }
        }
        float all = c[0][0];
#pragma unroll
        for (int t = 1; t < TILES; t++)
            all += c[t][0];
        if (lane == 0)
            barrier_arrive_after(b.empty + b.at * 8, all);
        __syncwarp();
        b.template next<2>();
    }
    // Groups: the block's rows of B, of C and of dt, which are bf16: three tiles, the last of dt's
    // row alone. A lane's sixteen columns of 64 lie in a row.
    __device__ __forceinline__ void rest() {
        float c[3][4] = {};
        uint4 v[2] = {};
#pragma unroll 1
        for (int i = 0; i < shape::REST_SLOTS / 2; i++) {
            const uint32_t x = u_at() + i * 512 + q * 16;
            const uint32_t at = b.slots + b.at * shape::SLOT + part * 128 + q * 32;
            solo_wait(b.full + b.at * 8, b.phase);
#pragma unroll
            for (int k = 0; k < 4; k++) { // of each run two parts
                const uint32_t column = at + k / 2 * 512 + k % 2 * 16;
                load_first_rows<4>(v[0], x + k * 128, lane);
                load_first_rows<4>(v[1], x + k * 128 + 64, lane);
#pragma unroll
                for (int t = 0; t < 3; t++) {
                    const int row_at = t * LARGE_REST + (t < 2 ? g : 0);
                    const uint4 w = load_shared(column + row_at * shape::REST_SLOT_PITCH);
                    mma(c[t], v[0].x, v[0].y, v[0].z, v[0].w, w.x, w.y);
                    mma(c[t], v[1].x, v[1].y, v[1].z, v[1].w, w.z, w.w);
                }
            }
            if (lane == 0)
                barrier_arrive_after(b.empty + b.at * 8, c[0][0] + c[1][0] + c[2][0]);
            __syncwarp();
            b.template next<2>();
        }
        float *parts = b.floats(shape::REST_PARTS) + warp * shape::REST_PITCH + 2 * q;
#pragma unroll
        for (int t = 0; t < 3; t++) {
            if (g == 0 && (t < 2 || q == 0))
                *(float2 *)(parts + t * LARGE_REST) = make_float2(c[t][0], c[t][1]);
        }
    }
    __device__ __forceinline__ void in_proj() {
        constexpr int THREADS = (shape::WARPS + shape::STATE_WARPS) * 32;
        uint4 v[2] = {};
#pragma unroll 1
        for (int z = 0; z < 2; z++) {
            float c[TILES][4] = {};
#pragma unroll 1
            for (int i = 0; i < shape::TURNS / 2; i++)
                slot<4>(c, v, u_at() + i * 256 + q * 16);
            float *parts = b.floats(z ? shape::Z_PARTS : shape::X_PARTS) + warp * shape::CH + 2 * q;
#pragma unroll
            for (int t = 0; t < TILES; t++) {
                if (g == 0)
                    *(float2 *)(parts + t * 8) = make_float2(c[t][0], c[t][1]);
            }
            if (z)
                solo_signal<LARGE_Z>(THREADS);
            else
                solo_signal<LARGE_X>(THREADS);
        }
    }
    // The first operand's first row is y of the warp's first 64 columns, its second of the others.
    __device__ __forceinline__ void out_proj() {
        float c[TILES][4] = {};
        uint4 v[2] = {};
        if constexpr (shape::BC_GROUPS > 1) {
            float sums[TILES][2] = {}; // each slot's by its group's norm
#pragma unroll 1
            for (int i = 0; i < shape::TURNS / 2; i++) {
                clear(c);
                slot<8>(c, v, y_at() + i * 512 + g * 256 + q * 16);
                if (i == 0) // what it waits for passes beside the first slot
                    this->take_squares();
                const float by = this->norm_of(i);
#pragma unroll
                for (int t = 0; t < TILES; t++)
                    sums[t][0] += c[t][0] * by, sums[t][1] += c[t][1] * by;
            }
#pragma unroll
            for (int t = 0; t < TILES; t++)
                c[t][0] = sums[t][0], c[t][1] = sums[t][1];
        } else {
#pragma unroll 1
            for (int i = 0; i < shape::TURNS / 2; i++)
                slot<8>(c, v, y_at() + i * 512 + g * 256 + q * 16);
        }
        float *outs = b.floats(shape::OUT_PARTS) + warp * shape::OUT_GROUPS * 8 + 2 * q;
        const auto sum = [&](int first, int second, int away, int lanes) {
            float2 v;
            v.x = c[first][0] + __shfl_down_sync(~0u, c[second][0], away);
            v.y = c[first][1] + __shfl_down_sync(~0u, c[second][1], away);
            if (lane < lanes)
                *(float2 *)(outs + first % OUT_FULL * 8 + (first == 2 * OUT_FULL) * OUT_FULL * 8) =
                    v;
        };
#pragma unroll
        for (int t = 0; t < OUT_FULL; t++)
            sum(t, OUT_FULL + t, 4, 4);
        if constexpr (shape::OUT_ROWS % 8 != 0)
            sum(2 * OUT_FULL, 2 * OUT_FULL, 6, 2);
        solo_signal<LARGE_OUT>((shape::WARPS + 1) * 32);
    }
};

#endif

} // namespace ssm

#endif
