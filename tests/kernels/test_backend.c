// SPDX-License-Identifier: Apache-2.0
// Whole backends on small random models of odd geometries: the CPU's kernels of every instruction
// set against the reference, and the promise of backend.h that a sequence's logits and state are
// the same bits alone and in company, in one piece and in any, on any number of threads.
#include <stdio.h>

#include "kernels/backend.h"
#include "kernels/cpu/kernels.h"
#include "random_model.h"
#include "tests/suite.h"

static const random_shape shapes[] = {
    {"odd mamba", SSM_BLOCK_MAMBA, 2, 65, 130, 16, 4, 5, 0, 0, 17, true, false, false,
     SSM_DTYPE_F32, 0},
    {"mamba n8 k3", SSM_BLOCK_MAMBA, 3, 48, 144, 8, 3, 3, 0, 0, 101, false, false, false,
     SSM_DTYPE_BF16, 0},
    {"falcon n32 k2", SSM_BLOCK_MAMBA, 2, 64, 128, 32, 2, 8, 0, 0, 65, false, true, true,
     SSM_DTYPE_F16, 0},
    {"mamba n3 k8", SSM_BLOCK_MAMBA, 1, 33, 99, 3, 8, 40, 0, 0, 300, true, true, false,
     SSM_DTYPE_BF16, 0},
    {"mamba one channel", SSM_BLOCK_MAMBA, 1, 1, 1, 1, 4, 1, 0, 0, 2, true, false, false,
     SSM_DTYPE_F32, 0},
    {"mamba2", SSM_BLOCK_MAMBA2, 2, 64, 128, 128, 4, 0, 64, 1, 257, true, false, false,
     SSM_DTYPE_BF16, 0},
    {"mamba2 g2 n8", SSM_BLOCK_MAMBA2, 2, 65, 192, 8, 3, 0, 24, 2, 97, false, true, false,
     SSM_DTYPE_F32, 0.5f},
    {"mamba2 g8 n33 mixed lanes", SSM_BLOCK_MAMBA2, 2, 40, 120, 33, 4, 0, 5, 8, 50, false, false,
     false, SSM_DTYPE_F16, 0},
    {"mamba2 g3 n20", SSM_BLOCK_MAMBA2, 2, 32, 96, 20, 5, 0, 16, 3, 64, true, true, false,
     SSM_DTYPE_BF16, 0.1f},
};
enum { N_SHAPES = sizeof shapes / sizeof shapes[0], LENGTH = 210, SLOTS = 8 };

// TSan looks at threads: the reference and what one thread does in pieces are no question of it
// (the formats run there in the tests of the same bits), and who else is in a step little of one.
#if defined(__SANITIZE_THREAD__)
enum { N_FORMATS = 0, N_PIECES = 0, N_COMPANIES = 1 };
#else
enum { N_FORMATS = 7, N_PIECES = 6, N_COMPANIES = 3 };
#endif

#ifdef __aarch64__
static const char *const isas[] = {"neon", "avx2", "avx512", "avx512vnni", "avx512bf16"};
#else
static const char *const isas[] = {"portable", "avx2", "avx512", "avx512vnni", "avx512bf16"};
#endif
enum { N_ISAS = 5 };

static bool is_here(const char *isa) {
    const cpu_kernels *kernels = cpu_kernels_choose(isa);
    return kernels && strcmp(kernels->name, isa) == 0;
}

static ssm_device *open_on(const char *backend, const random_model *m, ssm_device_options o) {
    ssm_device *d = NULL;
    ssm_error err = {0};
    o.n_slots = SLOTS;
    o.max_tokens = o.max_tokens ? o.max_tokens : 2 * LENGTH;
    o.max_rows = 2 * LENGTH;
    const int rc = ssm_backend_find(backend)->open(&m->weights, &o, &d, &err);
    ck_assert_msg(rc == 0, "%s", err.message);
    return d;
}

static ssm_device *open_isa(const char *isa, const random_model *m, ssm_device_options o) {
    setenv("SSM_CPU_ISA", isa, 1);
    ssm_device *d = open_on("cpu", m, o);
    unsetenv("SSM_CPU_ISA");
    return d;
}

static void close_on(ssm_device *d) {
    d->backend->close(d);
}

static void fill_tokens(int32_t *tokens, int n, int32_t vocab, uint64_t seed) {
    random_model r = {.state = seed};
    for (int i = 0; i < n; i++)
        tokens[i] = (int32_t)((random_unit(&r) * 0.5 + 0.5) * vocab) % vocab;
}

