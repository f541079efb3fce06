#include "counter_table.h"

#include "check.h"

static const uint8_t mac[MAC_SIZE] = {2};

static struct counters *put(struct peers *peers, uint16_t index)
{
    struct address address = {.bytes = {127, 0, (uint8_t)(index >> 8), (uint8_t)index}, .size = 4};
    CHECK(peers_put(peers, index, &address, 8472, mac));
    return &peers_get(peers, index)->counters;
}

TEST(workers_are_added_up)
{
    struct peers one = {0}, other = {0};
    struct counter_table table = {0};
    count_traffic(&put(&one, 3)->outbound, 1, 100);
    count_traffic(&put(&other, 3)->outbound, 2, 200);
    count_drops(&one.unknown, DROP_no_route, 4);
    count_drops(&other.unknown, DROP_not_ip, 5);
    count_traffic(&put(&other, 7)->inbound, 6, 600);
    peers_remove(&other, 7);
    CHECK(counter_table_add(&table, &one, true));
    CHECK(counter_table_add(&table, &other, true));
    CHECK(table.count > 7);
    CHECK(table.peers[3].used && !table.peers[7].used);
    CHECK_EQ(table.peers[3].counters.outbound.packets, 3);
    CHECK_EQ(table.peers[3].counters.outbound.bytes, 300);
    CHECK_EQ(table.unknown.counters.drops[DROP_no_route], 4);
    CHECK_EQ(table.unknown.counters.drops[DROP_not_ip], 5);
    CHECK_EQ(table.removed.counters.inbound.packets, 6);
    counter_table_free(&table);
    peers_free(&one);
    peers_free(&other);
}

TEST(the_last_drop_is_that_of_the_first_worker_with_one)
{
    struct peers workers[3] = {0};
    struct counter_table table = {0};
    for (int i = 0; i < 3; i++)
        put(&workers[i], 0);
    count_drops(&peers_get(&workers[1], 0)->counters, DROP_spoofed, 1);
    count_drops(&peers_get(&workers[2], 0)->counters, DROP_too_big, 1);
    for (int i = 0; i < 3; i++) {
        CHECK(counter_table_add(&table, &workers[i], true));
        peers_free(&workers[i]);
    }
    CHECK_EQ(table.peers[0].counters.last_drop, 1 + DROP_spoofed);
    counter_table_free(&table);
}

TEST(trains_need_every_worker)
{
    for (int off = 0; off < 4; off++) {
        struct peers one = {0}, other = {0};
        struct counter_table table = {0};
        put(&one, 0);
        put(&other, 0);
        peers_get(&one, 0)->trains = off != 1;
        peers_get(&other, 0)->trains = off != 2;
        CHECK(counter_table_add(&table, &one, true));
        CHECK(counter_table_add(&table, &other, off != 3));
        CHECK_EQ(table.peers[0].trains, off == 0);
        counter_table_free(&table);
        peers_free(&one);
        peers_free(&other);
    }
}

TEST(the_largest_worker_sets_the_size)
{
    for (int swapped = 0; swapped < 2; swapped++) {
        struct peers small = {0}, large = {0};
        struct counter_table table = {0};
        count_traffic(&put(&small, 0)->inbound, 1, 10);
        count_traffic(&put(&large, 5000)->inbound, 1, 10);
        CHECK(counter_table_add(&table, swapped ? &large : &small, true));
        CHECK(counter_table_add(&table, swapped ? &small : &large, true));
        CHECK_EQ(table.peers[0].counters.inbound.packets, 1);
        CHECK_EQ(table.peers[5000].counters.inbound.packets, 1);
        for (size_t i = 1; i < table.count; i++)
            CHECK_EQ(table.peers[i].used, i == 5000);
        counter_table_free(&table);
        peers_free(&small);
        peers_free(&large);
    }
}

TEST(memory_may_run_out)
{
    struct peers peers = {0};
    struct counter_table table = {0};
    count_drops(put(&peers, 0), DROP_spoofed, 1);
    check_allocations = 0;
    CHECK(!counter_table_add(&table, &peers, true));
    check_allocations = -1;
    CHECK_EQ(table.count, 0);
    CHECK_EQ(table.unknown.counters.outbound.packets, 0);
    CHECK(counter_table_add(&table, &peers, true));
    CHECK_EQ(table.peers[0].counters.drops[DROP_spoofed], 1);
    counter_table_free(&table);
    peers_free(&peers);
}
