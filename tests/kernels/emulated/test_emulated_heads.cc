// SPDX-License-Identifier: Apache-2.0
// resident_heads.cu's kernel, all 128 blocks of it, on the host (emulator.h): two layers of random
// weights at a small width against the same in double, which knows a sequence's state as a whole:
// the base, and every entry folded into it. States are written in each step, or sequences stand
// anywhere between two folds (replay.cu); in a step some fold, some begin anew, some rows have no
// slot, and some tokens are not known yet.
//
// What a step has no business to read is NaN: the state and inputs before a sequence's start,
// entries that there are none of yet, what other blocks are still to write. What it has none to
// write is the same bits afterwards.
#include "emulated_test.h"
#include "kernels/cuda/resident_heads_at_once.cuh"
#include "kernels/cuda/resident_heads_kernel.cuh"
#include "kernels/cuda/resident_heads_replay.cuh"
#include "mamba2_reference.h"

using namespace ssm;

enum { LAYERS = 2, VOCABULARY = 7, SPARE = 5, FOLDS = 256 };

static double number(float v) {
    return v;
}
static double number(__half v) {
    return __half2float(v);
}
static double number(uint16_t v) {
    return emu_bf16(v);
}

// All slots' memory of all layers, as the kernel has it.
template <int NW, class S> struct slots {
    typedef mamba2_layer<NW> of;
    enum { STATE = of::INNER * HEAD_STATES, X = of::INNER * REPLAY_HELD };
    enum { B = HEAD_STATES * REPLAY_HELD, DT = of::HEADS * REPLAY_HELD };
    size_t n, of_ring;
    std::vector<S> base;
    weights ring, x, b;
    numbers dt;

    slots(int count, int width)
        : n((size_t)count), of_ring((size_t)(width - 1) * of::CONV), base(LAYERS * n * STATE),
          ring(LAYERS * n * of_ring), x(LAYERS * n * X), b(LAYERS * n * B),
          dt(random_numbers(LAYERS * n * DT, DT_MIN, DT_MAX)) {
        for (S &one : base)
            one = (S)between(-1, 1);
        for (weights *all : {&ring, &x, &b}) {
            for (uint16_t &one : *all)
                one = to_bf16(between(-1, 1));
        }
    }
    // Where they begin; at: layer * n + slot.
    static size_t x_at(size_t at, int entry, int channel) {
        return at * X + (size_t)(channel / HEAD * REPLAY_HELD + entry) * HEAD +
               (size_t)replay_position<HEAD>(entry, channel % HEAD);
    }
    static size_t b_at(size_t at, int entry) {
        return at * B + (size_t)entry * HEAD_STATES;
    }
    static size_t dt_at(size_t at, int entry) {
        return at * DT + (size_t)entry * of::HEADS;
    }
    // The base with so many entries.
    void whole(const of &l, size_t at, int held, double *state) const {
        for (int c = 0; c < of::INNER; c++, state += HEAD_STATES) {
            for (int i = 0; i < HEAD_STATES; i++)
                state[i] = number(base[at * STATE + (size_t)c * HEAD_STATES + i]);
            for (int j = 0; j < held; j++) {
                const double delta = dt[dt_at(at, j) + c / HEAD];
                const double decay = exp2(delta * l.decay[c / HEAD]);
                const double input = delta * number(x[x_at(at, j, c)]);
                for (int i = 0; i < HEAD_STATES; i++)
                    state[i] = decay * state[i] + input * number(b[b_at(at, j) + i]);
            }
        }
    }
    // What is not to be read: entries from `held` on, and of a fresh sequence all there is.
    void spoil(size_t at, int held, bool fresh) {
        const float nan = __uint_as_float(0x7fc17fc1);
        for (int j = held; j < REPLAY_HELD; j++) {
            for (int c = 0; c < of::INNER; c++)
                x[x_at(at, j, c)] = SPOILT;
            std::fill_n(&b[b_at(at, j)], (size_t)HEAD_STATES, SPOILT);
            std::fill_n(&dt[dt_at(at, j)], (size_t)of::HEADS, nan);
        }
        if (fresh) {
            std::fill_n(&base[at * STATE], (size_t)STATE, (S)nan);
            std::fill_n(&ring[at * of_ring], of_ring, SPOILT);
        }
    }
    bool operator==(const slots &o) const {
        return same_bits(base, o.base) && same_bits(ring, o.ring) && same_bits(x, o.x) &&
               same_bits(b, o.b) && same_bits(dt, o.dt);
    }
};

