/* test_io.c -- the contract of io.h, kept by both implementations; then what the simulated disk promises beyond it.
 *
 * The contract tests run twice, on whatever `make_world` makes: a directory under TMPDIR, or a kv_sim. */
#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"
#include "kv/io.h"
#include "kv/io_sim.h"

enum { PAGE = KV_PAGE_SIZE };

/* --- both --- */

static bool world_is_simulated;

typedef struct world {
    kv_io *io;
    kv_sim *sim;     /* NULL: real */
    char root[256];
} world;

static world make_world(void) {
    world w = {0};
    if (world_is_simulated) {
        w.sim = kv_sim_new();
        w.io = kv_sim_io(w.sim);
        return w;
    }
    const char *parent = getenv("TMPDIR");
    snprintf(w.root, sizeof w.root, "%s/kv-test-io-XXXXXX", parent == NULL ? "/tmp" : parent);
    if (mkdtemp(w.root) == NULL || kv_io_posix_new(w.root, false, &w.io) != KV_OK) abort();
    return w;
}

static void end_world(world *w) {
    w->io->free(w->io);
    kv_sim_free(w->sim);
    if (w->sim != NULL) return;
    char command[300];
    snprintf(command, sizeof command, "rm -r '%s'", w->root);
    if (system(command) != 0) abort();
}

static kv_file *open_file(kv_io *io, const char *path, enum kv_io_mode mode) {
    kv_file *file = NULL;
    if (io->open(io, path, mode, &file) != KV_OK) abort();
    return file;
}

static void put_file(kv_io *io, const char *path, const char *text) {
    kv_file *file = open_file(io, path, KV_IO_CREATE);
    CHECK_EQ(io->write_at(io, file, (const uint8_t *)text, strlen(text), 0), KV_OK);
    CHECK_EQ(io->sync(io, file), KV_OK);
    io->close(io, file);
}

/* The content as text; "(absent)" without a file. The answer lives until the next call. */
static const char *text_of(kv_io *io, const char *path) {
    static char text[3 * PAGE];
    kv_file *file;
    kv_status status = io->open(io, path, KV_IO_READ, &file);
    if (status == KV_ABSENT) return "(absent)";
    if (status != KV_OK) return "(failed)";
    size_t size = 0;
    CHECK_EQ(io->read_at(io, file, (uint8_t *)text, sizeof text - 1, 0, &size), KV_OK);
    text[size] = '\0';
    io->close(io, file);
    return text;
}

#define CHECK_TEXT(io, path, expected) CHECK(strcmp(text_of(io, path), expected) == 0)

TEST(written_bytes_are_read_back) {
    world w = make_world();
    kv_file *file = open_file(w.io, "a", KV_IO_CREATE);
    uint8_t bytes[10000], back[10000];
    for (size_t i = 0; i < sizeof bytes; i++) bytes[i] = (uint8_t)(i * 7 + i / 256);
    CHECK_EQ(w.io->write_at(w.io, file, bytes, sizeof bytes, 5000), KV_OK);
    uint64_t size = 0;
    CHECK_EQ(w.io->size(w.io, file, &size), KV_OK);
    CHECK_EQ(size, 15000);
    size_t got = 0;
    CHECK_EQ(w.io->read_at(w.io, file, back, sizeof back, 5000, &got), KV_OK);
    CHECK_EQ(got, sizeof back);
    CHECK(memcmp(bytes, back, sizeof back) == 0);
    CHECK_EQ(w.io->read_at(w.io, file, back, sizeof back, 14990, &got), KV_OK);
    CHECK_EQ(got, 10); /* fewer only at the end */
    CHECK_EQ(w.io->read_at(w.io, file, back, sizeof back, 15000, &got), KV_OK);
    CHECK_EQ(got, 0);
    CHECK_EQ(w.io->read_at(w.io, file, back, 5000, 0, &got), KV_OK);
    CHECK_EQ(back[0] | back[4999], 0); /* the hole */
    w.io->close(w.io, file);
    end_world(&w);
}

TEST(create_empties_and_write_wants_a_file) {
    world w = make_world();
    kv_file *file;
    CHECK_EQ(w.io->open(w.io, "a", KV_IO_WRITE, &file), KV_ABSENT);
    CHECK_EQ(errno, ENOENT);
    CHECK_EQ(w.io->open(w.io, "a", KV_IO_READ, &file), KV_ABSENT);
    CHECK_EQ(w.io->open(w.io, "no/a", KV_IO_CREATE, &file), KV_EDISK);
    put_file(w.io, "a", "first");
    CHECK_TEXT(w.io, "a", "first");
    file = open_file(w.io, "a", KV_IO_CREATE);
    w.io->close(w.io, file);
    CHECK_TEXT(w.io, "a", "");
    end_world(&w);
}

TEST(a_file_opened_for_reading_is_not_written) {
    world w = make_world();
    put_file(w.io, "a", "text");
    kv_file *file = open_file(w.io, "a", KV_IO_READ);
    uint8_t *mapping;
    CHECK_EQ(w.io->write_at(w.io, file, (const uint8_t *)"x", 1, 0), KV_EDISK);
    CHECK_EQ(errno, EBADF);
    CHECK_EQ(w.io->map(w.io, file, PAGE, true, &mapping), KV_EDISK);
    CHECK_EQ(errno, EACCES);
    w.io->close(w.io, file);
    CHECK_TEXT(w.io, "a", "text");
    end_world(&w);
}

TEST(truncate_cuts_and_grows_with_zeros) {
    world w = make_world();
    put_file(w.io, "a", "abcdef");
    kv_file *file = open_file(w.io, "a", KV_IO_WRITE);
    CHECK_EQ(w.io->truncate(w.io, file, 3), KV_OK);
    CHECK_TEXT(w.io, "a", "abc");
    CHECK_EQ(w.io->truncate(w.io, file, 6), KV_OK);
    uint8_t back[6];
    size_t got;
    CHECK_EQ(w.io->read_at(w.io, file, back, 6, 0, &got), KV_OK);
    CHECK(got == 6 && memcmp(back, "abc\0\0\0", 6) == 0);

    CHECK_EQ(w.io->write_at(w.io, file, (const uint8_t *)"far", 3, 3 * PAGE), KV_OK);
    CHECK_EQ(w.io->truncate(w.io, file, 6), KV_OK);
    CHECK_EQ(w.io->truncate(w.io, file, 3 * PAGE + 3), KV_OK);
    CHECK_EQ(w.io->read_at(w.io, file, back, 3, 3 * PAGE, &got), KV_OK);
    CHECK(got == 3 && memcmp(back, "\0\0\0", 3) == 0); /* What was cut off does not come back. */
    w.io->close(w.io, file);
    end_world(&w);
}

