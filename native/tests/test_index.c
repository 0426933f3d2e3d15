/* test_index.c -- the index against a naive twin: an array that says, for every key, its hash and where it is.
 *
 * Keys are numbers below KEY_COUNT. Some share their hash with a neighbour, so that a search has to go on; a
 * location is unique, so that an answer names its key. Files are buffers in memory. Everything random comes from
 * one seed per test. */
#include <pthread.h>

#include "check.h"
#include "kv/index.h"
#include "kv/xxh64.h"

static uint64_t random_next(uint64_t *state) { /* splitmix64 (Steele, Lea, Flood, 2014) */
    uint64_t z = *state += 0x9e3779b97f4a7c15;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
}

static uint64_t random_below(uint64_t *state, uint64_t bound) { return random_next(state) % bound; }

static uint64_t hash_of(uint64_t key) {
    uint64_t state = key % 64 == 1 ? key - 1 : key; /* key 64n + 1 has the hash of key 64n */
    return random_next(&state);
}

typedef struct fixture {
    kv_epoch *epoch;
    kv_index *index;
} fixture;

static fixture fixture_new(void) {
    fixture f;
    if (kv_epoch_new(&f.epoch) != KV_OK) abort();
    if (kv_index_new(f.epoch, &f.index) != KV_OK) abort();
    return f;
}

static void fixture_free(fixture *f) {
    kv_index_free(f->index);
    kv_epoch_free(f->epoch);
}

static kv_index_stats measure(const kv_index *index) {
    kv_index_stats stats;
    kv_index_measure(index, &stats);
    return stats;
}

/* Stands `probe` on the slot with that location; false: it is not there. */
static bool find(kv_index *index, uint64_t hash, uint64_t location, kv_probe *probe) {
    uint64_t found = kv_index_first(index, hash, probe);
    while (found != 0 && found != location) found = kv_index_next(probe);
    return found != 0;
}

/* --- examples --- */

TEST(what_is_inserted_is_found_until_it_is_removed) {
    fixture f = fixture_new();
    kv_probe probe;
    CHECK_EQ(kv_index_first(f.index, 42, &probe), 0);
    CHECK_EQ(probe.status, KV_OK);
    CHECK_EQ(kv_index_next(&probe), 0);
    CHECK_EQ(kv_index_insert(f.index, 42, 100), KV_OK);
    CHECK_EQ(kv_index_first(f.index, 42, &probe), 100);
    CHECK_EQ(kv_index_replace(f.index, &probe, 200), KV_OK);
    CHECK_EQ(kv_index_first(f.index, 42, &probe), 200);
    CHECK_EQ(measure(f.index).slot_count, 1);
    CHECK_EQ(kv_index_remove(f.index, &probe), KV_OK);
    CHECK_EQ(kv_index_first(f.index, 42, &probe), 0);
    CHECK_EQ(measure(f.index).slot_count, 0);
    fixture_free(&f);
}

TEST(a_hash_may_stand_in_several_slots) {
    fixture f = fixture_new();
    kv_probe probe;
    const uint64_t hash = UINT64_MAX; /* begins at the last slot, so the search goes on at slot 0 */
    for (uint64_t i = 0; i < 3; i++) CHECK_EQ(kv_index_insert(f.index, hash, 100 + i), KV_OK);
    CHECK_EQ(kv_index_first(f.index, hash, &probe), 100);
    CHECK_EQ(kv_index_next(&probe), 101);
    kv_probe middle = probe;
    CHECK_EQ(kv_index_next(&probe), 102);
    CHECK_EQ(kv_index_next(&probe), 0);
    CHECK_EQ(kv_index_next(&probe), 0);
    CHECK_EQ(kv_index_remove(f.index, &middle), KV_OK);
    CHECK(find(f.index, hash, 102, &probe)); /* A removed slot does not end the search. */
    CHECK_EQ(kv_index_insert(f.index, hash, 103), KV_OK);
    CHECK_EQ(kv_index_first(f.index, hash, &probe), 100);
    CHECK_EQ(kv_index_next(&probe), 103); /* It was taken again. */
    fixture_free(&f);
}

