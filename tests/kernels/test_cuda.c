// SPDX-License-Identifier: Apache-2.0
// The CUDA backend against the reference: models of both kinds and odd shapes in every number
// format, random plans that mix decode rows and prompts, states, forks, sampling. Properties that
// need no oracle are checked bit for bit: a row's independence of slot, place and neighbours, and
// the same answer twice.
//
// Without a usable device the tests are skipped (exit 77), unless SSM_EXPECT_CUDA is set: then that
// is a failure. CUDA does not survive fork: everything runs in one process.
#include <check.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/backend.h"
#include "small_model.h"

static const small_shape shapes[] = {
    {"mamba", SSM_BLOCK_MAMBA, 3, 256, 512, 16, 4, 16, 0, 0, 1000, false, false, true},
    {"mamba odd", SSM_BLOCK_MAMBA, 2, 36, 60, 5, 3, 3, 0, 0, 77, false, true, false},
    {"mamba rank 24, state 8", SSM_BLOCK_MAMBA, 2, 96, 200, 8, 2, 24, 0, 0, 333, false, false,
     true},
    {"mamba rank 40", SSM_BLOCK_MAMBA, 2, 192, 384, 16, 4, 40, 0, 0, 515, false, true, true},
    {"falcon", SSM_BLOCK_MAMBA, 2, 128, 256, 16, 4, 8, 0, 0, 600, true, false, false},
    {"mamba2", SSM_BLOCK_MAMBA2, 3, 256, 512, 128, 4, 0, 8, 1, 1000, false, false, true},
    {"mamba2 groups", SSM_BLOCK_MAMBA2, 2, 128, 512, 128, 4, 0, 8, 4, 500, false, true, false},
    {"mamba2 64", SSM_BLOCK_MAMBA2, 2, 128, 256, 64, 4, 0, 4, 2, 300, false, false, true},
    {"mamba2 odd", SSM_BLOCK_MAMBA2, 2, 40, 66, 12, 3, 0, 6, 2, 99, false, true, false},
};
enum { N_SHAPES = sizeof shapes / sizeof shapes[0], SLOTS = 40, ROWS = 168, TOKENS = 700 };

static uint64_t random_state = 1;

static int32_t below(int32_t n) {
    return (int32_t)(small_uniform(&random_state) * n);
}

// ---- one backend with a model on it

typedef struct rig {
    const ssm_backend *b;
    ssm_device *d;
    int32_t vocab;
    size_t state_floats;
} rig;

static void must(int rc, const ssm_error *err) {
    ck_assert_msg(rc == 0, "%s", err->message);
}

static void rig_open_for(rig *r, const char *backend, const ssm_weights *w, ssm_dtype weight,
                         ssm_dtype state, int32_t slots, int32_t rows, int32_t tokens) {
    ssm_error err = {0};
    const bool reference = strcmp(backend, "reference") == 0;
    const ssm_device_options o = {.n_slots = slots,
                                  .max_rows = rows,
                                  .max_tokens = tokens,
                                  .weight_dtype = reference ? SSM_DTYPE_AUTO : weight,
                                  .state_dtype = reference ? SSM_DTYPE_AUTO : state};
    r->b = ssm_backend_find(backend);
    ck_assert_ptr_nonnull(r->b);
    must(r->b->open(w, &o, &r->d, &err), &err);
    r->vocab = w->geometry.vocab_size;
    r->state_floats = ssm_state_conv_floats(&w->geometry) + ssm_state_ssm_floats(&w->geometry);
}

static void rig_open(rig *r, const char *backend, const ssm_weights *w, ssm_dtype weight,
                     ssm_dtype state) {
    rig_open_for(r, backend, w, weight, state, SLOTS, ROWS, TOKENS);
}

static void rig_close(rig *r) {
    r->b->close(r->d);
}

static void rig_step(rig *r, const int32_t *tokens, const ssm_segment *segments, int32_t n) {
    ssm_error err = {0};
    const ssm_plan plan = {tokens, segments[n - 1].first + segments[n - 1].count, segments, n};
    must(r->b->step(r->d, &plan, &err), &err);
}

static float *rig_logits(rig *r, int32_t row) {
    ssm_error err = {0};
    float *out = malloc((size_t)r->vocab * sizeof *out);
    must(r->b->logits_read(r->d, row, out, &err), &err);
    return out;
}

static float *rig_state(rig *r, int32_t slot) {
    ssm_error err = {0};
    float *out = malloc(r->state_floats * sizeof *out);
    must(r->b->slot_read(r->d, slot, out, &err), &err);
    return out;
}

// |a - b| / |b|; NaN if anything is not finite.
static double distance(const float *a, const float *b, size_t n) {
    double difference = 0, norm = 0;
    for (size_t i = 0; i < n; i++) {
        const double e = (double)a[i] - (double)b[i];
        difference += e * e;
        norm += (double)b[i] * (double)b[i];
    }
    return norm > 0 ? sqrt(difference / norm) : sqrt(difference);
}

// ---- formats and how near they must be
//
// fp32: products and scans of a few hundred terms in another order. 16-bit weights are the
// reference's own; activations are rounded to 8 (bf16) or 11 bits before each of three products a
// layer, of two or three layers; an fp16 state is rounded once a token.
static const struct {
    ssm_dtype weight, state;
    double tolerance;
} formats[] = {
    {SSM_DTYPE_F32, SSM_DTYPE_F32, 2e-5}, {SSM_DTYPE_BF16, SSM_DTYPE_F32, 2.5e-2},
    {SSM_DTYPE_F16, SSM_DTYPE_F32, 3e-3}, {SSM_DTYPE_BF16, SSM_DTYPE_F16, 2.5e-2},
    {SSM_DTYPE_F32, SSM_DTYPE_F16, 2e-3},
};
enum { N_FORMATS = sizeof formats / sizeof formats[0] };

typedef struct pair {
    small_model model;
    rig cuda, reference;
    double tolerance, worst;
    char what[96];
} pair;

static void pair_open(pair *p, int shape, int format) {
    const ssm_dtype type = formats[format].weight;
    small_model_create(&p->model, &shapes[shape], type, (uint64_t)shape + 1);
    p->tolerance = formats[format].tolerance;
    p->worst = 0;
    snprintf(p->what, sizeof p->what, "%s, %s weights, %s state", shapes[shape].name,
             ssm_dtype_name(type), ssm_dtype_name(formats[format].state));
    rig_open(&p->cuda, "cuda", &p->model.weights, type, formats[format].state);
    rig_open(&p->reference, "reference", &p->model.weights, type, SSM_DTYPE_F32);
}

static void pair_close(pair *p) {
    rig_close(&p->cuda);
    rig_close(&p->reference);
    small_model_free(&p->model);
}

static void compare(pair *p, float *a, float *b, size_t n, const char *of) {
    const double off = distance(a, b, n);
    ck_assert_msg(off <= p->tolerance, "%s: %s off by %g (%g allowed)", p->what, of, off,
                  p->tolerance);
    p->worst = off > p->worst ? off : p->worst;
    free(a);
    free(b);
}

// A random plan: each chosen slot once; prompts and decode rows as they come.
static int32_t random_plan(int32_t vocab, bool *live, bool decode_only, int32_t *tokens,
                           ssm_segment *segments) {
    const int32_t n = 1 + below(decode_only ? SLOTS : 9);
    int32_t at = 0, used = 0;
    bool taken[SLOTS] = {0};
    for (int32_t i = 0; i < n; i++) {
        const int32_t slot = below(SLOTS);
        const int32_t lengths[] = {1, 1, 1, 2, 3, 4, 5, 15, 16, 17, 31, 33, 63, 64, 65, 100};
        const int32_t count = decode_only ? 1 : lengths[below(16)];
        if (taken[slot] || at + count > TOKENS)
            continue;
        taken[slot] = true;
        const bool fresh = !live[slot] || below(8) == 0;
        const ssm_want want = decode_only ? SSM_WANT_LAST : (ssm_want)below(3);
        live[slot] = true;
        segments[used++] = (ssm_segment){slot, at, count, fresh,
                                         want == SSM_WANT_ALL && count > 17 ? SSM_WANT_LAST : want};
        for (int32_t k = 0; k < count; k++)
            tokens[at++] = below(vocab);
    }
    return used;
}

