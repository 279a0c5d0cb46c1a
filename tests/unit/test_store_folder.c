// SPDX-License-Identifier: Apache-2.0
// Sessions in a folder: files that are torn or foreign are set aside, the folder has one holder,
// and what lies in it does not tell whose it is.
#include <glob.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "engine/state/secret.h"
#include "engine/state/snapshot_file.h"
#include "fixtures/store.h"

// The header of the one session that there is.
static void slurp_session(char *out, size_t size) {
    char pattern[200];
    glob_t found;
    snprintf(pattern, sizeof pattern, "%s/*/*.session", folder);
    ck_assert_int_eq(glob(pattern, 0, NULL, &found), 0);
    ck_assert_uint_eq(found.gl_pathc, 1);
    FILE *f = fopen(found.gl_pathv[0], "r");
    ck_assert_int_eq(fseek(f, 8, SEEK_SET), 0);
    out[fread(out, 1, 4096, f)] = '\0';
    fclose(f);
    globfree(&found);
}

START_TEST(damaged_files_are_set_aside) {
    waiter w;
    ssm_stats stats;
    begin();
    open_engine(SSM_DURABILITY_SYNC, true);
    run_turn("one", 0, &w);
    waiter_dispose(&w);
    close_engine();
    ck_assert_int_eq(count_files(".session", "cut"), 1);
    open_engine(SSM_DURABILITY_SYNC, true);
    ssm_engine_get_stats(con.engine, &stats);
    ck_assert_uint_eq(stats.sessions_set_aside, 1);
    ck_assert_uint_eq(tokens_of("one"), 0);
    ck_assert_int_eq(count_files(".bad", NULL), 1);
    run_turn("one", 0, &w); // its name is free
    waiter_dispose(&w);
    close_engine();
    open_engine(SSM_DURABILITY_SYNC, true);
    ck_assert_uint_eq(tokens_of("one"), PER_TURN);
    close_engine();
    finish();
}
END_TEST

START_TEST(a_file_damaged_later_is_found_when_used) {
    waiter w;
    ssm_stats stats;
    ssm_error err;
    begin();
    open_engine(SSM_DURABILITY_SYNC, true);
    run_turn("one", 0, &w);
    waiter_dispose(&w);
    close_engine();
    ck_assert_int_eq(count_files(".session", "flip"), 1);
    open_engine(SSM_DURABILITY_SYNC, true); // its header is in order
    ck_assert_uint_eq(tokens_of("one"), PER_TURN);
    uint8_t *bytes;
    size_t size;
    ck_assert_int_eq(ssm_session_export_bytes(con.engine, owner, "one", &bytes, &size, &err),
                     SSM_EIO);
    ck_assert_uint_eq(tokens_of("one"), 0);
    ssm_engine_get_stats(con.engine, &stats);
    ck_assert_uint_eq(stats.sessions_set_aside, 1);
    ck_assert_int_eq(count_files(".bad", NULL), 1);
    run_turn("one", 0, &w); // its name is free
    waiter_dispose(&w);
    close_engine();
    finish();
}
END_TEST

START_TEST(a_folder_has_one_holder) {
    ssm_engine *second;
    ssm_engine_options o;
    ssm_error err;
    char number[24];
    begin();
    open_engine(SSM_DURABILITY_ASYNC, true);
    ssm_engine_options_init(&o);
    o.device = "cpu";
    o.max_sessions = 1;
    o.state_dir = folder;
    ck_assert_int_eq(ssm_engine_create(model, &o, &second, &err), SSM_EIO);
    snprintf(number, sizeof number, "process %ld", (long)getpid());
    ck_assert_msg(strstr(err.message, number), "%s", err.message);
    close_engine();
    ck_assert_int_eq(ssm_engine_create(model, &o, &second, &err), 0);
    ssm_engine_free(second);
    finish();
}
END_TEST

// From the reference code of the hash's authors: the input is 0, 1, 2 .., the key as long.
START_TEST(owners_on_the_disk_are_keyed) {
    static const uint8_t none[16] = {0xa3, 0x81, 0x7f, 0x04, 0xba, 0x25, 0xa8, 0xe6,
                                     0x6d, 0xf6, 0x72, 0x14, 0xc7, 0x55, 0x02, 0x93};
    static const uint8_t first[16] = {0xda, 0x87, 0xc1, 0xd8, 0x6b, 0x99, 0xaf, 0x44,
                                      0x34, 0x76, 0x59, 0x11, 0x9b, 0x22, 0xfc, 0x45};
    uint8_t key[16], out[16], secret[16], other[16];
    char path[1200], digits[40], text[5000];
    struct stat info;
    waiter w;
    for (uint8_t i = 0; i < 16; i++)
        key[i] = i;
    siphash128(key, key, 0, out);
    ck_assert_int_eq(memcmp(out, none, 16), 0);
    siphash128(key, key, 1, out);
    ck_assert_int_eq(memcmp(out, first, 16), 0);
    begin();
    open_engine(SSM_DURABILITY_SYNC, true);
    run_turn("one", 0, &w);
    waiter_dispose(&w);
    close_engine();
    snprintf(path, sizeof path, "%s/.secret", folder);
    ck_assert_int_eq(stat(path, &info), 0);
    ck_assert_int_eq(info.st_mode & 0777, 0600);
    ck_assert_int_eq(secret_open(folder, secret, NULL), 0);
    ck_assert_int_eq(secret_make(other, NULL), 0);
    ck_assert_int_ne(memcmp(secret, other, 16), 0);
    uint64_t hashed[2];
    secret_owner(secret, owner, hashed);
    slurp_session(text, sizeof text);
    snprintf(digits, sizeof digits, "%016" PRIx64 "%016" PRIx64, hashed[0], hashed[1]);
    ck_assert_ptr_nonnull(strstr(text, digits));
    snprintf(digits, sizeof digits, "%016" PRIx64, owner[0]);
    ck_assert_ptr_null(strstr(text, digits));
    finish();
}
END_TEST