TEST(equal_hashes_beyond_a_table_do_not_explode_the_directory) {
    fixture f = fixture_new();
    kv_probe probe;
    for (uint64_t i = 0; i < 3000; i++) CHECK_EQ(kv_index_insert(f.index, 7, 100 + i), KV_OK);
    uint64_t count = 0;
    for (uint64_t at = kv_index_first(f.index, 7, &probe); at != 0; at = kv_index_next(&probe)) count++;
    CHECK_EQ(count, 3000);
    CHECK(measure(f.index).memory_size < 1 << 20);
    fixture_free(&f);
}

TEST(inserting_and_removing_for_ever_needs_no_more_memory) {
    fixture f = fixture_new();
    kv_probe probe;
    for (uint64_t i = 0; i < 200000; i++) {
        CHECK_EQ(kv_index_insert(f.index, hash_of(i), 100 + i), KV_OK);
        if (i < 1000) continue;
        CHECK(find(f.index, hash_of(i - 1000), 100 + i - 1000, &probe));
        CHECK_EQ(kv_index_remove(f.index, &probe), KV_OK);
        kv_epoch_reclaim(f.epoch);
    }
    CHECK_EQ(measure(f.index).slot_count, 1000);
    CHECK(measure(f.index).memory_size < 64 << 10);
    fixture_free(&f);
}

TEST(a_key_costs_at_most_26_bytes) {
    fixture f = fixture_new();
    kv_probe probe;
    for (uint64_t i = 0; i < 300000; i++) {
        CHECK_EQ(kv_index_insert(f.index, hash_of(i), 100 + i), KV_OK);
        if (i < 10000 || i % 500 != 0) continue;
        kv_epoch_reclaim(f.epoch);
        CHECK(measure(f.index).memory_size <= 26 * i);
    }
    for (uint64_t i = 0; i < 300000; i++) {
        kv_index_prefetch(f.index, hash_of(i));
        CHECK(find(f.index, hash_of(i), 100 + i, &probe));
    }
    for (uint64_t i = 300000; i < 400000; i++) CHECK(!find(f.index, hash_of(i), 100 + i, &probe));
    CHECK_EQ(measure(f.index).slot_count, 300000);
    CHECK_EQ(measure(f.index).loaded_count, measure(f.index).table_count);
    fixture_free(&f);
}

/* --- the disk of these tests, and images on it --- */

enum { FILE_COUNT_MAX = 256, FILE_SIZE_MAX = 2 << 20 };

typedef struct disk {
    kv_index_file files[FILE_COUNT_MAX]; /* files[i].id is i + 1 */
    bool is_gone[FILE_COUNT_MAX];        /* no map made from now on may name it */
    size_t count;
} disk;

static uint64_t disk_create(disk *d) {
    if (d->count == FILE_COUNT_MAX) abort();
    d->files[d->count] = (kv_index_file){.id = d->count + 1, .bytes = malloc(FILE_SIZE_MAX)};
    if (d->files[d->count].bytes == NULL) abort();
    return ++d->count;
}

static uint64_t disk_append(disk *d, uint64_t id, const uint8_t *bytes, size_t size) {
    kv_index_file *file = &d->files[id - 1];
    if (size > FILE_SIZE_MAX - file->size) abort();
    memcpy((uint8_t *)file->bytes + file->size, bytes, size);
    file->size += size;
    return file->size - size;
}

static void disk_free(disk *d) {
    for (size_t i = 0; i < d->count; i++) free((uint8_t *)d->files[i].bytes);
}

typedef struct map {
    uint8_t *bytes;
    size_t size;
} map;

