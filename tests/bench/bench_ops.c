// SPDX-License-Identifier: Apache-2.0
// Every kernel at the shapes of published models, checked, then timed on one thread:
//
//   bench_ops [--csv FILE] [--compare OLD.csv] [--isa NAME] [--op NAME] [--all]
//
// By default the best instruction set of this machine at every shape, and the others at those of
// mamba-130m's layers; --isa and --op take one alone, --all all at every shape. Weights are read
// from memory, not from a cache: copies of a matrix that fill COLD_BYTES take turns. Shares are of
// this thread's ceilings, measured in the same run by the same instruction set. A row is the best
// of several rounds. --compare fails if a kernel is more than a tenth slower than in the old file.
#include <stdio.h>
#include <time.h>

#include "op_cases.h"

enum { COLD_BYTES = 128 << 20, READ_BYTES = 256 << 20, MAX_ROWS = 4096 };

static const double round_seconds = 3e-3, most_seconds = 0.25;
static const int max_rounds = 8;

#ifdef __aarch64__
static const char *const isas[] = {"neon"};
enum { N_ISAS = 1 };
#else
static const char *const isas[] = {"avx512bf16", "avx512vnni", "avx512", "avx2", "portable"};
enum { N_ISAS = 5 };
#endif
static const char *const format_names[] = {"f32",  "f16",  "bf16", "bf16-bf16", "bf16-word",
                                           "int8", "int4", "int5", "int6"};
enum { N_FORMATS = 9 };

typedef struct row {
    char isa[16], op[24], type[16];
    int32_t n, k, tokens;
    double us, gb_s, gflop_s, read_share, product_share, error;
} row;

typedef struct bench {
    const cpu_kernels *kernels;
    double read, products[N_FORMATS]; // ceilings of one thread: bytes/s, flop/s
    row *rows;                        // [MAX_ROWS]
    int n_rows, n_wrong;
} bench;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void die(const char *what, const char *name) {
    fprintf(stderr, "bench_ops: %s%s\n", what, name);
    exit(EXIT_FAILURE);
}

// ---- ceilings

static void measure_ceilings(bench *b) {
    const cpu_kernels *k = b->kernels;
    char *data = cpu_map(READ_BYTES);
    if (!data)
        die("out of memory", "");
    memset(data, 0, READ_BYTES);
    double best = 1e9;
    for (int i = 0; i < 5; i++) {
        const double start = now();
        volatile float sum = k->read_stream(data, READ_BYTES);
        (void)sum;
        const double took = now() - start;
        best = took < best ? took : best;
    }
    b->read = READ_BYTES / best;
    cpu_unmap(data, READ_BYTES);
    for (int f = 0; f < N_FORMATS; f++) {
        const bool no_dot = f == CPU_W_BF16_DOT && !k->has_bf16_dot;
        for (int i = 0; i < 5; i++) {
            float sink = 1;
            const double start = now();
            const double done =
                k->product_rounds(no_dot ? CPU_W_BF16 : (cpu_format)f, 1 << 16, &sink);
            const double flops = 2 * done / (now() - start);
            b->products[f] = flops > b->products[f] ? flops : b->products[f];
        }
    }
}

// ---- one row

static double time_of(op_case *c, const cpu_kernels *k) {
    double best = 1e9;
    const double begin = now();
    for (int round = 0; round < max_rounds && now() - begin < most_seconds; round++) {
        int runs = 0;
        const double start = now();
        double took;
        do {
            c->run(c, k);
            runs++;
            took = now() - start;
        } while (took < round_seconds);
        best = took / runs < best ? took / runs : best;
    }
    return best;
}

static double tolerance(const op_case *c) {
    switch (c->shape.kind) {
    case OP_PRODUCT:
        return c->format == CPU_W_INT8 ? 4e-7 : 3e-7 + 2e-6 * sqrt(c->matrix->cols) / 16;
    case OP_CONVERT:
        return c->shape.form == CPU_X_BF16 ? 0 : 0.505;
    case OP_SOFTPLUS:
        return 1e-5;
    default:
        return 2e-6;
    }
}