static int32_t rows_of(const ssm_segment *s) {
    return s->want == SSM_WANT_ALL ? s->count : s->want == SSM_WANT_LAST;
}

static void run_plan(pair *p, bool *live, bool decode_only) {
    int32_t tokens[TOKENS];
    ssm_segment segments[SLOTS];
    const int32_t n = random_plan(p->cuda.vocab, live, decode_only, tokens, segments);
    rig_step(&p->cuda, tokens, segments, n);
    rig_step(&p->reference, tokens, segments, n);
    for (int32_t i = 0, row = 0; i < n; i++) {
        for (int32_t k = 0; k < rows_of(&segments[i]); k++, row++)
            compare(p, rig_logits(&p->cuda, row), rig_logits(&p->reference, row),
                    (size_t)p->cuda.vocab, "logits");
    }
    for (int32_t i = 0; i < n; i += 3)
        compare(p, rig_state(&p->cuda, segments[i].slot),
                rig_state(&p->reference, segments[i].slot), p->cuda.state_floats, "a state");
}

START_TEST(random_plans_agree_with_the_reference) {
    pair p;
    bool live[SLOTS] = {0};
    pair_open(&p, _i / N_FORMATS, _i % N_FORMATS);
    for (int round = 0; round < 6; round++)
        run_plan(&p, live, round % 2);
    printf("%-44s worst %.1e of %.1e\n", p.what, p.worst, p.tolerance);
    pair_close(&p);
}
END_TEST

// Steps of any number of rows, at sizes that give every product, convolution and advance kernel a
// full card: rows are independent, so the reference runs every 13th alone.
static const small_shape wide[] = {
    {"mamba wide", SSM_BLOCK_MAMBA, 2, 512, 1024, 16, 4, 32, 0, 0, 500, false, false, true},
    {"mamba2 wide", SSM_BLOCK_MAMBA2, 2, 512, 1024, 128, 4, 0, 16, 1, 500, false, true, true},
    {"mamba large", SSM_BLOCK_MAMBA, 1, 1536, 3072, 16, 4, 96, 0, 0, 300, false, true, true},
};
enum { N_WIDE = sizeof wide / sizeof wide[0], MANY = 600, EACH = 13 };

static void step_rows(rig *r, int32_t n, int32_t each, int32_t step) {
    static int32_t tokens[MANY];
    static ssm_segment segments[MANY];
    int32_t used = 0;
    for (int32_t i = 0; i < n; i += each, used++) {
        segments[used] =
            (ssm_segment){(i * 7 + n) % MANY, used, 1, step == 0 || i % 5 == 4, SSM_WANT_LAST};
        tokens[used] = (i * 31 + step * 17 + n) % r->vocab;
    }
    rig_step(r, tokens, segments, used);
}

START_TEST(many_rows_agree_with_the_reference) {
    const ssm_dtype states[] = {SSM_DTYPE_F32, SSM_DTYPE_F16};
    const int32_t counts[] = {1, 2, 5, 8, 9, 14, 16, 20, 33, 48, 61, 64, 65, 100, 257, 600};
    pair p = {.tolerance = 2.5e-2};
    small_model_create(&p.model, &wide[_i / 2], SSM_DTYPE_BF16, 21);
    snprintf(p.what, sizeof p.what, "%s, %s state", wide[_i / 2].name,
             ssm_dtype_name(states[_i % 2]));
    rig_open_for(&p.cuda, "cuda", &p.model.weights, SSM_DTYPE_BF16, states[_i % 2], MANY, MANY,
                 MANY);
    rig_open_for(&p.reference, "reference", &p.model.weights, SSM_DTYPE_BF16, SSM_DTYPE_F32, MANY,
                 MANY, MANY);
    for (size_t c = 0; c < sizeof counts / sizeof counts[0]; c++) {
        if (wide[_i / 2].d_model > 512 && (counts[c] < 8 || counts[c] > 20))
            continue; // for the products of 9 to 16 rows; the reference takes its time
        for (int32_t step = 0; step < 3; step++) {
            step_rows(&p.cuda, counts[c], 1, step);
            step_rows(&p.reference, counts[c], EACH, step);
        }
        for (int32_t i = 0, row = 0; i < counts[c]; i += EACH, row++) {
            const int32_t slot = (i * 7 + counts[c]) % MANY;
            compare(&p, rig_logits(&p.cuda, i), rig_logits(&p.reference, row), (size_t)p.cuda.vocab,
                    "logits");
            compare(&p, rig_state(&p.cuda, slot), rig_state(&p.reference, slot),
                    p.cuda.state_floats, "a state");
        }
    }
    printf("%-44s worst %.1e of %.1e\n", p.what, p.worst, p.tolerance);
    pair_close(&p);
}
END_TEST

// The same steps twice, from the same states: the same bits.
START_TEST(many_rows_twice_are_the_same_bits) {
    small_model m;
    rig r;
    small_model_create(&m, &wide[_i], SSM_DTYPE_BF16, 22);
    rig_open_for(&r, "cuda", &m.weights, SSM_DTYPE_BF16, SSM_DTYPE_F16, MANY, MANY, MANY);
    const int32_t counts[] = {7, 16, 64, 200, 600};
    for (int c = 0; c < 5; c++) {
        const int32_t rows[] = {0, counts[c] / 2, counts[c] - 1};
        float *first[3];
        for (int round = 0; round < 4; round++) {
            for (int32_t step = 0; step < 3; step++)
                step_rows(&r, counts[c], 1, step);
            for (int k = 0; k < 3; k++) {
                float *logits = rig_logits(&r, rows[k]);
                if (round == 0) {
                    first[k] = logits;
                    continue;
                }
                ck_assert_msg(memcmp(logits, first[k], (size_t)r.vocab * sizeof *logits) == 0,
                              "%s: row %d of %d differs from run to run", wide[_i].name, rows[k],
                              counts[c]);
                free(logits);
            }
        }
        for (int k = 0; k < 3; k++)
            free(first[k]);
    }
    rig_close(&r);
    small_model_free(&m);
}
END_TEST

// Prompts long enough to be cut into pieces, many enough not to be, each twice from where it stood:
// near the reference, and the same bits when all is done again.
static int32_t long_plan(int32_t vocab, int which, bool fresh, int32_t *tokens,
                         ssm_segment *segments) {
    static const int32_t lengths[4][8] = {{700}, {65, 300, 1, 2}, {3, 63, 500, 129}, {0}};
    int32_t at = 0, n = 0;
    for (; n < SLOTS; n++) {
        const int32_t count = which < 3 ? lengths[which][n] : n < 36 ? 18 + n % 2 : 0;
        if (count == 0)
            break;
        segments[n] = (ssm_segment){n, at, count, fresh, SSM_WANT_LAST};
        for (int32_t k = 0; k < count; k++, at++)
            tokens[at] = (at * 31 + which * 17 + fresh) % vocab;
    }
    return n;
}