static size_t state_floats(const random_model *m) {
    return ssm_state_conv_floats(&m->weights.geometry) + ssm_state_ssm_floats(&m->weights.geometry);
}

// Runs tokens in pieces of `piece` through a slot; logits [n][vocab] of every token.
static void run_pieces(ssm_device *d, int32_t slot, const int32_t *tokens, int32_t n, int32_t piece,
                       int32_t vocab, float *logits) {
    for (int32_t done = 0; done < n;) {
        const int32_t count = n - done < piece ? n - done : piece;
        const ssm_segment segment = {slot, 0, count, done == 0, SSM_WANT_ALL};
        const ssm_plan plan = {tokens + done, count, &segment, 1};
        ck_assert_int_eq(d->backend->step(d, &plan, NULL), 0);
        for (int32_t row = 0; row < count; row++)
            d->backend->logits_read(d, row, logits + (size_t)(done + row) * (size_t)vocab, NULL);
        done += count;
    }
}

static double distance(const float *a, const float *b, size_t n) {
    double d = 0, norm = 0;
    for (size_t i = 0; i < n; i++) {
        d += ((double)a[i] - (double)b[i]) * ((double)a[i] - (double)b[i]);
        norm += (double)b[i] * (double)b[i];
    }
    return sqrt(d / (norm > 0 ? norm : 1));
}

// One run of LENGTH tokens: logits of all and the state after them.
typedef struct answer {
    size_t n_logits, n_state;
    float *logits, *state;
} answer;

static answer answer_create(const random_model *m) {
    answer a = {.n_logits = (size_t)LENGTH * (size_t)m->weights.geometry.vocab_size,
                .n_state = state_floats(m)};
    a.logits = calloc(a.n_logits, sizeof *a.logits);
    a.state = calloc(a.n_state, sizeof *a.state);
    return a;
}

static void answer_free(answer *a) {
    free(a->logits);
    free(a->state);
}

static answer answer_of(ssm_device *d, const random_model *m, int32_t slot, int32_t piece) {
    answer a = answer_create(m);
    int32_t tokens[LENGTH];
    const int32_t vocab = m->weights.geometry.vocab_size;
    fill_tokens(tokens, LENGTH, vocab, 5);
    run_pieces(d, slot, tokens, LENGTH, piece, vocab, a.logits);
    d->backend->slot_read(d, slot, a.state, NULL);
    return a;
}

static void check_same(const answer *a, const answer *b, const char *what, const char *shape) {
    ck_assert_msg(memcmp(a->logits, b->logits, a->n_logits * sizeof(float)) == 0,
                  "%s: logits differ (%s)", shape, what);
    ck_assert_msg(memcmp(a->state, b->state, a->n_state * sizeof(float)) == 0,
                  "%s: states differ (%s)", shape, what);
}

// ---- against the reference

static answer reference_answer(const random_model *m) {
    ssm_device *reference = open_on("reference", m, (ssm_device_options){0});
    answer a = answer_of(reference, m, 0, LENGTH);
    close_on(reference);
    return a;
}

static void check_near(const answer *want, const random_model *m, const random_shape *shape,
                       const char *isa, ssm_device_options o, double logits_bound,
                       double state_bound) {
    ssm_device *device = open_isa(isa, m, o);
    answer got = answer_of(device, m, 3, LENGTH);
    const double e = distance(got.logits, want->logits, want->n_logits);
    const double s = distance(got.state, want->state, want->n_state);
    if (getenv("SSM_TEST_PRINT"))
        printf("%-26s %-11s logits %.2e state %.2e\n", shape->name, isa, e, s);
    ck_assert_msg(e <= logits_bound, "%s on %s: logits off by %g", shape->name, isa, e);
    ck_assert_msg(s <= state_bound, "%s on %s: states off by %g", shape->name, isa, s);
    answer_free(&got);
    close_on(device);
}

START_TEST(fp32_is_near_the_reference) {
    const char *isa = isas[_i / N_SHAPES];
    const random_shape *shape = &shapes[_i % N_SHAPES];
    random_model m;
    if (!is_here(isa))
        return;
    random_model_init(&m, shape, 1);
    answer want = reference_answer(&m);
    check_near(&want, &m, shape, isa, (ssm_device_options){.threads = 2}, 1e-5, 1e-5);
    answer_free(&want);
    random_model_dispose(&m);
}
END_TEST

