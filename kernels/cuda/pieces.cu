// SPDX-License-Identifier: Apache-2.0
// How prompts are cut for the scans.
//
// A scan goes through its tokens one after the other; what fills the card is channels (Mamba-1) or
// heads (Mamba-2) times prompts. Where that is too little, and scan_roles.cu not faster, each
// prompt is cut into pieces and two launches share them: in the first (SCAN_FIRST) a prompt's first
// piece is scanned whole, from its slot's state, and the others but the last from zero, for the
// state that they end with and the sum of their delta alone; the second (SCAN_FINAL) chains these
// ends, which is cheap since a decay over a piece is exp2(A sum delta), and scans all pieces but
// the first. n pieces so keep n - 1 blocks busy where one was, and cost (n - 2) / n of a scan's
// ends more; two pieces gain nothing.
//
// Lengths are multiples of what a scan takes at a time, so that for Mamba-1 any cut at tile
// boundaries that the chain of ends does not see gives the same bits.
#include "cuda.h"

namespace ssm {

enum { FEWEST = 3 }; // pieces of a prompt worth a second launch

// Pieces that n_spans prompts should have together; 0: none is cut.
static int32_t wanted(const device *d, int32_t n_spans, grain *g) {
    if (!scan_grain(d, n_spans, g) || n_spans * g->blocks >= g->enough)
        return 0;
    const int32_t n = g->card / g->blocks + n_spans;
    return n >= FEWEST * n_spans ? n : 0;
}

int32_t piece_length(const device *d, int32_t n_spans, int32_t tokens, int32_t longest) {
    grain g;
    const int32_t n = wanted(d, n_spans, &g);
    if (n == 0)
        return INT32_MAX;
    int32_t units = ceil_div(ceil_div(tokens, n), g.unit);
    units = units < g.least ? g.least : units;
    return ceil_div(longest, units * g.unit) >= FEWEST ? units * g.unit : INT32_MAX;
}

int32_t carry_pieces(const device *d) {
    int32_t most = 1;
    for (int32_t n_spans = 1; n_spans <= d->n_slots; n_spans++) {
        grain g;
        const int32_t n = wanted(d, n_spans, &g);
        if (n > 0 && n + n_spans > most)
            most = n + n_spans; // each prompt's last piece may be short
    }
    return most;
}

} // namespace ssm
