// SPDX-License-Identifier: Apache-2.0
// resident.cu's kernel, all 128 blocks of it, on the host (emulator.h): two layers of random
// weights at a small width, steps of many rows, and of few with packed weights and without, against
// the same in double. Rows that begin anew, have no slot, or have tokens that are not known yet are
// among them.
#include "emulated_test.h"
#include "kernels/cuda/resident_kernel.cuh"
#include "mamba_reference.h"

using namespace ssm;

enum { VOCABULARY = 7, SPARE = 5 };

template <class SHAPE, bool P, class S> static void kernel(const void *arguments) {
    resident_kernel<SHAPE, S, P>(*(const resident_args *)arguments);
}

// Rows of one step, each with a slot of its own but the last three, which have none.
static std::vector<row> rows_of(int tokens, int step, int kept) {
    std::vector<row> rows((size_t)tokens);
    const int slots = tokens + SPARE;
    for (int k = 0; k < tokens; k++) {
        row *r = &rows[(size_t)k];
        *r = row();
        r->at = k, r->ring = (step + k) % kept;
        r->slot = k >= tokens - 3 ? -1 : (k * 2 + 3) % slots;
        r->fresh = r->slot < 0 || (step == 0 && k % 9 == 1);
    }
    return rows;
}

static resident_args a; // too many for a fiber's stack

// What is taken of totals leaves nothing for the next launch, nor does a form that has none, where
// another of the width has them.
template <class SHAPE> static bool nothing_left(void) {
    const uint64_t *totals = x_totals_of<SHAPE>(a, 0);
    for (int i = 0; i < 2 * SHAPE::X_TOTALS; i++) {
        if (totals[i] != 0) {
            printf("  total %d of x_proj's is left\n", i);
            return false;
        }
    }
    return true;
}

// What the head scales its sums by, a token's residual's: by the kernel all tiles of its columns.
template <class SHAPE> static doubles squares_left(void) {
    doubles sums;
    for (int k = 0; k < a.tokens; k++) {
        const float *of = scratch_of<SHAPE>(a).squares[k];
        sums.push_back(0);
        for (int i = 0; i < SHAPE::OUT_TILES; i++)
            sums.back() += of[i];
    }
    return sums;
}
static doubles squares_of(const doubles &x, int width) {
    doubles sums(x.size() / (size_t)width);
    for (size_t i = 0; i < x.size(); i++)
        sums[i / (size_t)width] += x[i] * x[i];
    return sums;
}