TEST(allocate_grows_and_never_shrinks) {
    world w = make_world();
    put_file(w.io, "a", "abc");
    kv_file *file = open_file(w.io, "a", KV_IO_WRITE);
    uint64_t size = 0;
    CHECK_EQ(w.io->allocate(w.io, file, 0), KV_OK);
    CHECK_EQ(w.io->allocate(w.io, file, 2 * PAGE), KV_OK);
    CHECK_EQ(w.io->size(w.io, file, &size), KV_OK);
    CHECK_EQ(size, 2 * PAGE);
    CHECK_EQ(w.io->allocate(w.io, file, PAGE), KV_OK);
    CHECK_EQ(w.io->size(w.io, file, &size), KV_OK);
    CHECK_EQ(size, 2 * PAGE);
    w.io->close(w.io, file);
    end_world(&w);
}

TEST(a_mapping_is_the_file) {
    world w = make_world();
    kv_file *file = open_file(w.io, "a", KV_IO_CREATE);
    CHECK_EQ(w.io->truncate(w.io, file, 2 * PAGE), KV_OK);
    uint8_t *mapping, *second, back[4];
    size_t got;
    CHECK_EQ(w.io->map(w.io, file, 2 * PAGE, true, &mapping), KV_OK);
    kv_file *reader = open_file(w.io, "a", KV_IO_READ);
    CHECK_EQ(w.io->map(w.io, reader, 2 * PAGE, false, &second), KV_OK);

    w.io->warm(w.io, mapping, 2 * PAGE);
    memcpy(mapping + PAGE, "mapd", 4);
    w.io->warm(w.io, mapping, 2 * PAGE); /* changes no byte */
    CHECK(memcmp(second + PAGE, "mapd", 4) == 0);
    w.io->cool(w.io, mapping, 2 * PAGE); /* nor does this, and it is there for everybody */
    CHECK(memcmp(mapping + PAGE, "mapd", 4) == 0);
    w.io->cool(w.io, mapping, 2 * PAGE);
    CHECK(memcmp(second + PAGE, "mapd", 4) == 0);
    CHECK_EQ(w.io->read_at(w.io, reader, back, 4, PAGE, &got), KV_OK);
    CHECK(memcmp(back, "mapd", 4) == 0);
    CHECK_EQ(w.io->write_at(w.io, file, (const uint8_t *)"writ", 4, PAGE - 2), KV_OK);
    CHECK(memcmp(mapping + PAGE - 2, "writpd", 6) == 0);

    w.io->unmap(w.io, reader, second, 2 * PAGE);
    w.io->close(w.io, file);
    memcpy(mapping, "last", 4);
    w.io->unmap(w.io, NULL, mapping, 2 * PAGE); /* the file was closed before */
    CHECK_EQ(w.io->read_at(w.io, reader, back, 4, 0, &got), KV_OK);
    CHECK(memcmp(back, "last", 4) == 0);
    w.io->close(w.io, reader);
    end_world(&w);
}

TEST(a_mapping_stays_where_it_is_while_the_file_grows) {
    world w = make_world();
    kv_file *file = open_file(w.io, "a", KV_IO_CREATE);
    CHECK_EQ(w.io->truncate(w.io, file, PAGE), KV_OK);
    uint8_t *mapping;
    CHECK_EQ(w.io->map(w.io, file, PAGE, true, &mapping), KV_OK);
    mapping[0] = 'm';
    CHECK_EQ(w.io->write_at(w.io, file, (const uint8_t *)"far", 3, 20 * PAGE - 1), KV_OK);
    mapping[1] = 'n';
    uint8_t back[3];
    size_t got;
    CHECK_EQ(w.io->read_at(w.io, file, back, 3, 20 * PAGE - 1, &got), KV_OK);
    CHECK(memcmp(back, "far", 3) == 0);
    CHECK_EQ(w.io->read_at(w.io, file, back, 2, 0, &got), KV_OK);
    CHECK(memcmp(back, "mn", 2) == 0);
    w.io->unmap(w.io, file, mapping, PAGE);
    w.io->close(w.io, file);
    end_world(&w);
}

TEST(rename_replaces) {
    world w = make_world();
    put_file(w.io, "a", "new");
    put_file(w.io, "b", "old");
    kv_file *old = open_file(w.io, "b", KV_IO_READ);
    CHECK_EQ(w.io->mkdir(w.io, "d"), KV_OK);
    CHECK_EQ(w.io->rename(w.io, "a", "b"), KV_OK);
    CHECK_TEXT(w.io, "a", "(absent)");
    CHECK_TEXT(w.io, "b", "new");
    uint8_t back[3];
    size_t got;
    CHECK_EQ(w.io->read_at(w.io, old, back, 3, 0, &got), KV_OK); /* An open file outlives its name. */
    CHECK(got == 3 && memcmp(back, "old", 3) == 0);
    w.io->close(w.io, old);
    CHECK_EQ(w.io->rename(w.io, "b", "d/c"), KV_OK);
    CHECK_TEXT(w.io, "d/c", "new");
    CHECK_EQ(w.io->rename(w.io, "b", "c"), KV_EDISK); /* A name in use has gone: nobody asked whether it is there. */
    CHECK_EQ(w.io->sync_dir(w.io, "d"), KV_OK);
    end_world(&w);
}

TEST(unlink_removes_once) {
    world w = make_world();
    put_file(w.io, "a", "x");
    CHECK_EQ(w.io->unlink(w.io, "a"), KV_OK);
    CHECK_TEXT(w.io, "a", "(absent)");
    CHECK_EQ(w.io->unlink(w.io, "a"), KV_ABSENT);
    end_world(&w);
}

