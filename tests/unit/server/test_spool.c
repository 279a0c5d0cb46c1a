// SPDX-License-Identifier: Apache-2.0
// Spools: bytes come back, memory is charged only where there is no file, nothing is left behind.
#include "spool.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "suite.h"

static budget memory;
static char folder[64];
static spool_room room;

static void begin(bool has_folder) {
    strcpy(folder, "/tmp/ssm-spool-XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(folder));
    budget_init(&memory, 8 << 20);
    room =
        (spool_room){.folders = {"/nowhere/at/all", has_folder ? folder : NULL}, .budget = &memory};
}

static void end(void) {
    ck_assert_int_eq(room.n, 0);
    ck_assert_uint_eq(memory.used, 0);
    ck_assert_int_eq(rmdir(folder), 0); // it is empty
}

static int count_files(void) {
    DIR *dir = opendir(folder);
    int n = -2; // . and ..
    while (readdir(dir)) {
        n++;
    }
    closedir(dir);
    return n;
}

static void round_trip(bool has_folder) {
    static char text[3 << 20], back[sizeof text];
    spool *s;
    char path[SPOOL_PATH];
    begin(has_folder);
    for (size_t i = 0; i < sizeof text; i++) {
        text[i] = (char)(i * 31 >> 3);
    }
    ck_assert_int_eq(spool_open(&room, &s, NULL), 0);
    ck_assert_int_eq(s->in_memory, !has_folder);
    for (size_t at = 0; at < sizeof text; at += sizeof text / 16) {
        ck_assert_int_eq(spool_write(s, text + at, sizeof text / 16, NULL), 0);
    }
    ck_assert_uint_eq(s->size, sizeof text);
    ck_assert_int_eq(memory.used >= sizeof text, !has_folder);
    ck_assert_int_eq(count_files(), 0);
    spool_path(s, path);
    FILE *f = fopen(path, "rb");
    ck_assert_ptr_nonnull(f);
    ck_assert_uint_eq(fread(back, 1, sizeof back, f), sizeof back);
    ck_assert_int_eq(fgetc(f), EOF);
    ck_assert_int_eq(memcmp(text, back, sizeof text), 0);
    fclose(f);
    spool_close(s);
    end();
}

START_TEST(bytes_lie_in_a_file) {
    round_trip(true);
}
END_TEST

START_TEST(without_a_folder_they_lie_in_memory) {
    round_trip(false);
}
END_TEST

START_TEST(memory_has_its_limit) {
    static const char piece[1 << 20];
    spool *s;
    ssm_error err;
    begin(false);
    ck_assert_int_eq(spool_open(&room, &s, NULL), 0);
    int rc = 0;
    for (int i = 0; i < 9 && rc == 0; i++) {
        rc = spool_write(s, piece, sizeof piece, &err);
    }
    ck_assert_int_eq(rc, SSM_ENOMEM);
    ck_assert_uint_le(memory.used, memory.limit);
    spool_close(s);
    ck_assert_int_eq(spool_open(&room, &s, NULL), 0);
    ck_assert_int_eq(spool_reserve(s, 9 << 20, &err), SSM_ENOMEM);
    ck_assert_int_eq(spool_reserve(s, 6 << 20, &err), 0);
    spool_close(s);
    spool_close(NULL);
    end();
}
END_TEST

START_TEST(a_full_disk_is_said_to_be) {
    spool *s;
    ssm_error err;
    begin(true);
    ck_assert_int_eq(spool_open(&room, &s, NULL), 0);
    const int full = open("/dev/full", O_WRONLY);
    ck_assert_int_eq(dup2(full, s->fd), s->fd);
    close(full);
    ck_assert_int_eq(spool_write(s, "x", 1, &err), SSM_EDISKFULL);
    ck_assert_int_eq(ssm_error_status(err.code), 507);
    ck_assert_uint_eq(s->size, 0);
    spool_close(s);
    end();
}
END_TEST

START_TEST(so_many_at_once) {
    spool *all[SPOOLS_MOST], *more;
    ssm_error err;
    begin(true);
    for (int i = 0; i < SPOOLS_MOST; i++) {
        ck_assert_int_eq(spool_open(&room, &all[i], NULL), 0);
    }
    ck_assert_int_eq(spool_open(&room, &more, &err), SSM_ENOMEM);
    ck_assert_ptr_null(more);
    spool_close(all[3]);
    ck_assert_int_eq(spool_open(&room, &all[3], NULL), 0);
    for (int i = 0; i < SPOOLS_MOST; i++) {
        spool_close(all[i]);
    }
    end();
}
END_TEST

int main(void) {
    const TTest *const tests[] = {bytes_lie_in_a_file, without_a_folder_they_lie_in_memory,
                                  memory_has_its_limit, a_full_disk_is_said_to_be, so_many_at_once};
    return RUN_SUITE("spool", tests);
}
