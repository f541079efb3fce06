#include "ip.h"

#include "check.h"
#include "packets.h"

enum { EXTENSION_HOP = 0, EXTENSION_FRAGMENT = 44, ESP = 50 };

static bool parses(const uint8_t *bytes, size_t length, struct ip_packet *packet)
{
    uint8_t *copy = check_exact(bytes, length);
    struct ip_packet before;
    memset(packet, 0x5a, sizeof *packet);
    before = *packet;
    bool parsed = ip_parse(copy, length, packet);
    if (!parsed)
        CHECK(memcmp(packet, &before, sizeof before) == 0);
    free(copy);
    return parsed;
}

TEST(parses_headers)
{
    static const struct words rows[] = {
        {.version = 4, .payload = 10},
        {.version = 6, .payload = 10},
        {.version = 4, .protocol = IP_UDP},
        {.version = 6, .protocol = IP_UDP, .payload = 1000},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        uint8_t bytes[2000];
        size_t length = words_put(bytes, &rows[i]);
        struct ip_packet packet;
        CHECK(ip_parse(bytes, length + 5 /* a trailer */, &packet));
        bool four = rows[i].version == 4;
        CHECK_EQ(packet.length, length);
        CHECK_EQ(packet.version, rows[i].version);
        CHECK_EQ(packet.header, four ? 20 : 40);
        CHECK_EQ(packet.address_size, four ? 4 : 16);
        CHECK_EQ(packet.protocol, rows[i].protocol ? rows[i].protocol : IP_TCP);
        CHECK(packet.source == bytes + (four ? 12 : 8));
        CHECK(packet.destination == bytes + (four ? 16 : 24));
        CHECK(packet.plain && !packet.fragment);
        CHECK(ip_checksums_right(&packet, ip_flow_sum(&packet)));
    }
}

TEST(truncated_packets_are_refused)
{
    for (uint8_t version = 4; version <= 6; version += 2) {
        uint8_t bytes[200];
        struct words words = {.version = version, .payload = 30};
        size_t length = words_put(bytes, &words);
        struct ip_packet packet;
        for (size_t cut = 0; cut < length; cut++)
            CHECK(!parses(bytes, cut, &packet));
        CHECK(parses(bytes, length, &packet));
    }
}

TEST(contradictory_lengths_are_refused)
{
    static const struct {
        const char *name;
        uint8_t version;
        size_t at;
        uint8_t high, low;
    } rows[] = {
        {"header length below 20", 4, 0, 0x44, 0},
        {"header longer than the packet", 4, 2, 0, 19},
        {"total length zero", 4, 2, 0, 0},
        {"total length beyond the end", 4, 2, 0xff, 0xff},
        {"version 0", 4, 0, 0x05, 0},
        {"version 15", 4, 0, 0xf5, 0},
        {"version 6 with 20 bytes", 4, 0, 0x65, 0},
        {"payload beyond the end", 6, 4, 0, 255},
        {"longer than 65535 with its header", 6, 4, 0xff, 0xff},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        check_row = rows[i].name;
        uint8_t bytes[200];
        struct words words = {.version = rows[i].version};
        size_t length = words_put(bytes, &words);
        if (rows[i].version == 4)
            length = 36; /* too short for IPv6 */
        put16(bytes + 2, (uint16_t)(rows[i].version == 4 ? length : get16(bytes + 2)));
        bytes[rows[i].at] = rows[i].high;
        bytes[rows[i].at + 1] = rows[i].low;
        struct ip_packet packet;
        CHECK(!parses(bytes, length, &packet));
    }
}

TEST(fragments_and_options_are_not_plain)
{
    static const struct {
        const char *name;
        uint8_t version;
        size_t at;
        uint8_t value;
        bool fragment, plain;
    } rows[] = {
        {"more fragments", 4, 6, 0x20, true, false},
        {"fragment offset", 4, 7, 0x01, true, false},
        {"do not fragment", 4, 6, 0x40, false, true},
        {"reserved bit", 4, 6, 0x80, false, true},
        {"options", 4, 0, 0x46, false, false},
        {"hop by hop", 6, 6, EXTENSION_HOP, false, false},
        {"routing", 6, 6, 43, false, false},
        {"destination options", 6, 6, 60, false, false},
        {"fragment header", 6, 6, EXTENSION_FRAGMENT, true, false},
        {"ESP is a protocol", 6, 6, ESP, false, true},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        check_row = rows[i].name;
        uint8_t bytes[200];
        struct words words = {.version = rows[i].version, .fragmentable = true};
        size_t length = words_put(bytes, &words);
        bytes[rows[i].at] = rows[i].value;
        struct ip_packet packet;
        CHECK(ip_parse(bytes, length, &packet));
        CHECK_EQ(packet.fragment, rows[i].fragment);
        CHECK_EQ(packet.plain, rows[i].plain);
    }
}

