/*
 * The FDB with a fake clock, and with many threads that learn, look up and change entries at once:
 * built under ThreadSanitizer as well.
 */
#include "fdb.h"

#include <pthread.h>
#include <stdatomic.h>

#include "check.h"

enum { AGEING = 300, NOW = 1000, LIMIT = 100, SHARE = 60 };

static const struct fdb_limits limits = {.learned = LIMIT, .share = SHARE, .ageing = AGEING};

static struct fdb *fdb_made(void)
{
    struct fdb *fdb = fdb_new(limits, 7);
    CHECK(fdb);
    return fdb;
}

/* The MAC of host `number`; it begins with 02. */
static uint64_t host(uint32_t number)
{
    uint8_t mac[MAC_SIZE] = {2};
    put32(mac + 2, number);
    return fdb_key(mac, 0);
}

static size_t count(struct fdb *fdb, uint32_t now)
{
    return fdb_entries(fdb, NULL, 0, now);
}

TEST(learned_entries_are_found)
{
    struct fdb *fdb = fdb_made();
    CHECK_EQ(fdb_lookup(fdb, host(1), NOW), FDB_NONE);
    fdb_learn(fdb, host(1), 4, NOW);
    CHECK_EQ(fdb_lookup(fdb, host(1), NOW), 4);
    CHECK_EQ(fdb_lookup(fdb, host(2), NOW), FDB_NONE);
    CHECK_EQ(fdb_counters(fdb).learned, 1);
    fdb_free(fdb);
}

TEST(vlans_are_separate)
{
    struct fdb *fdb = fdb_made();
    fdb_learn(fdb, host(1), 4, NOW);
    fdb_learn(fdb, host(1) | 7, 5, NOW);
    CHECK_EQ(fdb_lookup(fdb, host(1), NOW), 4);
    CHECK_EQ(fdb_lookup(fdb, host(1) | 7, NOW), 5);
    CHECK_EQ(fdb_lookup(fdb, host(1) | 8, NOW), FDB_NONE);
    fdb_free(fdb);
}

TEST(the_first_frame_moves_an_entry)
{
    struct fdb *fdb = fdb_made();
    fdb_learn(fdb, host(1), 4, NOW);
    fdb_learn(fdb, host(1), 5, NOW);
    CHECK_EQ(fdb_lookup(fdb, host(1), NOW), 5);
    CHECK_EQ(fdb_counters(fdb).moved, 1);
    CHECK_EQ(fdb_counters(fdb).learned, 1);
    CHECK_EQ(count(fdb, NOW), 1);
    fdb_free(fdb);
}

TEST(entries_expire_until_their_next_frame)
{
    struct fdb *fdb = fdb_made();
    fdb_learn(fdb, host(1), 4, NOW);
    CHECK_EQ(fdb_lookup(fdb, host(1), NOW + AGEING - 1), 4);
    CHECK_EQ(fdb_lookup(fdb, host(1), NOW + AGEING), FDB_NONE);
    CHECK_EQ(count(fdb, NOW + AGEING), 0);
    fdb_learn(fdb, host(1), 4, NOW + AGEING - 1);
    CHECK_EQ(fdb_lookup(fdb, host(1), NOW + AGEING), 4);
    /* An expired entry does not count as moved. */
    fdb_learn(fdb, host(1), 5, NOW + 3 * AGEING);
    CHECK_EQ(fdb_lookup(fdb, host(1), NOW + 3 * AGEING), 5);
    CHECK_EQ(fdb_counters(fdb).moved, 0);
    fdb_free(fdb);
}

TEST(the_clock_of_another_thread_may_be_ahead)
{
    struct fdb *fdb = fdb_made();
    fdb_learn(fdb, host(1), 4, NOW + 1);
    struct fdb_entry entry;
    CHECK_EQ(fdb_lookup(fdb, host(1), NOW), 4);
    CHECK_EQ(fdb_entries(fdb, &entry, 1, NOW), 1);
    CHECK_EQ(entry.age, 0);
    fdb_free(fdb);
}

