// SPDX-License-Identifier: Apache-2.0
// The kernels of solo.cu, solo_large.cu and solo_large_mamba2.cu, all blocks of them, on the host
// (emulator.h): one row's steps through random weights against the same in double. Of three steps
// the first begins a sequence, its token not known yet, the second goes on with it, the third's row
// has no slot. Each step is launched twice from the same memory, with warps, blocks and copies in
// another order: the same bits.
//
// Packets' numbers go on from launch to launch and are looked at by their lowest eight bits, which
// begin anew in the second launch here. What a step has no business to read is NaN, or no address;
// what it has none to write is the same bits afterwards.
#include "emulated_test.h"
#include "kernels/cuda/solo_kernel.cuh"
#include "kernels/cuda/solo_large_kernel.cuh"
#include "mamba2_reference.h"
#include "mamba_reference.h"

using namespace ssm;

enum { VOCABULARY = 7, SLOTS = 5, SLOT = 3, STEPS = 3 };
enum { FIRST_LAUNCH = 3 }; // the next one numbers its exchanges from 257 on
static const float GATE_EPS = 1e-5f;

// ---- what the kernels have of their own

// NORMED: dt, B and C are (falcon_mamba).
template <int NW, bool P, class S, bool NORMED> struct of_mamba {
    typedef mamba_layer<NW> layer;
    typedef S state;
    enum { M = layer::M, CONV = layer::INNER, STATE = layer::INNER * STATES, PACKED = P };
    static constexpr float BC_DT_EPS = NORMED ? 1e-6f : -1;

    static void fill(const layer &w, solo_layer *l) {
        l->x_proj = (const bf16 *)w.x.data(), l->dt_proj = (const bf16 *)w.dt.data();
    }
    static void token(const layer &l, const row &r, int width, doubles *x, double *ring,
                      double *state) {
        reference(l, r, width, x, ring, state, BC_DT_EPS, true);
    }
};

// CH: channels of a block.
template <int NW, int CH, class S> struct small_mamba : of_mamba<NW, false, S, false> {
    enum { M = 32 * NW };
    typedef solo_shape<M, CH, S> shape;
    enum { CLUSTER = SOLO_BLOCKS, BLOCKS = shape::CLUSTERS * CLUSTER, SQUARES = M / 16 };

    static void kernel(const void *arguments) {
        solo_kernel<M, CH, S>(*(const solo_args *)arguments);
    }
};

template <int NW, bool P, class S, bool NORMED = false> struct mamba : of_mamba<NW, P, S, NORMED> {
    enum { M = 32 * NW };
    typedef large_shape<M, S, P, false> shape;
    enum { CLUSTER = 1, BLOCKS = shape::BLOCKS, SQUARES = BLOCKS };

    static void kernel(const void *arguments) {
        large_kernel<M, S, P, false>(*(const solo_args *)arguments);
    }
};

template <int NW, bool P, class S, int GROUPS = 1> struct mamba2 {
    typedef mamba2_layer<NW, GROUPS> layer;
    typedef S state;
    enum { M = layer::M, CONV = layer::CONV, STATE = layer::INNER * layer::STATES, PACKED = P };
    static constexpr float BC_DT_EPS = -1;
    typedef large_shape<M, S, P, true> shape;
    enum { CLUSTER = 1, BLOCKS = shape::BLOCKS, SQUARES = BLOCKS };
    static_assert((int)shape::BC_GROUPS == GROUPS, "published");

    static void kernel(const void *arguments) {
        large_kernel<M, S, P, true>(*(const solo_args *)arguments);
    }
    static void fill(const layer &w, solo_layer *l) {
        l->rest = (const bf16 *)&w.in[(size_t)(layer::INNER + layer::B) * M];
        l->gate_norm = w.gate_norm.data();
    }
    static void token(const layer &l, const row &r, int width, doubles *x, double *ring,
                      double *state) {
        memory m = {ring, state};
        reference(l, r, width, x, &m, true);
    }
};

// ---- a model, and what a step leaves

template <class KIND> struct outcome {
    weights ring, u;
    std::vector<typename KIND::state> state;
    numbers squares;

    bool operator==(const outcome &o) const {
        return same_bits(ring, o.ring) && same_bits(u, o.u) && same_bits(state, o.state) &&
               same_bits(squares, o.squares);
    }
};