TEST(tcp_headers_must_be_complete)
{
    uint8_t bytes[200];
    struct words words = {.options = 12};
    size_t length = words_put(bytes, &words);
    struct ip_packet packet;
    CHECK(ip_parse(bytes, length, &packet));
    CHECK_EQ(ip_tcp_header(&packet, 20), 32);
    bytes[32] = 0x40; /* 16 bytes */
    CHECK_EQ(ip_tcp_header(&packet, 20), 0);
    bytes[32] = 0x90; /* 36 bytes, of which 32 are available */
    CHECK_EQ(ip_tcp_header(&packet, 20), 0);
    CHECK_EQ(ip_tcp_header(&packet, 40), 0);
    CHECK_EQ(ip_tcp_header(&packet, 65535), 0);
}

static uint32_t hash_of(const struct words *words)
{
    uint8_t bytes[200];
    size_t length = words_put(bytes, words);
    struct ip_packet packet;
    CHECK(ip_parse(bytes, length, &packet));
    return ip_flow_hash(&packet);
}

TEST(a_flow_has_one_hash)
{
    for (uint8_t version = 4; version <= 6; version += 2) {
        struct words words = {.version = version};
        uint32_t hash = hash_of(&words);
        struct words later = {.version = version, .sequence = 99, .id = 5, .ttl = 3, .payload = 7};
        CHECK_EQ(hash_of(&later), hash);
        struct words others[] = {
            {.version = version, .port = 1},
            {.version = version, .host = 1},
            {.version = version, .protocol = IP_UDP},
        };
        for (size_t i = 0; i < 3; i++)
            CHECK(hash_of(&others[i]) != hash);
    }
}

TEST(hashes_spread_over_sockets)
{
    unsigned count[8] = {0};
    for (uint16_t port = 0; port < 800; port++) {
        struct words words = {.port = port};
        count[((uint64_t)hash_of(&words) * 8) >> 32]++;
    }
    for (size_t i = 0; i < 8; i++)
        CHECK(count[i] > 50 && count[i] < 150);
}

TEST(fragments_of_a_packet_share_a_hash)
{
    uint8_t first[200], second[200];
    struct words words = {.protocol = IP_UDP, .payload = 64, .fragmentable = true};
    size_t length = words_put(first, &words);
    memcpy(second, first, length);
    first[6] = 0x20;
    second[7] = 8;
    memset(second + 20, 0xee, 8); /* where ports would be */
    struct ip_packet a, b;
    CHECK(ip_parse(first, length, &a) && ip_parse(second, length, &b));
    CHECK_EQ(ip_flow_hash(&a), ip_flow_hash(&b));
}

TEST(a_packet_without_ports_has_a_hash)
{
    for (size_t behind = 0; behind < 4; behind++) {
        uint8_t bytes[200];
        struct words words = {.protocol = IP_UDP};
        words_put(bytes, &words);
        put16(bytes + 2, (uint16_t)(20 + behind));
        uint8_t *exact = check_exact(bytes, 20 + behind);
        struct ip_packet packet;
        CHECK(ip_parse(exact, 20 + behind, &packet));
        ip_flow_hash(&packet); /* must not read past the end */
        free(exact);
    }
}

TEST(every_wrong_bit_is_detected)
{
    for (uint8_t version = 4; version <= 6; version += 2) {
        for (int udp = 0; udp < 2; udp++) {
            uint8_t bytes[400];
            struct words words = {
                .version = version, .protocol = udp ? IP_UDP : IP_TCP, .payload = 161};
            size_t length = words_put(bytes, &words);
            struct ip_packet packet;
            CHECK(ip_parse(bytes, length, &packet));
            CHECK(ip_checksums_right(&packet, ip_flow_sum(&packet)));
            for (size_t at = version == 4 ? 12 : 8; at < length; at++) {
                bytes[at] ^= 0x10;
                CHECK(!ip_checksums_right(&packet, ip_flow_sum(&packet)));
                bytes[at] ^= 0x10;
            }
        }
    }
}