TEST(names_are_listed_in_order) {
    world w = make_world();
    char **names;
    size_t count = 99;
    CHECK_EQ(w.io->mkdir(w.io, "d"), KV_OK);
    CHECK_EQ(w.io->mkdir(w.io, "d"), KV_OK); /* it is there: good */
    CHECK_EQ(w.io->list(w.io, "d", &names, &count), KV_OK);
    CHECK_EQ(count, 0);
    free(names);
    const char *made[] = {"d/b", "d/a\xff", "d/a", "d/B", "d/aa"};
    for (size_t i = 0; i < 5; i++) put_file(w.io, made[i], "");
    CHECK_EQ(w.io->list(w.io, "d", &names, &count), KV_OK);
    CHECK_EQ(count, 5);
    const char *sorted[] = {"B", "a", "aa", "a\xff", "b"};
    for (size_t i = 0; i < count; i++) CHECK(strcmp(names[i], sorted[i]) == 0);
    free(names);
    CHECK_EQ(w.io->list(w.io, "", &names, &count), KV_OK);
    CHECK(count == 1 && strcmp(names[0], "d") == 0);
    free(names);
    CHECK_EQ(w.io->list(w.io, "e", &names, &count), KV_ABSENT);
    CHECK_EQ(w.io->sync_dir(w.io, ""), KV_OK);
    CHECK_EQ(w.io->sync_dir(w.io, "e"), KV_EDISK);
    end_world(&w);
}

TEST(what_is_no_directory_says_so) {
    world w = make_world();
    put_file(w.io, "a", "");
    kv_file *file;
    CHECK_EQ(w.io->open(w.io, "a/b", KV_IO_READ, &file), KV_EDISK);
    CHECK_EQ(errno, ENOTDIR);
    CHECK_EQ(w.io->sync_dir(w.io, "a"), KV_EDISK);
    CHECK_EQ(errno, ENOTDIR);
    end_world(&w);
}

TEST(random_bytes_differ) {
    world w = make_world();
    uint8_t one[32] = {0}, two[32] = {0};
    CHECK_EQ(w.io->random(w.io, one, sizeof one), KV_OK);
    CHECK_EQ(w.io->random(w.io, two, sizeof two), KV_OK);
    CHECK(memcmp(one, two, sizeof one) != 0);
    end_world(&w);
}

static void run_contract(bool simulated) {
    world_is_simulated = simulated;
    RUN(written_bytes_are_read_back);
    RUN(create_empties_and_write_wants_a_file);
    RUN(a_file_opened_for_reading_is_not_written);
    RUN(truncate_cuts_and_grows_with_zeros);
    RUN(allocate_grows_and_never_shrinks);
    RUN(a_mapping_is_the_file);
    RUN(a_mapping_stays_where_it_is_while_the_file_grows);
    RUN(rename_replaces);
    RUN(unlink_removes_once);
    RUN(names_are_listed_in_order);
    RUN(what_is_no_directory_says_so);
    RUN(random_bytes_differ);
}

/* --- the real directory alone --- */

TEST(a_missing_root_is_absent_or_made) {
    world w = make_world();
    char root[300];
    snprintf(root, sizeof root, "%s/inner", w.root);
    kv_io *io;
    CHECK_EQ(kv_io_posix_new(root, false, &io), KV_ABSENT);
    CHECK_EQ(kv_io_posix_new(root, true, &io), KV_OK);
    put_file(io, "a", "x");
    io->free(io);
    CHECK_TEXT(w.io, "inner/a", "x");
    end_world(&w);
}

TEST(the_lock_keeps_other_processes_out_and_names_its_holder) {
    world w = make_world();
    int64_t holder = 0;
    CHECK_EQ(w.io->lock(w.io, &holder), KV_OK);
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        kv_io *io;
        int64_t seen = 0;
        if (kv_io_posix_new(w.root, false, &io) != KV_OK) _exit(1);
        bool good = io->lock(io, &seen) == KV_ELOCKED && seen == getppid();
        io->free(io);
        _exit(good ? 0 : 2);
    }
    int status = -1;
    waitpid(child, &status, 0);
    CHECK_EQ(status, 0);
    char expected[32];
    snprintf(expected, sizeof expected, "%-19ld\n", (long)getpid());
    w.io->free(w.io);
    CHECK_EQ(kv_io_posix_new(w.root, false, &w.io), KV_OK);
    CHECK_TEXT(w.io, "LOCK", expected);
    CHECK_EQ(w.io->lock(w.io, &holder), KV_OK); /* It went with the table. */
    end_world(&w);
}

/* As a copy of the directory does, which anybody may make. */
TEST(the_lock_stays_when_another_descriptor_of_its_file_is_closed) {
    world w = make_world();
    int64_t holder = 0;
    CHECK_EQ(w.io->lock(w.io, &holder), KV_OK);
    put_file(w.io, "other", "x");
    kv_file *file = open_file(w.io, "LOCK", KV_IO_READ);
    w.io->close(w.io, file);
    kv_io *second;
    CHECK_EQ(kv_io_posix_new(w.root, false, &second), KV_OK);
    CHECK_EQ(second->lock(second, &holder), KV_ELOCKED);
    CHECK_EQ(holder, getpid());
    second->free(second);
    end_world(&w);
}

TEST(a_forked_child_that_lets_go_does_not_keep_the_lock) {
    world w = make_world();
    int64_t holder = 0;
    int ready[2], done[2];
    char byte = 0;
    CHECK_EQ(w.io->lock(w.io, &holder), KV_OK);
    CHECK(pipe(ready) == 0 && pipe(done) == 0);
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        w.io->let_go(w.io);
        bool good = write(ready[1], "r", 1) == 1 && read(done[0], &byte, 1) == 1;
        _exit(good ? 0 : 1);
    }
    CHECK_EQ(read(ready[0], &byte, 1), 1);
    kv_io *second;
    CHECK_EQ(kv_io_posix_new(w.root, false, &second), KV_OK);
    CHECK_EQ(second->lock(second, &holder), KV_ELOCKED); /* The parent still has it, */
    w.io->free(w.io);
    CHECK_EQ(second->lock(second, &holder), KV_OK); /* and the child does not. */
    w.io = second;
    int status = -1;
    CHECK_EQ(write(done[1], "d", 1), 1);
    waitpid(child, &status, 0);
    CHECK_EQ(status, 0);
    for (int i = 0; i < 2; i++) close(ready[i]), close(done[i]);
    end_world(&w);
}