static void put_aside(disk *d, uint64_t id, kv_index *index, const kv_image *image) {
    uint64_t checksum = kv_xxh64(image->bytes, image->size, id);
    CHECK_EQ(image->size, image->slot_count * 16);
    kv_index_image_placed(index, image->number, id, disk_append(d, id, image->bytes, image->size), checksum);
}

/* A whole image without interruption; how many tables it carried. */
static uint64_t write_image(disk *d, uint64_t id, kv_index *index, map *out) {
    kv_image image;
    uint64_t count = 0;
    CHECK_EQ(kv_index_image_begin(index), KV_OK);
    for (; kv_index_image_next(index, &image) == KV_OK; count++) put_aside(d, id, index, &image);
    CHECK_EQ(kv_index_image_map(index, &out->bytes, &out->size), KV_OK);
    kv_index_image_end(index);
    return count;
}

static kv_status load(fixture *f, const disk *d, const map *m) {
    return kv_index_load(f->index, m->bytes, m->size, d->files, d->count);
}

static uint64_t fill(kv_index *index, uint64_t count) {
    for (uint64_t i = 0; i < count; i++) CHECK_EQ(kv_index_insert(index, hash_of(i), 100 + i), KV_OK);
    return count;
}

TEST(an_empty_index_makes_an_image) {
    fixture f = fixture_new(), g = fixture_new();
    disk d = {0};
    map m;
    kv_probe probe;
    CHECK_EQ(write_image(&d, disk_create(&d), f.index, &m), 0);
    CHECK_EQ(m.size, KV_IMAGE_ENTRY_SIZE);
    CHECK_EQ(load(&g, &d, &m), KV_OK);
    CHECK_EQ(kv_index_first(g.index, 5, &probe), 0);
    CHECK_EQ(probe.status, KV_OK);
    CHECK_EQ(kv_index_insert(g.index, 5, 6), KV_OK);
    CHECK_EQ(kv_index_first(g.index, 5, &probe), 6);
    free(m.bytes);
    disk_free(&d);
    fixture_free(&f);
    fixture_free(&g);
}

TEST(an_image_carries_only_what_changed) {
    fixture f = fixture_new();
    disk d = {0};
    map m, again, third;
    kv_probe probe;
    fill(f.index, 40000);
    CHECK_EQ(write_image(&d, disk_create(&d), f.index, &m), measure(f.index).table_count);
    CHECK_EQ(write_image(&d, disk_create(&d), f.index, &again), 0);
    CHECK_EQ(m.size, again.size);
    CHECK(memcmp(m.bytes, again.bytes, m.size) == 0);
    CHECK(find(f.index, hash_of(5), 105, &probe));
    CHECK_EQ(kv_index_replace(f.index, &probe, 7), KV_OK);
    CHECK_EQ(write_image(&d, disk_create(&d), f.index, &third), 1);
    int differing_count = 0;
    for (size_t i = 0; i < m.size; i += KV_IMAGE_ENTRY_SIZE) {
        differing_count += memcmp(m.bytes + i, third.bytes + i, KV_IMAGE_ENTRY_SIZE) != 0;
    }
    CHECK_EQ(differing_count, 1);
    free(m.bytes);
    free(again.bytes);
    free(third.bytes);
    disk_free(&d);
    fixture_free(&f);
}

TEST(loading_reads_no_slot_and_tables_come_on_first_touch) {
    fixture f = fixture_new(), g = fixture_new();
    disk d = {0};
    map m, again;
    kv_probe probe;
    uint64_t count = fill(f.index, 40000);
    write_image(&d, disk_create(&d), f.index, &m);
    CHECK_EQ(load(&g, &d, &m), KV_OK);
    CHECK_EQ(measure(g.index).loaded_count, 0);
    CHECK_EQ(measure(g.index).slot_count, count);
    CHECK(measure(g.index).memory_size < 64 << 10);
    kv_index_prefetch(g.index, hash_of(5));
    CHECK(find(g.index, hash_of(5), 105, &probe));
    CHECK_EQ(measure(g.index).loaded_count, 1);
    CHECK_EQ(write_image(&d, disk_create(&d), g.index, &again), 0); /* What was loaded has not changed. */
    CHECK(memcmp(m.bytes, again.bytes, m.size) == 0);
    free(again.bytes);
    for (uint64_t i = 0; i < count; i++) CHECK(find(g.index, hash_of(i), 100 + i, &probe));
    CHECK_EQ(measure(g.index).loaded_count, measure(g.index).table_count);
    CHECK(measure(g.index).memory_size <= 26 * count);
    free(m.bytes);
    disk_free(&d);
    fixture_free(&f);
    fixture_free(&g);
}