template <int NW, int MOST, bool P, bool T, class S>
static bool agrees(int tokens, int width, unsigned seed, int n_layers = 2, int steps = 2,
                   bool turned = false) {
    typedef mamba_layer<NW> of;
    typedef resident_shape<NW, MOST, P, T> shape;
    const int kept = width - 1, slots = (tokens + SPARE) | 1;
    std::vector<of> layers;
    for (int i = 0; i < n_layers; i++)
        layers.emplace_back(width, P);
    weights embedding = random_matrix(VOCABULARY, of::M);
    for (uint16_t &one : embedding)
        one = to_bf16(normal());
    weights ring((size_t)n_layers * slots * kept * of::INNER), u((size_t)tokens * of::M),
        y((size_t)tokens * of::INNER);
    for (uint16_t &one : ring)
        one = to_bf16(normal());
    std::vector<S> state((size_t)n_layers * slots * of::INNER * STATES);
    for (S &one : state)
        one = (S)normal();
    doubles want_ring = bf16_in_double(ring), want_state = in_double(state);
    numbers residual((size_t)tokens * of::M);
    const numbers norm_f = random_numbers(of::M, .5f, 1.5f);
    std::vector<int32_t> ids((size_t)tokens);
    const int32_t drawn[] = {2, 1, 3};
    const size_t bytes = (resident_shape_bytes<shape>() + 255) / 256 * 256;
    void *scratch = aligned_alloc(256, bytes);
    memset(scratch, 0, bytes);

    a = {};
    a.ids = ids.data(), a.drawn = drawn, a.embedding = (const bf16 *)embedding.data();
    a.first_norm = layers[0].norm.data(), a.residual = residual.data();
    a.u = (bf16 *)u.data(), a.y = (bf16 *)y.data(), a.ring = (bf16 *)ring.data();
    a.state = (char *)state.data(), a.scratch = scratch;
    a.ring_pitch = (size_t)slots * kept * of::INNER;
    a.state_pitch = (size_t)slots * of::INNER * STATES * sizeof(S);
    a.tokens = tokens, a.n_layers = n_layers, a.width = width, a.eps = 1e-5f, a.bc_dt_eps = -1;
    for (int i = 0; i < n_layers; i++) {
        const of &w = layers[(size_t)i];
        resident_layer *l = &a.layers[i];
        set_map(&a.weights[i].in, w.in, of::M, 2 * of::INNER, 64, NW, true);
        set_map(&a.weights[i].x, w.x, of::INNER, of::N_X, shape::WIDE ? 64 : NW, shape::X_PROJ_ROWS,
                shape::WIDE);
        set_map(&a.weights[i].out, w.out, of::INNER, of::M, 64, shape::TILE_ROWS, true);
        l->packed_in = w.packed_in.data(), l->packed_out = w.packed_out.data();
        l->packed_in_by = packed_taken(packed_by(w.packed_in.most));
        l->packed_out_by = packed_taken(packed_by(w.packed_out.most));
        l->dt_proj = (const bf16 *)w.dt.data(), l->conv_weight = w.conv.data();
        l->conv_bias = w.conv_bias.data(), l->dt_bias = w.dt_bias.data();
        l->decay = w.decay.data(), l->skip = w.skip.data();
        l->next_norm = i + 1 < n_layers ? layers[(size_t)i + 1].norm.data() : norm_f.data();
    }
    bool right = true;
    turned &= !EMU_FINDS_RACES;
    for (int step = 0; step < steps_of(steps); step++) {
        const std::vector<row> rows = rows_of(tokens, step, kept);
        a.rows = rows.data();
        for (int k = 0; k < tokens; k++)
            ids[(size_t)k] = k % 5 == 4 ? -1 - k % 3 : (k * 3 + step) % VOCABULARY;
        auto launch = [&](unsigned more) {
            const char *parts = (const char *)x_parts_of<shape>(a); // behind totals
            watch("u", u), watch("y", y), watch("the residual", residual);
            emu_watch("its squares", scratch_of<shape>(a).squares,
                      sizeof scratch_of<shape>(a).squares);
            emu_watch("x_proj's and out_proj's shares and sums", parts,
                      bytes - (size_t)(parts - (const char *)scratch));
            emu_launch(RESIDENT_BLOCKS, RESIDENT_THREADS, shape::BYTES, kernel<shape, P, S>, &a,
                       seed + (unsigned)step + more);
        };
        // All rows in each other's places first, of the other rank: the same bits.
        std::vector<row> there(rows.rbegin(), rows.rend());
        weights ring_there(ring);
        std::vector<S> state_there(state);
        numbers residual_there;
        if (turned) {
            for (int k = 0; k < tokens; k++)
                there[(size_t)k].at = k;
            std::reverse(ids.begin(), ids.end());
            a.rows = there.data();
            a.ring = (bf16 *)ring_there.data(), a.state = (char *)state_there.data();
            launch(1000);
            residual_there = residual;
            std::reverse(ids.begin(), ids.end());
            a.rows = rows.data(), a.ring = (bf16 *)ring.data(), a.state = (char *)state.data();
        }
        launch(0);
        right &= !turned || same_rows(residual, residual_there, of::M);
        if (turned && !(same_bits(ring, ring_there) && same_bits(state, state_there))) {
            printf("  states are of other bits: WRONG\n");
            right = false;
        }
        doubles want;
        for (int k = 0; k < tokens; k++) {
            const row &r = rows[(size_t)k];
            const int id = ids[(size_t)k] < 0 ? drawn[-1 - ids[(size_t)k]] : ids[(size_t)k];
            doubles x(of::M);
            for (int i = 0; i < of::M; i++)
                x[i] = emu_bf16(embedding[(size_t)id * of::M + i]);
            for (int i = 0; i < n_layers; i++) {
                const size_t slot = (size_t)i * slots + (size_t)max(r.slot, 0);
                reference(layers[(size_t)i], r, width, &x,
                          r.slot < 0 ? NULL : &want_ring[slot * kept * of::INNER],
                          r.slot < 0 ? NULL : &want_state[slot * of::INNER * STATES]);
            }
            want.insert(want.end(), x.begin(), x.end());
        }
        printf("d_model %d, %s, to %d rows, %zu bytes a state: %d rows%s, step %d\n", of::M,
               P ? "packed" : "bf16", MOST, sizeof(S), tokens, T ? " by totals" : "", step);
        right &= near("residual", want, in_double(residual));
        right &= near("squares", squares_of(want, of::M), squares_left<shape>());
        for (size_t i = 0; i < want.size(); i++)
            want[i] = rounded(want[i] * norm_f[i % of::M]);
        right &= near("for head", want, bf16_in_double(u));
        right &= near("states", want_state, in_double(state));
        right &= near("inputs", want_ring, bf16_in_double(ring));
        right &= nothing_left<shape>() && nothing_left < resident_shape<NW, MOST<64 ? 64 : MOST>>();
    }
    free(scratch);
    return right;
}