// In place of the C library's: what was synced.
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char synced[64][200];
static int n_synced;

int fsync(int fd) {
    char link[40];
    pthread_mutex_lock(&lock);
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    if (n_synced < 64) {
        const ssize_t n = readlink(link, synced[n_synced], sizeof *synced - 1);
        synced[n_synced++][n > 0 ? n : 0] = '\0';
    }
    pthread_mutex_unlock(&lock);
    return (int)syscall(SYS_fsync, fd);
}

static bool was_synced(const char *path) {
    bool found = false;
    pthread_mutex_lock(&lock);
    for (int i = 0; i < n_synced; i++)
        found |= strcmp(synced[i], path) == 0;
    pthread_mutex_unlock(&lock);
    return found;
}

static const char *path_in(char out[300], const char *in, const char *name) {
    ck_assert_int_lt(snprintf(out, 300, "%s/%s", in, name), 300);
    return out;
}

// The model's folder in another.
static const char *inner_of(char out[300], const char *in) {
    char name[40];
    uint64_t hash[2];
    model_hash(model, hash);
    snprintf(name, sizeof name, "%016" PRIx64 "%016" PRIx64, hash[0], hash[1]);
    return path_in(out, in, name);
}

// A session is on the disk once the folders are that lead to it, and the secret of its owner.
START_TEST(new_folders_and_the_secret_are_synced) {
    char root[300], slash[300], inner[300], file[300];
    ssm_engine_options o;
    ssm_engine *engine;
    begin();
    inner_of(inner, path_in(root, folder, "new"));
    ssm_engine_options_init(&o);
    o.device = "cpu";
    o.max_sessions = 1;
    o.state_dir = _i == 0 ? root : path_in(slash, root, "");
    n_synced = 0;
    ck_assert_int_eq(ssm_engine_create(model, &o, &engine, NULL), 0);
    ck_assert_msg(was_synced(folder), "%s was made, its folder not synced", root);
    ck_assert_msg(was_synced(root), "%s was made, its folder not synced", inner);
    ssm_engine_free(engine);
    ck_assert_int_eq(unlink(path_in(file, root, ".secret")), 0);
    n_synced = 0;
    ck_assert_int_eq(ssm_engine_create(model, &o, &engine, NULL), 0);
    ck_assert_msg(was_synced(root), "the secret's folder was not synced");
    ssm_engine_free(engine);
    ck_assert_int_eq(unlink(path_in(file, root, ".secret")), 0);
    ck_assert_int_eq(unlink(path_in(file, inner, ".lock")), 0);
    ck_assert(rmdir(inner) == 0 && rmdir(root) == 0);
    finish();
}
END_TEST

static uint64_t written(uint64_t *failures) {
    ssm_stats stats;
    ssm_engine_get_stats(con.engine, &stats);
    *failures = stats.session_write_failures;
    return stats.session_writes;
}

// A disk that was full for a while: nobody has to come back for what it did not take. What it still
// has not taken at the end is lost, and said to be.
START_TEST(what_could_not_be_written_is_tried_again) {
    static const char *const names[] = {"one", "two", "three"};
    char inner[300], away[300];
    uint64_t failures;
    waiter w;
    begin();
    inner_of(inner, folder);
    path_in(away, folder, "away");
    open_engine(SSM_DURABILITY_ASYNC, true);
    ck_assert_int_eq(rename(inner, away), 0);
    for (int k = 0; k < 3; k++) {
        run_turn(names[k], 0, &w);
        waiter_dispose(&w);
    }
    usleep(500000);
    ck_assert_uint_eq(written(&failures), 0);
    ck_assert_msg(failures >= 3 && failures < 10, "%d failures", (int)failures);
    ck_assert_int_eq(rename(away, inner), 0);
    while (written(&failures) < 3)
        usleep(1000);
    run_turn("one", 1, &w);
    waiter_dispose(&w);
    while (written(&failures) < 4)
        usleep(1000);
    ck_assert_int_eq(rename(inner, away), 0);
    run_turn("one", 2, &w);
    waiter_dispose(&w);
    consumer_dispose(&con);
    ck_assert_uint_eq(ssm_engine_free(con.engine), 1);
    ck_assert_int_eq(rename(away, inner), 0);
    open_engine(SSM_DURABILITY_ASYNC, true);
    ck_assert_uint_eq(tokens_of("one"), 2 * PER_TURN);
    ck_assert_uint_eq(tokens_of("three"), PER_TURN);
    close_engine();
    finish();
}
END_TEST

int main(void) {
    Suite *suite = suite_create("store_folder");
    TCase *tc = tcase_create("all");
    tcase_set_timeout(tc, 600);
    tcase_add_test(tc, damaged_files_are_set_aside);
    tcase_add_test(tc, a_file_damaged_later_is_found_when_used);
    tcase_add_test(tc, a_folder_has_one_holder);
    tcase_add_test(tc, owners_on_the_disk_are_keyed);
    tcase_add_loop_test(tc, new_folders_and_the_secret_are_synced, 0, 2);
    tcase_add_test(tc, what_could_not_be_written_is_tried_again);
    suite_add_tcase(suite, tc);
    return suite_run(suite);
}