TEST(group_addresses_and_zero_are_not_learned)
{
    static const uint8_t macs[][MAC_SIZE] = {
        {0}, {1, 0, 0x5e, 0, 0, 1}, {0x33, 0x33, 0, 0, 0, 1}, {255, 255, 255, 255, 255, 255}};
    struct fdb *fdb = fdb_made();
    for (size_t i = 0; i < sizeof macs / sizeof *macs; i++) {
        fdb_learn(fdb, fdb_key(macs[i], 0), 4, NOW);
        fdb_learn(fdb, fdb_key(macs[i], 7), 4, NOW);
    }
    CHECK_EQ(count(fdb, NOW), 0);
    fdb_free(fdb);
}

TEST(a_flood_from_one_peer_only_fills_its_share)
{
    struct fdb *fdb = fdb_made();
    fdb_learn(fdb, host(1), 5, NOW);
    for (uint32_t i = 0; i < 100000; i++)
        fdb_learn(fdb, host(1000 + i), 4, NOW);
    CHECK_EQ(count(fdb, NOW), SHARE + 1);
    CHECK_EQ(fdb_counters(fdb).refused_full, 100000 - SHARE);
    CHECK_EQ(fdb_lookup(fdb, host(1), NOW), 5);
    for (uint32_t i = 0; i < LIMIT; i++)
        fdb_learn(fdb, host(i), 5, NOW);
    CHECK_EQ(count(fdb, NOW), LIMIT);
    fdb_free(fdb);
}

TEST(no_entry_moves_into_a_full_share)
{
    struct fdb *fdb = fdb_made();
    fdb_learn(fdb, host(1), 5, NOW);
    for (uint32_t i = 0; i < SHARE; i++)
        fdb_learn(fdb, host(1000 + i), 4, NOW);
    fdb_learn(fdb, host(1), 4, NOW);
    CHECK_EQ(fdb_lookup(fdb, host(1), NOW), 5);
    /* It moves into a share with space, even if the table is full. */
    for (uint32_t i = 0; i < LIMIT; i++)
        fdb_learn(fdb, host(2000 + i), 5, NOW);
    CHECK_EQ(count(fdb, NOW), LIMIT);
    fdb_learn(fdb, host(1), 6, NOW);
    CHECK_EQ(fdb_lookup(fdb, host(1), NOW), 6);
    fdb_free(fdb);
}

TEST(expired_entries_make_space)
{
    struct fdb *fdb = fdb_made();
    for (uint32_t round = 0; round < 5; round++) {
        uint32_t now = NOW + round * AGEING;
        for (uint32_t i = 0; i < 2 * SHARE; i++)
            fdb_learn(fdb, host(1000 * round + i), 4, now);
        CHECK_EQ(count(fdb, now), SHARE);
        CHECK_EQ(fdb_lookup(fdb, host(1000 * round), now), 4);
        CHECK_EQ(fdb_counters(fdb).aged, round * SHARE);
    }
    fdb_free(fdb);
}

TEST(static_entries_are_not_replaced_by_learning)
{
    struct fdb *fdb = fdb_made();
    CHECK(fdb_put(fdb, host(1), 4));
    fdb_learn(fdb, host(1), 5, NOW);
    CHECK_EQ(fdb_lookup(fdb, host(1), NOW + 10 * AGEING), 4);
    CHECK(fdb_put(fdb, host(1), 6)); /* another static entry replaces it */
    CHECK_EQ(fdb_lookup(fdb, host(1), NOW), 6);
    fdb_learn(fdb, host(2), 4, NOW);
    CHECK(fdb_put(fdb, host(2), 5));
    fdb_learn(fdb, host(2), 4, NOW);
    CHECK_EQ(fdb_lookup(fdb, host(2), NOW), 5);
    CHECK_EQ(fdb_counters(fdb).moved, 0);
    /* Entries that became static do not count against a share. */
    for (uint32_t i = 0; i < SHARE; i++)
        fdb_learn(fdb, host(1000 + i), 4, NOW);
    CHECK_EQ(count(fdb, NOW), 2 + SHARE);
    fdb_free(fdb);
}

