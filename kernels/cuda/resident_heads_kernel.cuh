// SPDX-License-Identifier: Apache-2.0
// The kernel of resident_heads.cu, which has the design, of resident_heads_replay.cu and of
// resident_heads_packed.cu, and its host side.
#ifndef SSM_KERNELS_CUDA_RESIDENT_HEADS_KERNEL_CUH
#define SSM_KERNELS_CUDA_RESIDENT_HEADS_KERNEL_CUH

#include "resident_heads_states.cuh"
#include "resident_kernel.cuh"

namespace ssm {

#if SSM_HOPPER

template <class SHAPE, class STATES>
__device__ __forceinline__ void heads_work(const heads_args &a, const resident_block<SHAPE> &b) {
    resident_worker<SHAPE> w(a);
    w.own = {-1, -1, 0, 1};
    if (w.own_place() < b.mine)
        w.own = a.rows[b.token(w.own_place())];
    STATES states(a, b);
    w.in_layer = STATES::source::in_layer(b.mine);
    first_input(a, b, w);
    typedef typename products_of<SHAPE, SHAPE::PACKED>::worker worker;
    worker products(b, w);
#pragma unroll 1
    for (int i = 0; i < a.n_layers; i++, w.first += w.in_layer) {
        w.layer = i;
        typename worker::inputs raw;
        typename worker::gates z = {};
        const float by = products.in_proj_x(a, raw);
        if (w.lane == 0) // behind a barrier of all that gave extra rows
            barrier_arrive(b.told);
        products.keep_inputs(a, raw);
        products.in_proj_z(z);
        states.constants(a, b, w);
        states.ask_entries(a, b, w);
        states.ask(a, b, w);
        products.keep_z(z, by);
        states.advance(a, b, w);
        states.keep(a, b, w);
        products.out_proj_shares(a);
        residual(a, b, w);
    }
}

#endif

template <class SHAPE, class STATES>
__global__ void __launch_bounds__(RESIDENT_THREADS, 1)
    heads_kernel(const __grid_constant__ heads_args a) {
#if SSM_HOPPER
    extern __shared__ __align__(1024) char shared[];
    const resident_block<SHAPE> b(shared, a.tokens);
    in_roles(
        b, a.tokens, !SHAPE::PACKED, [&] { heads_work<SHAPE, STATES>(a, b); },
        [&] { fill_ring<SHAPE, typename STATES::source>(a, b); },
        [&](int thread) { fill_rows<SHAPE::PACKED>(a, b, thread); },
        [&] { carry_extras<STATES>(a, b); });
#endif
}

// ---- host side

// f(kernel, shape) of the model's width, if there is one. P: of packed weights, up to 16 rows; bf16
// slots have room for entries anyway.
template <bool P, template <class, class> class STATES, class S, class F>
static bool with_heads(int d_model, F f) {
    return with_channels(d_model, [&](auto channels) {
        enum { CHANNELS = decltype(channels)::value };
        if constexpr (P && CHANNELS % 16 != 0) {
            return false;
        } else {
            typedef heads_shape<CHANNELS, P, !P || heads_entries<STATES>::value> shape;
            return f(heads_kernel<shape, STATES<shape, S>>, shape());
        }
    });
}

template <bool P, template <class, class> class STATES, class S>
static bool heads_room(const device *d) {
    return with_heads<P, STATES, S>(d->g.d_model, [&](auto kernel, auto shape) {
        return resident_launch(d, decltype(shape)::BYTES).most(kernel) >= RESIDENT_CLUSTERS;
    });
}

template <class SHAPE> static bool fill_heads(const device *d, const batch &b, heads_args *a) {
    const ssm_geometry &g = d->g;
    bool made = fill_common<SHAPE>(d, b, d->resident, a);
    a->gate_eps = g.gate_eps, a->dt_min = g.dt_min, a->dt_max = g.dt_max;
    a->entries_x = (bf16 *)d->replay_x, a->entries_b = (bf16 *)d->replay_b;
    a->entries_dt = (float *)d->replay_dt, a->held = b.held, a->n_slots = d->n_slots;
    for (int i = 0; made && i < g.n_layers; i++) {
        made = tensor_map(&a->weights[i].x, d->layers[i].in_proj, g.d_model, d->n_in, PIECE,
                          SHAPE::EXTRA, true, FETCH_128);
        a->gate_norm[i] = d->layers[i].gate_norm;
    }
    return made;
}

template <bool P, template <class, class> class STATES, class S>
static cudaError_t heads_run(const device *d, const batch &b, row_squares *left) {
    cudaError_t rc = cudaErrorNotSupported;
    with_heads<P, STATES, S>(d->g.d_model, [&](auto kernel, auto shape) {
        typedef decltype(shape) shape_of;
        heads_args a = {};
        *left = squares_in<shape_of>(d->resident);
        if (fill_heads<shape_of>(d, b, &a))
            rc = resident_launch(d, shape_of::BYTES).run(kernel, a);
        return true;
    });
    return rc;
}

} // namespace ssm

#endif