template <class KIND> struct model {
    typedef typename KIND::layer layer;
    typedef typename KIND::state S;
    typedef typename KIND::shape shape;
    enum { M = KIND::M };
    int width;
    size_t of_ring; // numbers of a slot in a layer
    std::vector<layer> layers;
    weights embedding;
    const numbers norm_f;
    outcome<KIND> now;
    std::vector<uint2> packets;
    row r;
    int32_t token;
    const int32_t drawn[3] = {2, 1, 3};
    unsigned launches = FIRST_LAUNCH;
    solo_args a;

    model(int n_layers, int d_conv)
        : width(d_conv), of_ring((size_t)(d_conv - 1) * KIND::CONV),
          embedding(random_matrix(VOCABULARY, M)), norm_f(random_numbers(M, .5f, 1.5f)),
          packets(shape::PACKETS), a() {
        for (int i = 0; i < n_layers; i++)
            layers.emplace_back(width, KIND::PACKED);
        for (uint16_t &one : embedding)
            one = to_bf16(normal());
        now.ring.resize((size_t)n_layers * SLOTS * of_ring);
        for (uint16_t &one : now.ring)
            one = to_bf16(between(-1, 1));
        now.state.resize((size_t)n_layers * SLOTS * KIND::STATE);
        for (S &one : now.state)
            one = (S)between(-1, 1);
        now.u.resize(M), now.squares.resize(KIND::SQUARES);
        a.tokens = &token, a.drawn = drawn, a.rows = &r, a.embedding = (bf16 *)embedding.data();
        a.first_norm = layers[0].norm.data(), a.packets = packets.data(), a.launches = &launches;
        a.ring_pitch = SLOTS * of_ring, a.state_pitch = SLOTS * (size_t)KIND::STATE * sizeof(S);
        a.n_layers = n_layers, a.width = width, a.eps = 1e-5f, a.gate_eps = GATE_EPS;
        a.dt_min = DT_MIN, a.dt_max = DT_MAX, a.bc_dt_eps = KIND::BC_DT_EPS;
        for (size_t i = 0; i < layers.size(); i++)
            fill(i);
    }
    model(const model &) = delete; // a points into it
    void fill(size_t i) {
        const layer &w = layers[i];
        solo_layer *l = &a.layers[i];
        if (KIND::PACKED) { // and the others are not read
            l->packed_in = w.packed_in.data(), l->packed_out = w.packed_out.data();
            l->packed_in_by = packed_by(w.packed_in.most);
            l->packed_out_by = packed_by(w.packed_out.most);
        } else {
            l->in_proj = (const bf16 *)w.in.data(), l->out_proj = (const bf16 *)w.out.data();
        }
        l->conv_weight = w.conv.data(), l->conv_bias = w.conv_bias.data();
        l->dt_bias = w.dt_bias.data(), l->decay = w.decay.data(), l->skip = w.skip.data();
        l->next_norm = i + 1 < layers.size() ? layers[i + 1].norm.data() : norm_f.data();
        KIND::fill(w, l);
    }
    uint16_t *ring_of(size_t layer, outcome<KIND> *of) const {
        return &of->ring[(layer * SLOTS + SLOT) * of_ring];
    }
    S *state_of(size_t layer, outcome<KIND> *of) const {
        return &of->state[(layer * SLOTS + SLOT) * (size_t)KIND::STATE];
    }
    void begin(int step) {
        r = {0, step < 2 ? SLOT : -1, step % (width - 1), step != 1};
        token = step == 0 ? -2 : step + 3;
        for (size_t i = 0; step == 0 && i < layers.size(); i++) {
            std::fill_n(ring_of(i, &now), of_ring, (uint16_t)SPOILT);
            std::fill_n(state_of(i, &now), (size_t)KIND::STATE, (S)NAN);
        }
        std::fill(now.u.begin(), now.u.end(), (uint16_t)SPOILT);
        std::fill(now.squares.begin(), now.squares.end(), NAN);
    }
    void launch(unsigned seed) {
        a.u = (bf16 *)now.u.data(), a.squares = now.squares.data();
        a.ring = (bf16 *)now.ring.data(), a.state = (char *)now.state.data();
        emu_launch(KIND::BLOCKS, shape::THREADS, shape::BYTES, KIND::kernel, &a, seed,
                   KIND::CLUSTER);
    }
    doubles embedded(void) const {
        const int id = token < 0 ? drawn[-1 - token] : token;
        return bf16_in_double({&embedding[(size_t)id * M], &embedding[(size_t)id * M] + M});
    }
};

