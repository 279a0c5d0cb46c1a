// SPDX-License-Identifier: Apache-2.0
// A decode step of up to eight rows on Hopper and later, where a step is the time to read the
// weights once: three launches a layer, chained by programmatic dependent launch, each of which has
// as much of its weights in shared memory as fits before its predecessor ends.
//
//   in_proj     convolution and SiLU after it; Mamba-1: the block's share of x_proj, added up over
//               the blocks in fixed point (integers do not mind the order: the same bits every run)
//   advance     advance_row.cu; Mamba-2: mamba2.cu
//   out_proj    onto the fp32 residual r; leaves r w (w: the next norm's weight) in bf16 and a sum
//               of squares a block, so that the next product scales its sums and nobody norms
//   lm_head     like in_proj, nothing after it
//
// A block takes an even share of the rows (Mamba-1: of channels, with their rows of x and of z).
// One warp asks for the weights by bulk copies, eight rows by 2.5 KB or so a slot; eight warps
// multiply, each its columns of every slot; three warps do what comes after (few_end.cuh) while the
// next rows are multiplied. Shared memory and registers are dealt so that in_proj, advance and
// out_proj fit on an SM together, a block of each: that is what lets a kernel fetch two kernels
// ahead. Kernels that ask for different splits of shared memory against cache do not run side by
// side, whatever they use: all of them ask for the same (7% of a step).
//
// A row's sums depend on the bucket (where token rows lie, see STREAM) but on no other row.
//
// A slot is given back once the products of what was read from it are there (ring_arrive_after). An
// arrive alone overtakes its warp's reads: behind the token rows' loads from L2, which share their
// way (STREAM), they can take longer than the eighth arrive, the next rows' being asked for and
// their coming. At 2,560 channels and 8 rows, one step in four had multiplied a few weight rows'
// last 64 of 160 columns as the rows that came into the slot next have them: those that the
// compiler had read last, right before the arrive (the sums say so to 1e-6). Where it happened to
// wait for them first (every kernel but STREAM's) nothing was ever wrong. test_cuda few looks.
//
// Ladder, one H200, bf16 weights, f32 state, ms a step       130m b1  b8     2.8b b1  b8
//   skinny.cu: four launches, weights through registers      0.301   0.368   2.26    2.99
//   three launches, a ring a warp, copies of 320 bytes       0.266   0.358   1.95    3.10
//   a ring a block, a warp that asks, sums of squares
//     fetched in one trip                                    0.238   0.359   1.84    3.39
//   warps for what comes after, at most 48 KB asked for
//     ahead of time, out_proj's rows streamed at b8          0.228   0.398   1.77    2.57
//   rolled loops (few_end.cuh)                               0.213           1.77
//   in_proj asks L2 for the out_proj before it (ask_l2)                      1.70
//   slots given back after their products                    0.208   0.315   1.68   2.56
//   (one more H200; in turns with it, 8 rows by skinny.cu           0.370          2.99)
//
// Read off by %globaltimer, 2.8b b1, a layer of 25.7 us whose bytes take 18.8: in_proj 14.2,
// advance 2.9 (its one trip to L2 takes 1.4 beside the prefetches), out_proj 6.2, three boundaries
// 2.1. What is lost: memory idles for 3 us around the advance, when all rings are full. 130m, 8.1
// us a layer: in_proj 3.2, advance 1.5, out_proj 1.9, boundaries 1.4: latency alone.
//
// Where x_sums lie counts: 130m's 8 rows took 0.315 ms, 0.338 after another buffer had come in
// front of them (solo.cu's, 43 KB), and 0.320 to 0.340 with them 0.5 to 256 KB further on: most
// likely how many of their lines meet in a part of L2. Four sums a line, over four times as many
// lines: 0.325 wherever they lie, and 370m 0.727 in place of 0.720. They lie where they lay.
//
// Tried and dropped: rings of 64 and 150 to 200 KB (one less or no block beside; 130m +10% and
// +21%); token rows in registers (128 of them: nothing fits beside); one copy of x_proj's sums
// instead of four (2.8b +5%, 130m b8 +20%); streaming out_proj's token rows at one and two rows
// (+25%, its registers keep the advance off the SM); asking L2 for all of out_proj at once after
// in_proj (+4%: the advance's loads queue behind it); slots of 1 KB rows (2.8b b8 3.0); a proxy
// fence in place of the arrive after the products (130m b1 +1%, once); rings no larger than a
// block's rows, with zeros at a step's start (130m b2 +2%, b8 +1%); one row's advance and out_proj
// in one launch, 16 channels a block, shares of out_proj's sums added up in fixed point in L2 and
// to the residual by the next product (one H100, right, but 130m b1 0.212 to 0.224 ms and 370m
// 0.455 to 0.576: 74,000 and 131,000 additions a layer cost more than a boundary and a trip to L2
// save).
#include "few_kernel.cuh"