// A launch's arguments, and what they point to.
template <class SHAPE, class S> struct model {
    enum { NW = SHAPE::NW };
    typedef mamba2_layer<NW> of;
    typedef SHAPE shape;
    int tokens, width;
    std::vector<of> layers;
    weights embedding, u, y;
    numbers residual;
    const numbers norm_f;
    slots<NW, S> all;
    std::vector<int> held;           // of slots: entries
    std::vector<row> rows;           // of this step
    std::vector<int32_t> codes, ids; // entries, FOLDS more if then none
    const int32_t drawn[3] = {2, 1, 3};
    resident_scratch<shape> *scratch;
    heads_args a;

    model(int n_tokens, int d_conv)
        : tokens(n_tokens), width(d_conv), embedding(random_matrix(VOCABULARY, of::M)),
          u((size_t)tokens * of::M, SPOILT), y((size_t)tokens * of::INNER, SPOILT),
          residual((size_t)tokens * of::M, NAN), norm_f(random_numbers(of::M, .5f, 1.5f)),
          all((tokens + SPARE) | 1, d_conv), held(all.n), rows((size_t)tokens),
          codes((size_t)tokens), ids((size_t)tokens), a() {
        for (uint16_t &one : embedding)
            one = to_bf16(normal());
        const size_t bytes = (resident_shape_bytes<shape>() + 255) / 256 * 256;
        scratch = (resident_scratch<shape> *)aligned_alloc(256, bytes);
        memset(scratch, 0xff, bytes);
        scratch->input.n = 0;
        for (int i = 0; i < LAYERS; i++)
            layers.emplace_back(width, shape::PACKED);
        a.ids = ids.data(), a.drawn = drawn, a.embedding = (const bf16 *)embedding.data();
        a.rows = rows.data(), a.held = codes.data(), a.first_norm = layers[0].norm.data();
        a.residual = residual.data(), a.scratch = scratch;
        a.u = (bf16 *)u.data(), a.y = (bf16 *)y.data();
        a.ring = (bf16 *)all.ring.data(), a.ring_pitch = all.n * all.of_ring;
        a.state = (char *)all.base.data(), a.state_pitch = all.n * all.STATE * sizeof(S);
        a.entries_x = (bf16 *)all.x.data(), a.entries_b = (bf16 *)all.b.data();
        a.entries_dt = all.dt.data(), a.n_slots = (int)all.n;
        a.tokens = tokens, a.n_layers = LAYERS, a.width = width;
        a.eps = a.gate_eps = 1e-5f, a.dt_min = DT_MIN, a.dt_max = DT_MAX;
        for (int i = 0; i < LAYERS; i++)
            fill(i);
    }
    model(const model &) = delete; // a points into it
    ~model() {
        free(scratch);
    }
    void fill(int i) {
        const of &w = layers[(size_t)i];
        resident_layer *l = &a.layers[i];
        set_map(&a.weights[i].in, w.in, of::M, of::IN, 64, NW, true);
        set_map(&a.weights[i].x, w.in, of::M, of::IN, 64, shape::EXTRA, true);
        set_map(&a.weights[i].out, w.out, of::INNER, of::M, 64, shape::TILE_ROWS, true);
        l->packed_in = w.packed_in.data(), l->packed_out = w.packed_out.data();
        l->packed_in_by = packed_taken(packed_by(w.packed_in.most));
        l->packed_out_by = packed_taken(packed_by(w.packed_out.most));
        l->conv_weight = w.conv.data(), l->conv_bias = w.conv_bias.data();
        l->dt_bias = w.dt_bias.data(), l->decay = w.decay.data(), l->skip = w.skip.data();
        l->next_norm = i + 1 < LAYERS ? layers[(size_t)i + 1].norm.data() : norm_f.data();
        a.gate_norm[i] = w.gate_norm.data();
    }
    // The step's rows. The last ones have no slot, as where a step is filled up (lists.cu).
    void begin(int step, int absent, bool replays) {
        for (int k = 0; k < tokens; k++) {
            row *r = &rows[(size_t)k];
            *r = {k, -1, 0, 1}, codes[(size_t)k] = 0;
            ids[(size_t)k] = k % 5 == 4 ? -1 - k % 3 : (k * 3 + step) % VOCABULARY;
            if (k >= tokens - absent)
                continue;
            r->slot = (k * 2 + 3) % (int)all.n, r->ring = (step + k) % (width - 1);
            r->fresh = (k + step) % 9 == 1;
            int *has = &held[(size_t)r->slot];
            *has = r->fresh ? 0 : *has;
            const bool folds = r->fresh || *has == REPLAY_HELD || (k + step) % 5 == 2;
            codes[(size_t)k] = *has + (replays && folds ? (int)FOLDS : 0);
        }
        for (size_t at = 0; at < LAYERS * all.n; at++)
            all.spoil(at, held[at % all.n], false);
        for (const row &r : rows) {
            for (size_t i = 0; i < LAYERS && r.slot >= 0 && r.fresh; i++)
                all.spoil(i * all.n + (size_t)r.slot, 0, true);
        }
    }
    // All rows in each other's places, of the other rank, or back.
    void turn(void) {
        std::reverse(rows.begin(), rows.end());
        std::reverse(codes.begin(), codes.end());
        std::reverse(ids.begin(), ids.end());
        for (int k = 0; k < tokens; k++)
            rows[(size_t)k].at = k;
    }
    doubles embedded(int k) const {
        const int id = ids[(size_t)k] < 0 ? drawn[-1 - ids[(size_t)k]] : ids[(size_t)k];
        doubles x(of::M);
        for (int i = 0; i < of::M; i++)
            x[i] = number(embedding[(size_t)id * of::M + i]);
        return x;
    }
};

