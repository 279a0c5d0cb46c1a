// SPDX-License-Identifier: Apache-2.0
// The file of cuBLASLt's chosen algorithms without a device: all openings of a product take the
// same one, the oldest that is usable, whether they race, come later, or find a torn or unwritable
// file. What an opening times is here a byte that the test gives; other processes are forks.
#include <check.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "kernels/cuda/algorithms.h"
#include "tests/suite.h"

#define KEY   "NVIDIA_H200 13000 130100"
#define OTHER "NVIDIA_H200 13000 130101"
static const char *const shapes[] = {"5120x2560x24,bf16,same,0", "192x5120x24,bf16,f32,0",
                                     "2560x5120x24,bf16,f32,1", "5120x2560x24,bf16,same,0"};
// The last one is the first one's twin, of which something else is timed.
enum {
    PRODUCTS = 4,
    TWIN = PRODUCTS - 1,
    OTHERWISE = 0x80,
    RACERS = 8,
    ROUNDS = 20,
    TEXT = 1 << 16
};

static char home[64], folder[80], path[100];
static const char *card = KEY;
static uint8_t refused; // what cuBLASLt no longer takes; 0: all is well

static void setup(void) {
    snprintf(home, sizeof home, "/tmp/ssm-algorithms-XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(home));
    snprintf(folder, sizeof folder, "%s/ssmd", home);
    snprintf(path, sizeof path, "%s/cuda-algorithms", folder);
    setenv("XDG_CACHE_HOME", home, 1);
    refused = 0;
}

static void teardown(void) {
    unlink(path);
    rmdir(path);
    unlink(folder);
    rmdir(folder);
    ck_assert_int_eq(rmdir(home), 0);
}

// ---- the file as text

static int print_line(char *out, const char *key, const char *shape, uint8_t byte) {
    int n = sprintf(out, "%s %s %.2f ", key, shape, 12.5);
    for (int i = 0; i < ALGORITHM_BYTES; i++)
        n += sprintf(out + n, "%02x", byte);
    return n + sprintf(out + n, "\n");
}

static void write_file(const char *text, size_t n) {
    mkdir(folder, 0700);
    FILE *f = fopen(path, "w");
    const bool ok = f && fwrite(text, 1, n, f) == n && fclose(f) == 0;
    if (!ok)
        abort();
}

static size_t read_file(char out[TEXT]) {
    FILE *f = fopen(path, "r");
    ck_assert_ptr_nonnull(f);
    const size_t n = fread(out, 1, TEXT - 1, f);
    out[n] = '\0';
    fclose(f);
    return n;
}

// ---- openings, each in a child: what one takes stays with its process

// Instead of ck_assert in children: all of them would write into Check's one file, some with a
// limit.
#define MUST(x) ((x) ? (void)0 : give_up(__LINE__, #x))
static void give_up(int line, const char *what) {
    fprintf(stderr, "test_algorithms.c:%d: not so: %s\n", line, what);
    _exit(1);
}

static bool usable(void *context, const algorithm *a) {
    MUST(context == home && strcmp(a->shape, shapes[a->product]) == 0);
    return !refused || (a->bytes[0] & ~OTHERWISE) != refused;
}

static void look(algorithm_list *list, algorithm *a, uint8_t byte) {
    algorithms_load(list, card, usable, home);
    for (int i = 0; i < PRODUCTS; i++) {
        a[i] = (algorithm){.product = i, .microseconds = 12.5f};
        strcpy(a[i].shape, shapes[i]);
        if (!algorithms_find(list, &a[i]))
            memset(a[i].bytes, i == TWIN ? byte ^ OTHERWISE : byte, ALGORITHM_BYTES);
    }
}

typedef struct outcome {
    uint8_t byte[PRODUCTS]; // what is taken
} outcome;

static bool took(outcome o, uint8_t a, uint8_t b, uint8_t c) {
    return o.byte[0] == a && o.byte[1] == b && o.byte[2] == c;
}

static rlim_t most; // bytes of a file while choices are written; 0: as many as they are

static void limit(rlim_t bytes) {
    const struct rlimit l = {bytes, RLIM_INFINITY};
    signal(SIGXFSZ, SIG_IGN);
    MUST(setrlimit(RLIMIT_FSIZE, &l) == 0);
}

static outcome settle(algorithm_list *list, algorithm *a) {
    outcome out;
    if (most)
        limit(most);
    algorithms_settle(list, a, PRODUCTS);
    if (most)
        limit(RLIM_INFINITY);
    for (int i = 0; i < PRODUCTS; i++) {
        out.byte[i] = a[i].bytes[0];
        MUST(a[i].product == i && strcmp(a[i].shape, shapes[i]) == 0);
        for (int k = 1; k < ALGORITHM_BYTES; k++)
            MUST(a[i].bytes[k] == out.byte[i]);
    }
    MUST(refused || out.byte[TWIN] == out.byte[0]);
    algorithms_free(list);
    return out;
}

static outcome open_here(uint8_t byte) {
    algorithm_list list;
    algorithm a[PRODUCTS];
    look(&list, a, byte);
    return settle(&list, a);
}

// An opening that waits for a byte on go between timing and writing.
static void race(int ready, int go, int results, uint8_t byte) {
    algorithm_list list;
    algorithm a[PRODUCTS];
    char c = 0;
    look(&list, a, byte);
    MUST(write(ready, &c, 1) == 1 && read(go, &c, 1) == 1);
    const outcome out = settle(&list, a);
    MUST(write(results, &out, sizeof out) == sizeof out);
}

// n processes, all done with timing before any writes; the first one times the byte first.
static void open_elsewhere(int n, uint8_t first, outcome *out) {
    int ready[2], go[2], results[2], status;
    char c[RACERS] = {0};
    ck_assert(pipe(ready) == 0 && pipe(go) == 0 && pipe(results) == 0);
    for (int i = 0; i < n; i++) {
        const pid_t child = fork();
        ck_assert_int_ge(child, 0);
        if (child == 0) {
            race(ready[1], go[0], results[1], (uint8_t)(first + i));
            _exit(0);
        }
    }
    for (int i = 0; i < n; i++)
        ck_assert_int_eq(read(ready[0], c, 1), 1);
    ck_assert_int_eq(write(go[1], c, (size_t)n), n);
    for (int i = 0; i < n; i++) {
        ck_assert_int_gt(wait(&status), 0);
        ck_assert_int_eq(status, 0);
        ck_assert_int_eq(read(results[0], &out[i], sizeof *out), sizeof *out);
    }
    for (int i = 0; i < 2; i++)
        close(ready[i]), close(go[i]), close(results[i]);
}

static void ck_elsewhere(uint8_t timing, uint8_t a, uint8_t b, uint8_t c) {
    outcome o;
    open_elsewhere(1, timing, &o);
    ck_assert_msg(took(o, a, b, c), "took %u, %u, %u", o.byte[0], o.byte[1], o.byte[2]);
}

// ---- tests

// As earlier versions left it: openings that raced wrote several lines for a product.
START_TEST(the_oldest_line_wins) {
    char text[TEXT];
    int n = print_line(text, OTHER, shapes[0], 1);
    n += print_line(text + n, KEY "0", shapes[0], 2);
    n += print_line(text + n, KEY, shapes[0], 3);
    n += print_line(text + n, KEY, shapes[1], 4);
    n += print_line(text + n, KEY, shapes[0], 5);
    n += print_line(text + n, KEY, shapes[2], 6);
    n += print_line(text + n, KEY, shapes[1], 7);
    write_file(text, (size_t)n);
    ck_elsewhere(8, 3, 4, 6);
    ck_assert_uint_eq(read_file(text), (size_t)n); // nothing was new
}
END_TEST

START_TEST(lines_are_as_earlier_versions_wrote_and_read_them) {
    char text[TEXT], expected[TEXT];
    ck_elsewhere(0xa5, 0xa5, 0xa5, 0xa5);
    int n = sprintf(expected, "\n");
    for (int i = 0; i < PRODUCTS; i++)
        n += print_line(expected + n, KEY, shapes[i], i == TWIN ? 0x25 : 0xa5);
    read_file(text);
    ck_assert_str_eq(text, expected);
}
END_TEST

START_TEST(the_key_has_the_versions) {
    char out[ALGORITHM_KEY], name[256];
    algorithms_key(out, "NVIDIA H200", 13000, 130100);
    ck_assert_str_eq(out, KEY);
    memset(name, 'x', sizeof name);
    name[255] = '\0';
    algorithms_key(out, name, 13000, 130100);
    ck_assert_str_eq(out + strlen(out) - 13, " 13000 130100");
}
END_TEST

START_TEST(what_is_no_longer_usable_is_passed_over) {
    char text[TEXT];
    int n = 0;
    for (int i = 0; i < TWIN; i++)
        n += print_line(text + n, KEY, shapes[i], 1);
    n += print_line(text + n, KEY, shapes[1], 2);
    write_file(text, (size_t)n);
    refused = 1;
    ck_elsewhere(3, 3, 2, 3); // two are new
    ck_elsewhere(4, 3, 2, 3);
    const size_t size = read_file(text);
    ck_assert_uint_gt(size, (size_t)n);
    ck_elsewhere(5, 3, 2, 3);
    ck_assert_uint_eq(read_file(text), size);
    refused = 0;
    ck_elsewhere(6, 1, 1, 1);
}
END_TEST

START_TEST(what_is_usable_to_nobody_is_written_once) {
    char text[TEXT];
    refused = 7;
    ck_elsewhere(7, 7, 7, 7);
    const size_t size = read_file(text);
    ck_elsewhere(7, 7, 7, 7);
    ck_assert_uint_eq(read_file(text), size);
}
END_TEST

START_TEST(many_more_lines_than_one_model_has) {
    enum { LINES = 5000 };
    char *text = malloc((LINES + 1) * 300), shape[32];
    size_t n = 0;
    for (int i = 0; i < LINES; i++) {
        snprintf(shape, sizeof shape, "%dx1x1,f32,f32,0", i);
        n += (size_t)print_line(text + n, KEY, shape, 1);
    }
    n += (size_t)print_line(text + n, KEY, shapes[1], 2);
    write_file(text, n);
    free(text);
    ck_elsewhere(3, 3, 2, 3);
    ck_elsewhere(4, 3, 2, 3);
}
END_TEST

static void ck_agree(const outcome *o, int n) {
    for (int i = 1; i < n; i++)
        ck_assert(took(o[i], o[0].byte[0], o[0].byte[1], o[0].byte[2]));
}

START_TEST(processes_that_race_agree) {
    outcome o[RACERS + 1];
    for (int round = 0; round < ROUNDS; round++) {
        open_elsewhere(RACERS, 10, o);
        open_elsewhere(1, 99, &o[RACERS]); // nor does a later one choose anew
        ck_agree(o, RACERS + 1);
        ck_assert_uint_ge(o[0].byte[0], 10);
        ck_assert_uint_lt(o[0].byte[0], 10 + RACERS);
        ck_assert_int_eq(unlink(path), 0);
    }
}
END_TEST

START_TEST(a_lock_that_is_never_given_back_is_done_without) {
    outcome o[2];
    struct timespec from, to;
    write_file("", 0);
    FILE *f = fopen(path, "r");
    ck_assert_int_eq(flock(fileno(f), LOCK_EX), 0);
    clock_gettime(CLOCK_MONOTONIC, &from);
    open_elsewhere(2, 10, o);
    clock_gettime(CLOCK_MONOTONIC, &to);
    ck_agree(o, 2);
    ck_assert_int_ge(to.tv_sec - from.tv_sec, 1); // they did wait
    ck_elsewhere(99, o[0].byte[0], o[0].byte[1], o[0].byte[2]);
    fclose(f);
}
END_TEST

// Cut anywhere, also in front of its last sign.
START_TEST(a_torn_last_line_is_none) {
    char text[TEXT], after[TEXT];
    const int whole = print_line(text, KEY, shapes[0], 1);
    const int n = print_line(text + whole, KEY, shapes[1], 2);
    for (int cut = 1; cut < n; cut++) {
        write_file(text, (size_t)(whole + cut));
        // Only the end of the line missing: what is added next completes it, for everybody.
        const uint8_t expected = cut == n - 1 ? 2 : 3;
        ck_elsewhere(3, 1, expected, 3);
        ck_elsewhere(4, 1, expected, 3);
        read_file(after);
        ck_assert_int_eq(memcmp(text, after, (size_t)(whole + cut)), 0);
    }
}
END_TEST

// As a power cut leaves it on some file systems; text of anything else; a line that is too long.
START_TEST(damaged_lines_are_none) {
    char text[TEXT] = {0};
    int n = 3000; // zeros
    n += sprintf(text + n, "\n%s ", KEY);
    memset(text + n, 'a', 3000), n += 3000;
    n += sprintf(text + n, "\n" KEY "\n" KEY " \n" KEY " %s\n" KEY " %s 1.0\n" KEY " %s 1.0 \n",
                 shapes[0], shapes[0], shapes[0]);
    n += print_line(text + n, KEY, shapes[0], 1) - 2;
    n += sprintf(text + n, "g\n"); // no hexadecimal digit
    n += print_line(text + n, KEY, shapes[0], 2) - 1;
    n += sprintf(text + n, "22\n"); // a byte too many
    n += print_line(text + n, KEY, shapes[0], 2);
    memcpy(text + n - 1, "x\0\n", 3), n += 2;
    n += print_line(text + n, KEY, shapes[1], 3);
    write_file(text, (size_t)n);
    ck_elsewhere(4, 4, 3, 4);
    ck_elsewhere(5, 4, 3, 4);
}
END_TEST

// ---- files that cannot be written

static void no_folder(void) {
    FILE *f = fopen(folder, "w");
    MUST(f != NULL);
    fclose(f);
}

static void no_file(void) {
    MUST(mkdir(folder, 0700) == 0 && mkdir(path, 0700) == 0);
}

static void no_effect(void) {
    MUST(mkdir(folder, 0700) == 0 && symlink("/dev/null", path) == 0);
}

static void no_home(void) {
    unsetenv("XDG_CACHE_HOME");
    unsetenv("HOME");
}

static void no_space(void) {
    char text[TEXT];
    write_file(text, (size_t)print_line(text, OTHER, shapes[0], 1));
    most = 1;
}

static void (*const unwritable[])(void) = {no_folder, no_file, no_effect, no_home, no_space};

// In a process of its own, which may be limited.
static void in_a_child(void (*f)(int), int i) {
    int status;
    const pid_t child = fork();
    ck_assert_int_ge(child, 0);
    if (child == 0) {
        f(i);
        _exit(0);
    }
    ck_assert_int_eq(waitpid(child, &status, 0), child);
    ck_assert_int_eq(status, 0);
}

static pthread_barrier_t all_timed;

static void *race_here(void *arg) {
    outcome *o = arg;
    algorithm_list list;
    algorithm a[PRODUCTS];
    look(&list, a, o->byte[0]);
    pthread_barrier_wait(&all_timed);
    *o = settle(&list, a);
    return NULL;
}

static void own_choices(int i) {
    unwritable[i]();
    MUST(took(open_here(1), 1, 1, 1));
    MUST(took(open_here(2), 1, 1, 1));
    card = "NVIDIA_L4 13000 130100";
    MUST(took(open_here(3), 3, 3, 3));
}

static void own_choices_of_threads(int i) {
    pthread_t threads[RACERS];
    outcome o[RACERS];
    unwritable[i]();
    MUST(pthread_barrier_init(&all_timed, NULL, RACERS) == 0);
    for (int t = 0; t < RACERS; t++) {
        o[t].byte[0] = (uint8_t)(t + 1);
        MUST(pthread_create(&threads[t], NULL, race_here, &o[t]) == 0);
    }
    for (int t = 0; t < RACERS; t++)
        pthread_join(threads[t], NULL);
    for (int t = 1; t < RACERS; t++)
        MUST(took(o[t], o[0].byte[0], o[0].byte[1], o[0].byte[2]));
    MUST(took(open_here(99), o[0].byte[0], o[0].byte[1], o[0].byte[2]));
}

START_TEST(devices_of_a_process_agree_without_a_file) {
    in_a_child(own_choices, _i);
}
END_TEST

START_TEST(threads_that_race_agree_without_a_file) {
    in_a_child(own_choices_of_threads, _i);
}
END_TEST

static void read_and_choose(int bytes) {
    most = (rlim_t)bytes;
    MUST(took(open_here(3), 3, 2, 3)); // of what it cannot write its own
    MUST(took(open_here(4), 3, 2, 3));
}

// Full at any byte of the addition. What stands in the file is good, before and after; what did not
// get in whole is as if it had never been.
START_TEST(a_full_disk_leaves_lines_whole_or_none) {
    char text[TEXT], after[TEXT];
    const int n = print_line(text, KEY, shapes[1], 2);
    for (int room = 0; room < 2 * n; room += 17) {
        write_file(text, (size_t)n);
        in_a_child(read_and_choose, n + room);
        read_file(after);
        ck_assert_int_eq(strncmp(after, text, (size_t)n), 0);
        const bool got_in = room > n; // the first of three lines, behind an empty one
        ck_elsewhere(5, got_in ? 3 : 5, 2, 5);
        ck_elsewhere(6, got_in ? 3 : 5, 2, 5);
    }
}
END_TEST

static void open_twice_and_delete(int unused) {
    MUST(took(open_here(1), 1, 1, 1));
    MUST(unlink(path) == 0);
    MUST(took(open_here(2), 1, 1, 1));
}

START_TEST(devices_of_a_process_agree_though_the_file_is_deleted) {
    in_a_child(open_twice_and_delete, 0);
}
END_TEST

// Without XDG_CACHE_HOME, and with one that is no absolute path.
static void open_in_home(int relative) {
    const char *const left[] = {"cache/ssmd/cuda-algorithms", "cache/ssmd", "cache"};
    char name[100];
    setenv("HOME", home, 1);
    if (relative)
        setenv("XDG_CACHE_HOME", "here", 1);
    else
        unsetenv("XDG_CACHE_HOME");
    MUST(took(open_here(1), 1, 1, 1));
    for (int i = 0; i < 3; i++) {
        snprintf(name, sizeof name, "%s/.%s", home, left[i]);
        MUST(remove(name) == 0);
    }
}

START_TEST(the_file_is_in_the_home_folder) {
    in_a_child(open_in_home, _i);
}
END_TEST

static void open_before_the_file_and_after(int unused) {
    char text[TEXT];
    int n = 0;
    no_folder();
    MUST(took(open_here(1), 1, 1, 1));
    MUST(unlink(folder) == 0);
    for (int i = 0; i < TWIN; i++)
        n += print_line(text + n, KEY, shapes[i], 2);
    write_file(text, (size_t)n);
    MUST(took(open_here(3), 1, 1, 1));
}

START_TEST(a_process_stays_with_its_first_choice) {
    in_a_child(open_before_the_file_and_after, 0);
    ck_elsewhere(4, 2, 2, 2);
}
END_TEST

int main(void) {
    Suite *s = suite_create("algorithms");
    TCase *tc = tcase_create("file");
    const int n = sizeof unwritable / sizeof unwritable[0];
    tcase_set_timeout(tc, 60);
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_test(tc, the_oldest_line_wins);
    tcase_add_test(tc, lines_are_as_earlier_versions_wrote_and_read_them);
    tcase_add_test(tc, the_key_has_the_versions);
    tcase_add_test(tc, what_is_no_longer_usable_is_passed_over);
    tcase_add_test(tc, what_is_usable_to_nobody_is_written_once);
    tcase_add_test(tc, many_more_lines_than_one_model_has);
    tcase_add_test(tc, processes_that_race_agree);
    tcase_add_test(tc, a_lock_that_is_never_given_back_is_done_without);
    tcase_add_test(tc, a_torn_last_line_is_none);
    tcase_add_test(tc, damaged_lines_are_none);
    tcase_add_loop_test(tc, devices_of_a_process_agree_without_a_file, 0, n);
    tcase_add_loop_test(tc, threads_that_race_agree_without_a_file, 0, n);
    tcase_add_test(tc, a_full_disk_leaves_lines_whole_or_none);
    tcase_add_test(tc, devices_of_a_process_agree_though_the_file_is_deleted);
    tcase_add_test(tc, a_process_stays_with_its_first_choice);
    tcase_add_loop_test(tc, the_file_is_in_the_home_folder, 0, 2);
    suite_add_tcase(s, tc);
    return suite_run(s);
}