START_TEST(long_prompts_agree_with_the_reference) {
    const small_shape *all[] = {&shapes[0], &shapes[3], &shapes[4], &shapes[5],
                                &shapes[6], &wide[0],   &wide[1]};
    pair p = {.tolerance = 2.5e-2};
    small_model_create(&p.model, all[_i], SSM_DTYPE_BF16, 41);
    snprintf(p.what, sizeof p.what, "%s, long", all[_i]->name);
    rig_open(&p.cuda, "cuda", &p.model.weights, SSM_DTYPE_BF16, SSM_DTYPE_F32);
    rig_open(&p.reference, "reference", &p.model.weights, SSM_DTYPE_BF16, SSM_DTYPE_F32);
    int32_t tokens[TOKENS];
    ssm_segment segments[SLOTS];
    float *first[SLOTS];
    for (int which = 0; which < 4; which++) {
        for (int round = 0; round < 4; round++) { // from nothing, going on; again
            const int32_t n = long_plan(p.cuda.vocab, which, round % 2 == 0, tokens, segments);
            rig_step(&p.cuda, tokens, segments, n);
            if (round < 2)
                rig_step(&p.reference, tokens, segments, n);
            for (int32_t i = 0; i < n; i += 1 + n / 8) {
                float *state = rig_state(&p.cuda, i);
                if (round == 1) {
                    first[i] = rig_state(&p.cuda, i);
                } else if (round == 3) {
                    ck_assert_msg(memcmp(state, first[i], p.cuda.state_floats * sizeof *state) == 0,
                                  "%s: plan %d, prompt %d differs from run to run", p.what, which,
                                  i);
                    free(first[i]);
                }
                if (round >= 2) {
                    free(state);
                    continue;
                }
                compare(&p, state, rig_state(&p.reference, i), p.cuda.state_floats, "a state");
                compare(&p, rig_logits(&p.cuda, i), rig_logits(&p.reference, i),
                        (size_t)p.cuda.vocab, "logits");
            }
        }
    }
    printf("%-44s worst %.1e of %.1e\n", p.what, p.worst, p.tolerance);
    pair_close(&p);
}
END_TEST

// ---- without an oracle

// Feeds a prompt to a slot in pieces; returns its last logits.
static float *feed(rig *r, int32_t slot, const int32_t *ids, int32_t n, int32_t piece) {
    for (int32_t done = 0; done < n; done += piece) {
        const int32_t count = n - done < piece ? n - done : piece;
        const ssm_segment s = {slot, 0, count, done == 0, SSM_WANT_LAST};
        rig_step(r, ids + done, &s, 1);
    }
    return rig_logits(r, 0);
}

START_TEST(whole_chunked_and_token_by_token_agree) {
    small_model m;
    rig r;
    int32_t ids[600];
    small_model_create(&m, &shapes[_i], SSM_DTYPE_F32, 9);
    rig_open(&r, "cuda", &m.weights, SSM_DTYPE_F32, SSM_DTYPE_F32);
    for (int i = 0; i < 600; i++)
        ids[i] = below(r.vocab);
    float *whole = feed(&r, 0, ids, 600, 600), *state = rig_state(&r, 0);
    const int32_t pieces[] = {1, 2, 3, 7, 64, 129, 599};
    for (int i = 0; i < 7; i++) {
        float *other = feed(&r, 1 + i, ids, 600, pieces[i]), *moved = rig_state(&r, 1 + i);
        const double off = distance(other, whole, (size_t)r.vocab);
        ck_assert_msg(off <= 2e-5, "%s in pieces of %d: logits off by %g", shapes[_i].name,
                      pieces[i], off);
        const double far = distance(moved, state, r.state_floats);
        ck_assert_msg(far <= 2e-5, "%s in pieces of %d: state off by %g", shapes[_i].name,
                      pieces[i], far);
        free(other);
        free(moved);
    }
    free(whole);
    free(state);
    rig_close(&r);
    small_model_free(&m);
}
END_TEST

// The same sequence among others, at other rows and slots of one bucket: bit for bit.
START_TEST(a_row_does_not_see_its_neighbours) {
    small_model m;
    rig r;
    small_model_create(&m, &shapes[_i], SSM_DTYPE_BF16, 3);
    rig_open(&r, "cuda", &m.weights, SSM_DTYPE_BF16, SSM_DTYPE_F32);
    const int32_t buckets[] = {1, 2, 4, 8, 13, 29, 40};
    for (int b = 0; b < 7; b++) {
        float *first = NULL, *first_state = NULL;
        for (int round = 0; round < 3; round++) {
            const int32_t n = buckets[b], place = below(n), slot = below(SLOTS);
            for (int step = 0; step < 18; step++) {
                int32_t tokens[SLOTS];
                ssm_segment segments[SLOTS];
                for (int32_t i = 0; i < n; i++) {
                    segments[i] = (ssm_segment){(slot + i - place + SLOTS) % SLOTS, i, 1, step == 0,
                                                SSM_WANT_LAST};
                    tokens[i] = i == place ? 5 + step : below(r.vocab);
                }
                rig_step(&r, tokens, segments, n);
            }
            float *logits = rig_logits(&r, place), *state = rig_state(&r, slot);
            if (round == 0) {
                first = logits, first_state = state;
                continue;
            }
            ck_assert_msg(memcmp(logits, first, (size_t)r.vocab * sizeof *logits) == 0,
                          "%s, %d rows: logits depend on neighbours", shapes[_i].name, n);
            ck_assert_msg(memcmp(state, first_state, r.state_floats * sizeof *state) == 0,
                          "%s, %d rows: the state depends on neighbours", shapes[_i].name, n);
            free(logits);
            free(state);
        }
        free(first);
        free(first_state);
    }
    rig_close(&r);
    small_model_free(&m);
}
END_TEST

// Widths of published models, a layer or two: the kernels of small decode buckets are made for
// them. Against the reference, and the same bits in other slots and other company.
static const small_shape published[] = {
    {"mamba 768", SSM_BLOCK_MAMBA, 2, 768, 1536, 16, 4, 48, 0, 0, 1003, false, false, true},
    {"mamba 1024", SSM_BLOCK_MAMBA, 2, 1024, 2048, 16, 4, 64, 0, 0, 515, false, true, false},
    {"mamba 1536", SSM_BLOCK_MAMBA, 1, 1536, 3072, 16, 4, 96, 0, 0, 515, false, false, true},
    {"mamba 2048", SSM_BLOCK_MAMBA, 1, 2048, 4096, 16, 4, 128, 0, 0, 515, false, false, true},
    {"mamba 2560", SSM_BLOCK_MAMBA, 1, 2560, 5120, 16, 4, 160, 0, 0, 6000, false, false, true},
    {"falcon 1024", SSM_BLOCK_MAMBA, 1, 1024, 2048, 16, 4, 64, 0, 0, 515, true, false, false},
    {"mamba2 768", SSM_BLOCK_MAMBA2, 2, 768, 1536, 128, 4, 0, 24, 1, 1003, false, false, true},
    {"mamba2 2560", SSM_BLOCK_MAMBA2, 1, 2560, 5120, 128, 4, 0, 80, 1, 515, false, false, true},
    {"mamba2 groups", SSM_BLOCK_MAMBA2, 1, 1024, 2048, 128, 4, 0, 32, 8, 515, false, true, false},
};
enum { N_PUBLISHED = sizeof published / sizeof published[0], FEW_STEPS = 3 };

// n rows for FEW_STEPS steps: row i in slot first + i, tokens[step][i].
static void few_rows(rig *r, int32_t n, int32_t first, int32_t tokens[FEW_STEPS][8]) {
    for (int step = 0; step < FEW_STEPS; step++) {
        ssm_segment segments[8];
        for (int32_t i = 0; i < n; i++)
            segments[i] = (ssm_segment){(first + i) % SLOTS, i, 1, step == 0, SSM_WANT_LAST};
        rig_step(r, tokens[step], segments, n);
    }
}