// What a launch wrote where it was to, against the reference, and whether all else is as it was.
template <int NW, class S> struct comparison {
    typedef mamba2_layer<NW> of;
    const slots<NW, S> &now;
    slots<NW, S> before;
    difference residual, head, squares, ring, base, x, b, dt;

    explicit comparison(const slots<NW, S> &all) : now(all), before(all) {
    }
    template <class V>
    static void take(const V &from, V *to, size_t at, size_t n, const double *want,
                     difference *off) {
        for (size_t i = 0; i < n; i++)
            off->add(want[i], number(from[at + i]));
        std::copy_n(&from[at], n, &(*to)[at]);
    }
    // Of one token. entry: where it was added; below 0: the base has it.
    void token(size_t at, int entry, const memory &want) {
        take(now.ring, &before.ring, at * now.of_ring, now.of_ring, want.ring, &ring);
        if (entry < 0)
            return take(now.base, &before.base, at * now.STATE, now.STATE, want.state, &base);
        for (int c = 0; c < of::INNER; c++)
            take(now.x, &before.x, now.x_at(at, entry, c), 1, &want.convolved[c], &x);
        take(now.b, &before.b, now.b_at(at, entry), HEAD_STATES, &want.convolved[of::B], &b);
        take(now.dt, &before.dt, now.dt_at(at, entry), of::HEADS, want.delta.data(), &dt);
    }
    template <class V> static bool same(const char *what, const V &was, const V &is) {
        const bool same = same_bits(was, is);
        if (!same)
            printf("  %s: more than that has changed: WRONG\n", what);
        return same;
    }
    bool right(bool entries) const {
        bool right = residual.is_small("residual") & ring.is_small("inputs");
        right &= head.is_small("for head") & squares.is_small("squares");
        right &= base.is_small("states", 0x1p-11); // half of fp16's last bit
        if (entries)
            right &= x.is_small("x") & b.is_small("B") & dt.is_small("delta");
        return right & same("inputs", before.ring, now.ring) &
               same("states", before.base, now.base) & same("x", before.x, now.x) &
               same("B", before.b, now.b) & same("delta", before.dt, now.dt);
    }
};

template <class SHAPE, class STATES> static void kernel(const void *arguments) {
    heads_kernel<SHAPE, STATES>(*(const heads_args *)arguments);
}

