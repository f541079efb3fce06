#include "peers.h"

#include "check.h"

static const uint8_t mac[MAC_SIZE] = {2, 1, 2, 3, 4, 5};

static struct address address4(uint32_t number)
{
    struct address address = {.size = 4};
    memcpy(address.bytes, &number, 4);
    return address;
}

static struct address address6(uint32_t number)
{
    struct address address = {.bytes = {0xfd}, .size = 16};
    memcpy(address.bytes + 12, &number, 4);
    return address;
}

TEST(peers_are_found_by_address)
{
    struct peers peers = {0};
    struct address four = address4(1), six = address6(1), other = address4(2);
    CHECK_EQ(peers_find(&peers, &four), PEER_NONE);
    CHECK(peers_put(&peers, 0, &four, 8472, mac));
    CHECK(peers_put(&peers, 65534, &six, 4789, mac));
    CHECK_EQ(peers_find(&peers, &four), 0);
    CHECK_EQ(peers_find(&peers, &six), 65534);
    CHECK_EQ(peers_find(&peers, &other), PEER_NONE);
    CHECK(!peers_get(&peers, 1) && !peers_get(&peers, PEER_NONE));
    const struct peer *peer = peers_get(&peers, 65534);
    CHECK_EQ(peer->to.in6.sin6_port, htons(4789));
    CHECK_EQ(peer->to_size, sizeof peer->to.in6);
    CHECK(memcmp(&peer->to.in6.sin6_addr, six.bytes, 16) == 0);
    CHECK(!peers_put(&peers, PEER_NONE, &four, 8472, mac));
    peers_free(&peers);
}

TEST(ipv6_and_ipv4_with_equal_bytes_differ)
{
    struct peers peers = {0};
    struct address four = address4(0x0a0a0a0a), six = {.size = 16};
    memcpy(six.bytes, four.bytes, 4);
    CHECK(peers_put(&peers, 0, &four, 8472, mac));
    CHECK_EQ(peers_find(&peers, &six), PEER_NONE);
    peers_free(&peers);
}

TEST(peers_may_share_an_address)
{
    struct peers peers = {0};
    struct address shared = address4(1);
    for (uint16_t i = 0; i < 5; i++)
        CHECK(peers_put(&peers, i, &shared, (uint16_t)(8472 + i), mac));
    static const uint16_t order[] = {2, 0, 4, 3, 1};
    for (size_t i = 0; i < 5; i++) {
        uint16_t found = peers_find(&peers, &shared);
        CHECK(found < 5 && peers_get(&peers, found));
        peers_remove(&peers, order[i]);
    }
    CHECK_EQ(peers_find(&peers, &shared), PEER_NONE);
    peers_free(&peers);
}

TEST(another_address_keeps_counters_and_resets_the_path)
{
    struct peers peers = {0};
    struct address one = address4(1), two = address4(2), none = {0};
    CHECK(peers_put(&peers, 3, &one, 8472, mac));
    struct peer *peer = peers_get(&peers, 3);
    CHECK(peer->trains && !peer->mtu);
    peer->trains = false;
    peer->mtu = 1350;
    peer->counters.inbound.packets = 5;
    CHECK(peers_put(&peers, 3, &one, 4789, mac));
    CHECK(!peer->trains);
    CHECK_EQ(peer->mtu, 1350);
    CHECK(peers_put(&peers, 3, &two, 4789, mac));
    CHECK(peer->trains && !peer->mtu);
    CHECK_EQ(peers_find(&peers, &one), PEER_NONE);
    CHECK_EQ(peers_find(&peers, &two), 3);
    CHECK(peers_put(&peers, 3, &none, 4789, mac));
    CHECK_EQ(peers_find(&peers, &two), PEER_NONE);
    CHECK_EQ(peers_find(&peers, &none), PEER_NONE);
    CHECK_EQ(peers_get(&peers, 3)->counters.inbound.packets, 5);
    peers_free(&peers);
}

TEST(counters_of_removed_peers_are_added_up)
{
    struct peers peers = {0};
    struct address one = address4(1);
    CHECK(peers_put(&peers, 3, &one, 8472, mac));
    struct counters *counters = &peers_get(&peers, 3)->counters;
    count_traffic(&counters->outbound, 1, 100);
    count_traffic(&counters->inbound, 2, 200);
    count_drops(counters, DROP_spoofed, 3);
    peers_remove(&peers, 3);
    peers_remove(&peers, 3); /* does nothing: it was removed */
    CHECK_EQ(peers.unknown.outbound.bytes, 0);
    CHECK(peers_put(&peers, 99, &one, 8472, mac)); /* the table grows */
    CHECK_EQ(peers.removed.outbound.bytes, 100);
    CHECK_EQ(peers.removed.inbound.packets, 2);
    CHECK_EQ(peers.removed.drops[DROP_spoofed], 3);
    CHECK(peers_put(&peers, 3, &one, 8472, mac));
    CHECK_EQ(peers_get(&peers, 3)->counters.drops[DROP_spoofed], 0);
    peers_free(&peers);
}

TEST(random_changes_agree_with_a_list)
{
    enum { COUNT = 200 };
    struct peers peers = {0};
    uint32_t twin[COUNT] = {0}; /* number of the address, 0 for none */
    uint64_t random = 13;
    for (int round = 0; round < 20000; round++) {
        uint16_t index = (uint16_t)(check_random(&random) % COUNT);
        uint32_t number = 1 + (uint32_t)(check_random(&random) % 50);
        struct address address = number % 2 ? address4(number) : address6(number);
        if (check_random(&random) % 3 == 0) {
            peers_remove(&peers, index);
            twin[index] = 0;
        } else {
            CHECK(peers_put(&peers, index, &address, 8472, mac));
            twin[index] = number;
        }
        number = 1 + (uint32_t)(check_random(&random) % 50);
        address = number % 2 ? address4(number) : address6(number);
        bool known = false;
        for (size_t i = 0; i < COUNT; i++)
            known |= twin[i] == number;
        uint16_t found = peers_find(&peers, &address);
        CHECK_EQ(found != PEER_NONE, known);
        CHECK(found == PEER_NONE || twin[found] == number);
    }
    peers_free(&peers);
}

TEST(memory_may_run_out)
{
    struct peers peers = {0};
    struct address one = address4(1), two = address4(2);
    CHECK(peers_put(&peers, 0, &one, 8472, mac));
    for (int allowed = 0; allowed < 2; allowed++) {
        check_allocations = allowed;
        CHECK(!peers_put(&peers, 5000, &two, 8472, mac));
        check_allocations = -1;
        CHECK_EQ(peers_find(&peers, &one), 0);
        CHECK_EQ(peers_find(&peers, &two), PEER_NONE);
        CHECK(!peers_get(&peers, 5000));
    }
    CHECK(peers_put(&peers, 5000, &two, 8472, mac));
    CHECK_EQ(peers_find(&peers, &one), 0);
    CHECK_EQ(peers_find(&peers, &two), 5000);
    peers_free(&peers);
}
