// SPDX-License-Identifier: Apache-2.0
// The kernel of resident.cu, which has the design, and its host side, for resident_tall.cu, too.
#ifndef SSM_KERNELS_CUDA_RESIDENT_KERNEL_CUH
#define SSM_KERNELS_CUDA_RESIDENT_KERNEL_CUH

#include <type_traits>

#include "clusters.cuh"
#include "resident_fill.cuh"
#include "resident_packed_rows.cuh"

namespace ssm {

#if SSM_HOPPER

// in_proj and out_proj of weights as they are, as packed_worker has those of packed ones.
template <class SHAPE> struct unpacked_worker {
    typedef uint32_t inputs[SHAPE::X_BLOCKS];
    typedef float gates[SHAPE::GROUP_ROWS / 2];
    const resident_block<SHAPE> &b;
    resident_worker<SHAPE> &w;

    __device__ __forceinline__ unpacked_worker(const resident_block<SHAPE> &block,
                                               resident_worker<SHAPE> &worker)
        : b(block), w(worker) {
    }
    __device__ __forceinline__ float in_proj_x(const resident_args &a, inputs &raw) {
        return ssm::in_proj_x(a, b, w, raw);
    }
    __device__ __forceinline__ void keep_inputs(const resident_args &a, const inputs &raw) const {
        ssm::keep_inputs(a, b, w, raw);
    }
    __device__ __forceinline__ void in_proj_z(gates &z) {
        in_columns_z(b, w, z);
        send_z(b, w, z);
    }
    __device__ __forceinline__ void keep_z(const gates &z, float by) const {
        ssm::keep_z(b, w, z, by);
    }
    __device__ __forceinline__ void out_proj_shares(const resident_args &a) {
        ssm::out_proj_shares(a, b, w);
    }
};

template <class SHAPE, bool P> struct products_of {
    typedef std::conditional_t<P, packed_worker<SHAPE>, unpacked_worker<SHAPE>> worker;
};
template <int CHANNELS, int MOST>
struct products_of<resident_shape<CHANNELS, MOST, true, false>, true> {
    typedef packed_rows_worker<resident_shape<CHANNELS, MOST, true, false>> worker;
};

template <class SHAPE>
__device__ __forceinline__ void carry(const resident_args &a, const resident_block<SHAPE> &b) {
    if constexpr (SHAPE::EXCHANGED)
        carry_totals(a, b);
    else
        carry_sums(a, b);
}

// P: in_proj and out_proj are packed.
template <class SHAPE, class S, bool P>
__device__ __forceinline__ void work(const resident_args &a, const resident_block<SHAPE> &b) {
    resident_worker<SHAPE> w(a);
    const int token = token_of(b.rank, w.own_place());
    w.own = {-1, -1, 0, 1};
    if (token < a.tokens)
        w.own = a.rows[token];
    resident_states<SHAPE, S> states(a, b, w.warp);
    w.in_layer = ring_source<SHAPE, S, P>::in_layer(b.mine);
    first_input(a, b, w);
    typedef typename products_of<SHAPE, P>::worker worker;
    worker products(b, w);
#pragma unroll 1
    for (int i = 0; i < a.n_layers; i++, w.first += w.in_layer) {
        w.layer = i;
        typename worker::inputs raw;
        typename worker::gates z = {};
        const float by = products.in_proj_x(a, raw);
        x_proj_parts(a, b, w);
        products.keep_inputs(a, raw);
        products.in_proj_z(z);
        states.constants(b, w);
        if constexpr (!SHAPE::EXCHANGED)
            states.ask_sums(a, b, w);
        products.keep_z(z, by);
        states.advance(a, b, w);
        products.out_proj_shares(a);
        residual(a, b, w);
    }
}

// A block's warps by what they do: workers, the ring's, the two of token rows, the one that carries
// sums. `clear`: whether absent token rows are multiplied.
template <class SHAPE, class WORK, class RING, class ROWS, class CARRY>
__device__ __forceinline__ void in_roles(const resident_block<SHAPE> &b, int tokens, bool clear,
                                         const WORK &work, const RING &ring, const ROWS &rows,
                                         const CARRY &carry) {
    if (threadIdx.x == 0)
        b.init();
    if (clear)
        b.clear_absent(tokens);
    __syncthreads();
    cluster_arrive();
    cluster_wait(); // the peer's barriers are ready
    if (threadIdx.x < RESIDENT_WORKERS) {
        more_registers<216>();
        work();
    } else {
        fewer_registers<72>();
        const int warp = threadIdx.x / 32 - RESIDENT_WARPS;
        if (warp == 0)
            ring();
        else if (warp > X_WARPS)
            carry();
        else
            rows(threadIdx.x - RESIDENT_WORKERS - 32);
    }
    __syncwarp();
    cluster_arrive();
    cluster_wait(); // nothing of the peer's is under way to here
}

#endif

template <class SHAPE, class S, bool P>
__global__ void __launch_bounds__(RESIDENT_THREADS, 1)
    resident_kernel(const __grid_constant__ resident_args a) {
#if SSM_HOPPER
    extern __shared__ __align__(1024) char shared[];
    constexpr bool FEW = P && !SHAPE::MANY; // token rows that are not there are not multiplied
    const resident_block<SHAPE> b(shared, a.tokens);
    in_roles(
        b, a.tokens, !FEW, [&] { work<SHAPE, S, P>(a, b); },
        [&] { fill_ring<SHAPE, ring_source<SHAPE, S, P>>(a, b); },
        [&](int thread) { fill_rows<FEW>(a, b, thread); }, [&] { carry<SHAPE>(a, b); });
#endif
}

// ---- host side

// The launch, of all blocks at once: they wait for each other.
struct resident_launch : cluster_launch {
    resident_launch(const device *d, int bytes)
        : cluster_launch(d, dim3(RESIDENT_BLOCKS), RESIDENT_THREADS, bytes,
                         RESIDENT_BLOCKS / RESIDENT_CLUSTERS, WITH_ALL_BLOCKS) {
    }
};

// What both families' kernels read. scratch: the shape's own, whose counter of inputs is 0.
template <class SHAPE>
static bool fill_common(const device *d, const batch &b, void *scratch, resident_args *a) {
    const ssm_geometry &g = d->g;
    a->ids = b.tokens, a->drawn = d->drawn, a->embedding = (const bf16 *)d->embedding;
    a->first_norm = d->layers[0].norm;
    a->rows = b.rows, a->residual = d->residual;
    a->u = (bf16 *)d->u, a->y = (bf16 *)d->y;
    a->ring = (bf16 *)d->ring, a->state = (char *)d->state;
    a->ring_pitch = (size_t)d->n_slots * (g.d_conv - 1) * g.conv_dim;
    a->state_pitch = (size_t)d->n_slots * g.d_inner * g.d_state * type_bytes(d->state_type);
    a->scratch = scratch;
    a->tokens = b.n, a->n_layers = g.n_layers, a->width = g.d_conv, a->eps = g.norm_eps;
    bool made = true;
    for (int i = 0; made && i < g.n_layers; i++) {
        const layer_weights &w = d->layers[i];
        resident_layer &l = a->layers[i];
        resident_weights &maps = a->weights[i];
        made = tensor_map(&maps.in, w.in_proj, g.d_model, d->n_in, PIECE, SHAPE::NW, true,
                          FETCH_128) &&
               tensor_map(&maps.out, w.out_proj, g.d_inner, g.d_model, PIECE, SHAPE::TILE_ROWS,
                          true, FETCH_128);
        l.conv_weight = w.conv_weight, l.conv_bias = w.conv_bias, l.dt_bias = w.dt_bias;
        l.decay = w.decay, l.skip = w.skip;
        l.next_norm = i + 1 < g.n_layers ? d->layers[i + 1].norm : d->norm_f;
        l.packed_in = (const char *)w.packed_in, l.packed_out = (const char *)w.packed_out;
        l.packed_in_by = packed_taken(w.packed_in_by);
        l.packed_out_by = packed_taken(w.packed_out_by);
    }
    return made;
}

template <class SHAPE>
static bool fill_arguments(const device *d, const batch &b, void *scratch, resident_args *a) {
    const ssm_geometry &g = d->g;
    a->bc_dt_eps = g.bc_dt_norm ? g.bc_dt_eps : -1.f;
    bool made = fill_common<SHAPE>(d, b, scratch, a);
    for (int i = 0; made && i < g.n_layers; i++) {
        const layer_weights &w = d->layers[i];
        resident_layer &l = a->layers[i];
        made = tensor_map(&a->weights[i].x, w.x_proj, g.d_inner, d->n_x,
                          SHAPE::WIDE ? (int)PIECE : (int)SHAPE::NW, SHAPE::X_PROJ_ROWS,
                          SHAPE::WIDE, FETCH_128);
        l.dt_proj = (const bf16 *)w.dt_proj;
    }
    return made;
}

// f(channels of a cluster, as a constant's type) of both families' common widths; false: another.
template <class F> static bool with_channels(int d_model, F f) {
    switch (d_model) {
    case 32 * 24:
        return f(std::integral_constant<int, 24>());
    case 32 * 32:
        return f(std::integral_constant<int, 32>());
    case 32 * 48:
        return f(std::integral_constant<int, 48>());
    case 32 * 64:
        return f(std::integral_constant<int, 64>());
    case 32 * 80:
        return f(std::integral_constant<int, 80>());
    default:
        return false;
    }
}

// What a launch leaves beside its residuals.
template <class SHAPE> static row_squares squares_in(void *scratch) {
    return {((resident_scratch<SHAPE> *)scratch)->squares[0], SHAPE::OUT_TILES, SHAPE::OUT_TILES};
}

// with_width(f): f(kernel, shape) of the model's width, if there is one.
template <class WITH_WIDTH>
static cudaError_t resident_run(device *d, const batch &b, void *scratch, row_squares *left,
                                const WITH_WIDTH &with_width) {
    cudaError_t rc = cudaErrorNotSupported;
    with_width([&](auto kernel, auto shape) {
        typedef decltype(shape) shape_of;
        resident_args a = {};
        *left = squares_in<shape_of>(scratch);
        if (fill_arguments<shape_of>(d, b, scratch, &a))
            rc = resident_launch(d, shape_of::BYTES).run(kernel, a);
        return true;
    });
    return rc;
}

} // namespace ssm

#endif