template <int NW, bool P, template <class, class> class STATES, class S>
static bool agrees(int tokens, int absent, int width, int steps, unsigned seed,
                   bool turned = false) {
    typedef mamba2_layer<NW> of;
    typedef heads_shape<NW, P, !P || heads_entries<STATES>::value> shape;
    typedef STATES<shape, S> states;
    const bool replays = states::source::HAS_ENTRIES;
    model<shape, S> m(tokens, width);
    const size_t n = m.all.n, of_ring = m.all.of_ring;
    for (size_t i = 0; i < n && replays; i++)
        m.held[i] = (int)(i * 7 % (REPLAY_HELD + 1));
    doubles ring = bf16_in_double(m.all.ring), state(LAYERS * n * m.all.STATE);
    for (size_t at = 0; at < LAYERS * n; at++)
        m.all.whole(m.layers[at / n], at, m.held[at % n], &state[at * m.all.STATE]);
    bool right = true;
    turned &= !EMU_FINDS_RACES;
    for (int step = 0; step < steps_of(steps); step++) {
        m.begin(step, absent, replays);
        comparison<NW, S> compared(m.all);
        auto launch = [&](unsigned more) {
            const resident_scratch<shape> &scratch = *m.scratch;
            watch("u", m.u), watch("y", m.y), watch("the residual", m.residual);
            emu_watch("its squares", scratch.squares, sizeof scratch.squares);
            emu_watch("squares of what is normed, B, C, dt, out_proj's shares", &scratch + 1,
                      resident_shape_bytes<shape>() - sizeof scratch);
            emu_launch(RESIDENT_BLOCKS, RESIDENT_THREADS, shape::BYTES, kernel<shape, states>, &m.a,
                       seed + (unsigned)step + more);
        };
        const slots<NW, S> before = m.all;
        slots<NW, S> there = m.all;
        numbers residual_there;
        if (turned) {
            m.turn();
            launch(1000);
            m.turn();
            residual_there = m.residual;
            there = m.all, m.all = before; // in place: the arguments point into it
        }
        launch(0);
        right &= !turned || same_rows(m.residual, residual_there, of::M);
        if (turned && !(there == m.all)) {
            printf("  states are of other bits: WRONG\n");
            right = false;
        }
        for (int k = 0; k < tokens; k++) {
            const row &r = m.rows[(size_t)k];
            const int code = m.codes[(size_t)k], entry = !replays || code >= FOLDS ? -1 : code;
            doubles x = m.embedded(k);
            for (int i = 0; i < LAYERS; i++) {
                const size_t at = (size_t)i * n + (size_t)max(r.slot, 0);
                memory to = {};
                if (r.slot >= 0)
                    to.ring = &ring[at * of_ring], to.state = &state[at * m.all.STATE];
                reference(m.layers[(size_t)i], r, width, &x, &to);
                if (r.slot >= 0)
                    compared.token(at, entry, to);
            }
            double square = 0, left = 0;
            for (int i = 0; i < of::M; i++) {
                const size_t at = (size_t)k * of::M + i;
                compared.residual.add(x[i], m.residual[at]);
                compared.head.add(rounded(x[i] * m.norm_f[i]), number(m.u[at]));
                square += x[i] * x[i];
            }
            for (float part : scratch_of<shape>(m.a).squares[k])
                left += part;
            compared.squares.add(square, left);
            if (r.slot >= 0)
                m.held[(size_t)r.slot] = entry + 1;
        }
        printf("d_model %d, %s, %zu bytes a state, %s: %d rows, step %d\n", of::M,
               P ? "packed" : "bf16", sizeof(S), replays ? "entries" : "no entries", tokens, step);
        right &= compared.right(replays);
    }
    return right;
}

static const emulated_case cases[] = {
    CASE(true, agrees<24, false, heads_at_once, float>(8, 3, 4, 1, 1)),
    CASE(false, agrees<24, false, heads_at_once, __half>(8, 1, 4, 2, 2)),
    CASE(true, agrees<24, false, heads_replay, __half>(24, 7, 3, 2, 3)),
    CASE(false, agrees<24, false, heads_replay, __half>(64, 3, 4, 2, 4)),
    CASE(false, agrees<32, false, heads_replay, __half>(16, 2, 2, 1, 5)),
    CASE(false, agrees<80, false, heads_replay, __half>(16, 2, 4, 1, 6)),
    CASE(true, agrees<32, true, heads_at_once, float>(8, 2, 4, 1, 7, true)),
    CASE(true, agrees<32, true, heads_replay, __half>(16, 5, 3, 2, 8, true)),
    CASE(false, agrees<48, true, heads_at_once, __half>(8, 1, 4, 1, 9)),
    CASE(false, agrees<80, true, heads_replay, __half>(16, 2, 4, 1, 10)),
};

int main(int argc, char **argv) {
    return run_cases(cases, argc, argv) | looked_ahead(argc);
}