TEST(the_clock_can_be_shifted) {
    world w = make_world();
    int64_t before = w.io->now_ms(w.io);
    CHECK(before > 1600000000000);
    kv_io_posix_shift_clock(w.io, -3600000);
    int64_t after = w.io->now_ms(w.io);
    CHECK(after < before - 3500000 && after > before - 3700000);
    end_world(&w);
}

/* --- the simulated disk alone --- */

/* The text of a file on the disk a cut leaves. */
static const char *after_cut(kv_sim *sim, uint64_t event, int32_t policy, uint64_t choice, uint64_t seed,
                             const char *path) {
    kv_sim *image;
    if (kv_sim_image(sim, event, policy, choice, seed, &image) != KV_OK) return "(no image)";
    kv_io *io = kv_sim_io(image);
    const char *text = text_of(io, path);
    io->free(io);
    kv_sim_free(image);
    return text;
}

static void write_text(kv_io *io, const char *path, const char *text, uint64_t offset) {
    kv_file *file = open_file(io, path, KV_IO_WRITE);
    CHECK_EQ(io->write_at(io, file, (const uint8_t *)text, strlen(text), offset), KV_OK);
    io->close(io, file);
}

/* A disk with one durable file "a" that holds `text`. */
static world world_with_file(const char *text) {
    world_is_simulated = true;
    world w = make_world();
    put_file(w.io, "a", text);
    CHECK_EQ(w.io->sync_dir(w.io, ""), KV_OK);
    CHECK_EQ(kv_sim_unsynced(w.sim, kv_sim_event_count(w.sim)), 0);
    return w;
}

#define CHECK_CUT(w, event, policy, choice, seed, path, expected) \
    CHECK(strcmp(after_cut((w).sim, event, policy, choice, seed, path), expected) == 0)

TEST(what_is_synced_survives_every_cut) {
    world w = world_with_file("synced");
    kv_file *file = open_file(w.io, "a", KV_IO_WRITE);
    uint8_t *mapping;
    CHECK_EQ(w.io->map(w.io, file, PAGE, true, &mapping), KV_OK);
    memcpy(mapping, "SYNCED", 6);
    CHECK_EQ(w.io->sync(w.io, file), KV_OK);
    put_file(w.io, "b", "other"); /* open: its name */
    uint64_t now = kv_sim_event_count(w.sim);
    uint64_t open_count = (uint64_t)kv_sim_unsynced(w.sim, now);
    CHECK(open_count > 0);
    for (int32_t policy = KV_CUT_ALL_KEPT; policy <= KV_CUT_RANDOM; policy++) {
        for (uint64_t seed = 0; seed < 50; seed++) {
            CHECK_CUT(w, now, policy, seed % open_count, seed, "a", "SYNCED");
        }
    }
    w.io->unmap(w.io, file, mapping, PAGE);
    w.io->close(w.io, file);
    end_world(&w);
}

TEST(what_is_not_synced_can_be_lost) {
    world w = world_with_file("old");
    write_text(w.io, "a", "new", 0);
    uint64_t now = kv_sim_event_count(w.sim);
    CHECK_EQ(kv_sim_unsynced(w.sim, now), 1);
    CHECK_CUT(w, now, KV_CUT_ALL_KEPT, 0, 0, "a", "new");
    CHECK_CUT(w, now, KV_CUT_ALL_LOST, 0, 0, "a", "old");
    CHECK_CUT(w, now - 1, KV_CUT_ALL_LOST, 0, 0, "a", "old"); /* the write under way: any effect or none */
    CHECK_CUT(w, now - 1, KV_CUT_ALL_KEPT, 0, 0, "a", "new");
    end_world(&w);
}

TEST(a_sync_under_way_has_made_nothing_durable) {
    world w = world_with_file("old");
    kv_file *file = open_file(w.io, "a", KV_IO_WRITE);
    CHECK_EQ(w.io->write_at(w.io, file, (const uint8_t *)"new", 3, 0), KV_OK);
    uint64_t sync = kv_sim_event_count(w.sim);
    CHECK_EQ(w.io->sync(w.io, file), KV_OK);
    w.io->close(w.io, file);
    CHECK_CUT(w, sync, KV_CUT_ALL_LOST, 0, 0, "a", "old");
    CHECK_CUT(w, sync + 1, KV_CUT_ALL_LOST, 0, 0, "a", "new");
    CHECK_CUT(w, sync, KV_CUT_ALL_LOST, 0, 0, "a", "old"); /* going back works */
    CHECK_EQ(kv_sim_unsynced(w.sim, sync), 1);
    CHECK_EQ(kv_sim_unsynced(w.sim, sync + 1), 0);
    CHECK_EQ(kv_sim_unsynced(w.sim, sync + 2), KV_EUSAGE);
    end_world(&w);
}

TEST(a_sync_is_of_one_file) {
    world w = world_with_file("old");
    write_text(w.io, "a", "new", 0);
    put_file(w.io, "b", "b"); /* syncs b */
    CHECK_CUT(w, kv_sim_event_count(w.sim), KV_CUT_ALL_LOST, 0, 0, "a", "old");
    end_world(&w);
}

TEST(a_failed_sync_has_made_nothing_durable) {
    world w = world_with_file("old");
    kv_file *file = open_file(w.io, "a", KV_IO_WRITE);
    CHECK_EQ(w.io->write_at(w.io, file, (const uint8_t *)"new", 3, 0), KV_OK);
    kv_sim_fail(w.sim, KV_SIM_SYNC, 1, EIO, 0);
    CHECK_EQ(w.io->sync(w.io, file), KV_EDISK);
    CHECK_EQ(errno, EIO);
    w.io->close(w.io, file);
    CHECK_CUT(w, kv_sim_event_count(w.sim), KV_CUT_ALL_LOST, 0, 0, "a", "old");
    end_world(&w);
}

