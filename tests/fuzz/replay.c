// SPDX-License-Identifier: Apache-2.0
// Runs a fuzz target over the files of a corpus, without libFuzzer: each as it is, cut short at
// places spread over it, and with seeded mutations, the same in every run. An empty corpus is an
// error, so that a moved folder cannot pass for a success.
#include <dirent.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { CUTS = 16, MUTATIONS = 64, MAX_FILE = 1 << 20 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static uint64_t random_state = 88172645463325252u;

static uint64_t random_next(void) { // xorshift64
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state;
}

// Hands the target a heap copy of exactly this size, so that a read past it is seen.
static void run(const uint8_t *data, size_t size) {
    uint8_t *copy = malloc(size ? size : 1);
    if (!copy) {
        abort();
    }
    memcpy(copy, data, size);
    LLVMFuzzerTestOneInput(copy, size);
    free(copy);
}

static void run_mutated(const uint8_t *data, size_t size, uint8_t *scratch) {
    static const char bytes[] = "{}[]\",:\\\0\xff\x80"
                                "0-9e.";
    memcpy(scratch, data, size);
    for (int changes = 1 + (int)(random_next() % 4); changes > 0 && size > 1; changes--) {
        size_t at = random_next() % size;
        switch (random_next() % 4) {
        case 0:
            scratch[at] ^= (uint8_t)(1u << random_next() % 8);
            break;
        case 1:
            scratch[at] = (uint8_t)bytes[random_next() % (sizeof bytes - 1)];
            break;
        case 2: // leave a byte out
            memmove(scratch + at, scratch + at + 1, size - at - 1);
            size--;
            break;
        default: { // repeat a piece elsewhere
            size_t from = random_next() % size, room = size - (at > from ? at : from);
            memmove(scratch + at, scratch + from, random_next() % (room < 64 ? room + 1 : 64));
        }
        }
    }
    run(scratch, size);
}

static void run_all_of(const uint8_t *data, size_t size, uint8_t *scratch) {
    run(data, size);
    for (size_t i = 0; i < CUTS; i++) {
        run(data, size * i / CUTS);
    }
    for (int i = 0; i < MUTATIONS; i++) {
        run_mutated(data, size, scratch);
    }
}

static int run_file(const char *path, uint8_t *data, uint8_t *scratch) {
    FILE *file = fopen(path, "rb");
    if (!file) {
        perror(path);
        return -1;
    }
    size_t size = fread(data, 1, MAX_FILE, file);
    fclose(file);
    run_all_of(data, size, scratch);
    return 0;
}

int main(int argc, char **argv) {
    if (argc != 2) {
        fprintf(stderr, "usage: %s CORPUS\n", argv[0]);
        return 2;
    }
    uint8_t *data = malloc(MAX_FILE), *scratch = malloc(MAX_FILE);
    struct dirent **entries = NULL;
    int n = scandir(argv[1], &entries, NULL, alphasort), files = 0, rc = 1;
    if (n < 0 || !data || !scratch) {
        perror(argv[1]);
        goto done;
    }
    for (int i = 0; i < n; i++) {
        char path[4096];
        if (entries[i]->d_name[0] == '.') {
            continue;
        }
        snprintf(path, sizeof path, "%s/%s", argv[1], entries[i]->d_name);
        if (run_file(path, data, scratch) != 0) {
            goto done;
        }
        files++;
    }
    printf("%d files, %d runs\n", files, files * (1 + CUTS + MUTATIONS));
    rc = files > 0 ? 0 : 1;

done:
    for (int i = 0; i < n; i++) {
        free(entries[i]);
    }
    free(entries);
    free(scratch);
    free(data);
    return rc;
}
