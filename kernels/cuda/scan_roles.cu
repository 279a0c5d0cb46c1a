// SPDX-License-Identifier: Apache-2.0
// Mamba-1's scan in roles, in bf16 with 16 states: whole prompts of wide models, for which pieces
// (scan.cu) would cost every exponential twice, and many prompts.
//
// A block owns 8 C channels a scan warp. Scan warps do nothing but go through the tokens: read
// delta, delta x, B and C from shared memory, update 4 states of C channels a lane, sum y over the
// four lanes of a channel by shuffles. Makers, each every MAKERS-th tile of 16 tokens, keep all
// else out of the sequential path: dt_proj's products and softplus before, D, the gate and the
// store after. A maker owns one stage of shared memory; two barriers there say that its tile is
// full and that it is done. y takes the pairs' place.
//
// The sums are scan.cu's in the same order: the same bits, in any form, wherever a prompt is cut
// into steps while states are fp32. Only scan.cu's pieces differ, by rounding.
//
// One prompt of 5,120 channels is 128 blocks of 40: five scan warps, so the first scheduler has
// two, 64 cycles a token by its special unit, and no maker. Floor as in scan.cu: 50 cycles.
//
// Ladder, us a layer, the kernel alone, prompts of 2,048, H100 (scan.cu's pieces: H200; the others
// were within 4% of these there):
//                                                      2.8b 1 / 8      130m 1 / 8
//   scan.cu, in pieces / whole                         190 / 757       63 / 290
//   states shared by 4 warps (8 prompts: not), y by    127 / 861       65 / 223
//     tf32 products that take one token a row
//   + x, z and dt asked for at once                    130 / 863       62 / 237
//   16 states a warp, y by shuffles, x and z by rows   117 / 693       76 / 207
//   + lanes of a channel side by side                  112 / 685       75
// In the model, with the last but one: 2.8b 1 x 2,048 in 24.6 ms instead of 29.7 (H100, same run).
// As they are now, H200, 1 / 8 prompts, ms: 2.8b 24.9 / 181 (30.1 / 186), 130m 2.71 (in pieces) /
// 10.7 (12.9); in brackets scan.cu's of another day.
//
// What was seen on the way (cycles of one scheduler, or of the SM for shared memory):
// - a tf32 product takes 6.3 (k 4) or 11.9 (k 8), and that adds to ex2's 8: 14 a state and token
//   with the makers left out, whether one or two warps share the scheduler. C scaled by 1 + 3.5e-4
//   undid the bias of cutting states to 11 bits: y off by 1.66e-3, as with fp32 sums.
// - of those 130 us the scan warps alone took 94, the makers alone 92.
// - a read of 16 bytes a lane: 4, or 2 if lanes 1 or 2 apart share an address; of 8: 2 or 1.
// - per 8 channels and token a scan warp alone on a scheduler takes 73, two take 54 to 61 each,
//   where the special unit needs 32 and instructions 27. Why was not found: neither shared memory
//   nor latency (a tile is one block of code) adds up to it. A small model's single prompt, 1.5
//   groups of 8 an SM, therefore stays in pieces. ncu was not run on this.
#include "scan_roles.cuh"

namespace ssm {

template <int C, int WARPS, int MAKERS, int DT, int BLOCKS>
__global__ void __launch_bounds__(scan_shape<C, WARPS, MAKERS>::THREADS, BLOCKS)
    scan_roles_kernel(mamba_args a, const span *spans, bool half_state) {
    typedef scan_shape<C, WARPS, MAKERS> shape;
    extern __shared__ __align__(16) char memory[];
    dependents_start();
    const span sp = spans[blockIdx.y];
    const scan_block<C, WARPS, MAKERS> block(a, sp, memory);
    stage_dt_proj(a, memory, block.first, shape::CHANNELS);
    const int pitch = weight_pitch(a.rank);
    const int pad = (32 - a.rank % 32) % 32 / 8; // vectors of zeros behind each row
    for (int i = threadIdx.x; i < shape::CHANNELS * pad; i += shape::THREADS)
        *(uint4 *)(memory + i / pad * pitch + a.rank * 2 + i % pad * 16) = make_uint4(0, 0, 0, 0);
    if (threadIdx.x < MAKERS) {
        turn_init(block.barriers + threadIdx.x * 16, 1);
        turn_init(block.barriers + threadIdx.x * 16 + 8, WARPS);
    }
    copies_commit();
    copies_wait();
    __syncthreads();
    dependency_wait();
    const int warp = threadIdx.x / 32;
    if (warp >= WARPS) {
        if (warp != shape::IDLE)
            block.template run_maker<DT>(warp - WARPS - (shape::IDLE >= 0 && warp > shape::IDLE));
    } else if (half_state) {
        block.template scan<f16>();
    } else {
        block.template scan<float>();
    }
}

// ---- host side

template <int C, int WARPS, int MAKERS, int DT, int BLOCKS>
static cudaError_t run(device *d, int layer, const batch &b) {
    typedef scan_shape<C, WARPS, MAKERS> shape;
    const mamba_args a = mamba_arguments(d, layer, 1);
    const auto kernel = scan_roles_kernel<C, WARPS, MAKERS, DT, BLOCKS>;
    const size_t shared = shape::bytes(a.rank);
    const cudaError_t rc =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared);
    const dim3 grid((unsigned)ceil_div(a.channels, shape::CHANNELS), (unsigned)b.n_spans);
    return rc ? rc
              : launch(d, kernel, grid, shape::THREADS, shared, true, a, b.spans,
                       d->state_type == SSM_DTYPE_F16);
}

// Cycles a token, measured but for the last's `alone`: of one block on an SM, of as many as it
// holds.
struct form {
    int channels, a_sm, most_rank;
    float alone, together;
    size_t (*shared)(int rank);
    cudaError_t (*run)(device *d, int layer, const batch &b);
};
static const form forms[] = {
    {40, 1, 160, 108, 108, scan_shape<1, 5, 6>::bytes, run<1, 5, 6, 5, 1>},
    {64, 2, 160, 175, 243, scan_shape<2, 4, 4>::bytes, run<2, 4, 4, 5, 2>},
    {32, 3, 64, 90, 200, scan_shape<1, 4, 4>::bytes, run<1, 4, 4, 2, 3>},
};

static float cycles(const device *d, int32_t n_spans, const form &f) {
    const int32_t blocks = n_spans * ceil_div(d->g.d_inner, f.channels), wave = d->n_sms * f.a_sm;
    const int32_t last = ceil_div(blocks % wave, d->n_sms); // blocks on an SM in the last wave
    const float more = f.a_sm == 1 ? 0 : (f.together - f.alone) / (float)(f.a_sm - 1);
    return (float)(blocks / wave) * f.together +
           (last == 0 ? 0 : f.alone + more * (float)(last - 1));
}

static const form *choose(const device *d, int32_t n_spans) {
    const form *best = NULL;
    for (const form &f : forms) {
        const bool fits = d->g.dt_rank <= f.most_rank &&
                          (size_t)f.a_sm * (f.shared(d->g.dt_rank) + 1024) <= d->shared_sm;
        if (fits && (!best || cycles(d, n_spans, f) < cycles(d, n_spans, *best)))
            best = &f;
    }
    return best;
}

bool scan_roles_win(const device *d, int32_t n_spans, float others) {
    const form *f = choose(d, n_spans);
    return f && cycles(d, n_spans, *f) < others;
}

cudaError_t scan_roles(device *d, int layer, const batch &b) {
    return choose(d, b.n_spans)->run(d, layer, b);
}

} // namespace ssm
