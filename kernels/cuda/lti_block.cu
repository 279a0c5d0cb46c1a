// SPDX-License-Identifier: Apache-2.0
// Spans of S4D and S4 as a convolution, in blocks of PART tokens.
//
// A block of threads takes one channel of a piece and treats PART tokens as one column of a matrix,
// COLUMNS of them at a time:
//     S = P U      P[.][j] = Ab^(PART-1-j) Bb: what each column leaves
//     states       each column begins with Ab^PART times the one before and what that left
//     Y = K U + Q S    K[t][j] = K_(t-j), D in K_0; Q[t][.] = C Ab^(t+1): what the state still says
// P, Q and K stay in shared memory for all columns; a lane takes a column (or two), a warp 16 rows,
// whose factors every lane reads at once. S4D makes the powers itself, in fp64 by squaring, of the
// poles as the recurrence has them: a table of them would be ten times the model. Its states are a
// shuffle scan over columns. S4's P and Q come from the host, its states one after the other.
//
// Multiply-adds a token, N numbers a state: 2 N + 36, where a scan has 4 N, and 3 N more for spans
// cut into pieces; S4: 2 N + N^2 / 64 + 36 instead of N^2.
//
// Why no FFT: new states and what the old one still says are 2 N of those multiply-adds with it as
// well, so it could replace the 36; its kernel of L numbers costs N L more, and zero-padded past 2
// L the transforms alone take longer. cuFFT from PyTorch, 384 channels of 65,536 (8,192) tokens on
// an H200: 2.1 (0.22) ms a layer, 1.5 (0.15) with the kernel's spectrum at hand; here a whole layer
// with its product takes 0.70 (0.10). And it would be a library of 280 MB to carry.
//
// Measured, H200, this kernel for 8,192 tokens of shakespeare-s4d: 60 us, then 46 with a tile's
// loads all under way, four poles' shuffles side by side and Q's rows padded; the multiply-adds
// need 18. A block's start is what is left: some 20 us for a single short prompt.
//
// Neighbouring tokens must lie side by side: lti_turn.cu. What kinds of states do their own way:
// lti_block_poles.cuh, lti_block_dense.cuh.
#include "lti_block_dense.cuh"
#include "lti_block_poles.cuh"