// Of up to 128 adders any number may have no number to add, or too large a one.
static bool totals_tell_what_is_no_number(void) {
    const float broken[] = {NAN, INFINITY, -INFINITY, 131072, -131072, 1e30f}, most = 131071.99f;
    bool right = true;
    for (int bad = 0; bad <= 128; bad++) {
        for (float other : {most, -most, 1.5f}) {
            uint64_t total = 77; // what it has already come to
            for (int i = 0; i < 128; i++)
                add_to_total<128>(&total, i < bad ? broken[i % 6] : other);
            const float sum = total_of(total - 77);
            const bool as_is = bad ? isnan(sum) : fabsf(sum - 128 * other) <= 1e-6f * fabsf(sum);
            if (!as_is || ((total - 77) & 255) != 128)
                printf("total of %d broken shares and others of %g: %g\n", bad, other, sum);
            right &= as_is && ((total - 77) & 255) == 128;
        }
    }
    return right;
}

// Not looked through for races: d_model 768 with fp16 states, of which the last lanes read what
// lies behind a token's (and throw it away), and what takes more than a minute so.
static const emulated_case cases[] = {
    CASE(false, totals_tell_what_is_no_number()),
    CASE(true, agrees<24, 64, false, false, float>(24, 4, 1)),
    CASE(false, agrees<24, 64, false, false, __half>(64, 4, 2)),
    CASE(true, agrees<24, 128, false, false, float>(104, 3, 3)),
    CASE(false, agrees<24, 128, false, false, __half>(72, 4, 4)),
    CASE(false, agrees<32, 128, false, false, __half>(128, 2, 5)),
    CASE(false, agrees<80, 64, false, false, __half>(64, 4, 13, 2, 1)),
    CASE(true, agrees<48, 64, true, true, float>(16, 4, 6, 2, 2, true)),
    CASE(false, agrees<80, 64, true, true, __half>(8, 3, 7)),
    CASE(false, agrees<24, 64, false, true, __half>(16, 4, 8, 2, 2, true)),
    CASE(true, agrees<32, 64, false, true, __half>(16, 4, 12, 1, 1)),
    CASE(false, agrees<128, 64, true, true, __half>(16, 4, 9, 1, 1, true)), // falcon-mamba-7b
    CASE(false, agrees<128, 32, true, false, __half>(32, 4, 10, 2, 1, true)),
    CASE(false, agrees<128, 64, true, false, float>(40, 3, 11, 1, 1)),
    CASE(true, agrees<64, 32, true, false, __half>(24, 3, 14, 1, 1, true)),
    CASE(false, agrees<80, 32, true, false, __half>(24, 4, 15, 2, 1, true)),
    CASE(false, agrees<80, 32, true, false, float>(32, 4, 16, 1, 1)),
};

int main(int argc, char **argv) {
    return run_cases(cases, argc, argv) | looked_ahead(argc);
}