// Sequence 0 was row 0 among n; the same bits as the last row, in other slots, among others.
static void same_elsewhere(pair *p, int32_t n, int32_t tokens[FEW_STEPS][8], const float *logits,
                           const float *state) {
    int32_t others[FEW_STEPS][8];
    for (int step = 0; step < FEW_STEPS; step++) {
        for (int32_t i = 0; i < n; i++)
            others[step][i] = i == n - 1 ? tokens[step][0] : below(p->cuda.vocab);
    }
    few_rows(&p->cuda, n, 23, others);
    float *again = rig_logits(&p->cuda, n - 1), *after = rig_state(&p->cuda, 23 + n - 1);
    ck_assert_msg(memcmp(again, logits, (size_t)p->cuda.vocab * sizeof *again) == 0,
                  "%s, %d rows: logits depend on slot or company", p->what, n);
    ck_assert_msg(memcmp(after, state, p->cuda.state_floats * sizeof *after) == 0,
                  "%s, %d rows: the state depends on slot or company", p->what, n);
    free(again);
    free(after);
}

START_TEST(few_rows_of_published_widths_agree) {
    const small_shape *shape = &published[_i];
    pair p = {0};
    int32_t tokens[FEW_STEPS][8];
    small_model_create(&p.model, shape, SSM_DTYPE_BF16, (uint64_t)_i + 1);
    rig_open(&p.reference, "reference", &p.model.weights, SSM_DTYPE_BF16, SSM_DTYPE_F32);
    for (int i = 0; i < FEW_STEPS * 8; i++)
        tokens[i / 8][i % 8] = below(shape->vocab_size);
    few_rows(&p.reference, 8, 0, tokens);
    for (int f = 1; f <= 3; f += 2) { // bf16 weights, f32 and f16 states
        p.tolerance = formats[f].tolerance;
        snprintf(p.what, sizeof p.what, "%s, %s state", shape->name,
                 ssm_dtype_name(formats[f].state));
        rig_open(&p.cuda, "cuda", &p.model.weights, SSM_DTYPE_BF16, formats[f].state);
        for (int32_t n = 1; n <= 8; n = n == 4 ? 8 : n + 1) {
            few_rows(&p.cuda, n, 3, tokens);
            for (int32_t i = 0; i < n; i++) {
                compare(&p, rig_logits(&p.cuda, i), rig_logits(&p.reference, i),
                        (size_t)p.cuda.vocab, "logits");
                compare(&p, rig_state(&p.cuda, 3 + i), rig_state(&p.reference, i),
                        p.cuda.state_floats, "a state");
            }
            float *logits = rig_logits(&p.cuda, 0), *state = rig_state(&p.cuda, 3);
            same_elsewhere(&p, n, tokens, logits, state);
            free(logits);
            free(state);
        }
        rig_close(&p.cuda);
        printf("%-40s worst %.1e\n", p.what, p.worst);
    }
    rig_close(&p.reference);
    small_model_free(&p.model);
}
END_TEST

// Steps of 12 rows, which hold entries back, and of 3, which write states at once, in turns: rows 0
// to 2 are in all of them. Against the reference after every turn.
START_TEST(many_rows_and_few_take_turns) {
    static const int lengths[] = {5, 4, 13, 1, 2, 17, 3};
    const small_shape *shape = &published[_i / 2];
    pair p = {.tolerance = 2.5e-2};
    const ssm_dtype state = _i % 2 ? SSM_DTYPE_F16 : SSM_DTYPE_F32;
    small_model_create(&p.model, shape, SSM_DTYPE_BF16, 5);
    snprintf(p.what, sizeof p.what, "%s, %s state, turns", shape->name, ssm_dtype_name(state));
    rig_open(&p.reference, "reference", &p.model.weights, SSM_DTYPE_BF16, SSM_DTYPE_F32);
    rig_open(&p.cuda, "cuda", &p.model.weights, SSM_DTYPE_BF16, state);
    int step = 0;
    for (size_t turn = 0; turn < sizeof lengths / sizeof lengths[0]; turn++) {
        const int32_t n = turn % 2 ? 3 : 12;
        for (int i = 0; i < lengths[turn]; i++, step++) {
            int32_t tokens[12];
            ssm_segment segments[12];
            for (int32_t k = 0; k < n; k++) {
                tokens[k] = below(shape->vocab_size);
                segments[k] = (ssm_segment){k, k, 1, step == 0, SSM_WANT_LAST};
            }
            rig_step(&p.cuda, tokens, segments, n);
            rig_step(&p.reference, tokens, segments, n);
        }
        for (int32_t k = 0; k < n; k++) {
            compare(&p, rig_logits(&p.cuda, k), rig_logits(&p.reference, k), (size_t)p.cuda.vocab,
                    "logits");
            compare(&p, rig_state(&p.cuda, k), rig_state(&p.reference, k), p.cuda.state_floats,
                    "a state");
        }
    }
    printf("%-40s worst %.1e\n", p.what, p.worst);
    rig_close(&p.cuda);
    rig_close(&p.reference);
    small_model_free(&p.model);
}
END_TEST

// A freed slot full of NaN must not be read by the next user, and a failed neighbour stays alone.
START_TEST(poison_stays_where_it_is) {
    small_model m;
    rig r;
    ssm_error err = {0};
    small_model_create(&m, &shapes[_i], SSM_DTYPE_BF16, 4);
    rig_open(&r, "cuda", &m.weights, SSM_DTYPE_BF16, SSM_DTYPE_F16);
    float *poison = malloc(r.state_floats * sizeof *poison);
    for (size_t i = 0; i < r.state_floats; i++)
        poison[i] = NAN;
    for (int32_t s = 0; s < 8; s++)
        must(r.b->slot_write(r.d, s, poison, &err), &err);
    int32_t tokens[80];
    for (int i = 0; i < 80; i++)
        tokens[i] = below(r.vocab);
    const ssm_segment segments[] = {
        {0, 0, 1, true, SSM_WANT_LAST},   {1, 1, 2, true, SSM_WANT_LAST},
        {2, 3, 3, true, SSM_WANT_LAST},   {3, 6, 70, true, SSM_WANT_LAST},
        {7, 76, 4, false, SSM_WANT_LAST},
    };
    rig_step(&r, tokens, segments, 5);
    for (int32_t i = 0; i < 5; i++) {
        float *logits = rig_logits(&r, i), *state = rig_state(&r, segments[i].slot);
        const bool clean = isfinite(distance(logits, logits, (size_t)r.vocab)) &&
                           isfinite(distance(state, state, r.state_floats));
        ck_assert_msg(clean == (i < 4), "%s: segment %d", shapes[_i].name, i);
        free(logits);
        free(state);
    }
    // they go on side by side, past where states are written
    for (int step = 0; step < 20; step++) {
        ssm_segment rows[5];
        for (int32_t i = 0; i < 5; i++)
            rows[i] = (ssm_segment){segments[i].slot, i, 1, false, SSM_WANT_LAST};
        rig_step(&r, tokens + step, rows, 5);
    }
    // and the failed one's slot is given to somebody else
    const ssm_segment next = {7, 0, 3, true, SSM_WANT_LAST};
    for (int32_t i = 0; i < 5; i++) {
        if (i == 4)
            rig_step(&r, tokens, &next, 1);
        float *logits = rig_logits(&r, i % 4), *state = rig_state(&r, segments[i].slot);
        ck_assert_msg(isfinite(distance(logits, logits, (size_t)r.vocab)) &&
                          isfinite(distance(state, state, r.state_floats)),
                      "%s: segment %d, later", shapes[_i].name, i);
        free(logits);
        free(state);
    }
    for (int step = 0; step < 20; step++) {
        const ssm_segment s = {7, 0, 1, false, SSM_WANT_LAST};
        rig_step(&r, tokens + step, &s, 1);
    }
    float *logits = rig_logits(&r, 0);
    ck_assert(isfinite(distance(logits, logits, (size_t)r.vocab)));
    free(logits);
    free(poison);
    rig_close(&r);
    small_model_free(&m);
}
END_TEST