namespace ssm {

// The step's first kernel: residual = embedding, with what the first in_proj needs of it.
__global__ void __launch_bounds__(256)
    few_embed_kernel(const int32_t *tokens, const int32_t *drawn, const bf16 *table,
                     const float *norm, float *residual, bf16 *u, float *squares, int pitch,
                     int d) {
    __shared__ float scratch[32];
    dependents_start();
    dependency_wait();
    const int32_t token = known_token(tokens[blockIdx.x], drawn);
    const bf16 *from = table + (size_t)token * d;
    float sum = 0;
    for (int i = threadIdx.x; i < d; i += blockDim.x) {
        const float r = to_float(from[i]);
        residual[(size_t)blockIdx.x * d + i] = r;
        u[(size_t)blockIdx.x * d + i] = from_float<bf16>(r * norm[i]);
        sum += r * r;
    }
    sum = block_sum(sum, scratch);
    if (threadIdx.x == 0)
        squares[blockIdx.x * pitch] = sum;
}

// ---- host side

static bool streams(int batch) {
    return batch > 4;
}

// f(kernel, bytes of a slot, bytes of the token rows beside the ring)
template <int NB, few_kind KIND, class F> static bool with_rows(int batch, F f) {
    if constexpr (KIND == FEW_OUT) {
        if (streams(batch))
            return f(few_kernel<NB, KIND, STREAM_GROUPS>, (int)slot_shape<NB>::BYTES, 0);
    }
    return f(few_kernel<NB, KIND, 0>, (int)slot_shape<NB>::BYTES,
             RING_WARPS * batch * (NB | 1) * 64);
}

template <few_kind KIND, class F> static bool with_blocks(int nb, int batch, F f) {
    if constexpr (KIND == FEW_OUT) {
        if (nb == 12)
            return with_rows<12, KIND>(batch, f);
        if (nb == 20)
            return with_rows<20, KIND>(batch, f);
    } else {
        if (nb == 1)
            return with_rows<1, KIND>(batch, f);
        if (nb == 3)
            return with_rows<3, KIND>(batch, f);
        if (nb == 10)
            return with_rows<10, KIND>(batch, f);
    }
    switch (nb) {
    case 2:
        return with_rows<2, KIND>(batch, f);
    case 4:
        return with_rows<4, KIND>(batch, f);
    case 6:
        return with_rows<6, KIND>(batch, f);
    case 8:
        return with_rows<8, KIND>(batch, f);
    case 16:
        return with_rows<16, KIND>(batch, f);
    default:
        return false;
    }
}

static int blocks_of(const device *d, const few_args &a) {
    const int units = ceil_div(a.n_rows, a.unit);
    return units < d->n_sms ? units : d->n_sms;
}

// Shared memory of a product's block: with its successor's beside it, and the advance's.
static size_t shared_budget(const device *d, bool out, int batch) {
    const int all = (int)(d->shared_sm / 1024) - 3 - 8, outs = batch > 4 ? 92 : all / 2;
    return (size_t)(out ? outs : all - outs) * 1024;
}

static int slots_for(const device *d, const few_args &a, int bytes, int rows) {
    const size_t beside = few_beside_ring(a) + (size_t)rows,
                 all =
                     a.alone ? d->shared_sm - 4096 : shared_budget(d, a.next_norm != NULL, a.batch);
    if (beside >= all)
        return 0;
    const size_t n = (all - beside) / (size_t)bytes, most = a.alone ? MAX_SLOTS : BESIDE_SLOTS;
    return (int)(n < most ? n : most);
}

template <few_kind KIND> static cudaError_t run(const device *d, const few_args &args) {
    cudaError_t rc = cudaErrorInvalidValue;
    with_blocks<KIND>(
        args.n_cols / (32 * RING_WARPS), args.batch, [&](auto kernel, int bytes, int rows) {
            few_args a = args;
            a.n_slots = slots_for(d, a, bytes, rows);
            a.flight = FLIGHT_BYTES / bytes > 1 ? FLIGHT_BYTES / bytes : 1;
            const size_t shared = (size_t)a.n_slots * bytes + (size_t)rows + few_beside_ring(a);
            rc = few_prepare(kernel, shared);
            if (rc == cudaSuccess)
                rc = launch(d, kernel, dim3((unsigned)blocks_of(d, a)), RING_THREADS, shared, true,
                            a);
            return true;
        });
    return rc;
}

template <few_kind KIND> static bool fits(const device *d, const few_args &a) {
    return a.n_cols % (32 * RING_WARPS) == 0 &&
           with_blocks<KIND>(a.n_cols / (32 * RING_WARPS), a.batch, [&](auto, int bytes, int rows) {
               return slots_for(d, a, bytes, rows) >= 2;
           });
}

static few_args arguments(const device *d, const void *weight, int rows, int cols, int unit,
                          int batch) {
    few_args a = {};
    a.weight = (const bf16 *)weight, a.n_rows = rows, a.n_cols = cols, a.batch = batch;
    a.unit = unit, a.width_out = rows, a.buffers = 2;
    const int units = ceil_div(rows, unit);
    a.most_rows = ceil_div(units, blocks_of(d, a)) * unit;
    return a;
}

static bool packed(const device *d, int batch);

// Blocks of out_proj, each of which leaves a sum of squares.
int few_squares(const device *d, int32_t batch) {
    if (packed(d, batch))
        return few_packed_blocks();
    return d->g.d_model < d->n_sms ? d->g.d_model : d->n_sms;
}

static few_args in_arguments(const device *d, int layer, int batch) {
    const ssm_geometry &g = d->g;
    const layer_weights &w = d->layers[layer];
    const bool mamba = g.kind == SSM_BLOCK_MAMBA;
    few_args a =
        arguments(d, w.in_proj, mamba ? g.d_inner : d->n_in, g.d_model, mamba ? 4 : 1, batch);
    a.second = mamba ? g.d_inner : 0;
    a.width_out = d->n_in;
    a.x = (const bf16 *)d->u, a.bias = w.in_bias, a.eps = g.norm_eps;
    a.squares = d->out_squares, a.squares_pitch = d->n_sms;
    a.n_squares = layer == 0 ? 1 : few_squares(d, batch);
    a.xz = (bf16 *)d->xz, a.xc = (bf16 *)d->xc;
    a.ring = (bf16 *)d->ring + (size_t)layer * d->n_slots * (g.d_conv - 1) * g.conv_dim;
    a.conv_weight = w.conv_weight, a.conv_bias = w.conv_bias;
    a.conv_first = mamba ? 0 : g.d_inner, a.channels = g.conv_dim, a.width = g.d_conv;
    if (mamba) {
        a.x_proj = (const bf16 *)w.x_proj, a.n_x = a.n_x_fetched = d->n_x;
        a.x_pitch = ceil_div(a.most_rows, 16) * 32 + 16;
        a.w_pitch = (ceil_div(a.most_rows, 8) | 1) * 16;
        a.x_sums = d->x_sums, a.x_broken = d->x_broken;
    }
    return a;
}

static few_args out_arguments(const device *d, int layer, int batch, bool fold_norm) {
    const ssm_geometry &g = d->g;
    const layer_weights &w = d->layers[layer];
    few_args a = arguments(d, w.out_proj, g.d_model, g.d_inner, 1, batch);
    a.x = (const bf16 *)d->y, a.bias = w.out_bias;
    a.residual = d->residual, a.u = (bf16 *)d->u;
    a.buffers = streams(batch) ? 1 : 2;
    a.next_norm = layer + 1 < g.n_layers ? d->layers[layer + 1].norm : d->norm_f;
    a.squares_out = d->out_squares, a.squares_pitch_out = d->n_sms;
    if (fold_norm) {
        a.squares = d->squares, a.n_squares = a.squares_pitch = g.n_heads;
        a.eps = g.gate_eps;
    }
    if (g.kind == SSM_BLOCK_MAMBA)
        a.x_sums = d->x_sums, a.x_broken = d->x_broken, a.n_x = d->n_x;
    return a;
}

static bool packed(const device *d, int batch) {
    return d->weights_packed && few_packed_fits(d, batch);
}

static few_args head_arguments(const device *d, int batch) {
    few_args a = arguments(d, d->lm_head, d->g.vocab_size, d->g.d_model, 1, batch);
    a.most_rows = 0;
    a.x = (const bf16 *)d->u, a.eps = d->g.norm_eps, a.residual = d->logits;
    a.squares = d->out_squares, a.squares_pitch = d->n_sms, a.n_squares = few_squares(d, batch);
    return a;
}

bool few_fits(const device *d, int32_t n) {
    const ssm_geometry &g = d->g;
    const bool mamba = g.kind == SSM_BLOCK_MAMBA;
    if (d->weight_type != SSM_DTYPE_BF16 || d->arch < 90 || n > FEW_ROWS || g.d_conv > 4)
        return false;
    if (mamba && (g.d_state != 16 || g.dt_rank % 8 != 0 || g.dt_rank > 256 || g.d_inner % 8 != 0))
        return false;
    const few_args in = in_arguments(d, 0, n);
    return (mamba ? fits<FEW_IN_X>(d, in) : fits<FEW_IN>(d, in)) &&
           (!streams(n) || ceil_div(g.d_model, blocks_of(d, out_arguments(d, 0, n, false))) <=
                               8 * STREAM_GROUPS) &&
           fits<FEW_OUT>(d, out_arguments(d, 0, n, false)) &&
           fits<FEW_HEAD>(d, head_arguments(d, n));
}

bool few_head_fits(const device *d) {
    return d->weight_type == SSM_DTYPE_BF16 && d->arch >= 90 &&
           fits<FEW_HEAD>(d, head_arguments(d, 1));
}

cudaError_t few_embed(device *d, const batch &b) {
    const cudaError_t rc = few_prepare(few_embed_kernel, 0);
    return rc ? rc
              : launch(d, few_embed_kernel, dim3((unsigned)b.n), 256, 0, false, b.tokens, d->drawn,
                       (const bf16 *)d->embedding, d->layers[0].norm, d->residual, (bf16 *)d->u,
                       d->out_squares, d->n_sms, d->g.d_model);
}

// The rest of a layer's out_proj, which its own ring has no room for.
static void ask_last(const device *d, int layer, int batch, few_args *a) {
    few_args out = out_arguments(d, layer, batch, false);
    if (batch > 1) // two rows: 1.92 ms without, 2.00 with
        return;
    with_blocks<FEW_OUT>(out.n_cols / (32 * RING_WARPS), batch, [&](auto, int bytes, int rows) {
        const int a_group = 8 * out.n_cols * 2;
        const int parts = out.n_cols * 2 * 8 / (bytes - 8 * 64);
        const int groups = slots_for(d, out, bytes, rows) / parts;
        if (groups * 8 < ceil_div(out.n_rows, blocks_of(d, out))) {
            a->last_weight = (const char *)out.weight, a->last_rows = out.n_rows;
            a->last_row_bytes = out.n_cols * 2, a->last_skip = groups * a_group;
        }
        return true;
    });
}

cudaError_t few_in(device *d, int layer, const batch &b) {
    few_args a = in_arguments(d, layer, b.n);
    a.rows = b.rows;
    if (packed(d, b.n))
        return few_packed_in(d, layer, a);
    if (layer > 0)
        ask_last(d, layer - 1, b.n, &a);
    return d->g.kind == SSM_BLOCK_MAMBA ? run<FEW_IN_X>(d, a) : run<FEW_IN>(d, a);
}

cudaError_t few_out(device *d, int layer, const batch &b, bool fold_norm) {
    const few_args a = out_arguments(d, layer, b.n, fold_norm);
    if (packed(d, b.n))
        return few_packed_out(d, layer, a);
    return run<FEW_OUT>(d, a);
}

cudaError_t few_head(device *d, const batch &b, int n_squares) {
    few_args a = head_arguments(d, b.n);
    if (n_squares > 0)
        a.n_squares = n_squares, a.alone = true;
    else
        ask_last(d, d->g.n_layers - 1, b.n, &a);
    return run<FEW_HEAD>(d, a);
}

} // namespace ssm