namespace ssm {

// ---- what stays

template <bool DENSE, int COLS>
__device__ __forceinline__ void make_factors(const block_args &a, const layout<COLS> &l) {
    const int ch = blockIdx.x, lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    const int n = DENSE ? a.p.n : 2 * a.p.n;
    for (int i = threadIdx.x; i < PART * (a.numbers - n); i += THREADS) { // the rows that fill up
        const int r = n + i / PART, t = i % PART;
        l.in[t * a.numbers + r] = 0;
        l.out[r * l.OUT + t] = 0;
    }
    if (DENSE) {
        for (int i = threadIdx.x; i < PART * n; i += THREADS) {
            l.in[i / n * a.numbers + i % n] = a.in[(size_t)ch * PART * n + i];
            l.out[i / PART * l.OUT + i % PART] = a.out[(size_t)ch * PART * n + i];
        }
    } else {
        make_pole_factors(a, l);
    }
    for (int i = threadIdx.x; i < PART; i += THREADS)
        l.k[i] = 0; // of inputs to come
    __syncthreads();
    const float *c = DENSE ? a.c + (size_t)ch * n : (const float *)(a.p.c + (size_t)ch * a.p.n);
#pragma unroll 8
    for (int k = 0; k < PART / WARPS; k++) {
        const int lag = k * WARPS + warp;
        const float *in = l.in + (PART - 1 - lag) * a.numbers;
        float sum = 0;
        for (int i = lane; i < n; i += 32)
            sum = fmaf(c[i], in[i], sum);
        sum = warp_sum(sum);
        if (lane == 0)
            l.k[PART + lag] = sum + (lag ? 0.f : a.skip[ch]);
    }
}

// ---- a piece

template <bool DENSE, bool LOCAL, int COLS>
__device__ __forceinline__ void run_piece(const block_args &a, const layout<COLS> &l, int index,
                                          const float (&kept)[DENSE_KEPT]) {
    const int ch = blockIdx.x, n = DENSE ? a.p.n : 2 * a.p.n;
    const piece piece = a.pieces[index];
    const span span = a.spans[piece.span];
    const bool is_last = piece.first + piece.count == span.first + span.count;
    float *slot = DENSE ? a.dense + ((size_t)span.slot * a.p.width + ch) * n
                        : (float *)(a.p.state + (size_t)span.slot * a.p.slot_pairs) + ch * n;
    float *own = (float *)(a.carry + (size_t)piece.index * a.p.slot_pairs) + ch * n;
    for (int i = threadIdx.x; i < n; i += THREADS)
        l.state[i] = LOCAL || (!a.split && span.fresh) ? 0.f : a.split ? own[i] : slot[i];
    // S4 leaves what is no whole column to its scan, which goes on from the state left here
    const int tokens = DENSE ? piece.count / PART * PART : piece.count;
    for (int t0 = 0; t0 < tokens; t0 += PART * COLS) {
        const int left = min(tokens - t0, PART * COLS), whole = left / PART;
        const size_t at = ch * a.pitch + piece.first + t0;
        __syncthreads();
        read_inputs<COLS>(l, a.u + at, left);
        __syncthreads();
        leave<COLS>(l, a.numbers);
        __syncthreads();
        if (DENSE)
            carry_dense<COLS>(a, l, kept, whole);
        else
            carry_poles<COLS>(a, l, whole);
        __syncthreads();
        if (!DENSE && left % PART != 0 && is_last)
            finish_poles<COLS>(a, l, whole, left % PART);
        if (LOCAL)
            continue;
        answer<COLS>(l, a.numbers);
        __syncthreads();
#pragma unroll 4
        for (int i = threadIdx.x; i < left; i += THREADS)
            a.y[at + i] = gelu(l.u[i % PART * l.PITCH + i / PART]);
    }
    __syncthreads();
    float *to = LOCAL ? own : slot;
    for (int i = threadIdx.x; i < n && (LOCAL || is_last); i += THREADS)
        to[i] = l.state[i];
    __syncthreads();
}

template <bool DENSE, bool LOCAL, int COLS>
__global__ void __launch_bounds__(THREADS, DENSE        ? 2
                                           : COLS == 32 ? 4
                                                        : 3) block_kernel(block_args a) {
    extern __shared__ float4 shared[];
    const layout<COLS> l((float *)shared, a.numbers);
    float kept[DENSE_KEPT];
    if (DENSE) {
        const int i = threadIdx.x >> 1, n = a.p.n;
        const float *power = a.power + (size_t)blockIdx.x * n * n;
#pragma unroll
        for (int k = 0; k < DENSE_KEPT; k++) {
            const int j = 2 * k + (threadIdx.x & 1);
            kept[k] = i < n && j < n ? power[(size_t)j * n + i] : 0.f;
        }
    }
    make_factors<DENSE, COLS>(a, l);
    for (int index = blockIdx.y; index < a.n_pieces; index += gridDim.y)
        run_piece<DENSE, LOCAL, COLS>(a, l, index, kept);
}

// ---- launches

static block_args arguments(const device *d, int layer, const batch &b) {
    const ssm_geometry &g = d->g;
    const layer_weights &w = d->layers[layer];
    const bool dense = g.kind == SSM_BLOCK_S4;
    block_args a = {};
    a.p = poles_of(d, layer);
    if (dense) {
        a.p.n = g.d_state;
        a.dense = (float *)d->state + (size_t)layer * d->n_slots * g.d_model * g.d_state;
    }
    a.power = w.lti.power, a.in = w.lti.in, a.out = w.lti.out, a.c = w.lti.c, a.skip = w.skip;
    a.u = d->lti_u, a.y = (float *)d->xz, a.pitch = (size_t)b.n;
    a.carry = (float2 *)d->carry, a.spans = b.spans, a.pieces = b.pieces, a.split = b.split;
    a.n_pieces = b.n_pieces;
    a.numbers = ceil_div(g.d_state, ROWS) * ROWS;
    return a;
}

bool lti_block_fits(const device *d) {
    const int numbers = ceil_div(d->g.d_state, ROWS) * ROWS;
    if (d->g.kind == SSM_BLOCK_H3)
        return false;
    if (d->g.kind == SSM_BLOCK_S4)
        return d->g.d_state <= LTI_DENSE;
    int most = 0;
    cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, d->index);
    return layout<64>::bytes(numbers) <= (size_t)most;
}

template <bool DENSE, bool LOCAL>
static cudaError_t run_block(device *d, const batch &b, const block_args &a) {
    // P, Q and K are made once a block: no more blocks than fill the card, if pieces are short
    const int32_t fill = 3 * d->n_sms < a.p.width ? 1 : 3 * d->n_sms / a.p.width;
    const dim3 grid((unsigned)a.p.width, (unsigned)(b.n_pieces < fill ? b.n_pieces : fill));
    const auto run = [&](auto kernel, size_t shared) {
        const cudaError_t rc =
            cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared);
        if (rc != cudaSuccess)
            return rc;
        return launch(d, kernel, grid, THREADS, shared, false, a);
    };
    return b.columns == 32 ? run(block_kernel<DENSE, LOCAL, 32>, layout<32>::bytes(a.numbers))
                           : run(block_kernel<DENSE, LOCAL, 64>, layout<64>::bytes(a.numbers));
}

cudaError_t lti_convolve(device *d, int layer, const batch &b) {
    const block_args a = arguments(d, layer, b);
    const bool dense = d->g.kind == SSM_BLOCK_S4;
    cudaError_t rc = lti_by_channel(d, layer, b);
    if (rc == cudaSuccess && b.split) {
        rc = run_block<false, true>(d, b, a);
        if (rc == cudaSuccess)
            rc = lti_carry(d, layer, b);
    }
    if (rc == cudaSuccess)
        rc = dense ? run_block<true, false>(d, b, a) : run_block<false, false>(d, b, a);
    return rc == cudaSuccess ? lti_by_token(d, b) : rc;
}

} // namespace ssm