START_TEST(forks_and_snapshots_go_on_as_their_source) {
    small_model m;
    rig r;
    ssm_error err = {0};
    int32_t ids[40];
    small_model_create(&m, &shapes[_i], SSM_DTYPE_BF16, 5);
    rig_open(&r, "cuda", &m.weights, SSM_DTYPE_BF16, SSM_DTYPE_F16);
    for (int i = 0; i < 40; i++)
        ids[i] = below(r.vocab);
    free(feed(&r, 3, ids, 37, 37));
    const int32_t src[] = {3, 3, 3}, dst[] = {0, 39, 7};
    must(r.b->slots_copy(r.d, src, dst, 3, &err), &err);
    float *state = rig_state(&r, 3);
    must(r.b->slot_write(r.d, 11, state, &err), &err);
    float *again = rig_state(&r, 11);
    ck_assert(memcmp(state, again, r.state_floats * sizeof *state) == 0);
    const int32_t slots[] = {3, 0, 39, 7, 11};
    float *first = NULL;
    for (int i = 0; i < 5; i++) {
        for (int step = 0; step < 3; step++) {
            const ssm_segment s = {slots[i], 0, 1, false, SSM_WANT_LAST};
            rig_step(&r, &ids[37 + step], &s, 1);
        }
        float *logits = rig_logits(&r, 0);
        if (i == 0)
            first = logits;
        ck_assert(memcmp(logits, first, (size_t)r.vocab * sizeof *first) == 0);
        if (i > 0)
            free(logits);
    }
    free(first);
    free(state);
    free(again);
    rig_close(&r);
    small_model_free(&m);
}
END_TEST

// States go out while their slots are used again at once, and come back before anybody has waited:
// more of them than there are staging buffers, so that each is waited for on the device.
START_TEST(copies_beside_steps_keep_their_order) {
    enum { N = 24, SPOILT = N };
    small_model m;
    rig r;
    ssm_error err = {0};
    int32_t ids[64];
    uint64_t out[N], in[N];
    float *want[N];
    small_model_create(&m, &shapes[_i], SSM_DTYPE_BF16, 6);
    rig_open(&r, "cuda", &m.weights, SSM_DTYPE_BF16, SSM_DTYPE_F32);
    const size_t bytes = r.state_floats * sizeof(float);
    char *host = r.b->host_alloc(r.d, N * bytes);
    ck_assert_ptr_nonnull(host);
    for (int i = 0; i < 64; i++)
        ids[i] = below(r.vocab);
    for (int32_t i = 0; i <= SPOILT; i++)
        free(feed(&r, i, ids + i, 5 + i, 5 + i));
    for (int32_t i = 0; i < N; i++)
        want[i] = rig_state(&r, i);
    for (int round = 0; round < 4; round++) {
        for (int32_t i = 0; i < N; i++) {
            float *to = (float *)(void *)(host + (size_t)i * bytes);
            const int32_t spoilt = SPOILT;
            must(r.b->slot_export(r.d, i, to, &out[i], &err), &err);
            must(r.b->slots_copy(r.d, &spoilt, &i, 1, &err), &err);
        }
        for (int32_t i = 0; i < N; i++) {
            const float *from = (const float *)(const void *)(host + (size_t)i * bytes);
            must(r.b->slot_import(r.d, i, from, out[i], &in[i], &err), &err);
        }
        for (int32_t i = 0; i < N; i++) {
            must(r.b->ticket_wait(r.d, in[i], &err), &err);
            must(r.b->ticket_wait(r.d, out[i], &err), &err);
            ck_assert_msg(memcmp(host + (size_t)i * bytes, want[i], bytes) == 0, "%s: out %d",
                          shapes[_i].name, i);
        }
        memset(host, 0xff, N * bytes); // it has been read
        for (int32_t i = 0; i < N; i++) {
            float *state = rig_state(&r, i);
            ck_assert_msg(memcmp(state, want[i], bytes) == 0, "%s: in %d", shapes[_i].name, i);
            free(state);
        }
    }
    for (int32_t i = 0; i < N; i++)
        free(want[i]);
    r.b->host_free(r.d, host);
    rig_close(&r);
    small_model_free(&m);
}
END_TEST

// ---- states that are written every 16 tokens (replay.cu)
//
// One layer: its inputs do not depend on its state, so states can be compared to fp32's rounding
// though activations are bf16.
static const small_shape held_back[] = {
    {"replay", SSM_BLOCK_MAMBA2, 1, 256, 512, 128, 4, 0, 8, 1, 300, false, false, true},
    {"replay, 3 groups", SSM_BLOCK_MAMBA2, 1, 128, 384, 128, 4, 0, 6, 3, 300, false, true, false},
};

static void step_one(rig *r, int32_t slot, int32_t id, bool fresh) {
    const ssm_segment s = {slot, 0, 1, fresh, SSM_WANT_LAST};
    rig_step(r, &id, &s, 1);
}

// Slot 0 runs as it comes, slot 1 is written back at random, slot 2 after every token: its base
// takes each token by itself.
START_TEST(any_schedule_of_writes_gives_the_same_state) {
    const bool half = _i % 2;
    small_model m;
    rig r;
    ssm_error err = {0};
    small_model_create(&m, &held_back[_i / 2], SSM_DTYPE_BF16, 41);
    rig_open(&r, "cuda", &m.weights, SSM_DTYPE_BF16, half ? SSM_DTYPE_F16 : SSM_DTYPE_F32);
    const double tolerance = half ? 2e-3 : 1e-5;
    double worst = 0;
    for (int t = 0; t < 70; t++) {
        const int32_t id = below(r.vocab);
        float *states[3];
        for (int32_t slot = 0; slot < 3; slot++) {
            step_one(&r, slot, id, t == 0);
            states[slot] = rig_state(&r, slot);
            if (slot == 2 || (slot == 1 && below(5) == 0))
                must(r.b->slot_write(r.d, slot, states[slot], &err), &err);
        }
        for (int32_t slot = 1; slot < 3; slot++) {
            const double off = distance(states[0], states[slot], r.state_floats);
            ck_assert_msg(off <= tolerance, "%s: token %d, slot %d: state off by %g",
                          held_back[_i / 2].name, t, slot, off);
            worst = off > worst ? off : worst;
        }
        for (int32_t slot = 0; slot < 3; slot++)
            free(states[slot]);
    }
    printf("%-44s schedules differ by %.1e of %.1e\n", held_back[_i / 2].name, worst, tolerance);
    rig_close(&r);
    small_model_free(&m);
}
END_TEST