TEST(a_map_is_made_only_of_places) {
    fixture f = fixture_new();
    disk d = {0};
    uint64_t id = disk_create(&d);
    kv_image image;
    map m;
    fill(f.index, 100);
    CHECK_EQ(kv_index_image_begin(f.index), KV_OK);
    CHECK_EQ(kv_index_image_map(f.index, &m.bytes, &m.size), KV_EUSAGE);
    CHECK_EQ(kv_index_image_next(f.index, &image), KV_OK);
    CHECK_EQ(kv_index_image_next(f.index, &image), KV_EOF);
    CHECK_EQ(kv_index_image_map(f.index, &m.bytes, &m.size), KV_EUSAGE);
    kv_index_image_end(f.index);
    CHECK_EQ(write_image(&d, id, f.index, &m), 1); /* Handed out, never placed: still changed. */
    free(m.bytes);
    disk_free(&d);
    fixture_free(&f);
}

/* --- damage --- */

TEST(damaged_slots_are_corruption_and_never_an_answer) {
    fixture f = fixture_new();
    disk d = {0};
    map m;
    uint64_t count = fill(f.index, 3000);
    uint64_t id = disk_create(&d);
    write_image(&d, id, f.index, &m);
    uint8_t *bytes = (uint8_t *)d.files[id - 1].bytes;
    uint64_t state = 1;
    for (int round = 0; round < 50; round++) {
        uint64_t at = random_below(&state, d.files[id - 1].size);
        uint8_t bit = (uint8_t)(1 << random_below(&state, 8));
        bytes[at] ^= bit;
        fixture g = fixture_new();
        kv_probe probe;
        kv_image image;
        CHECK_EQ(load(&g, &d, &m), KV_OK);
        uint64_t lost_count = 0;
        for (uint64_t i = 0; i < count; i++) {
            if (find(g.index, hash_of(i), 100 + i, &probe)) continue;
            lost_count++;
            CHECK_EQ(probe.status, KV_ECORRUPT);
            CHECK_EQ(kv_index_next(&probe), 0);
            CHECK_EQ(kv_index_insert(g.index, hash_of(i), 5), KV_ECORRUPT);
        }
        CHECK(lost_count > 0);
        CHECK(lost_count < 1200); /* one table's */
        kv_index_dislodge(g.index, id); /* Damage is not carried on under a fresh checksum. */
        CHECK_EQ(kv_index_image_begin(g.index), KV_OK);
        kv_status status;
        while ((status = kv_index_image_next(g.index, &image)) == KV_OK) {
            put_aside(&d, disk_create(&d), g.index, &image);
        }
        CHECK_EQ(status, KV_ECORRUPT);
        fixture_free(&g);
        bytes[at] ^= bit;
    }
    free(m.bytes);
    disk_free(&d);
    fixture_free(&f);
}

