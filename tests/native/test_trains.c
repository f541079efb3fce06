#include "trains.h"

#include "check.h"

static struct trains *trains_new(unsigned segments)
{
    struct trains *trains = calloc(1, sizeof *trains);
    CHECK(trains);
    trains->segments = segments;
    return trains;
}

static uint8_t bytes[DATAGRAM_MAX];

static bool add(struct trains *trains, struct ticket ticket, size_t size)
{
    const struct iovec pieces[2] = {{bytes, 22}, {bytes + 22, size - 22}};
    return trains_add(trains, ticket, pieces, 2);
}

/* Adds datagrams of these sizes to one peer; 0 ends the list. Returns the number of trains. */
static unsigned trains_of(unsigned segments, const size_t *sizes)
{
    struct trains *trains = trains_new(segments);
    unsigned datagrams = 0, seen = 0;
    size_t all = 0, sent = 0;
    for (; sizes[datagrams]; all += sizes[datagrams++])
        CHECK(add(trains, (struct ticket){.peer = 1}, sizes[datagrams]));
    for (unsigned i = 0; i < trains->count; i++) {
        const struct train *train = &trains->at[i];
        size_t length = 0;
        for (unsigned j = 0; j < train->piece_count; j++)
            length += train->pieces[j].iov_len;
        CHECK_EQ(train->bytes, length);
        CHECK(train->bytes > train->size * (train->segments - 1u));
        CHECK(train->bytes <= (uint32_t)train->size * train->segments);
        CHECK_EQ(train->size, sizes[seen]);
        seen += train->segments;
        sent += train->bytes;
    }
    unsigned count = trains->count;
    CHECK_EQ(seen, datagrams);
    CHECK_EQ(sent, all);
    free(trains);
    return count;
}

#define SIZES(...) ((const size_t[]){__VA_ARGS__, 0})

TEST(equal_sizes_make_a_train)
{
    CHECK_EQ(trains_of(127, SIZES(100)), 1);
    CHECK_EQ(trains_of(127, SIZES(100, 100, 100)), 1);
    CHECK_EQ(trains_of(127, SIZES(100, 100, 60)), 1);
    CHECK_EQ(trains_of(127, SIZES(100, 60, 60)), 2);
    CHECK_EQ(trains_of(127, SIZES(100, 60, 100)), 2);
    CHECK_EQ(trains_of(127, SIZES(100, 101)), 2);
    CHECK_EQ(trains_of(2, SIZES(100, 100, 100)), 2);
    CHECK_EQ(trains_of(1, SIZES(100, 100, 100)), 3);
    CHECK_EQ(trains_of(127, SIZES(30000, 30000, 30000)), 2);
    CHECK_EQ(trains_of(127, SIZES(32500, 32500, 22)), 2);
    CHECK_EQ(trains_of(127, SIZES(DATAGRAM_MAX, 22)), 2);
}

TEST(a_train_ends_at_its_limit_of_segments)
{
    struct trains *trains = trains_new(TRAIN_SEGMENTS_MAX);
    for (unsigned i = 0; i < TRAIN_SEGMENTS_MAX + 1; i++)
        CHECK(add(trains, (struct ticket){.peer = 1}, 50));
    CHECK_EQ(trains->count, 2);
    CHECK_EQ(trains->at[0].segments, TRAIN_SEGMENTS_MAX);
    free(trains);
}

TEST(peer_ecn_and_socket_are_equal_in_a_train)
{
    static const struct {
        struct ticket first, second;
        unsigned count;
    } rows[] = {
        {{.peer = 1}, {.peer = 1}, 1},
        {{.peer = 1}, {.peer = 2}, 2},
        {{.peer = 1}, {.peer = 1 + 64}, 2}, /* the same hash */
        {{.peer = 1}, {.peer = 1, .socket = 1}, 2},
        {{.peer = 1}, {.peer = 1, .ecn = 2}, 2},
        {{.peer = 1}, {.peer = 1, .alone = true}, 2},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct trains *trains = trains_new(127);
        CHECK(add(trains, rows[i].first, 100));
        CHECK(add(trains, rows[i].second, 100));
        CHECK_EQ(trains->count, rows[i].count);
        free(trains);
    }
}

TEST(trains_to_several_peers_grow_in_turn)
{
    struct trains *trains = trains_new(127);
    for (unsigned i = 0; i < 40; i++)
        CHECK(add(trains, (struct ticket){.peer = (uint16_t)(i % 4)}, 100));
    CHECK_EQ(trains->count, 4);
    free(trains);
}

TEST(when_all_are_in_use_nothing_changes)
{
    struct trains *trains = trains_new(127);
    for (unsigned i = 0; i < TRAINS_MAX; i++)
        CHECK(add(trains, (struct ticket){.peer = (uint16_t)i}, 100));
    struct trains *before = malloc(sizeof *before);
    CHECK(before);
    memcpy(before, trains, sizeof *before);
    CHECK(!add(trains, (struct ticket){.peer = 1000}, 100));
    CHECK(memcmp(before, trains, sizeof *before) == 0);
    trains_reset(trains);
    CHECK(add(trains, (struct ticket){.peer = 1000}, 100));
    CHECK_EQ(trains->count, 1);
    free(before);
    free(trains);
}

TEST(order_within_a_peer_and_socket_never_changes)
{
    uint64_t random = 12;
    for (int round = 0; round < 300; round++) {
        struct trains *trains = trains_new((unsigned)(check_random(&random) % 127) + 1);
        uint32_t place = 0;
        for (;; place++) {
            struct ticket ticket = {
                .peer = (uint16_t)(check_random(&random) % 3 * 64),
                .socket = check_random(&random) % 2,
                .ecn = check_random(&random) % 8 == 0,
            };
            const struct iovec piece = {bytes + place, 30 + check_random(&random) % 2};
            if (!trains_add(trains, ticket, &piece, 1))
                break;
        }
        for (unsigned i = 0; i < trains->count; i++) {
            const struct train *train = &trains->at[i];
            for (unsigned j = 0; j < i; j++) {
                const struct train *earlier = &trains->at[j];
                bool same = earlier->peer == train->peer && earlier->socket == train->socket;
                const uint8_t *end = earlier->pieces[earlier->piece_count - 1].iov_base;
                CHECK(!same || end < (const uint8_t *)train->pieces[0].iov_base);
            }
            for (unsigned j = 1; j < train->piece_count; j++)
                CHECK(train->pieces[j - 1].iov_base < train->pieces[j].iov_base);
        }
        free(trains);
    }
}