// A fork at any phase goes on with the same bits, and so does a state that was looked at.
START_TEST(forks_at_any_phase_go_on_as_their_source) {
    small_model m;
    rig r;
    ssm_error err = {0};
    small_model_create(&m, &shapes[_i], SSM_DTYPE_BF16, 42);
    rig_open(&r, "cuda", &m.weights, SSM_DTYPE_BF16, _i % 2 ? SSM_DTYPE_F32 : SSM_DTYPE_F16);
    for (int32_t phase = 0; phase < 18; phase++) {
        int32_t ids[60];
        for (int i = 0; i < 60; i++)
            ids[i] = below(r.vocab);
        free(feed(&r, 0, ids, 5, 5));
        for (int t = 0; t < phase; t++)
            step_one(&r, 0, ids[5 + t], false);
        const int32_t src = 0, dst = 9;
        must(r.b->slots_copy(r.d, &src, &dst, 1, &err), &err);
        for (int t = 0; t < 20; t++) {
            const ssm_segment rows[] = {{0, 0, 1, false, SSM_WANT_LAST},
                                        {9, 1, 1, false, SSM_WANT_LAST}};
            const int32_t two[] = {ids[30 + t], ids[30 + t]};
            rig_step(&r, two, rows, 2);
            float *a = rig_logits(&r, 0), *b = rig_logits(&r, 1);
            ck_assert_msg(memcmp(a, b, (size_t)r.vocab * sizeof *a) == 0,
                          "%s: %d tokens after a fork at phase %d", shapes[_i].name, t, phase);
            free(a);
            free(b);
            free(rig_state(&r, 9));
        }
    }
    rig_close(&r);
    small_model_free(&m);
}
END_TEST

// Decode rows beside prompts, prompts that go on after decoding, forks, restores and new sequences,
// over several writes of every state.
START_TEST(long_runs_agree_with_the_reference) {
    const int shape = 5 + _i / 2;
    pair p;
    bool live[SLOTS] = {0};
    ssm_error err = {0};
    pair_open(&p, shape, _i % 2 ? 3 : 1);
    for (int step = 0; step < 60; step++) {
        int32_t tokens[TOKENS], n = 0, at = 0;
        ssm_segment segments[SLOTS];
        for (int32_t slot = 0; slot < 12; slot++) {
            if (below(6) == 0)
                continue;
            const bool fresh = !live[slot] || below(60) == 0;
            const int32_t count = fresh ? 1 + below(40) : below(40) == 0 ? 2 + below(20) : 1;
            segments[n++] = (ssm_segment){slot, at, count, fresh, SSM_WANT_LAST};
            for (int32_t k = 0; k < count; k++)
                tokens[at++] = below(p.cuda.vocab);
            live[slot] = true;
        }
        if (n == 0)
            continue;
        rig_step(&p.cuda, tokens, segments, n);
        rig_step(&p.reference, tokens, segments, n);
        for (int32_t i = 0; i < n; i++)
            compare(&p, rig_logits(&p.cuda, i), rig_logits(&p.reference, i), (size_t)p.cuda.vocab,
                    "logits");
        const int32_t src = segments[below(n)].slot, dst = 12 + below(4);
        compare(&p, rig_state(&p.cuda, src), rig_state(&p.reference, src), p.cuda.state_floats,
                "a state");
        if (below(4) == 0) { // out to another slot and back, in turn by each way
            const int32_t from[] = {src, dst}, to[] = {dst, src};
            for (int k = 0; k < 2; k++) {
                must(p.reference.b->slots_copy(p.reference.d, &from[k], &to[k], 1, &err), &err);
                if (k == step % 2) {
                    must(p.cuda.b->slots_copy(p.cuda.d, &from[k], &to[k], 1, &err), &err);
                    continue;
                }
                float *state = rig_state(&p.cuda, from[k]);
                must(p.cuda.b->slot_write(p.cuda.d, to[k], state, &err), &err);
                free(state);
            }
        }
    }
    printf("%-44s long runs, worst %.1e of %.1e\n", p.what, p.worst, p.tolerance);
    pair_close(&p);
}
END_TEST

// ---- traffic: admissions, cancellations, forks and restores at random

// A request is a prompt fed in pieces, then tokens one by one; they are given, so that rounding
// cannot send two runs different ways. What it comes to is its last logits.
enum { REQUESTS = 60, MOST_IDS = 90, ADMISSIONS = 10000 };

typedef struct request {
    int32_t ids[MOST_IDS], prompt, n;
    float *answer; // alone
} request;

typedef struct session {
    const request *what; // NULL: the slot is free
    int32_t done;
} session;

static void request_alone(rig *r, request *q) {
    free(feed(r, 0, q->ids, q->prompt, q->prompt));
    for (int32_t i = q->prompt; i < q->n; i++) {
        const ssm_segment s = {0, 0, 1, false, SSM_WANT_LAST};
        rig_step(r, q->ids + i, &s, 1);
    }
    q->answer = rig_logits(r, 0);
}

static int32_t free_slot(const session *sessions) {
    const int32_t first = below(SLOTS);
    for (int32_t i = 0; i < SLOTS; i++) {
        if (!sessions[(first + i) % SLOTS].what)
            return (first + i) % SLOTS;
    }
    return -1;
}

// A live session goes on in another slot: by a copy on the device, or through the host.
static void move_session(rig *r, session *sessions, int32_t from, bool keep) {
    ssm_error err = {0};
    const int32_t to = free_slot(sessions);
    if (to < 0 || !sessions[from].what || sessions[from].done == 0)
        return;
    if (below(4) == 0) {
        float *state = rig_state(r, from);
        must(r->b->slot_write(r->d, to, state, &err), &err);
        free(state);
    } else {
        must(r->b->slots_copy(r->d, &from, &to, 1, &err), &err);
    }
    sessions[to] = sessions[from];
    if (!keep)
        sessions[from].what = NULL;
}

// One step of some of the live sessions; those that end are checked and leave.
static int traffic_step(rig *r, session *sessions, double *worst) {
    int32_t tokens[TOKENS], used = 0, at = 0, slots[SLOTS];
    ssm_segment segments[SLOTS];
    for (int32_t slot = 0; slot < SLOTS; slot++) {
        session *s = &sessions[slot];
        if (!s->what || below(8) == 0)
            continue;
        const int32_t left = s->what->prompt - s->done;
        const int32_t count = left > 0 ? 1 + below(left) : 1;
        if (at + count > TOKENS)
            break;
        segments[used] = (ssm_segment){slot, at, count, s->done == 0, SSM_WANT_LAST};
        memcpy(tokens + at, s->what->ids + s->done, (size_t)count * sizeof *tokens);
        slots[used++] = slot;
        s->done += count;
        at += count;
    }
    if (used == 0)
        return 0;
    rig_step(r, tokens, segments, used);
    int ended = 0;
    for (int32_t i = 0; i < used; i++) {
        session *s = &sessions[slots[i]];
        if (s->done < s->what->n)
            continue;
        float *logits = rig_logits(r, i);
        const double off = distance(logits, s->what->answer, (size_t)r->vocab);
        ck_assert_msg(off <= 2e-5, "an answer among others is off by %g", off);
        *worst = off > *worst ? off : *worst;
        free(logits);
        s->what = NULL;
        ended++;
    }
    return ended;
}

START_TEST(traffic_changes_no_answer) {
    const int shape = _i == 0 ? 0 : 5;
    small_model m;
    rig r;
    static request requests[REQUESTS];
    session sessions[SLOTS] = {0};
    small_model_create(&m, &shapes[shape], SSM_DTYPE_F32, 31);
    rig_open(&r, "cuda", &m.weights, SSM_DTYPE_F32, SSM_DTYPE_F32);
    for (int i = 0; i < REQUESTS; i++) {
        request *q = &requests[i];
        q->prompt = 1 + below(MOST_IDS - 13), q->n = q->prompt + 1 + below(12);
        for (int32_t k = 0; k < q->n; k++)
            q->ids[k] = below(r.vocab);
        request_alone(&r, q);
    }
    int admitted = 0, ended = 0, cancelled = 0;
    double worst = 0;
    for (int live = 1; admitted < ADMISSIONS || live > 0;) {
        for (int k = below(6); k > 0 && admitted < ADMISSIONS; k--) {
            const int32_t slot = free_slot(sessions);
            if (slot < 0)
                break;
            sessions[slot] = (session){&requests[below(REQUESTS)], 0};
            admitted++;
        }
        if (below(3) == 0)
            move_session(&r, sessions, below(SLOTS), below(2));
        const int32_t victim = below(SLOTS);
        if (below(6) == 0 && sessions[victim].what) {
            sessions[victim].what = NULL;
            cancelled++;
        }
        ended += traffic_step(&r, sessions, &worst);
        live = 0;
        for (int32_t i = 0; i < SLOTS; i++)
            live += sessions[i].what != NULL;
    }
    printf("%s: %d admissions, %d answers checked, %d cancelled, worst %.1e\n", shapes[shape].name,
           admitted, ended, cancelled, worst);
    ck_assert_int_gt(ended, ADMISSIONS / 2);
    for (int i = 0; i < REQUESTS; i++)
        free(requests[i].answer);
    rig_close(&r);
    small_model_free(&m);
}
END_TEST