/* Fills four pages of a file with 'o', durably, then each with its own letter. */
static world world_with_four_open_pages(void) {
    char text[4 * PAGE + 1];
    memset(text, 'o', sizeof text - 1);
    text[sizeof text - 1] = '\0';
    world w = world_with_file(text);
    kv_file *file = open_file(w.io, "a", KV_IO_WRITE);
    uint8_t *mapping;
    CHECK_EQ(w.io->map(w.io, file, 4 * PAGE, true, &mapping), KV_OK);
    for (int i = 0; i < 4; i++) memset(mapping + i * PAGE, 'A' + i, PAGE);
    w.io->unmap(w.io, file, mapping, 4 * PAGE);
    w.io->close(w.io, file);
    CHECK_EQ(kv_sim_unsynced(w.sim, kv_sim_event_count(w.sim)), 4);
    return w;
}

/* How many bytes of page `page` are new on the disk a cut leaves. */
static int new_bytes(kv_sim *sim, int32_t policy, uint64_t choice, uint64_t seed, int page) {
    kv_sim *image;
    uint8_t bytes[PAGE];
    size_t got;
    if (kv_sim_image(sim, kv_sim_event_count(sim), policy, choice, seed, &image) != KV_OK) abort();
    CHECK_EQ(kv_sim_read(image, "a", (uint64_t)page * PAGE, bytes, PAGE, &got), KV_OK);
    kv_sim_free(image);
    int count = 0;
    for (size_t i = 0; i < got; i++) {
        CHECK(bytes[i] == 'o' || bytes[i] == 'A' + page);
        CHECK(bytes[i] == bytes[i / KV_SIM_SECTOR_SIZE * KV_SIM_SECTOR_SIZE]); /* no sector is torn */
        count += bytes[i] == 'A' + page;
    }
    return count;
}

TEST(one_lost_loses_exactly_one_and_one_kept_keeps_exactly_one) {
    world w = world_with_four_open_pages();
    for (int choice = 0; choice < 4; choice++) {
        for (int page = 0; page < 4; page++) {
            CHECK_EQ(new_bytes(w.sim, KV_CUT_ONE_LOST, (uint64_t)choice, 0, page), page == choice ? 0 : PAGE);
            CHECK_EQ(new_bytes(w.sim, KV_CUT_ONE_KEPT, (uint64_t)choice, 0, page), page == choice ? PAGE : 0);
        }
    }
    kv_sim *image;
    CHECK_EQ(kv_sim_image(w.sim, kv_sim_event_count(w.sim), KV_CUT_ONE_LOST, 4, 0, &image), KV_EUSAGE);
    end_world(&w);
}

TEST(one_torn_tears_that_page_and_keeps_or_loses_the_rest) {
    world w = world_with_four_open_pages();
    int rest_kept = 0, rest_lost = 0;
    for (uint64_t seed = 0; seed < 40; seed++) {
        int torn = new_bytes(w.sim, KV_CUT_ONE_TORN, 2, seed, 2);
        CHECK(torn > 0 && torn < PAGE);
        int rest = 0;
        for (int page = 0; page < 4; page++) rest += page == 2 ? 0 : new_bytes(w.sim, KV_CUT_ONE_TORN, 2, seed, page);
        CHECK(rest == 0 || rest == 3 * PAGE);
        rest_kept += rest != 0;
        rest_lost += rest == 0;
    }
    CHECK(rest_kept > 5 && rest_lost > 5);
    end_world(&w);
}

TEST(random_cuts_reach_every_combination_of_pages) {
    world w = world_with_four_open_pages();
    bool seen[16] = {false};
    int torn_count = 0;
    for (uint64_t seed = 0; seed < 600; seed++) {
        unsigned whole = 0;
        bool torn = false;
        for (int page = 0; page < 4; page++) {
            int count = new_bytes(w.sim, KV_CUT_RANDOM, 0, seed, page);
            if (count == PAGE) whole |= 1u << page;
            torn |= count > 0 && count < PAGE;
        }
        torn_count += torn;
        seen[whole] = true;
    }
    for (int i = 0; i < 16; i++) CHECK(seen[i]);
    CHECK(torn_count > 30);
    end_world(&w);
}

TEST(a_page_may_be_at_any_version_since_the_sync) {
    world w = world_with_file("0");
    const char *versions[] = {"1", "2", "3"};
    for (int i = 0; i < 3; i++) write_text(w.io, "a", versions[i], 0);
    uint64_t now = kv_sim_event_count(w.sim);
    for (uint64_t i = 0; i < 3; i++) {
        CHECK_CUT(w, now, KV_CUT_ONE_KEPT, i, 0, "a", versions[i]);
        CHECK_CUT(w, now, KV_CUT_ONE_LOST, i, 0, "a", i == 0 ? "0" : versions[i - 1]);
    }
    int seen[4] = {0};
    for (uint64_t seed = 0; seed < 400; seed++) seen[after_cut(w.sim, now, KV_CUT_RANDOM, 0, seed, "a")[0] - '0']++;
    for (int i = 0; i < 4; i++) CHECK(seen[i] > 0);
    end_world(&w);
}

TEST(stores_between_marks_are_versions_of_their_own) {
    world w = world_with_file("0");
    kv_file *file = open_file(w.io, "a", KV_IO_WRITE);
    uint8_t *mapping;
    CHECK_EQ(w.io->map(w.io, file, PAGE, true, &mapping), KV_OK);
    for (int i = 1; i <= 3; i++) {
        mapping[0] = (uint8_t)('0' + i);
        kv_sim_mark(w.sim, 100 + i);
    }
    uint64_t now = kv_sim_event_count(w.sim);
    CHECK_EQ(kv_sim_unsynced(w.sim, now), 3);
    CHECK_EQ(kv_sim_unsynced(w.sim, now - 2), 2);
    CHECK_CUT(w, now - 2, KV_CUT_ALL_KEPT, 0, 0, "a", "2");
    int32_t kind;
    int64_t tag;
    const char *path;
    CHECK_EQ(kv_sim_event(w.sim, now - 1, &kind, &tag, &path), KV_OK);
    CHECK_EQ(kind, KV_SIM_MARK);
    CHECK_EQ(tag, 103);
    CHECK_EQ(kv_sim_event(w.sim, now, &kind, &tag, &path), KV_EUSAGE);
    mapping[0] = '4'; /* The present moment is also what no event has seen yet. */
    CHECK_CUT(w, now, KV_CUT_ALL_KEPT, 0, 0, "a", "4");
    w.io->unmap(w.io, file, mapping, PAGE);
    w.io->close(w.io, file);
    end_world(&w);
}

