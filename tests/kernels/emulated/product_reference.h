// SPDX-License-Identifier: Apache-2.0
// Products in double, as kernels that multiply are tested by: sums, and what follows in_proj's and
// out_proj's. Include what has kernels/cuda/cuda.h first.
#ifndef SSM_TESTS_PRODUCT_REFERENCE_H
#define SSM_TESTS_PRODUCT_REFERENCE_H

#include "emulated_test.h"

enum { SQUARES = 5 }; // partial sums of a token's squares

// Weights and tokens, what a token's sums are multiplied by, if by anything, and what is added.
struct multiplied {
    int rows, columns, tokens;
    weights w, x;
    numbers bias, squares;
    float eps = .3f;

    multiplied(int n, int k, int t, bool scaled, bool biased = false)
        : rows(n), columns(k), tokens(t), w(random_matrix((size_t)n, (size_t)k)),
          x((size_t)t * (size_t)k) {
        for (uint16_t &one : x)
            one = to_bf16(normal());
        if (scaled)
            squares = random_numbers((size_t)t * SQUARES, .2f, 40);
        if (biased)
            bias = random_numbers((size_t)n, -1, 1);
    }
    HOST doubles sums(void) const { // [token][row]
        doubles all;
        for (int t = 0; t < tokens; t++) {
            doubles of((size_t)columns);
            double square = 0;
            for (int i = 0; i < columns; i++)
                of[(size_t)i] = emu_bf16(x[(size_t)(t * columns + i)]);
            for (size_t i = 0; !squares.empty() && i < SQUARES; i++)
                square += squares[(size_t)t * SQUARES + i];
            const double by = squares.empty() ? 1 : 1 / sqrt(square / columns + eps);
            for (int r = 0; r < rows; r++)
                all.push_back(dot(&w[(size_t)r * (size_t)columns], of) * by +
                              (bias.empty() ? 0. : bias[(size_t)r]));
        }
        return all;
    }
    // Of a kernel's arguments.
    template <class ARGS> void scale(ARGS *a) const {
        a->squares = squares.empty() ? NULL : squares.data(), a->n_squares = SQUARES;
        a->per_width = 1.f / (float)columns, a->eps = eps;
    }
};

// What in_proj leaves of sums of which `channels` rows from `first` on are convolved: those to xc
// and the ring, the others to xz. Rows that begin anew or have no slot are among the tokens.
struct convolution {
    int first, channels, kept;
    weights xz, xc, ring;
    numbers taps, bias;
    std::vector<ssm::row> rows;
    doubles want_xz, want_xc, want_ring;

    convolution(const multiplied &of, int conv_first, int n, int width)
        : first(conv_first), channels(n), kept(width - 1), xz((size_t)(of.tokens * of.rows)),
          xc((size_t)(of.tokens * n)), ring((size_t)(slots(of) * kept * n)),
          taps(random_numbers((size_t)(width * n), -1, 1)), bias(random_numbers((size_t)n, -1, 1)),
          rows((size_t)of.tokens) {
        for (weights *w : {&xz, &xc, &ring}) {
            for (uint16_t &one : *w)
                one = to_bf16(normal());
        }
        for (int t = 0; t < of.tokens; t++) {
            ssm::row *r = &rows[(size_t)t];
            *r = ssm::row();
            r->at = t, r->ring = t % kept, r->slot = t % 6 == 4 ? -1 : slots(of) - 1 - t;
            r->fresh = r->slot < 0 || t % 5 == 1;
        }
        make(of);
        watch("xz", xz), watch("xc", xc), watch("the convolution's ring", ring);
    }
    static int slots(const multiplied &of) {
        return of.tokens + 3;
    }
    HOST void make(const multiplied &of) {
        want_xz = bf16_in_double(xz), want_xc = bf16_in_double(xc);
        want_ring = bf16_in_double(ring);
        const doubles sums = of.sums();
        for (size_t i = 0; i < sums.size(); i++) {
            const int c = (int)(i % (size_t)of.rows) - first;
            const size_t t = i / (size_t)of.rows;
            if (c < 0 || c >= channels)
                want_xz[i] = rounded(sums[i]);
            else if (rows[t].slot >= 0)
                convolve(rows[t], c, rounded(sums[i]), &want_xc[t * (size_t)channels + (size_t)c]);
        }
    }
    void convolve(const ssm::row &r, int c, double raw, double *to) {
        double *slot = &want_ring[(size_t)(r.slot * kept * channels + c)];
        double v = bias[(size_t)c] + taps[(size_t)(kept * channels + c)] * raw;
        for (int j = 1; j <= kept; j++) // tokens ago
            v += r.fresh ? 0
                         : taps[(size_t)((kept - j) * channels + c)] *
                               slot[(r.ring - j + kept) % kept * channels];
        for (int e = 0; r.fresh && e < kept; e++)
            slot[e * channels] = 0;
        slot[r.ring * channels] = raw;
        *to = silu_of(v);
    }
    template <class ARGS> void give(ARGS *a) {
        a->xz = (ssm::bf16 *)xz.data(), a->xc = (ssm::bf16 *)xc.data();
        a->ring = (ssm::bf16 *)ring.data(), a->rows = rows.data();
        a->conv_weight = taps.data(), a->conv_bias = bias.data(), a->channels = channels;
    }
    bool agrees(void) const {
        return (int)near("xz", want_xz, bf16_in_double(xz)) &
               near("xc", want_xc, bf16_in_double(xc)) &
               near("ring", want_ring, bf16_in_double(ring));
    }
};

// What out_proj leaves: the residual and, but behind the last layer, the next one's input and its
// squares' sums over `part` columns each.
struct onto_residual {
    int parts;
    numbers residual, squares, norm;
    weights u;
    doubles want, want_u, want_squares;

    onto_residual(const multiplied &of, int part, bool last)
        : parts((of.rows + part - 1) / part), residual((size_t)(of.tokens * of.rows)),
          squares((size_t)(of.tokens * parts), -77),
          norm(random_numbers((size_t)of.rows, .5f, 1.5f)), u(residual.size(), to_bf16(-77)) {
        for (float &one : residual)
            one = normal();
        make(of, (size_t)part, last);
        watch("the residual", residual), watch("u", u), watch("its squares", squares);
    }
    HOST void make(const multiplied &of, size_t part, bool last) {
        const size_t rows = (size_t)of.rows;
        want = of.sums(), want_u = bf16_in_double(u), want_squares = in_double(squares);
        for (size_t i = 0; i < want.size(); i++) {
            const size_t row = i % rows, at = i / rows * (size_t)parts + row / part;
            want[i] += residual[i];
            if (last)
                continue;
            want_u[i] = rounded(want[i] * norm[row]);
            want_squares[at] = (row % part ? want_squares[at] : 0) + want[i] * want[i];
        }
    }
    bool agrees(void) const {
        return (int)near("residual", want, in_double(residual)) &
               near("u", want_u, bf16_in_double(u)) &
               near("squares", want_squares, in_double(squares));
    }
};

#endif
