// SPDX-License-Identifier: Apache-2.0
// What a layer's kernels take of a GPU, in microseconds and millijoules: large steps of Mamba-1, as
// forward.cu's wide_layer() launches them.
//
//   layer_energy [--state f16] [--layers 8] [--seconds 0.5] GEOMETRY:decode=512:prefill=8x2048 ...
//
// Random weights of a published geometry in bf16, but only so many layers, in turn: more of them
// than L2 holds. A kernel at a time, launched over all layers, with idle time between (energy.cuh),
// so that the card's cap is not met; then the whole layer, so and back to back. States and
// activations are what a step of the same kind left.
//
// It drives the library's own functions and is linked with its objects: not installed, not built
// but by name.
#include <functional>
#include <string.h>
#include <vector>

#include "energy.cuh"
#include "kernels/cuda/wide.h"

extern "C" {
#include <ssm/model.h>
const ssm_weights *ssm_model_weights(const ssm_model *model); // engine/model/model.h, which is C
}

namespace ssm {

extern "C" const ssm_backend ssm_backend_cuda_library;

static const ssm_backend *backend = &ssm_backend_cuda_library;
static device *d;
static energy_meter meter;
static double window = 0.5; // seconds
static int n_layers = 8;

static void must(int rc, const ssm_error &err) {
    if (rc == 0)
        return;
    fprintf(stderr, "layer_energy: %s\n", err.message);
    exit(1);
}

// An array on the device, for the life of the program.
template <class T> static const T *on_device(const std::vector<T> &from) {
    T *to;
    MUST_CUDA(cudaMalloc((void **)&to, from.size() * sizeof(T) + 16));
    MUST_CUDA(cudaMemcpy(to, from.data(), from.size() * sizeof(T), cudaMemcpyHostToDevice));
    return to;
}

// ---- a kernel, a layer

typedef std::function<void(int)> of_layer;

static void show(const char *what, double busy, const of_layer &run, double flop) {
    const energy_reading all = meter.measure(
        [&] {
            for (int l = 0; l < n_layers; l++)
                run(l);
        },
        window, busy < 1 ? 0.1 : 0.4, busy);
    const double us = all.us / n_layers, mj = all.millijoules / n_layers;
    printf("  %-10s %-12s %9.2f us %9.3f mJ %5.0f W %6.3f GHz", what,
           busy < 1 ? "idle half" : "back to back", us, mj, mj / us * 1e3, all.gigahertz);
    if (flop > 0)
        printf(" %6.3f pJ/FLOP", mj * 1e9 / flop);
    printf("\n");
    fflush(stdout);
}

// As wide_layer() does.
static void measure(const batch &b) {
    const ssm_geometry &g = d->g;
    const bool rows = wide_rows_fits(d, b), own = rows || wide_fits(d, b), x = xproj_fits(d, b);
    ssm_error err = {};
    const of_layer norms = [&](int l) {
        MUST_CUDA(norm(d, d->layers[l].norm, d->residual, NULL, d->u, b.n, true));
    };
    const of_layer in_proj = [&](int l) {
        if (rows)
            MUST_CUDA(wide_rows(d, l, b));
        else if (own)
            MUST_CUDA(wide_in(d, l, b.n));
        else
            must(product(d, PRODUCT_IN, d->layers[l].in_proj, d->u, d->xz, b.n, &err), err);
    };
    const of_layer convolution = [&](int l) { MUST_CUDA(conv(d, l, b)); };
    const of_layer x_proj = [&](int l) {
        if (x)
            MUST_CUDA(xproj(d, l, b));
        else
            must(product(d, PRODUCT_X, d->layers[l].x_proj, d->xc, d->xdb, b.n, &err), err);
    };
    const of_layer states = [&](int l) {
        MUST_CUDA(b.decode ? mamba_advance(d, l, b, 1) : mamba_scan(d, l, b));
    };
    const of_layer out_proj = [&](int l) {
        const float *next = l + 1 < d->g.n_layers ? d->layers[l + 1].norm : NULL;
        if (own)
            MUST_CUDA(wide_out(d, l, mamba_y(d, b), b.n, next, false));
        else
            must(product(d, PRODUCT_OUT, d->layers[l].out_proj, mamba_y(d, b), d->residual, b.n,
                         &err),
                 err);
    };
    const of_layer whole = [&](int l) {
        if (!own)
            norms(l);
        in_proj(l);
        if (!rows)
            convolution(l);
        x_proj(l), states(l), out_proj(l);
    };
    // Sums are added to the residual again and again: it is put back.
    const size_t bytes = (size_t)b.n * g.d_model * sizeof(float);
    void *kept;
    MUST_CUDA(cudaMalloc(&kept, bytes));
    MUST_CUDA(cudaMemcpy(kept, d->residual, bytes, cudaMemcpyDeviceToDevice));
    const auto one = [&](const char *what, const of_layer &run, double flop, double busy) {
        MUST_CUDA(cudaMemcpy(d->residual, kept, bytes, cudaMemcpyDeviceToDevice));
        show(what, busy, run, flop);
    };
    const double a_weight = 2.0 * b.n;
    if (!own)
        one("norm", norms, 0, 0.5);
    one(rows ? "in, conv" : "in_proj", in_proj, a_weight * d->n_in * g.d_model, 0.5);
    if (!rows)
        one("conv", convolution, 0, 0.5);
    one("x_proj", x_proj, a_weight * d->n_x * g.d_inner, 0.5);
    one(b.decode ? "advance" : "scan", states, 0, 0.5);
    one("out_proj", out_proj, a_weight * g.d_inner * g.d_model, 0.5);
    one("layer", whole, 0, 0.5);
    one("layer", whole, 0, 1);
    MUST_CUDA(cudaFree(kept));
}

// ---- steps

static void step_of(const std::vector<ssm_segment> &segments, int n_tokens) {
    std::vector<int32_t> tokens((size_t)n_tokens);
    for (int i = 0; i < n_tokens; i++)
        tokens[(size_t)i] = (int32_t)((uint32_t)i * 2654435761u % (uint32_t)d->g.vocab_size);
    const ssm_plan plan = {tokens.data(), n_tokens, segments.data(), (int32_t)segments.size()};
    ssm_error err = {};
    must(backend->step(&d->base, &plan, &err), err);
    MUST_CUDA(cudaStreamSynchronize(d->stream));
}

static void decode(int n) {
    std::vector<ssm_segment> begin, one;
    std::vector<row> rows;
    std::vector<int32_t> held((size_t)n), starts(replay_starts(d));
    int at = 0;
    for (int i = 0; i < n; i++) {
        begin.push_back({i, at, 1 + i % 16, true, SSM_WANT_LAST}), at += 1 + i % 16;
        one.push_back({i, i, 1, false, SSM_WANT_LAST});
        rows.push_back({i, i, 0, 0});
        held[(size_t)i] = d->replays && i % 2 ? 1 | 256 : 0; // every second row writes its state
    }
    replay_plan(d, held.data(), n, starts.data());
    step_of(begin, at);
    for (int k = 0; k < 3; k++)
        step_of(one, n);
    batch b = {};
    b.n = b.n_rows = b.n_logits = n, b.decode = true;
    b.rows = on_device(rows), b.held = on_device(held), b.starts = on_device(starts);
    b.at_once = d->replays && !advance_replay_fits(d, n);
    printf("%d rows\n", n);
    measure(b);
}

static void prefill(int n, int length) {
    const int cut = piece_length(d, n, n * length, length);
    std::vector<ssm_segment> segments;
    std::vector<span> spans;
    std::vector<piece> tiles, pieces;
    batch b = {};
    for (int i = 0; i < n; i++) {
        const int first = i * length;
        span s = {i, first, length, 0, 1, (int32_t)pieces.size(), 0, 0};
        segments.push_back({i, first, length, true, SSM_WANT_LAST});
        for (int k = 0; k < length; k += CONV_TILE)
            tiles.push_back({i, first + k, length - k < CONV_TILE ? length - k : CONV_TILE,
                             (int32_t)tiles.size()});
        for (int k = 0, count; k < length; k += count) {
            count = length - k < cut ? length - k : cut;
            pieces.push_back({i, first + k, count, (int32_t)pieces.size()}), s.n_pieces++;
        }
        b.split |= s.n_pieces > 1;
        spans.push_back(s);
    }
    step_of(segments, n * length);
    b.n = n * length, b.n_spans = n;
    b.n_tiles = (int32_t)tiles.size(), b.n_pieces = (int32_t)pieces.size();
    b.spans = on_device(spans), b.tiles = on_device(tiles), b.pieces = on_device(pieces);
    printf("%d x %d tokens\n", n, length);
    measure(b);
}

// ---- command line

static int most_rows(const char *text) {
    int most = 8;
    const char *list = strstr(text, "decode=");
    for (const char *p = list ? list + 7 : ""; *p && *p != ':';
         p += strcspn(p, ",:"), p += *p == ',')
        most = atoi(p) > most ? atoi(p) : most;
    return most;
}

static void run_list(const char *text, const char *key) {
    const char *list = strstr(text, key);
    for (const char *p = list ? list + strlen(key) : ""; *p && *p != ':';
         p += strcspn(p, ",:"), p += *p == ',') {
        int n = 0, length = 0;
        if (sscanf(p, "%dx%d", &n, &length) == 2 && step_bucket(n * length) == n * length)
            prefill(n, length);
        else if (length == 0 && n > 64 && step_bucket(n) == n)
            decode(n);
        else
            fprintf(stderr, "layer_energy: no step of this kind is a whole bucket: %s\n", p);
    }
}

static void run_geometry(const char *text, ssm_dtype state) {
    char name[64];
    snprintf(name, sizeof name, "%.*s", (int)strcspn(text, ":"), text);
    ssm_error err = {};
    ssm_model *model = NULL;
    must(ssm_model_random(name, SSM_DTYPE_BF16, 1, &model, &err), err);
    ssm_weights w = *ssm_model_weights(model);
    if (w.geometry.kind != SSM_BLOCK_MAMBA) {
        fprintf(stderr, "layer_energy: %s is no Mamba-1\n", name);
        exit(1);
    }
    n_layers = w.geometry.n_layers =
        n_layers < w.geometry.n_layers ? n_layers : w.geometry.n_layers;
    ssm_device_options o = {};
    o.n_slots = most_rows(text), o.max_tokens = 16384, o.state_dtype = state;
    ssm_device *opened;
    must(backend->open(&w, &o, &opened, &err), err);
    d = (device *)opened;
    if (!meter.open(d->stream)) {
        fprintf(stderr, "layer_energy: NVML has no counter of energy here\n");
        exit(1);
    }
    printf("%s, %d layers in turn; idle %.0f W\n", name, n_layers, meter.idle_watts());
    run_list(text, "decode=");
    run_list(text, "prefill=");
    backend->close(opened);
    ssm_model_free(model);
}

} // namespace ssm

int main(int argc, char **argv) {
    ssm_dtype state = SSM_DTYPE_F16;
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--state") == 0 && i + 1 < argc)
            state = (ssm_dtype)ssm_dtype_parse(argv[++i]);
        else if (strcmp(argv[i], "--layers") == 0 && i + 1 < argc)
            ssm::n_layers = atoi(argv[++i]);
        else if (strcmp(argv[i], "--seconds") == 0 && i + 1 < argc)
            ssm::window = atof(argv[++i]);
        else
            ssm::run_geometry(argv[i], state);
    }
    return 0;
}
