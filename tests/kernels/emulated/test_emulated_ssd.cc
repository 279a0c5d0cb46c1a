// SPDX-License-Identifier: Apache-2.0
// Mamba-2's prompts on the host (emulator.h): ssd_wgmma.cu's kernel, prompts of any lengths that
// begin anew or go on from a slot's states, whole and cut into pieces, against the same in double,
// token by token.
#include "kernels/cuda/ssd_wgmma_kernel.cuh"
#include "states_reference.h"

using namespace ssm;

struct launched {
    walk_args a;
    const span *spans;
    const piece *pieces;
};
template <class S, scan_pass PASS> static void kernel(const void *arguments) {
    const launched *l = (const launched *)arguments;
    walk_kernel<S, PASS>(l->a, l->spans, l->pieces);
}

// A layer's inputs, and what its prompts are to leave.
template <class S> struct prompts {
    heads_reference of;
    int tokens = 0, slots;
    std::vector<span> spans;
    std::vector<piece> pieces;
    numbers carry;
    weights xc, in, y;
    std::vector<S> state;
    doubles want_y, want_state;

    // chunks: of a piece; 0: all are whole.
    prompts(int heads, int groups, const std::vector<int> &lengths, int chunks)
        : of(heads, groups), slots((int)lengths.size() + 2), state((size_t)(slots * of.inner * N)) {
        for (size_t i = 0; i < lengths.size(); i++) {
            span s = {};
            s.first = tokens, s.count = lengths[i], s.slot = slots - 1 - (int)i;
            s.fresh = i % 3 == 1, s.first_piece = (int)pieces.size();
            for (int at = 0; at < s.count; at += chunks * CHUNK) {
                const int count = chunks > 0 ? min(chunks * CHUNK, s.count - at) : s.count;
                pieces.push_back({(int)i, s.first + at, count, (int)pieces.size()});
                if (chunks == 0)
                    break;
            }
            s.n_pieces = (int)pieces.size() - s.first_piece;
            spans.push_back(s);
            tokens += lengths[i];
        }
        carry.assign(pieces.size() * (size_t)(heads * SSD_CARRY), NAN);
        xc.resize((size_t)(tokens * of.conv)), in.resize((size_t)(tokens * of.n_in));
        y.assign((size_t)(tokens * of.inner), SPOILT);
        new_inputs(&xc), new_inputs(&in);
        for (S &one : state)
            one = (S)normal();
        make();
    }
    HOST void make(void) {
        want_y.resize(y.size()), want_state = in_double(state);
        for (const span &s : spans) {
            for (int t = s.first; t < s.first + s.count; t++)
                of.advance(&xc[(size_t)(t * of.conv)], &in[(size_t)(t * of.n_in)],
                           t == s.first && s.fresh, &want_state[(size_t)(s.slot * of.inner * N)],
                           &want_y[(size_t)(t * of.inner)]);
        }
    }
    template <scan_pass PASS> void launch(unsigned seed) {
        launched l = {};
        of.set(&l.a);
        l.a.xc = (const bf16 *)xc.data(), l.a.in = (const bf16 *)in.data();
        l.a.y = (bf16 *)y.data(), l.a.state = state.data(), l.a.carry = carry.data();
        l.spans = spans.data(), l.pieces = pieces.data();
        watch("y", y), watch("states", state), watch("ends of pieces", carry);
        emu_launch(dim3((unsigned)of.heads, (unsigned)pieces.size()), THREADS,
                   sizeof(walk_shared) + 1024, kernel<S, PASS>, &l, seed, 1);
    }
};

template <class S>
static bool agrees(int heads, int groups, const std::vector<int> &lengths, int chunks,
                   unsigned seed) {
    prompts<S> p(heads, groups, lengths, chunks);
    printf("%d heads of %d groups, %zu bytes a state, %d tokens of %zu prompts in %zu pieces\n",
           heads, groups, sizeof(S), p.tokens, lengths.size(), p.pieces.size());
    if (chunks == 0) {
        p.template launch<SCAN_WHOLE>(seed);
    } else {
        p.template launch<SCAN_FIRST>(seed);
        p.template launch<SCAN_FINAL>(seed + 100);
    }
    return (int)near("y", p.want_y, bf16_in_double(p.y)) &
           near("states", p.want_state, in_double(p.state));
}

static const emulated_case cases[] = {
    CASE(true, (agrees<float>(8, 1, {130, 1, 64}, 0, 1))),
    CASE(true, (agrees<__half>(8, 2, {63, 200}, 0, 2))),
    CASE(true, (agrees<float>(8, 1, {300, 64, 65}, 1, 3))),
    CASE(true, (agrees<__half>(16, 4, {10, 270}, 2, 4))),
};

int main(int argc, char **argv) {
    return run_cases(cases, argc, argv);
}
