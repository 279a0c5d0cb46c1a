// SPDX-License-Identifier: Apache-2.0
// A decode step of one row of Mamba-1's larger published models (790m, 1.4b, 2.8b) on Hopper: all
// layers in one cooperative launch of 128 blocks, an SM each. The step is the time to read the
// weights once, so memory must not idle while blocks tell each other things.
//
// - A block has an even share of the channels (2.8b: 40): their rows of in_proj (x and z), columns
//   of x_proj, convolution, dt_proj, states; and of out_proj's rows, with the residual's.
// - One warp asks for all layers' rows, through a ring of ten to thirteen slots of eight rows by a
//   part of their columns (2.8b: 21 KB); eight warps multiply, each its columns of every row. x
//   comes before z: x_proj's sums go around and states are advanced while z's rows come.
// - Everything goes by packets in memory that tell themselves whether they are there
//   (solo_exchange.cuh): x_proj's shares to every fifth block, which adds up eight rows; its sums
//   to all; y to all; the next layer's input to all, with the squares that its scale is made of.
// - At most two slots are under way: an SM's loads of packets queue behind the rows it has asked
//   for, a full ring's 210 KB for 6 us.
// - All is added up in one order: the same bits every time.
//
// No packet's place is needed twice: whoever writes it again has what depends on everybody's having
// read it (shares of layer l + 1 follow the input, that all rows of out_proj, those all of y, those
// the sums, those all shares of layer l; in the same way round for the others).
//
// Ladder, one H200, 2.8b, f32 state, ms for 64 layers alone (their bytes at the read ceiling: 1.2):
//   1.683  slots asked for as they are freed; one multiplied after the other
//   1.638  two slots at a time; convolution and residual by warps that have other parts, too
//   1.602, 1.545, 1.516  at most a slot in 700, 900, 1,000 cycles
//   1.497  a block's shares of eight rows in one sector; the input read by four lanes of a warp
//          (1.520, 1.484 with 8% shorter and longer pauses)
//   1.575, 1.520, 1.473  at most four, three, two slots under way in place of pauses
//
// In steps, in one run: 2.8b by few.cu 1.679, by this 1.525 (fp16 states; fp32 1.544). 790m, with
// three slots, 0.640 and 0.615; 1.4b was not timed in steps.
//
// Where a layer of 23.7 us goes (%globaltimer, medians over blocks, with pauses): x's sums 4.1,
// x_proj's shares given 5.1, added up 12.5, everywhere 15.1, states 15.9 (z's sums 13.0), y given
// 16.2, there 18.6, out_proj's sums 21.8, next input 24.1. Open: x_proj's two exchanges take 10 us
// beside z's rows, where y and the input, when rings are full, take 2 each.
#include "clusters.cuh"
#include "solo_large_products.cuh"
#include "solo_large_rows.cuh"
#include "solo_large_states.cuh"
#include "types.cuh"

namespace ssm {

template <int M, class S>
__global__ void __launch_bounds__(large_shape<M, S>::THREADS, 1)
    large_kernel(const __grid_constant__ solo_args a) {
#if SSM_HOPPER
    typedef large_shape<M, S> shape;
    extern __shared__ __align__(128) char shared[];
    const large_block<M, S> b(shared);
    const int warp = threadIdx.x / 32;
    dependents_start();
    if (threadIdx.x == 0)
        b.init();
    __syncthreads();
    if (warp < shape::WARPS)
        large_products<M, S>(a, b).run();
    else if (warp < shape::STATE_WARP)
        large_x(a, b);
    else if (warp < shape::ASK_WARP)
        large_advance(a, b);
    else
        large_ask(a, b);
    // All have read the counter: every warp that does had a part in what this thread has now.
    if (blockIdx.x == 0 && threadIdx.x == (shape::STATE_WARP - 1) * 32)
        *a.launches += 1;
#endif
}

// ---- host side

template <class S, class F> static bool with_width(int d_model, F f) {
    switch (d_model) {
    case 1536:
        return f(large_kernel<1536, S>, large_shape<1536, S>());
    case 2048:
        return f(large_kernel<2048, S>, large_shape<2048, S>());
    case 2560:
        return f(large_kernel<2560, S>, large_shape<2560, S>());
    default:
        return false;
    }
}

// All blocks wait for each other, so all must be there at once.
template <class SHAPE> struct large_launch : cluster_launch {
    large_launch(const device *d)
        : cluster_launch(d, dim3(SHAPE::BLOCKS), SHAPE::THREADS, SHAPE::BYTES, 1, WITH_ALL_BLOCKS) {
    }
};

bool solo_large_room(const device *d) {
    return with_state_type(d->state_type, [&](auto s) {
        return with_width<decltype(s)>(d->g.d_model, [&](auto kernel, auto shape) {
            typedef decltype(shape) shape_of;
            return large_launch<shape_of>(d).most(kernel) >= shape_of::BLOCKS;
        });
    });
}

int solo_large_packets(const device *d) {
    int packets = 0;
    with_width<float>(d->g.d_model, [&](auto, auto shape) {
        packets = decltype(shape)::PACKETS;
        return true;
    });
    return packets;
}

cudaError_t solo_large_layers(const device *d, const solo_args &a) {
    cudaError_t rc = cudaErrorNotSupported;
    with_state_type(d->state_type, [&](auto s) {
        return with_width<decltype(s)>(d->g.d_model, [&](auto kernel, auto shape) {
            rc = large_launch<decltype(shape)>(d).run(kernel, a);
            return true;
        });
    });
    return rc;
}

} // namespace ssm