TEST(multicast_and_broadcast)
{
    static const struct {
        uint8_t version;
        uint8_t first;
        bool multicast;
    } rows[] = {{4, 223, false}, {4, 224, true},   {4, 239, true}, {4, 240, false},
                {4, 255, true},  {6, 0xfe, false}, {6, 0xff, true}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        uint8_t bytes[200];
        struct words words = {.version = rows[i].version};
        size_t length = words_put(bytes, &words);
        struct ip_packet packet;
        CHECK(ip_parse(bytes, length, &packet));
        memset(bytes + (packet.destination - bytes), rows[i].first, packet.address_size);
        CHECK_EQ(ip_is_multicast(&packet), rows[i].multicast);
    }
}

TEST(setting_ecn_updates_the_header_checksum)
{
    uint64_t random = 4;
    for (int round = 0; round < 20000; round++) {
        uint8_t bytes[200];
        struct words words = {
            .version = round % 2 ? 6 : 4,
            .tos = (uint8_t)check_random(&random),
            .id = (uint16_t)check_random(&random),
            .ttl = (uint8_t)(check_random(&random) | 1),
        };
        uint8_t ecn = check_random(&random) & 3;
        size_t length = words_put(bytes, &words);
        struct ip_packet packet;
        CHECK(ip_parse(bytes, length, &packet));
        CHECK_EQ(ip_ecn(&packet), words.tos & 3);
        ip_set_ecn(&packet, ecn);
        CHECK_EQ(ip_ecn(&packet), ecn);
        uint8_t expected[200];
        words.tos = (uint8_t)((words.tos & 0xfc) | ecn);
        words_put(expected, &words);
        CHECK(words_verify(bytes, length));
        CHECK(memcmp(bytes, expected, 10) == 0 &&
              memcmp(bytes + 12, expected + 12, length - 12) == 0);
    }
}

TEST(a_wrong_header_checksum_stays_wrong)
{
    uint8_t bytes[200];
    struct words words = {.id = 77};
    size_t length = words_put(bytes, &words);
    bytes[11] ^= 1;
    struct ip_packet packet;
    CHECK(ip_parse(bytes, length, &packet));
    ip_set_ecn(&packet, 3);
    CHECK(!ip_checksums_right(&packet, ip_flow_sum(&packet)));
}

TEST(an_unfinished_checksum_is_finished)
{
    for (uint8_t version = 4; version <= 6; version += 2) {
        for (int udp = 0; udp < 2; udp++) {
            uint8_t bytes[400], whole[400];
            struct words words = {
                .version = version, .protocol = udp ? IP_UDP : IP_TCP, .payload = 161};
            size_t length = words_put(whole, &words);
            size_t header = version == 4 ? 20 : 40;
            memcpy(bytes, whole, length);
            put16(bytes + header + (udp ? 6 : 16),
                  (uint16_t)words_pseudo(bytes, words.protocol, length - header));
            struct ip_packet packet;
            CHECK(ip_parse(bytes, length, &packet));
            CHECK(!ip_checksums_right(&packet, ip_flow_sum(&packet)));
            ip_finish_checksum(&packet);
            CHECK(memcmp(bytes, whole, length) == 0);
        }
    }
}

TEST(any_other_checksum_is_unchanged)
{
    static const struct words cases[] = {
        {.payload = 100},
        {.protocol = IP_UDP, .payload = 100},
        {.protocol = IP_UDP, .no_checksum = true, .payload = 100},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        for (int wrong = 0; wrong < 2; wrong++) {
            uint8_t bytes[200], before[200];
            size_t length = words_put(bytes, &cases[i]);
            bytes[length - 1] ^= (uint8_t)wrong;
            memcpy(before, bytes, length);
            struct ip_packet packet;
            CHECK(ip_parse(bytes, length, &packet));
            ip_finish_checksum(&packet);
            CHECK(memcmp(bytes, before, length) == 0);
        }
    }
}