// ---- sampling

static void random_logits(float *logits, int32_t n) {
    const double spread = 0.2 + 6 * small_uniform(&random_state);
    const bool coarse = below(4) == 0;
    for (int32_t i = 0; i < n; i++) {
        double u = -2;
        for (int k = 0; k < 4; k++)
            u += small_uniform(&random_state);
        logits[i] = (float)(coarse ? round(u * spread) : u * spread);
    }
}

static void random_sampling(ssm_sampling *p, int32_t n) {
    const float temperatures[] = {0, 0.2f, 0.7f, 1, 1.5f, 2};
    *p = (ssm_sampling){
        .temperature = temperatures[below(6)], .top_p = 1, .typical_p = 1, .repetition_penalty = 1};
    if (below(2))
        p->top_k = 1 + below(below(2) ? 50 : n + 5);
    if (below(2))
        p->top_p = below(8) == 0 ? 0 : (float)small_uniform(&random_state);
    if (below(3) == 0)
        p->min_p = (float)(0.3 * small_uniform(&random_state));
    if (below(4) == 0)
        p->typical_p = (float)(0.05 + 0.95 * small_uniform(&random_state));
    if (below(2)) {
        p->repetition_penalty = (float)(0.7 + small_uniform(&random_state));
        p->frequency_penalty = (float)(small_uniform(&random_state) - 0.5);
        p->presence_penalty = (float)(small_uniform(&random_state) - 0.5);
    }
}

enum { LISTS = 24 };
typedef struct wish { // one sample's parameters and lists
    ssm_sampling params;
    ssm_logit_bias bias[LISTS];
    int32_t banned[LISTS], allowed[LISTS];
    ssm_token_count counts[LISTS];
} wish;

static void random_sample(ssm_sample *s, wish *w, int32_t row, int32_t vocab) {
    random_sampling(&w->params, vocab);
    *s = (ssm_sample){.row = row,
                      .slot = row % SLOTS,
                      .target = below(6) == 0 ? below(vocab) : -1,
                      .n_top = below(SSM_MAX_LOGPROBS + 2) - 1,
                      .seed = (uint64_t)below(1 << 30) << 31 | (uint64_t)below(1 << 30),
                      .position = (uint64_t)below(1000),
                      .params = &w->params,
                      .banned = w->banned,
                      .counts = w->counts};
    w->params.bias = w->bias, w->params.allowed = w->allowed;
    w->params.n_bias = below(2) ? below(LISTS) : 0;
    w->params.n_allowed = below(6) == 0 ? 1 + below(LISTS - 1) : 0;
    s->n_banned = below(2) ? below(LISTS) : 0;
    s->n_counts = below(2) ? LISTS : 0;
    for (int i = 0; i < LISTS; i++) {
        w->bias[i] = (ssm_logit_bias){below(vocab), (float)(4 * small_uniform(&random_state) - 2)};
        w->banned[i] = below(vocab);
        w->allowed[i] = below(vocab);
        w->counts[i] = (ssm_token_count){i * (vocab / LISTS), below(4), below(2)};
    }
}

static bool same_draw(const ssm_sampled *a, const ssm_sampled *b) {
    bool same = a->token == b->token && a->n_top == b->n_top &&
                (fabs((double)a->logprob - (double)b->logprob) <= 1e-4 ||
                 (isnan(a->logprob) && isnan(b->logprob)) || a->logprob == b->logprob);
    for (int i = 0; i < a->n_top && same; i++)
        same = a->top_ids[i] == b->top_ids[i] &&
               fabs((double)a->top_logprobs[i] - (double)b->top_logprobs[i]) <= 1e-4;
    return same;
}

// Where the two sums differ by rounding, a draw at a boundary may fall on either side: one in
// hundreds is allowed to.
START_TEST(draws_are_the_reference_samplers) {
    pair p;
    ssm_error err = {0};
    pair_open(&p, _i, 0);
    int different = 0, drawn = 0;
    for (int round = 0; round < 6; round++) {
        static wish wishes[ROWS];
        ssm_sample samples[ROWS];
        static ssm_sampled a[ROWS], b[ROWS];
        const int32_t n = round == 0 ? 1 : 1 + below(ROWS);
        float *logits = malloc((size_t)p.cuda.vocab * sizeof *logits);
        for (int32_t i = 0; i < n; i++) {
            random_logits(logits, p.cuda.vocab);
            if (below(30) == 0)
                logits[below(p.cuda.vocab)] = NAN;
            must(p.cuda.b->logits_write(p.cuda.d, i, logits, &err), &err);
            must(p.reference.b->logits_write(p.reference.d, i, logits, &err), &err);
            random_sample(&samples[i], &wishes[i], i, p.cuda.vocab);
        }
        must(p.cuda.b->sample(p.cuda.d, samples, n, &err), &err);
        must(p.reference.b->sample(p.reference.d, samples, n, &err), &err);
        must(p.cuda.b->collect(p.cuda.d, a, n, &err), &err);
        must(p.reference.b->collect(p.reference.d, b, n, &err), &err);
        for (int32_t i = 0; i < n; i++, drawn++) {
            if (same_draw(&a[i], &b[i]))
                continue;
            const ssm_sampling *w = &wishes[i].params;
            printf(
                "  draw differs: %d (%g) for %d (%g), top %d for %d: t %g k %d p %g m %g typ %g\n",
                a[i].token, (double)a[i].logprob, b[i].token, (double)b[i].logprob, a[i].n_top,
                b[i].n_top, (double)w->temperature, w->top_k, (double)w->top_p, (double)w->min_p,
                (double)w->typical_p);
            different++;
        }
        free(logits);
    }
    ck_assert_msg(different * 200 <= drawn + 199, "%s: %d of %d draws differ", p.what, different,
                  drawn);
    pair_close(&p);
}
END_TEST