TEST(a_size_can_be_lost_and_a_kept_size_shows_zeros) {
    world w = world_with_file("ab");
    write_text(w.io, "a", "cd", 2);
    uint64_t now = kv_sim_event_count(w.sim);
    CHECK_EQ(kv_sim_unsynced(w.sim, now), 2); /* size, page */
    kv_sim *image;
    CHECK_EQ(kv_sim_image(w.sim, now, KV_CUT_ONE_KEPT, 0, 0, &image), KV_OK);
    uint8_t bytes[4] = {9, 9, 9, 9};
    size_t got;
    CHECK_EQ(kv_sim_read(image, "a", 0, bytes, 4, &got), KV_OK);
    CHECK(got == 4 && memcmp(bytes, "ab\0\0", 4) == 0);
    kv_sim_free(image);
    CHECK_CUT(w, now, KV_CUT_ONE_LOST, 0, 0, "a", "ab");
    CHECK_CUT(w, now, KV_CUT_ALL_KEPT, 0, 0, "a", "abcd");
    end_world(&w);
}

TEST(a_truncation_is_kept_or_lost_as_one) {
    world w = world_with_file("abcdef");
    kv_file *file = open_file(w.io, "a", KV_IO_WRITE);
    CHECK_EQ(w.io->truncate(w.io, file, 2), KV_OK);
    w.io->close(w.io, file);
    uint64_t now = kv_sim_event_count(w.sim);
    CHECK_CUT(w, now - 1, KV_CUT_ALL_LOST, 0, 0, "a", "abcdef");
    CHECK_CUT(w, now, KV_CUT_ALL_LOST, 0, 0, "a", "abcdef");
    CHECK_CUT(w, now, KV_CUT_ALL_KEPT, 0, 0, "a", "ab");
    for (uint64_t seed = 0; seed < 50; seed++) {
        const char *text = after_cut(w.sim, now, KV_CUT_RANDOM, 0, seed, "a");
        CHECK(strcmp(text, "ab") == 0 || strcmp(text, "abcdef") == 0);
    }
    end_world(&w);
}

TEST(a_created_name_needs_its_directory_synced) {
    world w = world_with_file("x");
    put_file(w.io, "b", "b"); /* synced, but not its name */
    uint64_t now = kv_sim_event_count(w.sim);
    CHECK_CUT(w, now, KV_CUT_ALL_LOST, 0, 0, "b", "(absent)");
    CHECK_CUT(w, now, KV_CUT_ALL_KEPT, 0, 0, "b", "b");
    CHECK_EQ(w.io->sync_dir(w.io, ""), KV_OK);
    CHECK_CUT(w, now, KV_CUT_ALL_LOST, 0, 0, "b", "(absent)"); /* under way */
    CHECK_CUT(w, now + 1, KV_CUT_ALL_LOST, 0, 0, "b", "b");
    end_world(&w);
}

TEST(a_lost_directory_takes_its_files_along) {
    world w = world_with_file("x");
    CHECK_EQ(w.io->mkdir(w.io, "d"), KV_OK);
    put_file(w.io, "d/b", "b");
    CHECK_EQ(w.io->sync_dir(w.io, "d"), KV_OK);
    uint64_t now = kv_sim_event_count(w.sim);
    CHECK_CUT(w, now, KV_CUT_ALL_LOST, 0, 0, "d/b", "(absent)");
    CHECK_CUT(w, now, KV_CUT_ALL_KEPT, 0, 0, "d/b", "b");
    CHECK_EQ(w.io->sync_dir(w.io, ""), KV_OK);
    CHECK_CUT(w, now + 1, KV_CUT_ALL_LOST, 0, 0, "d/b", "b");
    end_world(&w);
}

TEST(an_unlinked_file_may_be_back_with_its_durable_content) {
    world w = world_with_file("durable");
    write_text(w.io, "a", "CACHED.", 0);
    CHECK_EQ(w.io->unlink(w.io, "a"), KV_OK);
    uint64_t now = kv_sim_event_count(w.sim);
    CHECK_CUT(w, now, KV_CUT_ALL_LOST, 0, 0, "a", "durable");
    CHECK_CUT(w, now, KV_CUT_ALL_KEPT, 0, 0, "a", "(absent)");
    CHECK_EQ(w.io->sync_dir(w.io, ""), KV_OK);
    CHECK_CUT(w, now + 1, KV_CUT_ALL_LOST, 0, 0, "a", "(absent)");
    end_world(&w);
}

TEST(a_rename_is_old_or_new) {
    world w = world_with_file("old");
    put_file(w.io, "t", "new");
    CHECK_EQ(w.io->sync_dir(w.io, ""), KV_OK);
    CHECK_EQ(w.io->rename(w.io, "t", "a"), KV_OK);
    uint64_t now = kv_sim_event_count(w.sim);
    int kept = 0, lost = 0;
    for (uint64_t seed = 0; seed < 60; seed++) {
        bool is_new = strcmp(after_cut(w.sim, now, KV_CUT_RANDOM, 0, seed, "a"), "new") == 0;
        const char *expected = is_new ? "(absent)" : "new";
        CHECK_CUT(w, now, KV_CUT_RANDOM, 0, seed, "t", expected);
        if (!is_new) CHECK_CUT(w, now, KV_CUT_RANDOM, 0, seed, "a", "old");
        kept += is_new;
        lost += !is_new;
    }
    CHECK(kept > 5 && lost > 5);
    end_world(&w);
}

TEST(names_are_mostly_lost_from_the_end_and_sometimes_anyhow) {
    world w = world_with_file("x");
    put_file(w.io, "b", "b");
    put_file(w.io, "c", "c");
    uint64_t now = kv_sim_event_count(w.sim);
    int prefixes = 0, others = 0;
    for (uint64_t seed = 0; seed < 200; seed++) {
        bool b = strcmp(after_cut(w.sim, now, KV_CUT_RANDOM, 0, seed, "b"), "b") == 0;
        bool c = strcmp(after_cut(w.sim, now, KV_CUT_RANDOM, 0, seed, "c"), "c") == 0;
        if (c && !b) others++;
        else prefixes++;
    }
    CHECK(prefixes > 150);
    CHECK(others > 3);
    end_world(&w);
}