// The formats' own errors, not the kernels': loose bounds that still catch a wrong scale or sum.
START_TEST(other_formats_are_near_the_reference) {
    const char *isa = isas[_i / N_SHAPES];
    const random_shape *shape = &shapes[_i % N_SHAPES];
    if (!is_here(isa) || shape->d_model == 1 || N_FORMATS == 0)
        return;
    const struct {
        ssm_dtype weights, activations;
        double bound;
    } formats[] = {{SSM_DTYPE_F16, SSM_DTYPE_AUTO, 0.02},  {SSM_DTYPE_BF16, SSM_DTYPE_AUTO, 0.1},
                   {SSM_DTYPE_BF16, SSM_DTYPE_BF16, 0.15}, {SSM_DTYPE_INT8, SSM_DTYPE_AUTO, 0.1},
                   {SSM_DTYPE_INT4, SSM_DTYPE_AUTO, 0.7},  {SSM_DTYPE_INT5, SSM_DTYPE_AUTO, 0.35},
                   {SSM_DTYPE_INT6, SSM_DTYPE_AUTO, 0.2}};
    random_model m;
    random_model_init(&m, shape, 1);
    answer want = reference_answer(&m);
    for (int i = 0; i < N_FORMATS; i++) {
        check_near(&want, &m, shape, isa,
                   (ssm_device_options){.threads = 2,
                                        .weight_dtype = formats[i].weights,
                                        .activation_dtype = formats[i].activations},
                   formats[i].bound, 1);
    }
    answer_free(&want);
    random_model_dispose(&m);
}
END_TEST

// ---- the same bits

static const ssm_device_options option_sets[] = {
    {0},
    {.weight_dtype = SSM_DTYPE_BF16},
    {.weight_dtype = SSM_DTYPE_BF16, .activation_dtype = SSM_DTYPE_BF16},
    {.weight_dtype = SSM_DTYPE_INT8},
    {.weight_dtype = SSM_DTYPE_INT4},
    {.weight_dtype = SSM_DTYPE_INT6},
};
enum { N_OPTIONS = sizeof option_sets / sizeof option_sets[0] };

START_TEST(pieces_and_threads_do_not_matter) {
    const char *isa = isas[_i / N_SHAPES];
    const random_shape *shape = &shapes[_i % N_SHAPES];
    if (!is_here(isa))
        return;
    random_model m;
    random_model_init(&m, shape, 2);
    for (int i = 0; i < N_OPTIONS; i++) {
        ssm_device_options o = option_sets[i];
        o.threads = 1;
        ssm_device *d = open_isa(isa, &m, o);
        answer whole = answer_of(d, &m, 0, LENGTH);
        const int32_t pieces[] = {1, 3, 7, 64, 65, LENGTH - 1};
        for (int p = 0; p < N_PIECES; p++) {
            answer other = answer_of(d, &m, 1 + p, pieces[p]);
            check_same(&whole, &other, "pieces", shape->name);
            answer_free(&other);
        }
        close_on(d);
        for (o.threads = 2; o.threads <= 5; o.threads += 3) {
            d = open_isa(isa, &m, o);
            for (int32_t piece = 9; piece <= LENGTH; piece += LENGTH - 9) {
                answer other = answer_of(d, &m, 0, piece);
                check_same(&whole, &other, "threads", shape->name);
                answer_free(&other);
            }
            close_on(d);
        }
        answer_free(&whole);
    }
    random_model_dispose(&m);
}
END_TEST

// The sequence of answer_of in slot 4, a random piece a step, beside up to four others.
static answer answer_in_company(ssm_device *d, const random_model *m, uint64_t seed) {
    answer a = answer_create(m);
    const int32_t vocab = m->weights.geometry.vocab_size;
    random_model r = {.state = seed};
    int32_t mine[LENGTH], others[LENGTH], tokens[2 * LENGTH];
    bool begun[SLOTS] = {0};
    fill_tokens(mine, LENGTH, vocab, 5);
    fill_tokens(others, LENGTH, vocab, seed);
    for (int32_t done = 0; done < LENGTH;) {
        ssm_segment segments[SLOTS];
        int32_t n = 0, at = 0, row = -1, rows = 0;
        const int n_others = (int)((random_unit(&r) + 1) * 2.5), place = n_others / 2;
        int32_t count = 1 + (int32_t)((random_unit(&r) + 1) * 8);
        count = count < LENGTH - done ? count : LENGTH - done;
        for (int i = 0; i <= n_others; i++) {
            const bool is_mine = i == place;
            const int32_t slot = is_mine ? 4 : i < place ? i : 4 + i - place;
            const int32_t len = is_mine ? count : 1 + (int32_t)((random_unit(&r) + 1) * 10);
            const bool fresh = is_mine ? done == 0 : !begun[slot];
            if (is_mine)
                row = rows;
            memcpy(tokens + at, is_mine ? mine + done : others + slot, (size_t)len * 4);
            segments[n++] = (ssm_segment){slot, at, len, fresh, SSM_WANT_ALL};
            begun[slot] = true;
            at += len;
            rows += len;
        }
        const ssm_plan plan = {tokens, at, segments, n};
        ck_assert_int_eq(d->backend->step(d, &plan, NULL), 0);
        for (int32_t i = 0; i < count; i++)
            d->backend->logits_read(d, row + i, a.logits + (size_t)(done + i) * (size_t)vocab,
                                    NULL);
        done += count;
    }
    d->backend->slot_read(d, 4, a.state, NULL);
    return a;
}