/* Slots that nobody would have written, under a checksum that fits. */
TEST(impossible_slots_are_corruption) {
    const uint64_t slots[3][2] = {{1, 0}, {1, 1}, {UINT64_MAX, 500}}; /* the last belongs to the other table */
    for (int i = 0; i < 3; i++) {
        fixture f = fixture_new();
        disk d = {0};
        uint64_t id = disk_create(&d);
        kv_probe probe;
        uint8_t bytes[2 * KV_IMAGE_ENTRY_SIZE] = {0};
        map m = {.bytes = bytes, .size = sizeof bytes};
        kv_store64(bytes, id);
        kv_store64(bytes + 8, disk_append(&d, id, (const uint8_t *)slots[i], 16));
        kv_store64(bytes + 16, kv_xxh64((const uint8_t *)slots[i], 16, id));
        kv_store32(bytes + 24, 1);
        kv_store32(bytes + 28, 1);
        kv_store32(bytes + 60, 1);
        CHECK_EQ(load(&f, &d, &m), KV_OK);
        CHECK_EQ(kv_index_first(f.index, 1, &probe), 0);
        CHECK_EQ(probe.status, KV_ECORRUPT);
        disk_free(&d);
        fixture_free(&f);
    }
}

static void refuses(const disk *d, const map *m) {
    fixture f = fixture_new();
    kv_probe probe;
    CHECK_EQ(load(&f, d, m), KV_ECORRUPT);
    CHECK_EQ(kv_index_insert(f.index, 9, 10), KV_OK); /* and is as fresh as it was */
    CHECK_EQ(kv_index_first(f.index, 9, &probe), 10);
    fixture_free(&f);
}

TEST(a_map_that_cannot_be_is_refused) {
    fixture f = fixture_new();
    disk d = {0};
    map m;
    fill(f.index, 3000);
    uint64_t id = disk_create(&d);
    write_image(&d, id, f.index, &m);
    CHECK(m.size >= 4 * KV_IMAGE_ENTRY_SIZE);
    for (size_t size = 0; size < m.size; size++) refuses(&d, &(map){.bytes = m.bytes, .size = size});
    /* Field by field, of the second entry: what it says instead. */
    const struct { size_t at; uint32_t low, high; } lies[] = {
        {0, 0, 0}, {0, 77, 0}, {8, (uint32_t)d.files[id - 1].size, 0}, {8, UINT32_MAX, UINT32_MAX}, {24, 1 << 30, 2},
        {24, UINT32_MAX, 2}, {28, 0, 0}, {28, 33, 0}, {28, UINT32_MAX, 0}, {28, 20, 0},
    };
    for (size_t i = 0; i < sizeof lies / sizeof *lies; i++) {
        uint8_t entry[KV_IMAGE_ENTRY_SIZE];
        uint8_t *second = m.bytes + KV_IMAGE_ENTRY_SIZE;
        memcpy(entry, second, sizeof entry);
        kv_store32(second + lies[i].at, lies[i].low);
        if (lies[i].at <= 16) kv_store32(second + lies[i].at + 4, lies[i].high);
        refuses(&d, &m);
        memcpy(second, entry, sizeof entry);
    }
    free(m.bytes);
    /* Depths 1, 2, ... 31, 32, 32 cover every hash, with a directory of 32 GiB. */
    uint8_t steep[33 * KV_IMAGE_ENTRY_SIZE] = {0};
    for (uint32_t i = 0; i < 33; i++) kv_store32(steep + i * KV_IMAGE_ENTRY_SIZE + 28, i < 32 ? i + 1 : 32);
    refuses(&d, &(map){.bytes = steep, .size = sizeof steep});
    disk_free(&d);
    fixture_free(&f);
}

/* --- the twin --- */

enum { KEY_COUNT = 24000 };

typedef struct twin {
    uint64_t location[KEY_COUNT]; /* 0: not there */
    uint64_t count;
} twin;

static void check_shows(kv_index *index, const twin *t) {
    kv_probe probe;
    uint64_t wrong_count = 0;
    for (uint64_t key = 0; key < KEY_COUNT; key++) {
        uint64_t hash = hash_of(key), expected = 0, found = 0;
        for (uint64_t k = key - key % 64; k <= key; k++) expected += hash_of(k) == hash && t->location[k] != 0;
        if (key % 64 == 0) expected += t->location[key + 1] != 0;
        for (uint64_t at = kv_index_first(index, hash, &probe); at != 0; at = kv_index_next(&probe)) found++;
        wrong_count += found != expected || probe.status != KV_OK;
        if (t->location[key] != 0) wrong_count += !find(index, hash, t->location[key], &probe);
    }
    CHECK_EQ(wrong_count, 0);
    CHECK_EQ(measure(index).slot_count, t->count);
}

