/* The table, and messages truncated at every length. Replies are tested against scapy in
 * tests/oracle. */
#include "neighbour.h"

#include "check.h"
#include "packets.h"

static const uint8_t asker[MAC_SIZE] = {2, 0, 0, 0, 0, 2}, mac[MAC_SIZE] = {2, 0, 0, 0, 0, 1};

TEST(addresses_of_both_families_are_found)
{
    enum { COUNT = 1000 };
    static struct neighbour list[2 * COUNT];
    uint8_t address[16] = {0xfd};
    for (uint32_t i = 0; i < COUNT; i++) {
        list[2 * i] = (struct neighbour){.size = 4};
        put32(list[2 * i].address, 0x0a000000 | (COUNT - i));
        put32(list[2 * i].mac, COUNT - i);
        list[2 * i + 1] = (struct neighbour){.address = {0xfd}, .size = 16};
        put32(list[2 * i + 1].address + 12, i);
        put32(list[2 * i + 1].mac, i);
    }
    struct neighbour_table *table = neighbour_table_new(list, 2 * COUNT);
    CHECK(table);
    for (uint32_t i = 1; i < COUNT; i++) {
        uint8_t four[4];
        put32(four, 0x0a000000 | i);
        put32(address + 12, i);
        const uint8_t *found4 = neighbour_find(table, four, 4);
        const uint8_t *found6 = neighbour_find(table, address, 16);
        CHECK(found4 && found6);
        CHECK_EQ(get32(found4), i);
        CHECK_EQ(get32(found6), i);
    }
    put32(address + 12, COUNT);
    CHECK(!neighbour_find(table, address, 16));
    neighbour_table_free(table);
}

TEST(ipv4_and_ipv6_addresses_with_equal_bytes_differ)
{
    struct neighbour one = {.address = {10, 0, 0, 1}, .size = 4, .mac = {2}};
    struct neighbour_table *table = neighbour_table_new(&one, 1);
    CHECK(table);
    CHECK(neighbour_find(table, one.address, 4));
    CHECK(!neighbour_find(table, one.address, 16));
    neighbour_table_free(table);
}

TEST(an_empty_table_and_no_table)
{
    const uint8_t address[4] = {10};
    struct neighbour_table *table = neighbour_table_new(NULL, 0);
    CHECK(table);
    CHECK(!neighbour_find(table, address, 4));
    CHECK(!neighbour_find(NULL, address, 4));
    neighbour_table_free(table);
    check_allocations = 0;
    CHECK(!neighbour_table_new(NULL, 0));
    check_allocations = -1;
}

/* Replies are messages as well: one of each kind. */
static size_t put_answer(uint8_t *body, uint8_t size)
{
    static const uint8_t us[16] = {10, 0, 0, 1}, them[16] = {10, 0, 0, 2};
    struct neighbour_message question = {
        .size = size, .asks = true, .sender = them, .sender_mac = asker, .target = us};
    uint8_t frame[NEIGHBOUR_ANSWER_MAX];
    size_t length = neighbour_answer(frame, &question, mac, asker) - ETHERNET_HEADER;
    memcpy(body, frame + ETHERNET_HEADER, length);
    return length;
}

TEST(truncated_arp_is_not_read_past_its_end)
{
    uint8_t body[NDP_SIZE];
    size_t whole = put_answer(body, 4);
    CHECK_EQ(whole, ARP_SIZE);
    for (size_t length = 0; length <= whole; length++) {
        uint8_t *copy = check_exact(body, length);
        struct neighbour_message message;
        CHECK_EQ(arp_parse(copy, length, &message), length == whole ? NEIGHBOUR_OK : NEIGHBOUR_BAD);
        free(copy);
    }
}

/* The packet's length and checksum are right: only the message is truncated. */
TEST(truncated_ndp_is_not_read_past_its_end)
{
    enum { TARGET_ONLY = 40 + 24 };
    uint8_t body[NDP_SIZE];
    size_t whole = put_answer(body, 16);
    CHECK_EQ(whole, NDP_SIZE);
    for (size_t length = 40; length <= whole; length++) {
        uint8_t *copy = check_exact(body, length);
        struct ip_packet packet;
        struct neighbour_message message;
        put16(copy + 4, (uint16_t)(length - 40));
        if (length >= 44) {
            put16(copy + 42, 0);
            uint32_t sum = words_pseudo(copy, IP_ICMP6, length - 40);
            put16(copy + 42, (uint16_t)~words_sum(sum, copy + 40, length - 40));
        }
        CHECK(ip_parse(copy, length, &packet));
        enum neighbour_verdict verdict = ndp_parse(&packet, &message);
        bool fits = length == whole || length == TARGET_ONLY;
        CHECK_EQ(verdict, length == 40 ? NEIGHBOUR_NONE : fits ? NEIGHBOUR_OK : NEIGHBOUR_BAD);
        CHECK(!fits || !message.sender_mac == (length == TARGET_ONLY));
        free(copy);
    }
}