START_TEST(company_does_not_matter) {
    const char *isa = isas[_i / N_SHAPES];
    const random_shape *shape = &shapes[_i % N_SHAPES];
    if (!is_here(isa))
        return;
    random_model m;
    random_model_init(&m, shape, 3);
    for (int i = 0; i < N_OPTIONS; i++) {
        ssm_device_options o = option_sets[i];
        o.threads = 2;
        ssm_device *d = open_isa(isa, &m, o);
        answer alone = answer_of(d, &m, 0, LENGTH);
        for (uint64_t seed = 10; seed < 10 + N_COMPANIES; seed++) {
            answer other = answer_in_company(d, &m, seed);
            check_same(&alone, &other, "company", shape->name);
            answer_free(&other);
        }
        answer_free(&alone);
        close_on(d);
    }
    random_model_dispose(&m);
}
END_TEST

// ---- slots

static void check_slots(const char *backend, const random_shape *shape) {
    random_model m;
    random_model_init(&m, shape, 4);
    ssm_device *d = open_on(backend, &m, (ssm_device_options){.threads = 2});
    const int32_t vocab = m.weights.geometry.vocab_size;
    const size_t n = state_floats(&m);
    float *poison = malloc(n * sizeof *poison), *state = malloc(n * sizeof *state);
    for (size_t i = 0; i < n; i++)
        poison[i] = NAN;
    answer clean = answer_of(d, &m, 0, 50);
    d->backend->slot_write(d, 1, poison, NULL); // a freed slot holds anything: fresh must not read
    answer again = answer_of(d, &m, 1, 50);
    check_same(&clean, &again, "poisoned slot", shape->name);
    answer_free(&again);

    int32_t tokens[LENGTH];
    float *logits = malloc((size_t)LENGTH * (size_t)vocab * sizeof *logits);
    fill_tokens(tokens, LENGTH, vocab, 5);
    run_pieces(d, 2, tokens, 60, 60, vocab, logits);
    d->backend->slot_read(d, 2, state, NULL);
    d->backend->slot_write(d, 3, poison, NULL);
    d->backend->slot_write(d, 3, state, NULL);
    d->backend->slots_copy(d, (int32_t[]){3}, (int32_t[]){5}, 1, NULL);
    for (int32_t slot = 2; slot <= 5; slot++) { // the rest of the prompt from each copy
        if (slot == 4)
            continue;
        const ssm_segment segment = {slot, 0, LENGTH - 60, false, SSM_WANT_ALL};
        const ssm_plan plan = {tokens + 60, LENGTH - 60, &segment, 1};
        d->backend->step(d, &plan, NULL);
        for (int32_t row = 0; row < LENGTH - 60; row++)
            d->backend->logits_read(d, row, logits + (size_t)row * (size_t)vocab, NULL);
        ck_assert_mem_eq(logits, clean.logits + (size_t)60 * (size_t)vocab,
                         (size_t)(LENGTH - 60) * (size_t)vocab * sizeof *logits);
        d->backend->slot_read(d, slot, state, NULL);
        ck_assert_mem_eq(state, clean.state, n * sizeof *state);
    }
    free(logits);
    free(poison);
    free(state);
    answer_free(&clean);
    close_on(d);
    random_model_dispose(&m);
}

START_TEST(slots_move_without_a_trace) {
    check_slots(_i < N_SHAPES ? "reference" : "cpu", &shapes[_i % N_SHAPES]);
}
END_TEST

// ---- logits that are kept