TEST(an_image_is_a_disk_of_its_own) {
    world w = world_with_file("old");
    write_text(w.io, "a", "new", 0);
    kv_sim *image;
    CHECK_EQ(kv_sim_image(w.sim, kv_sim_event_count(w.sim), KV_CUT_ALL_KEPT, 0, 0, &image), KV_OK);
    kv_sim *clone = kv_sim_clone(w.sim);
    CHECK_EQ((int64_t)kv_sim_hash(image), (int64_t)kv_sim_hash(clone));
    CHECK(kv_sim_hash(image) != kv_sim_hash(w.sim)); /* There the write is not durable yet. */
    kv_io *io = kv_sim_io(image);
    write_text(io, "a", "img", 0);
    CHECK_TEXT(io, "a", "img");
    CHECK_EQ(kv_sim_event_count(image), 0);
    CHECK_TEXT(w.io, "a", "new");

    kv_sim_set_recording(image, true); /* Crash it again: what it has now is durable. */
    write_text(io, "a", "two", 0);
    CHECK_CUT((world){.sim = image}, kv_sim_event_count(image), KV_CUT_ALL_LOST, 0, 0, "a", "img");
    io->free(io);
    kv_sim_free(image);
    kv_sim_free(clone);
    end_world(&w);
}

TEST(the_digest_is_of_what_is_there_not_of_how_it_came) {
    world_is_simulated = true;
    world one = make_world(), two = make_world();
    put_file(one.io, "a", "A");
    put_file(one.io, "b", "B");
    put_file(two.io, "t", "other");
    put_file(two.io, "b", "B");
    put_file(two.io, "x", "A");
    CHECK_EQ(two.io->rename(two.io, "x", "a"), KV_OK);
    CHECK_EQ(two.io->unlink(two.io, "t"), KV_OK);
    CHECK_EQ(one.io->sync_dir(one.io, ""), KV_OK);
    CHECK(kv_sim_hash(one.sim) != kv_sim_hash(two.sim));
    CHECK_EQ(two.io->sync_dir(two.io, ""), KV_OK);
    CHECK(kv_sim_hash(one.sim) == kv_sim_hash(two.sim));
    CHECK_EQ(two.io->rename(two.io, "a", "aa"), KV_OK); /* the order stays */
    CHECK_EQ(two.io->sync_dir(two.io, ""), KV_OK);
    CHECK(kv_sim_hash(one.sim) != kv_sim_hash(two.sim));
    put_file(two.io, "aa", "C");
    CHECK(kv_sim_hash(one.sim) != kv_sim_hash(two.sim));
    end_world(&one);
    end_world(&two);
}

TEST(calls_fail_when_told) {
    world w = world_with_file("text");
    kv_file *file = open_file(w.io, "a", KV_IO_WRITE);
    kv_sim_fail(w.sim, KV_SIM_WRITE, 2, EIO, 0);
    uint64_t before = kv_sim_call_count(w.sim, KV_SIM_WRITE);
    CHECK_EQ(w.io->write_at(w.io, file, (const uint8_t *)"1", 1, 0), KV_OK);
    CHECK_EQ(w.io->write_at(w.io, file, (const uint8_t *)"2", 1, 0), KV_EDISK);
    CHECK_EQ(errno, EIO);
    CHECK_EQ(w.io->write_at(w.io, file, (const uint8_t *)"3", 1, 0), KV_OK);
    CHECK_EQ(kv_sim_call_count(w.sim, KV_SIM_WRITE) - before, 3);

    kv_sim_fail(w.sim, KV_SIM_WRITE, 1, ENOSPC, KV_SIM_FAIL_STICKY | KV_SIM_FAIL_HALF);
    CHECK_EQ(w.io->write_at(w.io, file, (const uint8_t *)"WXYZ", 4, 0), KV_ENOSPC);
    CHECK_TEXT(w.io, "a", "WXxt");
    CHECK_EQ(w.io->write_at(w.io, file, (const uint8_t *)"wxyz", 4, 0), KV_ENOSPC);
    kv_sim_fail(w.sim, KV_SIM_WRITE, 0, 0, 0);
    CHECK_EQ(w.io->write_at(w.io, file, (const uint8_t *)"good", 4, 0), KV_OK);
    w.io->close(w.io, file);
    end_world(&w);
}

TEST(a_full_disk_takes_what_fits_and_recovers) {
    world w = world_with_file("1234");
    kv_file *file = open_file(w.io, "a", KV_IO_WRITE);
    kv_sim_limit(w.sim, 6);
    CHECK_EQ(kv_sim_used(w.sim), 4);
    CHECK_EQ(w.io->allocate(w.io, file, 7), KV_ENOSPC);
    CHECK_EQ(w.io->write_at(w.io, file, (const uint8_t *)"abcd", 4, 4), KV_ENOSPC);
    CHECK_EQ(errno, ENOSPC);
    CHECK_TEXT(w.io, "a", "1234ab");
    CHECK_EQ(w.io->write_at(w.io, file, (const uint8_t *)"over", 4, 0), KV_OK);
    kv_sim_limit(w.sim, 100);
    CHECK_EQ(w.io->write_at(w.io, file, (const uint8_t *)"abcd", 4, 4), KV_OK);
    CHECK_EQ(w.io->unlink(w.io, "a"), KV_OK);
    CHECK_EQ(kv_sim_used(w.sim), 8); /* it is open */
    w.io->close(w.io, file);
    CHECK_EQ(kv_sim_used(w.sim), 0);
    end_world(&w);
}

TEST(damage_needs_a_disk_that_does_not_record) {
    world w = world_with_file("text");
    CHECK_EQ(kv_sim_write(w.sim, "a", 0, (const uint8_t *)"x", 1), KV_EUSAGE);
    kv_sim *clone = kv_sim_clone(w.sim);
    CHECK_EQ(kv_sim_write(clone, "a", 1, (const uint8_t *)"E", 1), KV_OK);
    CHECK_EQ(kv_sim_truncate_file(clone, "a", 3), KV_OK);
    CHECK_EQ(kv_sim_truncate_file(clone, "b", 3), KV_ABSENT);
    uint64_t size = 0;
    CHECK_EQ(kv_sim_file_size(clone, "a", &size), KV_OK);
    CHECK_EQ(size, 3);
    kv_io *io = kv_sim_io(clone);
    CHECK_TEXT(io, "a", "tEx");
    CHECK_TEXT(w.io, "a", "text");
    io->free(io);
    kv_sim_free(clone);
    end_world(&w);
}

