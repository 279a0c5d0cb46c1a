// SPDX-License-Identifier: Apache-2.0
// Cases of products and of the conversions that feed them. Packed weights and converted activations
// are read back here by the layouts of kernels.h, written down a second time on purpose.
#include "op_cases.h"

#include <assert.h>

static float from_bf16(const void *p) {
    uint16_t half;
    memcpy(&half, p, sizeof half);
    const uint32_t bits = (uint32_t)half << 16;
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static float to_bf16(float x) { // nearest even, of finite numbers
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    bits = (bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000u;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static double from_f16(const void *p) {
    uint16_t h;
    memcpy(&h, p, sizeof h);
    const int exponent = h >> 10 & 31, fraction = h & 0x3ff;
    const double x = exponent == 0 ? ldexp(fraction, -24) : ldexp(1024 + fraction, exponent - 25);
    return h & 0x8000 ? -x : x;
}

// In units of the row: stretches of 128 inputs, a vector of scales and 4 groups of 4 vectors and
// one more for each bit above 4.
static double from_groups(const char *block, size_t step, int bits, int32_t lane, int32_t k) {
    const int32_t i = k % 32, byte = lane * 4 + i % 4, more = bits - 4, at = i / 4 * more;
    const char *stretch = block + (size_t)(k / 128 * (1 + 4 * bits)) * step;
    const char *group = stretch + (size_t)(1 + k / 32 % 4 * bits) * step;
    const int nibbles = (uint8_t)group[(size_t)(more + i / 8) * step + (size_t)byte];
    int code = i % 8 < 4 ? nibbles & 15 : nibbles >> 4;
    if (more > 0) {
        const int above = (uint8_t)group[(size_t)(at / 8) * step + (size_t)byte];
        code |= (above >> at % 8 & ((1 << more) - 1)) << 4;
    }
    return (int8_t)stretch[k / 32 % 4 * 16 + lane] * (code - (1 << (bits - 1)));
}

static size_t block_bytes(const cpu_slice *s) { // 16 rows over all inputs
    const size_t inputs = (size_t)s->k_blocks * CPU_LANES;
    switch (s->format) {
    case CPU_W_F32:
        return inputs * 64;
    case CPU_W_INT8:
        return inputs * 16;
    case CPU_W_INT4:
    case CPU_W_INT5:
    case CPU_W_INT6:
        return (inputs / 32 * (size_t)(4 + s->format - CPU_W_INT4) + (inputs + 127) / 128) * 64;
    default:
        return inputs * 32;
    }
}

static double from_word(const char *p, float scale) {
    int16_t word;
    memcpy(&word, p, sizeof word);
    return (double)scale * word;
}

// Weight [row][k] as the kernel is to see it.
static double packed_weight(const cpu_slice *s, int32_t row, int32_t k) {
    const int32_t block = row / CPU_LANES, lane = row % CPU_LANES;
    const int32_t panel = block / CPU_PANEL_BLOCKS * CPU_PANEL_BLOCKS, left = s->n_blocks - panel;
    const int32_t width = left < CPU_PANEL_BLOCKS ? left : CPU_PANEL_BLOCKS;
    const size_t vector = s->format == CPU_W_F16 ? 32 : 64, step = (size_t)width * vector;
    const size_t input = (size_t)k;
    const char *p = (const char *)s->data + (size_t)panel * block_bytes(s);
    p += (size_t)(block - panel) * vector;
    float x;
    switch (s->format) {
    case CPU_W_F32:
        memcpy(&x, p + input * step + lane * 4, sizeof x);
        return (double)x;
    case CPU_W_F16:
        return from_f16(p + input * step + lane * 2);
    case CPU_W_BF16:
    case CPU_W_BF16_DOT:
        return (double)from_bf16(p + input / 2 * step + lane * 4 + input % 2 * 2);
    case CPU_W_WORD:
        return from_word(p + input / 2 * step + lane * 4 + input % 2 * 2, s->scale[row]);
    case CPU_W_INT8:
        return (double)s->scale[row] * (int8_t)p[input / 4 * step + (size_t)(lane * 4 + k % 4)];
    case CPU_W_INT4:
    case CPU_W_INT5:
    case CPU_W_INT6:
        return (double)s->scale[row] *
               from_groups(p, step, 4 + (int)s->format - CPU_W_INT4, lane, k);
    }
    return (double)NAN;
}

// ---- matrices

static void move(cpu_slice *s, ptrdiff_t by) {
    s->data = (const char *)s->data + by;
    s->bias = (const float *)((const char *)s->bias + by);
    if (s->scale)
        s->scale = (const float *)((const char *)s->scale + by);
    if (s->sum)
        s->sum = (const int32_t *)((const char *)s->sum + by);
}

op_matrix *op_matrix_create(ssm_dtype stored, int32_t rows, int32_t cols, cpu_format format,
                            size_t cold_bytes) {
    op_matrix *m = calloc(1, sizeof *m);
    assert(m);
    m->data.state = 3;
    m->rows = rows;
    m->cols = cols;
    m->weight = random_tensor(&m->data, stored, rows, cols, 0, 1);
    m->bias = random_tensor(&m->data, SSM_DTYPE_F32, rows, 1, 0, 1);
    const cpu_matrix plan = {&m->weight, &m->bias, NULL, {{0, rows}}, 1, format};
    cpu_arena arena = {0};
    cpu_slice slice;
    cpu_pack(&arena, &plan, 0, cpu_matrix_blocks(&plan), &slice);
    m->copy_bytes = (arena.size > arena.used ? arena.size : arena.used) + 4096;
    m->copy_bytes = m->copy_bytes / 64 * 64;
    m->n_copies = (int32_t)(cold_bytes / m->copy_bytes) + 1;
    m->memory_bytes = m->copy_bytes * (size_t)m->n_copies;
    m->memory = cpu_map(m->memory_bytes);
    m->copies = calloc((size_t)m->n_copies, sizeof *m->copies);
    if (!m->memory || !m->copies) {
        op_matrix_free(m);
        return NULL;
    }
    arena = (cpu_arena){.base = m->memory, .size = m->copy_bytes};
    cpu_pack(&arena, &plan, 0, cpu_matrix_blocks(&plan), &slice);
    for (int32_t i = 0; i < m->n_copies; i++) {
        m->copies[i] = slice;
        move(&m->copies[i], (ptrdiff_t)((size_t)i * m->copy_bytes));
        if (i > 0)
            memcpy(m->memory + (size_t)i * m->copy_bytes, m->memory, m->copy_bytes);
    }
    return m;
}

void op_matrix_free(op_matrix *m) {
    if (!m)
        return;
    cpu_unmap(m->memory, m->memory_bytes);
    free(m->copies);
    random_model_dispose(&m->data);
    free(m);
}

double op_matrix_error(const op_matrix *m) {
    const cpu_slice *s = &m->copies[0];
    double d = 0, norm = 0;
    for (int32_t row = 0; row < cpu_blocks(m->rows) * CPU_LANES; row++) {
        double sum = 0;
        for (int32_t k = 0; k < m->cols; k++) {
            const size_t at = (size_t)row * (size_t)m->cols + (size_t)k;
            const double want = row < m->rows ? (double)ssm_tensor_get(&m->weight, at) : 0;
            const double got = packed_weight(s, row, k);
            d += (got - want) * (got - want);
            norm += want * want;
            sum += s->scale && s->scale[row] > 0 ? got / (double)s->scale[row] : 0;
        }
        if (s->sum && s->sum[row] != 128 * (int32_t)lrint(sum))
            return INFINITY;
    }
    return sqrt(d / (norm > 0 ? norm : 1));
}

// ---- activations

static bool is_halves(const cpu_kernels *k) { // bf16 activations in two bytes, else in fp32
    return k->has_bf16_dot;
}

static double converted(cpu_form form, const cpu_kernels *k, const void *data, const float *scale,
                        int32_t tokens, int32_t t, int32_t i) {
    const size_t at = (size_t)(i / CPU_LANES * tokens + t), lane = (size_t)(i % CPU_LANES);
    const uint8_t *p = (const uint8_t *)data + at * 2 * CPU_LANES;
    switch (form) {
    case CPU_X_F32:
        break;
    case CPU_X_BF16:
        if (is_halves(k))
            return (double)from_bf16(p + 2 * lane);
        break;
    case CPU_X_WORD:
        return from_word((const char *)p + 2 * lane, scale[t]);
    case CPU_X_Q16:
        return (double)scale[t] * (256 * p[lane] + p[CPU_LANES + lane] - 32768);
    case CPU_X_Q15:
        return (double)scale[t] * (128 * (int8_t)p[lane] + p[CPU_LANES + lane]);
    }
    return (double)((const float *)data)[at * CPU_LANES + lane];
}

enum { X_PLAIN, X_BLOCKED, X_BYTES, X_SCALE, X_SUM, X_SCRATCH, OUT, OUT_ADD };

// cols inputs of c->shape.tokens tokens, and room for any form of them.
static void init_activations(op_case *c, int32_t cols, double spread) {
    random_model r = {.state = 11};
    const size_t tokens = (size_t)c->shape.tokens;
    const size_t blocks = ((size_t)cpu_blocks(cols) + 1) / 2 * 2;
    float *x = op_random(&r, (size_t)cols * tokens, 0, spread);
    for (size_t i = 0; i < (size_t)cols * tokens; i += 97)
        x[i] *= 8; // outliers, as models have them
    c->arrays[X_PLAIN] = x;
    c->arrays[X_BLOCKED] = op_blocked(x, cols, c->shape.tokens);
    c->arrays[X_BYTES] = op_alloc(blocks * tokens * CPU_LANES);
    c->arrays[X_SCALE] = op_alloc(tokens);
    c->arrays[X_SUM] = op_alloc(blocks / 2 * tokens);
}

static cpu_input convert_activations(op_case *c, const cpu_kernels *k, cpu_form form,
                                     int32_t cols) {
    if (form != CPU_X_F32)
        k->convert(form, c->arrays[X_BLOCKED], cpu_blocks(cols), c->shape.tokens, 0,
                   c->shape.tokens, c->arrays[X_BYTES], c->arrays[X_SCALE], c->arrays[X_SUM]);
    return (cpu_input){.data = c->arrays[form == CPU_X_F32 ? X_BLOCKED : X_BYTES],
                       .scale = c->arrays[X_SCALE],
                       .sum = c->arrays[X_SUM],
                       .tokens = c->shape.tokens};
}

// ---- conversions: BF16 exact, Q16 and Q15 in units of the token's scale, sums exact

static void convert_run(op_case *c, const cpu_kernels *k) {
    (void)convert_activations(c, k, c->shape.form, c->shape.n);
}

static double sums_error(const op_case *c, const cpu_kernels *k) {
    const op_shape *s = &c->shape;
    const int32_t blocks = cpu_blocks(s->n), *sums = c->arrays[X_SUM];
    for (int32_t t = 0; t < s->tokens; t++) {
        for (int32_t g = 0; g < (blocks + 1) / 2; g++) {
            double sum = 0;
            for (int32_t i = g * CPU_GROUP; i < (g + 1) * CPU_GROUP; i++)
                sum += converted(CPU_X_Q15, k, c->arrays[X_BYTES], c->arrays[X_SCALE], s->tokens, t,
                                 i) /
                       (double)((float *)c->arrays[X_SCALE])[t];
            if (sums[g * s->tokens + t] != (int32_t)lrint(sum))
                return INFINITY;
        }
    }
    return 0;
}

static double convert_error(op_case *c, const cpu_kernels *k) {
    const op_shape *s = &c->shape;
    const float *x = c->arrays[X_PLAIN], *scale = c->arrays[X_SCALE];
    memset(c->arrays[X_SCALE], 0xff, (size_t)s->tokens * sizeof *scale);
    convert_run(c, k);
    double worst = s->form == CPU_X_Q15 ? sums_error(c, k) : 0;
    for (int32_t t = 0; t < s->tokens; t++) {
        for (int32_t i = 0; i < cpu_blocks(s->n) * CPU_LANES; i++) {
            float want = i < s->n ? x[(size_t)t * (size_t)s->n + (size_t)i] : 0;
            if (s->form == CPU_X_BF16)
                want = to_bf16(want);
            const double got = converted(s->form, k, c->arrays[X_BYTES], scale, s->tokens, t, i);
            const double unit = s->form == CPU_X_BF16 ? 1 : (double)scale[t];
            worst = op_worse(worst, fabs(got - (double)want) / unit);
        }
    }
    return worst;
}

void op_case_init_convert(op_case *c) {
    init_activations(c, c->shape.n, 1);
    c->error = convert_error;
    c->run = convert_run;
    c->bytes = 6.0 * cpu_blocks(c->shape.n) * CPU_LANES * c->shape.tokens;
}

// ---- products

static cpu_form form_of(cpu_format format) {
    switch (format) {
    case CPU_W_BF16_DOT:
        return CPU_X_BF16;
    case CPU_W_WORD:
        return CPU_X_WORD;
    case CPU_W_INT8:
        return CPU_X_Q16;
    case CPU_W_INT4:
    case CPU_W_INT5:
    case CPU_W_INT6:
        return CPU_X_Q15;
    default:
        return CPU_X_F32;
    }
}

bool op_has_format(const cpu_kernels *k, cpu_format format) {
    return format != CPU_W_WORD || k->has_word_dot;
}

static cpu_slice slice_of(const op_case *c, const cpu_kernels *k, int32_t copy) {
    cpu_slice slice = c->matrix->copies[copy];
    slice.format = c->format;
    if (c->format == CPU_W_BF16_DOT && !k->has_bf16_dot)
        slice.format = CPU_W_BF16;
    return slice;
}

static cpu_input input_of(const op_case *c) { // as the last error() left it
    return (cpu_input){.data = c->arrays[form_of(c->format) == CPU_X_F32 ? X_BLOCKED : X_BYTES],
                       .scale = c->arrays[X_SCALE],
                       .sum = c->arrays[X_SUM],
                       .scratch = c->arrays[X_SCRATCH],
                       .tokens = c->shape.tokens};
}

static cpu_output blocked_output(const op_case *c) {
    return (cpu_output){c->arrays[OUT], (size_t)c->shape.tokens * CPU_LANES, CPU_LANES, false};
}

static void product_run(op_case *c, const cpu_kernels *k) {
    const cpu_slice slice = slice_of(c, k, c->turn);
    const cpu_input x = input_of(c);
    const cpu_output out = blocked_output(c);
    k->product(&slice, &x, &out);
    c->turn = (c->turn + 1) % c->matrix->n_copies;
}

// Rows that the reference is computed for: all of a small case, a spread with the last of a large.
static int32_t row_step(const op_case *c) {
    const double work = (double)c->matrix->rows * c->matrix->cols * c->shape.tokens;
    const double most = 1 << 23;
    return work <= most ? 1 : (int32_t)(work / most) / 2 * 2 + 1;
}

static void unpack_row(const op_case *c, int32_t row, double *w) {
    for (int32_t k = 0; k < c->matrix->cols; k++)
        w[k] = packed_weight(&c->matrix->copies[0], row, k);
}

// Both outputs of a row of all tokens: stored by blocks, and added to ones by tokens as the head's.
static void compare_row(const op_case *c, int32_t row, const double *w, const double *x, double *d,
                        double *norm) {
    const int32_t tokens = c->shape.tokens, cols = c->matrix->cols;
    const size_t row_floats = (size_t)cpu_blocks(c->matrix->rows) * CPU_LANES;
    const double bias = row < c->matrix->rows ? (double)c->matrix->copies[0].bias[row] : 0;
    for (int32_t t = 0; t < tokens; t++) {
        double want = bias;
        for (int32_t k = 0; k < cols; k++)
            want += w[k] * x[(size_t)t * (size_t)cols + (size_t)k];
        const size_t at = (size_t)(row / CPU_LANES * tokens + t);
        const float *out = c->arrays[OUT], *add = c->arrays[OUT_ADD];
        const double got = (double)out[at * CPU_LANES + (size_t)(row % CPU_LANES)];
        const double sum = (double)add[(size_t)t * row_floats + (size_t)row] - 1;
        d[0] += (got - want) * (got - want);
        d[1] += (sum - want) * (sum - want);
        *norm += want * want;
    }
}

static double compare_product(op_case *c, const cpu_kernels *k) {
    const int32_t tokens = c->shape.tokens, cols = c->matrix->cols, step = row_step(c);
    const cpu_input in = input_of(c);
    double *x = malloc((size_t)tokens * (size_t)cols * sizeof *x);
    double *w = malloc((size_t)cols * sizeof *w), d[2] = {0}, norm = 0;
    for (int32_t t = 0; t < tokens; t++) {
        for (int32_t i = 0; i < cols; i++)
            x[(size_t)t * (size_t)cols + (size_t)i] =
                converted(form_of(c->format), k, in.data, in.scale, tokens, t, i);
    }
    for (int32_t row = cpu_blocks(c->matrix->rows) * CPU_LANES - 1; row >= 0; row -= step) {
        unpack_row(c, row, w);
        compare_row(c, row, w, x, d, &norm);
    }
    free(x);
    free(w);
    return sqrt(op_worse(d[0], d[1] / 2) / norm); // adding a one rounds once more
}

static double product_error(op_case *c, const cpu_kernels *k) {
    const size_t row = (size_t)cpu_blocks(c->matrix->rows) * CPU_LANES;
    const size_t floats = row * (size_t)c->shape.tokens;
    memset(c->arrays[OUT], 0xff, floats * sizeof(float));
    for (size_t i = 0; i < floats; i++)
        ((float *)c->arrays[OUT_ADD])[i] = 1;
    (void)convert_activations(c, k, form_of(c->format), c->matrix->cols);
    product_run(c, k);
    const cpu_slice slice = slice_of(c, k, c->turn);
    cpu_input x = input_of(c);
    x.scratch = NULL; // the same without it
    const cpu_output add = {c->arrays[OUT_ADD], CPU_LANES, row, true};
    k->product(&slice, &x, &add);
    return compare_product(c, k);
}

op_case *op_case_create_product(const op_matrix *matrix, cpu_format format, int32_t tokens) {
    const op_shape shape = {OP_PRODUCT, tokens, .n = matrix->rows};
    op_case *c = op_case_new(&shape);
    const size_t floats = (size_t)cpu_blocks(matrix->rows) * CPU_LANES * (size_t)tokens;
    c->matrix = matrix;
    c->format = format;
    init_activations(c, matrix->cols, 1);
    c->arrays[X_SCRATCH] = op_alloc(CPU_SCRATCH_BYTES / sizeof(float));
    c->arrays[OUT] = op_alloc(floats);
    c->arrays[OUT_ADD] = op_alloc(floats);
    c->error = product_error;
    c->run = product_run;
    c->flops = 2.0 * matrix->rows * matrix->cols * tokens;
    c->bytes = (double)block_bytes(matrix->copies) * matrix->copies[0].n_blocks;
    return c;
}