// Every row that a step can have is written, on both sides of the kept ones.
static void run_full_step(ssm_device *d, int32_t vocab) {
    int32_t tokens[2 * LENGTH];
    const ssm_segment two[2] = {{5, 0, LENGTH, true, SSM_WANT_ALL},
                                {6, LENGTH, LENGTH, true, SSM_WANT_ALL}};
    const ssm_plan plan = {tokens, 2 * LENGTH, two, 2};
    fill_tokens(tokens, 2 * LENGTH, vocab, 9);
    ck_assert_int_eq(d->backend->step(d, &plan, NULL), 0);
}

static int32_t kept_for(const char *backend, const random_model *m, int32_t asked) {
    ssm_device *d = open_on(backend, m, (ssm_device_options){.threads = 1, .kept_rows = asked});
    ssm_device_info info;
    d->backend->info(d, &info);
    close_on(d);
    return info.kept_rows;
}

START_TEST(kept_logits_stay_as_they_are) {
    enum { SLOT = 1, ROW = 7, OTHER_SLOT = 4, VOCAB = 17 };
    const char *name = _i == 0 ? "reference" : "cpu";
    random_model m;
    random_model_init(&m, &shapes[0], 6);
    ssm_device *d = open_on(name, &m, (ssm_device_options){.threads = 2, .kept_rows = 3});
    const ssm_backend *b = d->backend;
    const size_t n = state_floats(&m);
    ssm_device_info info;
    b->info(d, &info);
    ck_assert_int_ge(info.max_rows, 2 * LENGTH);
    const int32_t row = ROW, first = info.max_rows, last = info.max_rows + 2;
    float *image = malloc((n + VOCAB) * sizeof *image), *state = malloc(n * sizeof *state);
    float want[VOCAB], got[VOCAB];
    uint64_t ticket;
    answer whole = answer_of(d, &m, SLOT, LENGTH);
    ck_assert_uint_eq(d->state_floats, n);
    b->logits_read(d, ROW, want, NULL);
    ck_assert_int_eq(b->logits_copy(d, &row, &first, 1, NULL), 0);
    run_full_step(d, m.weights.geometry.vocab_size);
    b->logits_read(d, first, got, NULL);
    ck_assert_mem_eq(got, want, sizeof want);
    ck_assert_int_eq(ssm_slot_export(b, d, SLOT, first, image, &ticket, NULL), 0);
    ck_assert_int_eq(ssm_ticket_wait(b, d, ticket, NULL), 0);
    b->slot_read(d, SLOT, state, NULL);
    ck_assert_mem_eq(image, state, n * sizeof *state);
    ck_assert_mem_eq(image + n, want, sizeof want);
    ck_assert_int_eq(ssm_slot_import(b, d, OTHER_SLOT, last, image, 0, &ticket, NULL), 0);
    run_full_step(d, m.weights.geometry.vocab_size);
    ck_assert_int_eq(b->logits_copy(d, &last, &row, 1, NULL), 0);
    b->logits_read(d, ROW, got, NULL);
    ck_assert_mem_eq(got, want, sizeof want);
    b->slot_read(d, OTHER_SLOT, state, NULL);
    ck_assert_mem_eq(image, state, n * sizeof *state);
    close_on(d);
    ck_assert_int_eq(kept_for(name, &m, 0), 0);
    ck_assert_int_eq(kept_for(name, &m, 3), 3);
    ck_assert_int_eq(kept_for(name, &m, 1000), SLOTS);
    ck_assert_int_eq(kept_for(name, &m, -1), 4);
    answer_free(&whole);
    free(image);
    free(state);
    random_model_dispose(&m);
}
END_TEST

// ---- draws