TEST(static_entries_are_limited)
{
    struct fdb *fdb = fdb_made();
    for (uint32_t i = 0; i < FDB_STATIC_MAX; i++)
        CHECK(fdb_put(fdb, host(i), 4));
    CHECK(!fdb_put(fdb, host(FDB_STATIC_MAX), 4));
    CHECK(fdb_put(fdb, host(0), 5)); /* replaces an entry */
    fdb_learn(fdb, host(FDB_STATIC_MAX), 4, NOW);
    CHECK(!fdb_put(fdb, host(FDB_STATIC_MAX), 4));
    CHECK(fdb_remove(fdb, host(1)));
    CHECK(fdb_put(fdb, host(FDB_STATIC_MAX), 4));
    for (uint32_t i = 0; i < LIMIT; i++)
        fdb_learn(fdb, host(1u << 20 | i), (uint16_t)(4 + i % 2), NOW);
    CHECK_EQ(count(fdb, NOW), FDB_STATIC_MAX + LIMIT);
    fdb_free(fdb);
}

TEST(entries_are_removed)
{
    struct fdb *fdb = fdb_made();
    CHECK(!fdb_remove(fdb, host(1)));
    fdb_learn(fdb, host(1), 4, NOW);
    CHECK(fdb_put(fdb, host(2), 4));
    CHECK(fdb_remove(fdb, host(1)));
    CHECK(fdb_remove(fdb, host(2)));
    CHECK(!fdb_remove(fdb, host(2)));
    CHECK_EQ(fdb_lookup(fdb, host(2), NOW), FDB_NONE);
    CHECK_EQ(count(fdb, NOW), 0);
    fdb_free(fdb);
}

TEST(entries_are_flushed)
{
    static const struct {
        const char *name;
        uint16_t index;
        bool learned_only;
        size_t left;
    } table[] = {
        {"one peer's", 4, false, 2},
        {"what one peer taught", 4, true, 3},
        {"what all taught", FDB_NONE, true, 2},
        {"all", FDB_NONE, false, 0},
    };
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        struct fdb *fdb = fdb_made();
        check_row = table[i].name;
        for (uint16_t index = 4; index < 6; index++) {
            CHECK(fdb_put(fdb, host(index), index));
            fdb_learn(fdb, host(100u + index), index, NOW);
        }
        fdb_flush(fdb, table[i].index, table[i].learned_only);
        CHECK_EQ(count(fdb, NOW), table[i].left);
        fdb_free(fdb);
    }
}

TEST(entries_are_listed_with_their_kind_and_age)
{
    struct fdb *fdb = fdb_made();
    struct fdb_entry entries[3];
    fdb_learn(fdb, host(0x01020304) | 7, 4, NOW);
    CHECK(fdb_put(fdb, host(5), 6));
    CHECK_EQ(fdb_entries(fdb, entries, 1, NOW), 2); /* only one is written */
    CHECK_EQ(fdb_entries(fdb, entries, 3, NOW + 9), 2);
    static const uint8_t mac[MAC_SIZE] = {2, 0, 1, 2, 3, 4};
    CHECK(memcmp(entries[0].mac, mac, MAC_SIZE) == 0);
    CHECK_EQ(entries[0].vlan, 7);
    CHECK_EQ(entries[0].index, 4);
    CHECK_EQ(entries[0].age, 9);
    CHECK(!entries[0].fixed);
    CHECK_EQ(entries[1].vlan, 0);
    CHECK_EQ(entries[1].age, 0);
    CHECK(entries[1].fixed);
    fdb_free(fdb);
}

TEST(memory_may_run_out)
{
    for (int i = 0; i < 3; i++) {
        check_allocations = i;
        CHECK(!fdb_new(limits, 7));
    }
    check_allocations = -1;
    fdb_free(NULL);
}

/* ---- compared with an array ---- */