static void measure(bench *b, op_case *c, const char *op, const char *type, int32_t n, int32_t k) {
    row r = {.n = n, .k = k, .tokens = c->shape.tokens};
    snprintf(r.isa, sizeof r.isa, "%s", b->kernels->name);
    snprintf(r.op, sizeof r.op, "%s", op);
    snprintf(r.type, sizeof r.type, "%s", type);
    r.error = c->error(c, b->kernels);
    const bool right = r.error <= tolerance(c);
    const double t = time_of(c, b->kernels);
    r.us = 1e6 * t;
    r.gb_s = c->bytes / t / 1e9;
    r.gflop_s = c->flops / t / 1e9;
    r.read_share = c->bytes / t / b->read;
    const int f = c->shape.kind == OP_PRODUCT ? (int)c->format : CPU_W_F32;
    r.product_share = c->flops / t / b->products[f];
    b->n_wrong += !right;
    printf("%-11s %-9s %-9s %6d %5d %4d %10.2f %7.1f %8.1f %6.2f %6.2f  %.1e%s\n", r.isa, r.op,
           r.type, n, k, r.tokens, r.us, r.gb_s, r.gflop_s, r.read_share, r.product_share, r.error,
           right ? "" : "  WRONG");
    fflush(stdout);
    if (b->n_rows < MAX_ROWS)
        b->rows[b->n_rows++] = r;
    op_case_free(c);
}

// ---- shapes

typedef struct projection {
    const char *name;
    int32_t rows, cols;
    enum { ROWS, HEAD } use;    // HEAD: of a session's last token alone, so few
    enum { SMALL, LARGE } size; // LARGE: by the best instruction set alone
} projection;

static const projection projections[] = {
    {"in_proj", 3072, 768, ROWS, SMALL}, // mamba-130m
    {"x_proj", 80, 1536, ROWS, SMALL},
    {"dt_proj", 1536, 48, ROWS, SMALL},
    {"out_proj", 768, 1536, ROWS, SMALL},
    {"head", 50280, 768, HEAD, LARGE},
    {"in_proj", 10240, 2560, ROWS, LARGE}, // mamba-2.8b
    {"x_proj", 192, 5120, ROWS, LARGE},
    {"dt_proj", 5120, 160, ROWS, LARGE},
    {"out_proj", 2560, 5120, ROWS, LARGE},
    {"in_proj", 3352, 768, ROWS, SMALL},   // mamba2-130m; the rest is mamba-130m's
    {"in_proj", 10576, 2560, ROWS, LARGE}, // mamba2-2.7b; the rest is mamba-2.8b's
};
static const int32_t token_counts[] = {1, 8, 64, 192};

static const char *only_op; // of the command line, or NULL

static bool is_left_out(const char *op) {
    return only_op && strcmp(only_op, op) != 0;
}

static void bench_projection(bench *all, int n, const projection *p) {
    if (is_left_out(p->name))
        return;
    for (int f = 0; f < N_FORMATS; f++) {
        const cpu_format format = (cpu_format)f;
        op_matrix *m = op_matrix_create(f == CPU_W_F16 ? SSM_DTYPE_F16 : SSM_DTYPE_BF16, p->rows,
                                        p->cols, format, COLD_BYTES);
        if (!m)
            die("out of memory", "");
        for (int i = 0; i < n; i++) {
            for (int t = 0; op_has_format(all[i].kernels, format) && t < (p->use == HEAD ? 3 : 4);
                 t++)
                measure(&all[i], op_case_create_product(m, format, token_counts[t]), p->name,
                        format_names[f], p->rows, p->cols);
        }
        op_matrix_free(m);
    }
}