static void check_draws(const char *backend) {
    random_model m;
    random_model_init(&m, &shapes[0], 6);
    ssm_device *d = open_on(backend, &m, (ssm_device_options){.threads = 2, .vocab_limit = 15});
    ssm_sampling params = {.temperature = 0, .top_p = 1, .typical_p = 1, .repetition_penalty = 1};
    const int32_t prompt[3] = {1, 2, 3}, drawn_token = SSM_TOKEN_SAMPLED;
    ssm_segment segment = {1, 0, 3, true, SSM_WANT_LAST};
    ssm_plan plan = {prompt, 3, &segment, 1};
    ck_assert_int_eq(d->backend->step(d, &plan, NULL), 0);
    float logits[17];
    d->backend->logits_read(d, 0, logits, NULL);
    int32_t best = 0;
    for (int32_t i = 1; i < 15; i++)
        best = logits[i] > logits[best] ? i : best;
    ssm_sample s = {.slot = 1, .target = -1, .n_top = 2, .params = &params};
    ck_assert_int_eq(d->backend->sample(d, &s, 1, NULL), 0);
    ssm_sampled out[2];
    ck_assert_int_eq(d->backend->collect(d, out, 2, NULL), SSM_EINVAL);
    segment = (ssm_segment){1, 0, 1, false, SSM_WANT_LAST}; // runs ahead of collect
    plan = (ssm_plan){&drawn_token, 1, &segment, 1};
    ck_assert_int_eq(d->backend->step(d, &plan, NULL), 0);
    d->backend->logits_read(d, 0, logits, NULL);
    ck_assert_int_eq(d->backend->collect(d, out, 1, NULL), 0);
    ck_assert_int_eq(out[0].token, best);
    ck_assert_int_eq(out[0].top_ids[0], best);
    float want[17];
    const int32_t all[4] = {1, 2, 3, best};
    segment = (ssm_segment){2, 0, 4, true, SSM_WANT_LAST};
    plan = (ssm_plan){all, 4, &segment, 1};
    d->backend->step(d, &plan, NULL);
    d->backend->logits_read(d, 0, want, NULL);
    ck_assert_mem_eq(logits, want, sizeof want);
    want[3] = NAN;
    d->backend->logits_write(d, 1, want, NULL);
    const ssm_sample two[2] = {{.row = 0, .slot = 2, .target = -1, .n_top = 0, .params = &params},
                               {.row = 1, .slot = 1, .target = -1, .n_top = 0, .params = &params}};
    ck_assert_int_eq(d->backend->sample(d, two, 2, NULL), 0);
    ck_assert_int_eq(d->backend->collect(d, out, 2, NULL), 0);
    ck_assert_int_ge(out[0].token, 0);
    ck_assert_int_eq(out[1].token, -1);
    close_on(d);
    random_model_dispose(&m);
}

START_TEST(draws_follow_their_slots) {
    check_draws(_i == 0 ? "reference" : "cpu");
}
END_TEST

START_TEST(what_does_not_go_is_refused_by_name) {
    random_model m;
    random_model_init(&m, &shapes[0], 7); // f32
    const ssm_device_options bad[] = {{.activation_dtype = SSM_DTYPE_BF16},
                                      {.activation_dtype = SSM_DTYPE_F16},
                                      {.state_dtype = SSM_DTYPE_BF16}};
    const char *const names[] = {"activation_dtype", "activation_dtype", "state_dtype"};
    for (int i = 0; i < 3; i++) {
        ssm_device *d = NULL;
        ssm_error err = {0};
        ck_assert_int_eq(ssm_backend_cpu.open(&m.weights, &bad[i], &d, &err), SSM_EUNSUPPORTED);
        ck_assert_str_eq(err.param, names[i]);
    }
    random_model_dispose(&m);
}
END_TEST

// Which instruction sets a test runs on: all of them, but sanitized builds, ten times slower, take
// the best one here where arithmetic and not memory is the question. Threads are no question of it
// either, so TSan has one everywhere.
static void add_by_isa(TCase *tc, const TTest *test, bool is_arithmetic) {
    int first = 0, end = N_ISAS;
#if defined(__SANITIZE_THREAD__)
    const bool is_short = true;
#elif defined(__SANITIZE_ADDRESS__)
    const bool is_short = is_arithmetic;
#else
    const bool is_short = false;
#endif
    if (is_short) {
        while (end > 1 && !is_here(isas[end - 1]))
            end--;
        first = end - 1;
    }
    tcase_add_loop_test(tc, test, first * N_SHAPES, end * N_SHAPES);
}

int main(void) {
    Suite *suite = suite_create("backend");
    TCase *tc = tcase_create("all");
    tcase_set_timeout(tc, 240);
    add_by_isa(tc, fp32_is_near_the_reference, false);
    add_by_isa(tc, other_formats_are_near_the_reference, false);
    add_by_isa(tc, pieces_and_threads_do_not_matter, true);
    add_by_isa(tc, company_does_not_matter, true);
    tcase_add_loop_test(tc, slots_move_without_a_trace, 0, 2 * N_SHAPES);
    tcase_add_loop_test(tc, kept_logits_stay_as_they_are, 0, 2);
    tcase_add_loop_test(tc, draws_follow_their_slots, 0, 2);
    tcase_add_test(tc, what_does_not_go_is_refused_by_name);
    suite_add_tcase(suite, tc);
    return suite_run(suite);
}
