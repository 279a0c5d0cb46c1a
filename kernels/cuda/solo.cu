// SPDX-License-Identifier: Apache-2.0
// A decode step of one row of Mamba-1's two smallest published models on Hopper: all layers in one
// launch, where few.cu needs three a layer. A layer's weights (130m) take 1.7 us to come; what
// counts is how often something crosses the card, and how long warps work in between.
//
// - 130m: 12 clusters of eight blocks, a block an SM, launched cooperatively (how many such
//   clusters a card holds depends on its GPCs: an H200 held 15). A block has 16 channels: their
//   rows of in_proj (x and z), convolution, dt_proj, states. A cluster has 128: these columns of
//   x_proj and out_proj, whose rows its blocks share. So what clusters tell each other are
//   x_proj's 80 sums and out_proj's 768, twice a layer; all else stays in a cluster. 370m: 8
//   clusters, 32 channels.
// - Warps have one part each, and wait for what it needs. A layer:
//     in_proj     eight warps, columns in eight; x to the block's shared memory, z after it
//     after       convolution, SiLU: x to the cluster
//     x_proj      ten rows by the cluster's columns: shares to the blocks of the same rank, each of
//                 which adds up all clusters': sums to the cluster
//     states      delta, the states: y to the cluster
//     out_proj    six warps, 96 rows by the cluster's columns: shares and sums as x_proj's;
//                 residual (in registers), next input to the cluster
// - The input goes as r w (w: the next norm's weight) in bf16, with the squares of r beside each
//   pair, so that in_proj's sums are scaled and nobody norms (few.cu).
// - What is read once is there before it is needed: in_proj through a ring three layers deep, all
//   else in registers a layer ahead (370m: a ring of one layer; out_proj from in_proj on, by the
//   same warps, for want of registers).
// - All is added up in one order: the same bits every time. Packets leave 20 bits of a share.
//
// Ladder, one H200, 130m, f32 state, us for 24 layers alone:
//   150.7    all weights through the ring, out_proj's rows in pieces of 256 bytes, 60 cycles each
//   117.0    out_proj, x_proj and what is small to registers
//   114-116  rows asked for one in 120 cycles; packets of 8 bytes in place of 16
//   96.7     weights as the matrix instruction's first operand, warps of one part each
//   92.6     that, with all layers' weights in L2
// One more H200:
//   112.5    the form that stands here, rows asked for one in 120 cycles
//   96.4     as fast as they are taken
//   93.3     activations read by all lanes and kept for z, two rows' registers interleaved for the
//            matrix instruction, squares in stores of their own (130m; solo_shape::NARROW)
//   91.3     packets asked for 400 cycles behind one's own (130m)
//
// The loop that looked at the clock took 250 cycles a row and so all of a layer's time: rows came
// just when they were needed. No wait showed it, for that for the input comes behind it; what did
// was %globaltimer by block, at all waits.
//
// In steps, few.cu first: 130m 0.208 ms and 0.110, 370m 0.423 and 0.305; 0.028 of it are the head
// and what is around it. How fast a block asks for its rows counts (in a burst they queue in front
// of packets), most with 370m, whose ring of one layer has less time for it. A lane chosen by its
// number pays for a loop over lanes around each copy; one by elect.sync does not. On one H200, a
// step, lane 0 / elected, so many copies in a turn of the loop:
//              1                 2            4            8            all
//   130m   0.111 / 0.115   0.111 /      -    / 0.121   0.111 / -      0.112 / 0.123
//   370m   0.368 / 0.307   0.354 /      -    / 0.320   0.340 / -      0.313 / 0.326
// 370m had all in one turn, by the compiler's choice, until the loop that looked at the clock was
// taken out of this one. Whether the ladder's two last forms help 370m, too, was measured beside
// that change alone, and so is not known.
//
// Tried and dropped, us for 24 layers or ms a step: stores and a release at the other block's
// barrier in place of st.async (192.6 against 150.7: it waits for all that a thread wrote); sixteen
// bytes a store within the cluster, by three shuffles each (98.1 against 96.7); two polls under way
// at once (106.9 against 98.2); x_proj's packets read by all blocks, without the cluster's exchange
// behind it (106.3 against 96.7: 96 blocks ask for the same lines); z's rows in registers before
// the input is there (0.141: the compiler put z's sums in front of x's); in_proj's warps waiting at
// the clock, 400 cycles in front of z and 1,200 in front of the next rows (0.284: eight warps that
// look at it take the others' turns); the head's first 12 to 24 MB asked for beside the last layers
// (no gain, then 6 us slower); out_proj's rows asked for beside x_proj's exchange (5 to 10%
// slower).
#include "clusters.cuh"
#include "solo_kernel.cuh"
#include "types.cuh"