TEST(agrees_with_a_plain_array)
{
    enum { HOSTS = 300, STEPS = 200000 };
    static struct {
        uint16_t index;
        bool used, fixed;
        uint32_t seen;
    } twin[HOSTS];
    uint64_t state = 1;
    struct fdb *fdb = fdb_new((struct fdb_limits){HOSTS, HOSTS, AGEING}, 7);
    CHECK(fdb);
    uint32_t now = NOW;
    for (int i = 0; i < STEPS; i++) {
        uint32_t number = (uint32_t)(check_random(&state) % HOSTS);
        uint16_t index = (uint16_t)(check_random(&state) % 8);
        now += check_random(&state) % 64 == 0;
        uint64_t what = check_random(&state) % 100;
        if (what < 60) {
            fdb_learn(fdb, host(number), index, now);
            if (!twin[number].used || !twin[number].fixed) {
                twin[number].used = true;
                twin[number].index = index;
                twin[number].seen = now;
            }
        } else if (what < 65) {
            CHECK(fdb_put(fdb, host(number), index));
            twin[number].used = twin[number].fixed = true;
            twin[number].index = index;
        } else if (what < 75) {
            fdb_remove(fdb, host(number));
            twin[number].used = twin[number].fixed = false;
        }
        uint32_t asked = (uint32_t)(check_random(&state) % HOSTS);
        bool holds = twin[asked].used && (twin[asked].fixed || now - twin[asked].seen < AGEING);
        CHECK_EQ(fdb_lookup(fdb, host(asked), now), holds ? twin[asked].index : FDB_NONE);
    }
    fdb_free(fdb);
}

/* ---- threads ---- */

enum { WORKERS = 3, ROUNDS = 20000, CHURN = 40 };

static struct fdb *shared;
static atomic_bool over;

/* Learns hosts; those of one worker are only ever behind its peer. */
static void *work(void *with)
{
    uint16_t index = *(const uint16_t *)with;
    for (uint32_t i = 0; i < ROUNDS; i++) {
        uint64_t key = host(1000 + index * 1000u + i % CHURN);
        fdb_learn(shared, key, index, NOW + i / 1000);
        uint16_t found = fdb_lookup(shared, key, NOW + i / 1000);
        CHECK(found == index || found == FDB_NONE); /* another thread may have removed it */
        CHECK_EQ(fdb_lookup(shared, host(1), NOW), 77);
        fdb_learn(shared, host(2), index, NOW); /* moves all the time */
    }
    return NULL;
}

static void *change(void *unused)
{
    struct fdb_entry entries[LIMIT + 1];
    for (uint32_t i = 0; !atomic_load(&over); i++) {
        fdb_remove(shared, host(1000 + i % WORKERS * 1000u + i % CHURN));
        if (i % 50 == 0)
            fdb_flush(shared, (uint16_t)(i / 50 % WORKERS), true);
        size_t got = fdb_entries(shared, entries, LIMIT + 1, NOW);
        CHECK(got <= LIMIT + 1);
        for (size_t j = 0; j < got; j++)
            CHECK(entries[j].index < WORKERS || entries[j].index == 77);
        fdb_counters(shared);
    }
    return unused;
}

TEST(many_threads_at_once)
{
    pthread_t workers[WORKERS], changer;
    uint16_t indexes[WORKERS];
    shared = fdb_new((struct fdb_limits){LIMIT, LIMIT / 2, 2}, 7);
    CHECK(shared && fdb_put(shared, host(1), 77));
    CHECK(pthread_create(&changer, NULL, change, NULL) == 0);
    for (uint16_t i = 0; i < WORKERS; i++) {
        indexes[i] = i;
        CHECK(pthread_create(&workers[i], NULL, work, &indexes[i]) == 0);
    }
    for (int i = 0; i < WORKERS; i++)
        CHECK(pthread_join(workers[i], NULL) == 0);
    atomic_store(&over, true);
    CHECK(pthread_join(changer, NULL) == 0);
    /* The counts behind the limits are still right: it can be filled to the limit exactly. */
    fdb_flush(shared, FDB_NONE, true);
    CHECK_EQ(fdb_entries(shared, NULL, 0, NOW), 1);
    for (uint32_t i = 0; i < 3 * LIMIT; i++)
        fdb_learn(shared, host(10000 + i), (uint16_t)(i % WORKERS), NOW + ROUNDS);
    CHECK_EQ(fdb_entries(shared, NULL, 0, NOW + ROUNDS), 1 + LIMIT);
    fdb_free(shared);
}