// Several steps ahead of the host, each fed by what the one before drew, are the same steps.
START_TEST(running_ahead_draws_the_same) {
    small_model m;
    rig r;
    ssm_error err = {0};
    enum { N = 5, STEPS = 12 };
    int32_t ids[2][STEPS][N];
    small_model_create(&m, &shapes[_i], SSM_DTYPE_BF16, 6);
    rig_open(&r, "cuda", &m.weights, SSM_DTYPE_BF16, SSM_DTYPE_F32);
    const ssm_sampling params = {
        .temperature = 1, .top_p = 0.95f, .typical_p = 1, .repetition_penalty = 1};
    for (int ahead = 0; ahead < 2; ahead++) {
        int32_t tokens[N], collected = 0;
        for (int step = 0; step < STEPS; step++) {
            ssm_segment segments[N];
            ssm_sample samples[N];
            ssm_sampled out[N];
            for (int i = 0; i < N; i++) {
                if (step == 0)
                    tokens[i] = 10 + i;
                else
                    tokens[i] = ahead ? SSM_TOKEN_SAMPLED : ids[0][step - 1][i];
                segments[i] = (ssm_segment){7 * i + ahead, i, 1, step == 0, SSM_WANT_LAST};
                samples[i] = (ssm_sample){.row = i,
                                          .slot = segments[i].slot,
                                          .target = -1,
                                          .n_top = -1,
                                          .seed = 100 + (uint64_t)i,
                                          .position = (uint64_t)step,
                                          .params = &params};
            }
            rig_step(&r, tokens, segments, N);
            must(r.b->sample(r.d, samples, N, &err), &err);
            if (ahead && step < 2)
                continue;
            must(r.b->collect(r.d, out, N, &err), &err);
            for (int i = 0; i < N; i++)
                ids[ahead][collected][i] = out[i].token;
            collected++;
        }
        for (; collected < STEPS; collected++) {
            ssm_sampled out[N];
            must(r.b->collect(r.d, out, N, &err), &err);
            for (int i = 0; i < N; i++)
                ids[ahead][collected][i] = out[i].token;
        }
    }
    ck_assert_int_eq(memcmp(ids[0], ids[1], sizeof ids[0]), 0);
    rig_close(&r);
    small_model_free(&m);
}
END_TEST

// ---- limits

START_TEST(too_many_sessions_say_how_many_would_fit) {
    small_model m;
    ssm_error err = {0};
    ssm_device *d = NULL;
    small_model_create(&m, &shapes[5], SSM_DTYPE_BF16, 1);
    const ssm_backend *b = ssm_backend_find("cuda");
    ssm_device_options o = {.n_slots = 100000000, .max_rows = 64, .max_tokens = 64};
    ck_assert_int_eq(b->open(&m.weights, &o, &d, &err), SSM_ENOMEM);
    ck_assert_msg(strstr(err.message, " would") != NULL, "%s", err.message);
    o.n_slots = 0;
    ck_assert_int_eq(b->open(&m.weights, &o, &d, &err), 0);
    ssm_device_info info;
    b->info(d, &info);
    ck_assert_int_gt(info.n_slots, 64);
    b->close(d);
    o.index = 99;
    ck_assert_int_eq(b->open(&m.weights, &o, &d, &err), SSM_EINVAL);
    o.index = 0;
    o.state_dtype = SSM_DTYPE_BF16;
    ck_assert_int_eq(b->open(&m.weights, &o, &d, &err), SSM_EUNSUPPORTED);
    small_model_free(&m);
}
END_TEST

static bool device_usable(char *why, size_t size) {
    small_model m;
    ssm_error err = {0};
    ssm_device *d = NULL;
    const ssm_backend *b = ssm_backend_find("cuda");
    if (!b) {
        snprintf(why, size, "the CUDA backend is not built in");
        return false;
    }
    small_model_create(&m, &shapes[1], SSM_DTYPE_F32, 1);
    const ssm_device_options o = {.n_slots = 1, .max_rows = 1, .max_tokens = 1};
    const int rc = b->open(&m.weights, &o, &d, &err);
    snprintf(why, size, "%s", err.message);
    if (rc == 0)
        b->close(d);
    small_model_free(&m);
    return rc == 0;
}

int main(int argc, char **argv) {
    char why[512];
    if (!device_usable(why, sizeof why)) {
        const bool expected = getenv("SSM_EXPECT_CUDA") != NULL;
        printf("%s: %s\n", expected ? "FAILED" : "skipped", why);
        return expected ? EXIT_FAILURE : 77;
    }
    setvbuf(stdout, NULL, _IOLBF, 0);
    Suite *suite = suite_create("cuda");
    TCase *tc = tcase_create("device"), *prompts = tcase_create("prompts");
    tcase_set_timeout(tc, 0);
    TCase *states = tcase_create("states"); // CK_RUN_CASE=states: these alone
    tcase_set_timeout(states, 0);
    tcase_set_timeout(prompts, 0);
    if (argc > 1 && strcmp(argv[1], "few") == 0) { // what few.cu can break, no more
        const int one = argc > 2 ? atoi(argv[2]) : -1;
        tcase_add_loop_test(tc, few_rows_of_published_widths_agree, one < 0 ? 0 : one,
                            one < 0 ? N_PUBLISHED : one + 1);
        if (one >= 0)
            goto run;
        tcase_add_loop_test(tc, a_row_does_not_see_its_neighbours, 0, N_SHAPES);
        tcase_add_loop_test(tc, poison_stays_where_it_is, 0, N_SHAPES);
        tcase_add_loop_test(tc, running_ahead_draws_the_same, 0, N_SHAPES);
        goto run;
    }
    if (argc > 1 && strcmp(argv[1], "race") == 0) { // racecheck: hundreds of times slower
        tcase_add_loop_test(tc, poison_stays_where_it_is, 0, 1);
        tcase_add_loop_test(tc, poison_stays_where_it_is, 5, 6);
        goto run;
    }
    if (argc > 1 && strcmp(argv[1], "quick") == 0) { // under a sanitizer: bf16, both kinds
        tcase_add_loop_test(tc, random_plans_agree_with_the_reference, 1, 2);
        tcase_add_loop_test(tc, random_plans_agree_with_the_reference, 5 * N_FORMATS + 3,
                            5 * N_FORMATS + 4);
        tcase_add_loop_test(tc, poison_stays_where_it_is, 0, 1);
        tcase_add_loop_test(tc, any_schedule_of_writes_gives_the_same_state, 0, 2);
        tcase_add_loop_test(tc, draws_are_the_reference_samplers, 1, 2);
        goto run;
    }
    tcase_add_loop_test(tc, random_plans_agree_with_the_reference, 0, N_SHAPES * N_FORMATS);
    tcase_add_loop_test(tc, many_rows_agree_with_the_reference, 0, 2 * N_WIDE);
    tcase_add_loop_test(tc, many_rows_twice_are_the_same_bits, 0, N_WIDE);
    tcase_add_loop_test(tc, whole_chunked_and_token_by_token_agree, 0, N_SHAPES);
    tcase_add_loop_test(tc, a_row_does_not_see_its_neighbours, 0, N_SHAPES);
    tcase_add_loop_test(tc, few_rows_of_published_widths_agree, 0, N_PUBLISHED);
    tcase_add_loop_test(states, poison_stays_where_it_is, 0, N_SHAPES);
    tcase_add_loop_test(states, forks_and_snapshots_go_on_as_their_source, 0, N_SHAPES);
    tcase_add_loop_test(states, copies_beside_steps_keep_their_order, 0, N_SHAPES);
    tcase_add_loop_test(states, any_schedule_of_writes_gives_the_same_state, 0, 4);
    tcase_add_loop_test(states, forks_at_any_phase_go_on_as_their_source, 0, N_SHAPES);
    tcase_add_loop_test(states, many_rows_and_few_take_turns, 2 * 6, 2 * 8); // Mamba-2's
    tcase_add_loop_test(states, long_runs_agree_with_the_reference, 0, 6);
    tcase_add_loop_test(states, traffic_changes_no_answer, 0, 2);
    tcase_add_loop_test(tc, draws_are_the_reference_samplers, 0, 4);
    tcase_add_loop_test(tc, running_ahead_draws_the_same, 0, N_SHAPES);
    tcase_add_test(tc, too_many_sessions_say_how_many_would_fit);
    tcase_add_loop_test(prompts, long_prompts_agree_with_the_reference, 0, 7);
run:
    suite_add_tcase(suite, tc);
    suite_add_tcase(suite, states);
    suite_add_tcase(suite, prompts);
    SRunner *sr = srunner_create(suite);
    srunner_set_fork_status(sr, CK_NOFORK);
    srunner_run_all(sr, CK_NORMAL);
    const int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
