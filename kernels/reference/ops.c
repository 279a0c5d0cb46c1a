// SPDX-License-Identifier: Apache-2.0
#include "ops.h"

#include <math.h>

void ref_rms_norm(size_t n, const float *x, const float *weight, float eps, float *out) {
    double sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += (double)x[i] * (double)x[i];
    const double scale = 1.0 / sqrt(sum / (double)n + (double)eps);
    for (size_t i = 0; i < n; i++)
        out[i] = (float)((double)x[i] * scale * (weight ? (double)weight[i] : 1.0));
}

// Here the reference spends its time. A row is LANES sums beside each other, which do not wait for
// one another's additions, and what is left over.
enum { LANES = 8 };
typedef float floats
    __attribute__((vector_size(LANES * sizeof(float)), aligned(sizeof(float)), may_alias));
typedef double doubles __attribute__((vector_size(LANES * sizeof(double))));

// TSan hears of each range once, of weights, which are the model's alone and change as a whole, the
// first of each row: of every vector, it took twenty times as long as the sums.
#ifdef __SANITIZE_THREAD__
#define UNWATCHED __attribute__((no_sanitize("thread"), noinline))
void __tsan_read_range(void *from, long bytes);
void __tsan_write_range(void *to, long bytes);

static void say_ranges(size_t rows, size_t cols, const float *weight, const float *bias,
                       const float *x, float *out) {
    for (size_t r = 0; r < rows; r++)
        __tsan_read_range((void *)(weight + r * cols), sizeof *weight);
    if (bias)
        __tsan_read_range((void *)bias, (long)(rows * sizeof *bias));
    __tsan_read_range((void *)x, (long)(cols * sizeof *x));
    __tsan_write_range(out, (long)(rows * sizeof *out));
}
#else
#define UNWATCHED
static void say_ranges(size_t rows, size_t cols, const float *weight, const float *bias,
                       const float *x, float *out) {
}
#endif

UNWATCHED static void linear(size_t rows, size_t cols, const float *weight, const float *bias,
                             const float *x, float *out) {
    for (size_t r = 0; r < rows; r++, weight += cols) {
        double sum = bias ? (double)bias[r] : 0;
        doubles lanes = {0};
        size_t k = 0;
        for (; k + LANES <= cols; k += LANES)
            lanes += __builtin_convertvector(*(const floats *)(weight + k), doubles) *
                     __builtin_convertvector(*(const floats *)(x + k), doubles);
        for (; k < cols; k++)
            sum += (double)weight[k] * (double)x[k];
        for (size_t i = 0; i < LANES; i++)
            sum += lanes[i];
        out[r] = (float)sum;
    }
}

void ref_linear(size_t rows, size_t cols, const float *weight, const float *bias, const float *x,
                float *out) {
    say_ranges(rows, cols, weight, bias, x, out);
    linear(rows, cols, weight, bias, x, out);
}

float ref_silu(float x) {
    return (float)((double)x / (1.0 + exp(-(double)x)));
}

float ref_softplus(float x) {
    return x > 30 ? x : (float)log1p(exp((double)x));
}

void ref_conv_step(size_t channels, size_t width, const float *weight, const float *bias,
                   float *tail, float *x) {
    const size_t kept = width - 1;
    for (size_t c = 0; c < channels; c++) {
        const float *w = weight + c * width;
        float *t = tail + c * kept;
        double sum = bias ? (double)bias[c] : 0;
        for (size_t j = 0; j < kept; j++)
            sum += (double)w[j] * (double)t[j];
        sum += (double)w[kept] * (double)x[c];
        for (size_t j = 0; j + 1 < kept; j++)
            t[j] = t[j + 1];
        if (kept > 0)
            t[kept - 1] = x[c];
        x[c] = ref_silu((float)sum);
    }
}

// One row of the state: h = decay h + input B; returns h . C.
static double advance(size_t n, double decay, double input, const float *b, const float *c,
                      float *h) {
    double sum = 0;
    for (size_t i = 0; i < n; i++) {
        h[i] = (float)(decay * (double)h[i] + input * (double)b[i]);
        sum += (double)h[i] * (double)c[i];
    }
    return sum;
}

void ref_scan_mamba(size_t channels, size_t n, const float *a_log, const float *d,
                    const float *delta, const float *b, const float *c, const float *x, float *h,
                    float *y) {
    for (size_t i = 0; i < channels; i++) {
        double sum = (double)d[i] * (double)x[i];
        for (size_t s = 0; s < n; s++) { // the decay differs from state to state
            const double decay = exp(-(double)delta[i] * exp((double)a_log[i * n + s]));
            const double input = (double)delta[i] * (double)x[i];
            sum += advance(1, decay, input, &b[s], &c[s], &h[i * n + s]);
        }
        y[i] = (float)sum;
    }
}

void ref_scan_mamba2(size_t heads, size_t head_dim, size_t groups, size_t n, const float *a_log,
                     const float *d, const float *delta, const float *b, const float *c,
                     const float *x, float *h, float *y) {
    for (size_t i = 0; i < heads; i++) {
        const size_t group = i / (heads / groups);
        const double decay = exp(-(double)delta[i] * exp((double)a_log[i]));
        for (size_t p = i * head_dim; p < (i + 1) * head_dim; p++) {
            const double input = (double)delta[i] * (double)x[p];
            y[p] = (float)((double)d[i] * (double)x[p] +
                           advance(n, decay, input, b + group * n, c + group * n, h + p * n));
        }
    }
}