TEST(the_simulated_lock_has_one_holder) {
    world w = world_with_file("");
    kv_io *other = kv_sim_io(w.sim);
    int64_t holder = 0;
    CHECK_EQ(w.io->lock(w.io, &holder), KV_OK);
    CHECK_EQ(other->lock(other, &holder), KV_ELOCKED);
    CHECK_EQ(holder, getpid());
    w.io->free(w.io);
    CHECK_EQ(other->lock(other, &holder), KV_OK);
    w.io = other;
    end_world(&w);
}

TEST(freeing_the_table_closes_and_unmaps_but_keeps_what_was_stored) {
    world w = world_with_file("old");
    kv_file *file = open_file(w.io, "a", KV_IO_WRITE);
    uint8_t *mapping;
    CHECK_EQ(w.io->map(w.io, file, PAGE, true, &mapping), KV_OK);
    memcpy(mapping, "new", 3);
    w.io->free(w.io);
    w.io = kv_sim_io(w.sim);
    CHECK_TEXT(w.io, "a", "new");
    CHECK_CUT(w, kv_sim_event_count(w.sim), KV_CUT_ALL_LOST, 0, 0, "a", "old");
    end_world(&w);
}

TEST(bytes_stored_behind_the_end_are_in_no_file) {
    world w = world_with_file("ab");
    kv_file *file = open_file(w.io, "a", KV_IO_WRITE);
    uint8_t *mapping;
    CHECK_EQ(w.io->map(w.io, file, PAGE, true, &mapping), KV_OK);
    mapping[3] = 'X';
    CHECK_EQ(w.io->truncate(w.io, file, 5), KV_OK);
    CHECK(memcmp(mapping, "ab\0\0", 4) == 0);
    w.io->unmap(w.io, file, mapping, PAGE);
    uint8_t bytes[5];
    size_t got;
    CHECK_EQ(w.io->read_at(w.io, file, bytes, 5, 0, &got), KV_OK);
    CHECK(got == 5 && memcmp(bytes, "ab\0\0\0", 5) == 0);
    w.io->close(w.io, file);
    end_world(&w);
}

static void *write_and_mark(void *context) {
    kv_io *io = context;
    kv_file *file = open_file(io, "a", KV_IO_WRITE);
    for (uint64_t i = 0; i < 200; i++) {
        if (io->write_at(io, file, (const uint8_t *)"x", 1, PAGE + i % 7) != KV_OK) abort();
        if (io->sync(io, file) != KV_OK) abort();
    }
    io->close(io, file);
    return NULL;
}

TEST(threads_may_call_while_one_stores) {
    world w = world_with_file("");
    kv_file *file = open_file(w.io, "a", KV_IO_WRITE);
    CHECK_EQ(w.io->allocate(w.io, file, 2 * PAGE), KV_OK);
    uint8_t *mapping;
    CHECK_EQ(w.io->map(w.io, file, 2 * PAGE, true, &mapping), KV_OK);
    pthread_t threads[2];
    for (int i = 0; i < 2; i++) CHECK_EQ(pthread_create(&threads[i], NULL, write_and_mark, w.io), 0);
    for (int i = 0; i < PAGE; i++) mapping[i] = 'm';
    for (int i = 0; i < 2; i++) pthread_join(threads[i], NULL);
    CHECK_EQ(w.io->sync(w.io, file), KV_OK);
    CHECK_EQ(strlen(after_cut(w.sim, kv_sim_event_count(w.sim), KV_CUT_ALL_LOST, 0, 0, "a")), PAGE + 7);
    w.io->unmap(w.io, file, mapping, 2 * PAGE);
    w.io->close(w.io, file);
    end_world(&w);
}

static void run_simulated(void) {
    RUN(what_is_synced_survives_every_cut);
    RUN(what_is_not_synced_can_be_lost);
    RUN(a_sync_under_way_has_made_nothing_durable);
    RUN(a_sync_is_of_one_file);
    RUN(a_failed_sync_has_made_nothing_durable);
    RUN(one_lost_loses_exactly_one_and_one_kept_keeps_exactly_one);
    RUN(one_torn_tears_that_page_and_keeps_or_loses_the_rest);
    RUN(random_cuts_reach_every_combination_of_pages);
    RUN(a_page_may_be_at_any_version_since_the_sync);
    RUN(stores_between_marks_are_versions_of_their_own);
    RUN(a_size_can_be_lost_and_a_kept_size_shows_zeros);
    RUN(a_truncation_is_kept_or_lost_as_one);
    RUN(a_created_name_needs_its_directory_synced);
    RUN(a_lost_directory_takes_its_files_along);
    RUN(an_unlinked_file_may_be_back_with_its_durable_content);
    RUN(a_rename_is_old_or_new);
    RUN(names_are_mostly_lost_from_the_end_and_sometimes_anyhow);
    RUN(an_image_is_a_disk_of_its_own);
    RUN(the_digest_is_of_what_is_there_not_of_how_it_came);
    RUN(calls_fail_when_told);
    RUN(a_full_disk_takes_what_fits_and_recovers);
    RUN(damage_needs_a_disk_that_does_not_record);
    RUN(the_simulated_lock_has_one_holder);
    RUN(freeing_the_table_closes_and_unmaps_but_keeps_what_was_stored);
    RUN(bytes_stored_behind_the_end_are_in_no_file);
    RUN(threads_may_call_while_one_stores);
}

int main(void) {
    run_contract(false);
    RUN(a_missing_root_is_absent_or_made);
    RUN(the_lock_keeps_other_processes_out_and_names_its_holder);
    RUN(the_lock_stays_when_another_descriptor_of_its_file_is_closed);
    RUN(a_forked_child_that_lets_go_does_not_keep_the_lock);
    RUN(the_clock_can_be_shifted);
    run_contract(true);
    run_simulated();
    return check_report();
}
