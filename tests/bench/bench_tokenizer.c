// SPDX-License-Identifier: Apache-2.0
// Speed of tokenizers: bench_tokenizer FILE.json... prints a row a file. The texts: the sonnets of
// tests/data/heldout.txt repeated to 4 MB in one call and in calls of 2 KB, and 1 MB each of 'a',
// spaces and an emoji in one call. The best of five runs.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <ssm/tokenizer.h>

enum { MB = 1000000, RUNS = 5 };

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void die(const char *what) {
    fprintf(stderr, "bench_tokenizer: %s\n", what);
    exit(EXIT_FAILURE);
}

// Seconds to encode the text in calls of at most `piece` bytes, cut at line ends where it has any.
static double encode(const ssm_tokenizer *t, const ssm_text *text, size_t piece, ssm_ids *ids) {
    double best = 1e9;
    for (int run = 0; run < RUNS; run++) {
        const double start = now();
        ids->len = 0;
        for (size_t at = 0, end; at < text->len; at = end) {
            end = at + piece < text->len ? at + piece : text->len;
            while (piece < text->len && end < text->len && text->data[end - 1] != '\n')
                end++;
            if (ssm_tokenizer_encode(t, text->data + at, end - at, 0, ids, NULL) != 0)
                die("encode failed");
        }
        const double took = now() - start;
        best = took < best ? took : best;
    }
    return best;
}

static double decode(const ssm_tokenizer *t, const ssm_ids *ids, size_t *bytes) {
    double best = 1e9;
    for (int run = 0; run < RUNS; run++) {
        ssm_text out = {0};
        const double start = now();
        if (ssm_tokenizer_decode(t, ids->data, ids->len, 0, &out, NULL) != 0)
            die("decode failed");
        const double took = now() - start;
        best = took < best ? took : best;
        *bytes = out.len;
        ssm_text_dispose(&out);
    }
    return best;
}

static ssm_text repeat(const char *s, size_t len, size_t total) {
    ssm_text out = {0};
    while (out.len < total) {
        if (ssm_text_append(&out, s, len) != 0)
            die("out of memory");
    }
    return out;
}

static ssm_text english(void) {
    char buffer[1 << 16];
    FILE *file = fopen(SSM_TEST_DATA "/heldout.txt", "rb");
    if (!file)
        die("no " SSM_TEST_DATA "/heldout.txt");
    const size_t n = fread(buffer, 1, sizeof buffer, file);
    fclose(file);
    return repeat(buffer, n, 4 * MB);
}

static void row(const char *path, const ssm_text *texts) {
    ssm_tokenizer *t;
    ssm_error err;
    ssm_ids ids = {0};
    size_t bytes;
    const double start = now();
    if (ssm_tokenizer_open(path, &t, &err) != 0)
        die(err.message);
    const double opened = now() - start;
    const char *end = strrchr(path, '/');
    const char *name = end;
    while (name > path && name[-1] != '/')
        name--;
    const double long_ = encode(t, &texts[0], texts[0].len, &ids);
    const double back = decode(t, &ids, &bytes);
    const double short_ = encode(t, &texts[0], 2000, &ids);
    printf("%-18.*s %7.1f %7.1f %7.1f %8.1f", (int)(end - name), name, 1e3 * opened,
           (double)texts[0].len / MB / long_, (double)texts[0].len / MB / short_,
           (double)bytes / MB / back);
    for (int i = 1; i < 4; i++)
        printf(" %7.1f", 1e3 * encode(t, &texts[i], texts[i].len, &ids));
    printf("\n");
    ssm_ids_dispose(&ids);
    ssm_tokenizer_free(t);
}

int main(int argc, char **argv) {
    ssm_text texts[] = {english(), repeat("a", 1, MB), repeat(" ", 1, MB),
                        repeat("\xf0\x9f\x98\x80", 4, MB)};
    printf("%-18s %7s %7s %7s %8s %7s %7s %7s\n", "", "open", "encode", "2 KB", "decode", "a",
           "space", "emoji");
    printf("%-18s %7s %7s %7s %8s %7s %7s %7s\n", "", "ms", "MB/s", "MB/s", "MB/s", "ms", "ms",
           "ms");
    for (int i = 1; i < argc; i++)
        row(argv[i], texts);
    for (int i = 0; i < 4; i++)
        ssm_text_dispose(&texts[i]);
    return EXIT_SUCCESS;
}
