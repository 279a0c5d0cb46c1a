// SPDX-License-Identifier: Apache-2.0
// int8 here is round to nearest by row; smaller integers are quantise.c's.
#define _GNU_SOURCE
#include "pack.h"

#include "quantise.h"

#include <assert.h>
#include <math.h>
#include <string.h>
#include <sys/mman.h>

void *cpu_arena_take(cpu_arena *a, size_t bytes) {
    const size_t at = a->used;
    a->used += (bytes + 63) / 64 * 64;
    assert(!a->base || a->used <= a->size);
    return a->base ? a->base + at : NULL;
}

enum { HUGE_PAGE = 2 << 20 };

static size_t whole_pages(size_t bytes) {
    return (bytes + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE;
}

void *cpu_map(size_t bytes) {
    // Aligned to a huge page by cutting a larger mapping.
    const size_t size = whole_pages(bytes > 0 ? bytes : 1);
    char *map =
        mmap(NULL, size + HUGE_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (map == MAP_FAILED)
        return NULL;
    const size_t before = (HUGE_PAGE - (uintptr_t)map % HUGE_PAGE) % HUGE_PAGE;
    if (before > 0)
        munmap(map, before);
    munmap(map + before + size, HUGE_PAGE - before);
    (void)madvise(map + before, size, MADV_HUGEPAGE);
    return map + before;
}

void cpu_unmap(void *memory, size_t bytes) {
    if (memory)
        munmap(memory, whole_pages(bytes > 0 ? bytes : 1));
}

int32_t cpu_blocks(int64_t n) {
    return (int32_t)((n + CPU_LANES - 1) / CPU_LANES);
}

int32_t cpu_matrix_blocks(const cpu_matrix *m) {
    int32_t blocks = 0;
    for (int i = 0; i < m->n_regions; i++)
        blocks += cpu_blocks(m->regions[i].rows);
    return blocks;
}

float *cpu_pack_vector(cpu_arena *arena, const ssm_tensor *tensor, int64_t i, int64_t n) {
    const size_t floats = (size_t)cpu_blocks(n) * CPU_LANES;
    float *out = cpu_arena_take(arena, floats * sizeof *out);
    if (!out)
        return NULL;
    memset(out, 0, floats * sizeof *out);
    if (tensor && tensor->data && n > 0)
        ssm_tensor_read(tensor, (size_t)i, (size_t)n, out);
    return out;
}

// ---- rows

// First row of the tensor in a block, and how many of its 16 there are.
static int32_t rows_of(const cpu_matrix *m, int32_t block, int32_t *row, bool *is_last_region) {
    int i = 0;
    for (; block >= cpu_blocks(m->regions[i].rows); i++)
        block -= cpu_blocks(m->regions[i].rows);
    const int32_t done = block * CPU_LANES, left = m->regions[i].rows - done;
    *row = m->regions[i].row + done;
    *is_last_region = i == m->n_regions - 1;
    return left < CPU_LANES ? left : CPU_LANES;
}

static uint16_t to_bf16(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    if (x != x)
        return 0x7fc0;
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

static uint16_t to_f16(float x) { // nearest even
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    const uint32_t sign = bits >> 16 & 0x8000;
    const float magnitude = fabsf(x);
    if (!(magnitude < 65520.0f)) // rounds to infinity from here on
        return (uint16_t)(sign | (x != x ? 0x7e00 : 0x7c00));
    if (magnitude < 0x1p-14f) // subnormal: units of 2^-24
        return (uint16_t)(sign | (uint32_t)lrintf(magnitude * 0x1p24f));
    bits &= 0x7fffffff;
    bits += 0xfff + (bits >> 13 & 1);
    return (uint16_t)(sign | (bits - (112u << 23)) >> 13);
}

// One block's vectors lie `step` bytes apart from one another.

static void pack_f32(const float *row, int64_t cols, int lane, size_t step, char *out) {
    for (int64_t k = 0; k < cols; k++)
        memcpy(out + (size_t)k * step + (size_t)lane * 4, &row[k], 4);
}

static void pack_16(const ssm_tensor *t, size_t at, const float *row, cpu_format format, int lane,
                    size_t step, char *out) {
    const bool is_f16 = format == CPU_W_F16;
    const bool same = t->dtype == (is_f16 ? SSM_DTYPE_F16 : SSM_DTYPE_BF16);
    const char *stored = (const char *)t->data + at * 2;
    for (size_t k = 0; k < (size_t)t->cols; k++) {
        uint16_t bits;
        if (same)
            memcpy(&bits, stored + 2 * k, 2);
        else
            bits = is_f16 ? to_f16(row[k]) : to_bf16(row[k]);
        char *to = is_f16 ? out + k * step + (size_t)lane * 2
                          : out + k / 2 * step + (size_t)lane * 4 + k % 2 * 2;
        memcpy(to, &bits, 2);
    }
}

// Integers as large as 16 bits and the sums of their groups allow (kernels.h). The scale is NaN if
// a weight is not finite, so that the row's outputs are.
static void pack_words(const float *row, int64_t cols, int lane, size_t step, char *out,
                       float *scale) {
    const double room = INT32_MAX / CPU_WORD_TOP - CPU_WORD_GROUP / 2; // less the roundings
    double largest = 0, max = 0, sum = 0, all = 0;
    for (int64_t k = 0; k < cols; k++) {
        const double x = fabs((double)row[k]);
        sum = k % CPU_WORD_GROUP == 0 ? x : sum + x;
        largest = sum > largest ? sum : largest;
        max = x > max ? x : max;
        all += x;
    }
    const double factor = max > 0 ? fmin(room / largest, INT16_MAX / max) : 0;
    *scale = !isfinite(all) ? NAN : factor > 0 ? (float)(1 / factor) : 0;
    for (int64_t k = 0; k < cols && isfinite(all); k++) {
        const int16_t q = (int16_t)lrint((double)row[k] * factor);
        memcpy(out + (size_t)(k / 2) * step + (size_t)(lane * 4 + k % 2 * 2), &q, sizeof q);
    }
}

static void pack_int8(const float *row, int64_t cols, int lane, size_t step, char *out,
                      float *scale, int32_t *sum) {
    float max = 0;
    for (int64_t k = 0; k < cols; k++)
        max = fmaxf(max, fabsf(row[k]));
    const float inverse = max > 0 ? 127 / max : 0;
    int32_t total = 0;
    for (int64_t k = 0; k < cols; k++) {
        const int32_t q = (int32_t)lrintf(row[k] * inverse);
        out[(size_t)(k / 4) * step + (size_t)(lane * 4 + k % 4)] = (char)q;
        total += q;
    }
    *scale = max / 127;
    *sum = 128 * total;
}

static void put(char *vector, int byte, int bits, int from) {
    vector[byte] = (char)(vector[byte] | bits << from);
}

// A group's vectors begin at `out`.
static void place_group(const cpu_group *group, int above, int lane, size_t step, char *out) {
    for (int i = 0; i < CPU_GROUP; i++) {
        const int code = group->codes[i], byte = lane * 4 + i % 4, at = i / 4 * above;
        if (above > 0)
            put(out + (size_t)(at / 8) * step, byte, code >> 4, at % 8);
        put(out + (size_t)(above + i / 8) * step, byte, code & 15, i % 8 < 4 ? 0 : 4);
    }
}

static void pack_groups(const float *row, int64_t cols, cpu_format format, int lane, size_t step,
                        char *out, float *unit) {
    const int above = cpu_bits_above(format);
    char *scales = out;
    *unit = cpu_group_unit(row, cols, format);
    for (int64_t g = 0; g * CPU_GROUP < cols; g++) {
        float x[CPU_GROUP] = {0};
        const int64_t k = g * CPU_GROUP, n = cols - k < CPU_GROUP ? cols - k : CPU_GROUP;
        memcpy(x, row + k, (size_t)n * sizeof *x);
        if (g % CPU_STRETCH == 0) {
            scales = out;
            out += step;
        }
        cpu_group group;
        cpu_quantise_group(x, *unit, format, &group);
        scales[g % CPU_STRETCH * CPU_LANES + lane] = group.scale;
        place_group(&group, above, lane, step, out);
        out += (size_t)(above + CPU_GROUP / 8) * step;
    }
}

// ---- slices

static size_t vector_bytes(cpu_format format) {
    return format == CPU_W_F16 ? 32 : 64;
}

static size_t block_bytes(cpu_format format, int32_t k_blocks) {
    const size_t inputs = (size_t)k_blocks * CPU_LANES;
    switch (format) {
    case CPU_W_F32:
        return inputs * 64;
    case CPU_W_F16:
    case CPU_W_BF16:
    case CPU_W_BF16_DOT:
    case CPU_W_WORD:
        return inputs * 32;
    case CPU_W_INT8:
        return inputs * 16;
    case CPU_W_INT4:
    case CPU_W_INT5:
    case CPU_W_INT6:
        return cpu_groups_bytes(format, inputs / CPU_GROUP);
    }
    return 0;
}

static void pack_row(const cpu_matrix *m, int32_t row, int lane, size_t step, char *out,
                     float *scratch, float *scale, int32_t *sum) {
    const ssm_tensor *t = m->weight;
    const size_t at = (size_t)row * (size_t)t->cols;
    ssm_tensor_read(t, at, (size_t)t->cols, scratch);
    switch (m->format) {
    case CPU_W_F32:
        pack_f32(scratch, t->cols, lane, step, out);
        break;
    case CPU_W_F16:
    case CPU_W_BF16:
    case CPU_W_BF16_DOT:
        pack_16(t, at, scratch, m->format, lane, step, out);
        break;
    case CPU_W_WORD:
        pack_words(scratch, t->cols, lane, step, out, scale);
        break;
    case CPU_W_INT8:
        pack_int8(scratch, t->cols, lane, step, out, scale, sum);
        break;
    case CPU_W_INT4:
    case CPU_W_INT5:
    case CPU_W_INT6:
        pack_groups(scratch, t->cols, m->format, lane, step, out, scale);
        break;
    }
}

static void pack_block(const cpu_matrix *m, const cpu_slice *s, int32_t i, float *scratch) {
    const int32_t panel = i / CPU_PANEL_BLOCKS * CPU_PANEL_BLOCKS, left = s->n_blocks - panel;
    const int32_t width = left < CPU_PANEL_BLOCKS ? left : CPU_PANEL_BLOCKS;
    const size_t vector = vector_bytes(m->format), step = (size_t)width * vector;
    char *out = (char *)s->data + (size_t)panel * block_bytes(m->format, s->k_blocks) +
                (size_t)(i - panel) * vector;
    int32_t row;
    bool is_last;
    const int32_t rows = rows_of(m, s->first_block + i, &row, &is_last);
    float *bias = (float *)s->bias + (size_t)i * CPU_LANES;
    for (int32_t lane = 0; lane < rows; lane++) {
        const size_t at = (size_t)i * CPU_LANES + (size_t)lane;
        pack_row(m, row + lane, lane, step, out, scratch, s->scale ? (float *)s->scale + at : NULL,
                 s->sum ? (int32_t *)s->sum + at : NULL);
        if (m->bias && m->bias->data)
            bias[lane] = ssm_tensor_get(m->bias, (size_t)(row + lane));
        if (m->bias2 && is_last)
            bias[lane] +=
                ssm_tensor_get(m->bias2, (size_t)(row + lane - m->regions[m->n_regions - 1].row));
    }
}

void cpu_pack(cpu_arena *arena, const cpu_matrix *m, int32_t first, int32_t end, cpu_slice *out) {
    int32_t k_blocks = cpu_blocks(m->weight->cols);
    const bool is_int8 = m->format == CPU_W_INT8, has_scale = m->format >= CPU_W_WORD;
    if (m->format >= CPU_W_INT4)
        k_blocks += k_blocks % 2;
    const size_t rows = (size_t)(end - first) * CPU_LANES;
    const size_t bytes = (size_t)(end - first) * block_bytes(m->format, k_blocks);
    *out = (cpu_slice){
        .data = cpu_arena_take(arena, bytes),
        .bytes = bytes,
        .bias = cpu_arena_take(arena, rows * sizeof(float)),
        .scale = has_scale ? cpu_arena_take(arena, rows * sizeof(float)) : NULL,
        .sum = is_int8 ? cpu_arena_take(arena, rows * sizeof(int32_t)) : NULL,
        .first_block = first,
        .n_blocks = end - first,
        .k_blocks = k_blocks,
        .format = m->format,
    };
    // A row of numbers to convert: at the arena's end while this matrix is packed.
    cpu_arena scratch = *arena;
    float *row = cpu_arena_take(&scratch, (size_t)m->weight->cols * sizeof *row);
    if (!arena->base) { // counting: size is what the walk needs with the rows behind it
        arena->size = scratch.used > arena->size ? scratch.used : arena->size;
        return;
    }
    // Rows and inputs past the ends are zeros; another matrix's scratch row may have lain here.
    memset(arena->base + ((const char *)out->data - arena->base), 0,
           arena->used - (size_t)((const char *)out->data - arena->base));
    for (int32_t i = 0; i < end - first; i++)
        pack_block(m, out, i, row);
}