typedef struct world {
    fixture live;
    twin now;
    twin then; /* as of begin() */
    disk disk;
    uint64_t random;
    uint64_t next_location;
    uint64_t remove_percent;
    uint64_t carried_count; /* tables in all images, to see that they are incremental */
    uint64_t table_count;
} world;

static void change_something(world *w) {
    kv_probe probe;
    uint64_t key = random_below(&w->random, KEY_COUNT), hash = hash_of(key), location = w->now.location[key];
    uint64_t fresh = w->next_location++;
    if (location == 0) {
        CHECK_EQ(kv_index_insert(w->live.index, hash, fresh), KV_OK);
        w->now.location[key] = fresh;
        w->now.count++;
        return;
    }
    CHECK(find(w->live.index, hash, location, &probe));
    if (random_below(&w->random, 100) < w->remove_percent) {
        CHECK_EQ(kv_index_remove(w->live.index, &probe), KV_OK);
        w->now.location[key] = 0;
        w->now.count--;
    } else {
        CHECK_EQ(kv_index_replace(w->live.index, &probe, fresh), KV_OK);
        w->now.location[key] = fresh;
    }
}

static void change_some(world *w, uint64_t count_max) {
    for (uint64_t left = random_below(&w->random, count_max + 1); left != 0; left--) change_something(w);
    kv_epoch_reclaim(w->live.epoch);
}

/* The map names no file that is gone, and shares() is its sum. Files that nothing lies in any more are gone then. */
static void check_files(world *w, const map *m) {
    uint64_t sizes[FILE_COUNT_MAX] = {0};
    for (size_t i = 0; i < m->size; i += KV_IMAGE_ENTRY_SIZE) {
        uint64_t id = kv_load64(m->bytes + i);
        if (id == 0) continue;
        CHECK(!w->disk.is_gone[id - 1]);
        sizes[id - 1] += 16 * (uint64_t)kv_load32(m->bytes + i + 24);
    }
    kv_index_share *shares;
    size_t count, at = 0;
    CHECK_EQ(kv_index_shares(w->live.index, &shares, &count), KV_OK);
    for (size_t i = 0; i < w->disk.count; i++) {
        if (sizes[i] == 0) {
            w->disk.is_gone[i] = true;
            continue;
        }
        CHECK(at < count);
        CHECK_EQ(shares[at].file_id, i + 1);
        CHECK_EQ(shares[at].size, sizes[i]);
        at++;
    }
    CHECK_EQ(at, count);
    free(shares);
}

/* Another index made from the map shows what there was at begin(); now and then it takes over, as after a crash. */
static void check_map(world *w, const map *m) {
    fixture loaded = fixture_new();
    CHECK_EQ(load(&loaded, &w->disk, m), KV_OK);
    CHECK_EQ(measure(loaded.index).loaded_count, 0);
    if (random_below(&w->random, 4) == 0) {
        fixture_free(&w->live);
        w->live = loaded;
        w->now = w->then;
        check_files(w, m);
        return;
    }
    check_shows(loaded.index, &w->then);
    fixture_free(&loaded);
}