template <class KIND>
static bool agrees(const char *name, int n_layers, int width, unsigned seed, int steps = STEPS) {
    typedef typename KIND::state S;
    typedef outcome<KIND> left;
    model<KIND> m(n_layers, width);
    const size_t n = (size_t)n_layers;
    doubles ring(n * m.of_ring), state(n * KIND::STATE);
    bool right = true;
    for (int step = 0; step < steps_of(steps); step++) {
        m.begin(step);
        left before = m.now;
        m.launch(seed + 2 * (unsigned)step);
        const left there = m.now;
        if (!EMU_FINDS_RACES) {
            m.now = before;
            m.launch(seed + 2 * (unsigned)step + 1);
        }
        printf("%s, d_model %d, %s, %zu bytes a state, step %d\n", name, (int)KIND::M,
               KIND::PACKED ? "packed" : "bf16", sizeof(S), step);
        if (!(there == m.now)) {
            printf("  other bits in another order: WRONG\n");
            right = false;
        }
        if (m.launches != FIRST_LAUNCH + (EMU_FINDS_RACES ? 1 : 2) * (unsigned)(step + 1)) {
            printf("  %u launches: WRONG\n", m.launches);
            right = false;
        }

        doubles x = m.embedded();
        difference rings, states, head;
        for (size_t i = 0; i < n; i++) {
            const bool has = m.r.slot >= 0;
            double *of_ring = &ring[i * m.of_ring], *of_state = &state[i * KIND::STATE];
            KIND::token(m.layers[i], m.r, width, &x, has ? of_ring : NULL, has ? of_state : NULL);
            if (!has)
                continue;
            const uint16_t *entries = m.ring_of(i, &m.now);
            const S *numbers = m.state_of(i, &m.now);
            for (size_t k = 0; k < m.of_ring; k++)
                rings.add(of_ring[k], emu_bf16(entries[k]));
            for (size_t k = 0; k < KIND::STATE; k++)
                states.add(of_state[k], (float)numbers[k]);
            std::copy_n(entries, m.of_ring, m.ring_of(i, &before));
            std::copy_n(numbers, (size_t)KIND::STATE, m.state_of(i, &before));
        }
        double square = 0, squares = 0;
        for (int i = 0; i < KIND::M; i++) {
            head.add(rounded(x[(size_t)i] * m.norm_f[(size_t)i]), emu_bf16(m.now.u[(size_t)i]));
            square += x[(size_t)i] * x[(size_t)i];
        }
        for (float one : m.now.squares)
            squares += one;
        right &= head.is_small("for head") & near("squares", {square}, {squares});
        if (m.r.slot >= 0)
            right &= rings.is_small("inputs") & states.is_small("states");
        before.u = m.now.u, before.squares = m.now.squares;
        if (!(before == m.now)) {
            printf("  more than the slot's memory has changed: WRONG\n");
            right = false;
        }
    }
    return right;
}

static const emulated_case cases[] = {
    CASE(true, agrees<small_mamba<24, 16, float>>("mamba", 4, 4, 1)),
    CASE(true, agrees<small_mamba<32, 32, __half>>("mamba", 2, 3, 2)),
    CASE(true, agrees<mamba<48, true, float>>("mamba", 3, 4, 3)),
    CASE(false, agrees<mamba<48, false, __half>>("mamba", 2, 3, 4)),
    CASE(false, agrees<mamba<80, true, __half>>("mamba", 1, 2, 5, 2)),
    CASE(false, agrees<mamba<64, false, float>>("mamba", 1, 4, 6, 1)),
    CASE(false, agrees<mamba<128, true, __half, true>>("falcon_mamba", 1, 4, 7, 1)),
    CASE(true, agrees<mamba2<32, true, __half>>("mamba2", 2, 4, 8)),
    CASE(false, agrees<mamba2<48, false, float>>("mamba2", 2, 2, 9)),
    CASE(false, agrees<mamba2<80, true, float>>("mamba2", 1, 3, 10, 1)),
    CASE(false, agrees<mamba2<128, true, __half, 8>>("mamba2 of groups", 1, 4, 11, 1)),
    CASE(false, agrees<mamba2<128, false, float, 8>>("mamba2 of groups", 1, 4, 12, 1)),
};

int main(int argc, char **argv) {
    return run_cases(cases, argc, argv);
}