// What works on rows and channels, for d_model and d_inner of one model.
static void bench_rows(bench *b, int32_t model, int32_t inner, int32_t states, bool per_state) {
    const struct {
        const char *op, *type;
        op_shape shape;
    } cases[] = {
        {"norm", "f32", {.kind = OP_NORM, .n = model, .k = 1}},
        {"conv", "f32", {.kind = OP_CONV, .n = inner, .k = 4}},
        {"softplus", "f32", {.kind = OP_SOFTPLUS, .n = inner, .hi = INFINITY}},
        {"scan",
         per_state ? "mamba" : "mamba2",
         {.kind = OP_SCAN, .n = inner, .k = states, .per_state = per_state}},
        {"convert", "bf16", {.kind = OP_CONVERT, .n = inner, .form = CPU_X_BF16}},
        {"convert", "q16", {.kind = OP_CONVERT, .n = inner, .form = CPU_X_Q16}},
        {"convert", "q15", {.kind = OP_CONVERT, .n = inner, .form = CPU_X_Q15}},
    };
    for (size_t i = per_state ? 0 : 3; i < (per_state ? sizeof cases / sizeof cases[0] : 4); i++) {
        for (int t = 0; t < 4 && !is_left_out(cases[i].op); t++) {
            op_shape s = cases[i].shape;
            s.tokens = token_counts[t];
            measure(b, op_case_create(&s), cases[i].op, cases[i].type, s.n, s.k);
        }
    }
}

static void run(bench *all, int n, bool everything) {
    const size_t n_projections = sizeof projections / sizeof projections[0];
    for (size_t i = 0; i < n_projections; i++)
        bench_projection(all, everything || projections[i].size == SMALL ? n : 1, &projections[i]);
    for (int i = 0; i < n; i++) {
        bench_rows(&all[i], 768, 1536, 16, true);
        bench_rows(&all[i], 768, 1536, 128, false);
    }
    bench_rows(&all[0], 2560, 5120, 16, true);
    bench_rows(&all[0], 2560, 5120, 128, false);
}

// ---- files

static const char header[] =
    "isa,op,type,n,k,tokens,us,gb_s,gflop_s,read_share,product_share,error";

static void write_csv(const char *path, const bench *all, int n) {
    FILE *file = fopen(path, "w");
    if (!file)
        die("cannot write ", path);
    fprintf(file, "%s\n", header);
    for (int i = 0; i < n; i++) { // ceilings are rows too: us of a GB, of a Gflop
        fprintf(file, "%s,read,,0,0,0,0,%.1f,0,1,0,0\n", all[i].kernels->name, all[i].read / 1e9);
        for (int f = 0; f < N_FORMATS; f++)
            fprintf(file, "%s,products,%s,0,0,0,0,0,%.1f,0,1,0\n", all[i].kernels->name,
                    format_names[f], all[i].products[f] / 1e9);
        for (int j = 0; j < all[i].n_rows; j++) {
            const row *r = &all[i].rows[j];
            fprintf(file, "%s,%s,%s,%d,%d,%d,%.3f,%.2f,%.2f,%.3f,%.3f,%.2e\n", r->isa, r->op,
                    r->type, r->n, r->k, r->tokens, r->us, r->gb_s, r->gflop_s, r->read_share,
                    r->product_share, r->error);
        }
    }
    if (fclose(file) != 0)
        die("cannot write ", path);
}

static bool read_row(const char *line, row *r) {
    char text[200], *field[12], *at = text;
    snprintf(text, sizeof text, "%s", line);
    int n = 0;
    for (; n < 12 && at; n++)
        field[n] = strsep(&at, ",");
    if (n < 12)
        return false;
    *r = (row){.n = atoi(field[3]), .k = atoi(field[4]), .tokens = atoi(field[5])};
    snprintf(r->isa, sizeof r->isa, "%s", field[0]);
    snprintf(r->op, sizeof r->op, "%s", field[1]);
    snprintf(r->type, sizeof r->type, "%s", field[2]);
    r->us = strtod(field[6], NULL);
    r->gb_s = strtod(field[7], NULL);
    return true;
}