/* An image with changes between all its steps. Half way or at the very end it may be given up. */
static void one_image(world *w) {
    kv_image image;
    map m;
    uint64_t id = disk_create(&w->disk);
    bool gives_up = random_below(&w->random, 4) == 0;
    const uint64_t paces[] = {0, 0, 3, 150}; /* changes between two steps, at most */
    uint64_t pace = paces[random_below(&w->random, 4)];

    CHECK_EQ(kv_index_image_begin(w->live.index), KV_OK);
    w->then = w->now;
    w->table_count += measure(w->live.index).table_count;
    change_some(w, pace);
    while (kv_index_image_next(w->live.index, &image) == KV_OK) {
        uint64_t offset = disk_append(&w->disk, id, image.bytes, image.size);
        uint64_t checksum = kv_xxh64(image.bytes, image.size, id);
        change_some(w, pace);
        if (gives_up && random_below(&w->random, 20) == 0) goto give_up;
        kv_index_image_placed(w->live.index, image.number, id, offset, checksum);
        w->carried_count++;
        change_some(w, pace);
    }
    if (gives_up && random_below(&w->random, 2) == 0) goto give_up;
    CHECK_EQ(kv_index_image_map(w->live.index, &m.bytes, &m.size), KV_OK);
    kv_index_image_end(w->live.index);
    check_files(w, &m);
    check_map(w, &m);
    free(m.bytes);
    return;
give_up:
    kv_index_image_end(w->live.index);
    if (random_below(&w->random, 2) == 0) return; /* The file may stay, then what was placed in it stays good. */
    kv_index_dislodge(w->live.index, id);
    w->disk.is_gone[id - 1] = true;
}

static void run_world(uint64_t seed) {
    world *w = calloc(1, sizeof *w);
    *w = (world){.random = seed, .next_location = 2, .live = fixture_new()};
    for (int generation = 0; generation < 30; generation++) {
        w->remove_percent = generation % 10 < 6 ? 10 : 60;
        change_some(w, generation % 3 == 0 ? 8000 : 6);
        if (w->disk.count != 0 && random_below(&w->random, 3) == 0) {
            uint64_t id = 1 + random_below(&w->random, w->disk.count);
            kv_index_dislodge(w->live.index, id);
            w->disk.is_gone[id - 1] = true;
        }
        one_image(w);
        check_shows(w->live.index, &w->now);
        if (check_failed_here) break;
    }
    CHECK(w->carried_count > 0);
    CHECK(w->carried_count < w->table_count * 9 / 10);
    if (check_failed_here) printf("seed %" PRIu64 "\n", seed);
    fixture_free(&w->live);
    disk_free(&w->disk);
    free(w);
}

TEST(an_image_shows_the_moment_it_began_whatever_happens_meanwhile) {
    for (uint64_t seed = 1; seed <= 6; seed++) run_world(seed);
}

TEST(an_image_left_open_is_freed_with_the_index) {
    fixture f = fixture_new();
    kv_image image;
    fill(f.index, 5000);
    CHECK_EQ(kv_index_image_begin(f.index), KV_OK);
    CHECK_EQ(kv_index_image_next(f.index, &image), KV_OK);
    fill(f.index, 5000);
    fixture_free(&f);
}

/* --- threads --- */

enum { READER_COUNT = 3, STABLE_COUNT = 5000, CHURN_COUNT = 60000 };

typedef struct crowd {
    fixture f;
    atomic_bool stop;
    _Atomic uint64_t missed_count;
    _Atomic uint64_t found_count;
} crowd;

static void *probe_stable(void *context) {
    crowd *c = context;
    kv_epoch_slot *slot;
    kv_probe probe;
    uint64_t random = (uint64_t)(uintptr_t)&probe;
    if (kv_epoch_join(c->f.epoch, &slot) != KV_OK) abort();
    do {
        kv_epoch_enter(c->f.epoch, slot);
        for (int i = 0; i < 8; i++) {
            uint64_t key = random_below(&random, STABLE_COUNT);
            kv_index_prefetch(c->f.index, hash_of(key));
            bool found = find(c->f.index, hash_of(key), 100 + key, &probe);
            atomic_fetch_add_explicit(found ? &c->found_count : &c->missed_count, 1, memory_order_relaxed);
        }
        kv_epoch_leave(slot);
    } while (!atomic_load(&c->stop));
    kv_epoch_part(c->f.epoch, slot);
    return NULL;
}