namespace ssm {

template <class S, class F> static bool with_width(int d_model, F f) {
    switch (d_model) {
    case 768:
        return f(solo_kernel<768, 16, S>, solo_shape<768, 16, S>());
    case 1024:
        return f(solo_kernel<1024, 32, S>, solo_shape<1024, 32, S>());
    default:
        return false;
    }
}

// All blocks wait for each other, so all must be there at once.
template <class SHAPE> struct solo_launch : cluster_launch {
    solo_launch(const device *d)
        : cluster_launch(d, dim3(SHAPE::CLUSTERS * SOLO_BLOCKS), SHAPE::THREADS, SHAPE::BYTES,
                         SOLO_BLOCKS, WITH_ALL_BLOCKS) {
    }
};

static bool is_mamba2(const device *d) {
    return d->g.kind == SSM_BLOCK_MAMBA2;
}

static bool is_large(const device *d) { // by solo_large.cu, or solo_large_mamba2.cu
    return d->g.d_model > (is_mamba2(d) ? 768 : 1024);
}

enum { LARGEST = 4096 }; // falcon-mamba-7b's and mamba-codestral-7b's, which has eight groups

static bool model_fits(const device *d) {
    const ssm_geometry &g = d->g;
    const int m = g.d_model;
    const bool known = m == 768 || m == 1024 || m == 1536 || m == 2048 || m == 2560 || m == LARGEST;
    if (d->arch != 90 || d->weight_type != SSM_DTYPE_BF16 || is_lti(d) || !known ||
        g.d_inner != 2 * m || g.d_conv < 2 || g.d_conv > 4 || g.n_layers > SOLO_LAYERS)
        return false;
    if (is_mamba2(d))
        return is_large(d) && g.n_groups == (m == LARGEST ? 8 : 1) && g.d_state == 128 &&
               g.head_dim == 64;
    return g.dt_rank == m / 16 && g.d_state == 16 && (!g.bc_dt_norm || m == LARGEST);
}

// Clusters of eight need as many SMs of a GPC: how many fit differs from card to card.
template <class S> static bool card_fits(const device *d) {
    return with_width<S>(d->g.d_model, [&](auto kernel, auto shape) {
        typedef decltype(shape) shape_of;
        return solo_launch<shape_of>(d).most(kernel) >= shape_of::CLUSTERS;
    });
}

bool solo_room(const device *d) {
    if (!model_fits(d))
        return false;
    if (is_large(d))
        return is_mamba2(d) ? solo_large_mamba2_room(d) : solo_large_room(d);
    return with_state_type(d->state_type, [&](auto s) { return card_fits<decltype(s)>(d); });
}

bool solo_fits(const device *d, int32_t n) {
    if (n != 1 || !d->solo_room || !few_head_fits(d))
        return false;
    for (int i = 0; i < d->g.n_layers; i++) {
        if (d->layers[i].in_bias || d->layers[i].out_bias)
            return false;
    }
    return true;
}

bool solo_reads_packed(const device *d) {
    return is_large(d) && solo_fits(d, 1);
}

int solo_squares(const device *d) {
    return is_large(d) ? LARGE_BLOCKS : d->g.d_model / 16;
}

enum { COUNTER_BYTES = 128 };

size_t solo_bytes(const device *d) {
    int packets = 0;
    if (!d->solo_room)
        return 0;
    if (is_large(d))
        packets = is_mamba2(d) ? solo_large_mamba2_packets(d) : solo_large_packets(d);
    else
        with_width<float>(d->g.d_model, [&](auto, auto shape) {
            packets = decltype(shape)::PACKETS;
            return true;
        });
    return COUNTER_BYTES + (size_t)packets * sizeof(uint2);
}

static void fill_arguments(const device *d, const batch &b, solo_args *a) {
    const ssm_geometry &g = d->g;
    a->tokens = b.tokens, a->drawn = d->drawn, a->rows = b.rows;
    a->embedding = (const bf16 *)d->embedding, a->first_norm = d->layers[0].norm;
    a->ring = (bf16 *)d->ring, a->state = (char *)d->state;
    a->ring_pitch = (size_t)d->n_slots * (g.d_conv - 1) * g.conv_dim;
    a->state_pitch = (size_t)d->n_slots * g.d_inner * g.d_state * type_bytes(d->state_type);
    a->launches = (unsigned *)d->solo, a->packets = (uint2 *)((char *)d->solo + COUNTER_BYTES);
    a->u = (bf16 *)d->u, a->squares = d->out_squares;
    a->n_layers = g.n_layers, a->width = g.d_conv, a->eps = g.norm_eps;
    a->gate_eps = g.gate_eps, a->dt_min = g.dt_min, a->dt_max = g.dt_max;
    a->bc_dt_eps = g.bc_dt_norm ? g.bc_dt_eps : -1.f;
    for (int i = 0; i < g.n_layers; i++) {
        const layer_weights &w = d->layers[i];
        solo_layer &l = a->layers[i];
        l.in_proj = (const bf16 *)w.in_proj, l.x_proj = (const bf16 *)w.x_proj;
        l.dt_proj = (const bf16 *)w.dt_proj, l.out_proj = (const bf16 *)w.out_proj;
        l.packed_in = (const char *)w.packed_in, l.packed_out = (const char *)w.packed_out;
        l.packed_in_by = w.packed_in_by, l.packed_out_by = w.packed_out_by;
        l.conv_weight = w.conv_weight, l.conv_bias = w.conv_bias, l.dt_bias = w.dt_bias;
        l.decay = w.decay, l.skip = w.skip;
        l.rest = l.in_proj + (size_t)2 * g.d_inner * g.d_model, l.gate_norm = w.gate_norm;
        l.next_norm = i + 1 < g.n_layers ? d->layers[i + 1].norm : d->norm_f;
    }
}

template <class S> static cudaError_t run(const device *d, const solo_args &a) {
    cudaError_t rc = cudaErrorNotSupported;
    with_width<S>(d->g.d_model, [&](auto kernel, auto shape) {
        rc = solo_launch<decltype(shape)>(d).run(kernel, a);
        return true;
    });
    return rc;
}

cudaError_t solo_layers(device *d, const batch &b) {
    solo_args a = {};
    fill_arguments(d, b, &a);
    if (is_large(d))
        return is_mamba2(d) ? solo_large_mamba2_layers(d, a) : solo_large_layers(d, a);
    return with_state_type(d->state_type, [&](auto s) { return run<decltype(s)>(d, a); });
}

} // namespace ssm