static const row *find(const bench *all, int n, const row *old) {
    for (int i = 0; i < n; i++) {
        for (int j = 0; j < all[i].n_rows; j++) {
            const row *r = &all[i].rows[j];
            if (r->n == old->n && r->k == old->k && r->tokens == old->tokens &&
                strcmp(r->isa, old->isa) == 0 && strcmp(r->op, old->op) == 0 &&
                strcmp(r->type, old->type) == 0)
                return r;
        }
    }
    return NULL;
}

// Rows more than a tenth slower than the old file's.
static int compare(const char *path, const bench *all, int n) {
    char line[200];
    FILE *file = fopen(path, "r");
    if (!file || !fgets(line, sizeof line, file) || strncmp(line, header, strlen(header)) != 0)
        die("not a table of this bench: ", path);
    int slower = 0, found = 0;
    while (fgets(line, sizeof line, file)) {
        row old;
        const row *r = read_row(line, &old) && old.us > 0 ? find(all, n, &old) : NULL;
        found += r != NULL;
        if (!r || r->us <= 1.1 * old.us)
            continue;
        slower++;
        printf("slower: %s %s %s %d x %d x %d: %.2f us, was %.2f\n", r->isa, r->op, r->type, r->n,
               r->k, r->tokens, r->us, old.us);
    }
    fclose(file);
    printf("compared %d rows, %d slower by more than a tenth\n", found, slower);
    return found == 0 ? 1 : slower;
}

int main(int argc, char **argv) {
    const char *csv = NULL, *old = NULL, *only = NULL;
    bool everything = false;
    bench all[N_ISAS] = {0};
    int n = 0, wrong = 0;
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--all") == 0)
            everything = true;
        else if (i + 1 < argc && strcmp(argv[i], "--csv") == 0)
            csv = argv[++i];
        else if (i + 1 < argc && strcmp(argv[i], "--compare") == 0)
            old = argv[++i];
        else if (i + 1 < argc && strcmp(argv[i], "--isa") == 0)
            only = argv[++i];
        else if (i + 1 < argc && strcmp(argv[i], "--op") == 0)
            only_op = argv[++i];
        else
            die("usage: bench_ops [--csv FILE] [--compare OLD.csv] [--isa NAME] [--op NAME] "
                "[--all]; not ",
                argv[i]);
    }
    for (int i = 0; i < N_ISAS; i++) {
        const cpu_kernels *k = cpu_kernels_choose(isas[i]);
        if (!k || strcmp(k->name, isas[i]) != 0 || (only && strcmp(only, isas[i]) != 0))
            continue;
        all[n].kernels = k;
        all[n].rows = calloc(MAX_ROWS, sizeof *all[n].rows);
        measure_ceilings(&all[n]);
        printf("%-11s reads %.1f GB/s; Gflop/s:", k->name, all[n].read / 1e9);
        for (int f = 0; f < N_FORMATS; f++)
            printf(" %s %.0f", format_names[f], all[n].products[f] / 1e9);
        printf("\n");
        n++;
    }
    if (n == 0)
        die("not on this machine: ", only ? only : "");
    printf("%-11s %-9s %-9s %6s %5s %4s %10s %7s %8s %6s %6s  %s\n", "", "", "", "n", "k", "tok",
           "us", "GB/s", "Gflop/s", "read", "prod", "error");
    run(all, n, everything);
    if (csv)
        write_csv(csv, all, n);
    for (int i = 0; i < n; i++)
        wrong += all[i].n_wrong;
    if (wrong > 0)
        printf("%d kernels are wrong\n", wrong);
    const bool failed = (old && compare(old, all, n) > 0) || wrong > 0;
    for (int i = 0; i < n; i++)
        free(all[i].rows);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