/* Inserts, replaces and removes other keys, so that tables grow and split, with images under way. */
static void churn(crowd *c) {
    kv_probe probe;
    kv_image image;
    for (uint64_t i = 0; i < CHURN_COUNT; i++) {
        uint64_t key = STABLE_COUNT + i;
        if (i % 10000 == 0) CHECK_EQ(kv_index_image_begin(c->f.index), KV_OK);
        if (i % 10000 == 9999) kv_index_image_end(c->f.index);
        else if (i % 300 == 0 && kv_index_image_next(c->f.index, &image) == KV_OK) {
            kv_index_image_placed(c->f.index, image.number, 9, i, 0);
        }
        CHECK_EQ(kv_index_insert(c->f.index, hash_of(key), 100 + key), KV_OK);
        if (i % 3 == 0) {
            uint64_t other = STABLE_COUNT + random_below(&(uint64_t){i}, i + 1);
            if (find(c->f.index, hash_of(other), 100 + other, &probe)) {
                if (i % 2 == 0) CHECK_EQ(kv_index_remove(c->f.index, &probe), KV_OK);
                else CHECK_EQ(kv_index_replace(c->f.index, &probe, 100 + other + CHURN_COUNT * 4), KV_OK);
            }
        }
        kv_epoch_reclaim(c->f.epoch);
    }
}

static void run_crowd(crowd *c) {
    pthread_t readers[READER_COUNT];
    for (int i = 0; i < READER_COUNT; i++) CHECK_EQ(pthread_create(&readers[i], NULL, probe_stable, c), 0);
    churn(c);
    atomic_store(&c->stop, true);
    for (int i = 0; i < READER_COUNT; i++) pthread_join(readers[i], NULL);
    CHECK_EQ(atomic_load(&c->missed_count), 0);
    CHECK(atomic_load(&c->found_count) > 0);
    CHECK(measure(c->f.index).table_count > 32);
    CHECK_EQ(measure(c->f.index).loaded_count, measure(c->f.index).table_count);
}

TEST(a_key_present_throughout_is_found_throughout) {
    crowd c = {.f = fixture_new()};
    fill(c.f.index, STABLE_COUNT);
    run_crowd(&c);
    fixture_free(&c.f);
}

TEST(tables_load_under_readers_and_a_writer_at_once) {
    for (int round = 0; round < 3; round++) {
        crowd c = {.f = fixture_new()};
        fixture origin = fixture_new();
        disk d = {0};
        map m;
        fill(origin.index, STABLE_COUNT);
        write_image(&d, disk_create(&d), origin.index, &m);
        CHECK_EQ(load(&c.f, &d, &m), KV_OK);
        run_crowd(&c);
        fixture_free(&c.f);
        fixture_free(&origin);
        free(m.bytes);
        disk_free(&d);
    }
}

int main(void) {
    RUN(what_is_inserted_is_found_until_it_is_removed);
    RUN(a_hash_may_stand_in_several_slots);
    RUN(equal_hashes_beyond_a_table_do_not_explode_the_directory);
    RUN(inserting_and_removing_for_ever_needs_no_more_memory);
    RUN(a_key_costs_at_most_26_bytes);
    RUN(an_empty_index_makes_an_image);
    RUN(an_image_carries_only_what_changed);
    RUN(loading_reads_no_slot_and_tables_come_on_first_touch);
    RUN(a_map_is_made_only_of_places);
    RUN(damaged_slots_are_corruption_and_never_an_answer);
    RUN(impossible_slots_are_corruption);
    RUN(a_map_that_cannot_be_is_refused);
    RUN(an_image_shows_the_moment_it_began_whatever_happens_meanwhile);
    RUN(an_image_left_open_is_freed_with_the_index);
    RUN(a_key_present_throughout_is_found_throughout);
    RUN(tables_load_under_readers_and_a_writer_at_once);
    return check_report();
}
