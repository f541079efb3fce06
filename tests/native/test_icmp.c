#include "icmp.h"

#include "check.h"
#include "packets.h"

static size_t error_for(const uint8_t *bytes, size_t length, enum icmp_reason reason, uint8_t *out)
{
    uint8_t *exact = check_exact(bytes, length), *message = malloc(ICMP_MESSAGE_MAX);
    struct ip_packet packet;
    CHECK(message && ip_parse(exact, length, &packet));
    size_t size = icmp_error(message, &packet, packet.length, reason, 1280);
    memcpy(out, message, size);
    free(message);
    free(exact);
    return size;
}

static void check_message(const struct words *words, enum icmp_reason reason)
{
    static uint8_t bytes[WORDS_MAX];
    uint8_t out[ICMP_MESSAGE_MAX];
    bool four = words->version == 4, too_big = reason == ICMP_TOO_BIG;
    size_t length = words_put(bytes, words), header = four ? 20 : 40, most = four ? 548 : 1232;
    size_t size = error_for(bytes, length, reason, out);
    size_t quote = length < most ? length : most;
    CHECK_EQ(size, header + 8 + quote);
    CHECK(memcmp(out + header + 8, bytes, quote) == 0);

    struct ip_packet packet;
    CHECK(ip_parse(out, size, &packet) && packet.length == size);
    CHECK_EQ(packet.protocol, four ? IP_ICMP : IP_ICMP6);
    size_t at = four ? 12 : 8, width = four ? 4 : 16;
    CHECK(memcmp(packet.source, bytes + at + width, width) == 0);
    CHECK(memcmp(packet.destination, bytes + at, width) == 0);
    CHECK(!four || words_sum(0, out, 20) == 0xffff);
    uint32_t sum = four ? 0 : words_pseudo(out, IP_ICMP6, size - header);
    CHECK_EQ(words_sum(sum, out + header, size - header), 0xffff);
    CHECK_EQ(out[header], four ? 3 : too_big ? 2 : 1);
    CHECK_EQ(out[header + 1], four ? (too_big ? 4 : 1) : (too_big ? 0 : 3));
    CHECK_EQ(get32(out + header + 4), too_big ? 1280 : 0);
}

TEST(errors_are_complete_and_quote_the_packet)
{
    static const size_t payloads[] = {0, 1, 500, 508, 509, 1172, 1173, 20000};
    for (size_t i = 0; i < sizeof payloads / sizeof *payloads; i++) {
        for (uint8_t version = 4; version <= 6; version += 2) {
            struct words words = {.version = version, .payload = payloads[i]};
            check_message(&words, ICMP_NO_ROUTE);
            check_message(&words, ICMP_TOO_BIG);
        }
    }
}

TEST(some_packets_get_no_error)
{
    static const struct {
        const char *name;
        uint8_t version;
        size_t at;
        uint8_t bytes[4];
        bool answered;
    } rows[] = {
        {"TCP", 4, 9, {IP_TCP, 0, 0, 10}, true},
        {"a first fragment", 4, 6, {0x20, 0, 64, 6}, true},
        {"another fragment", 4, 6, {0x20, 1, 64, 6}, false},
        {"source 0.0.0.0", 4, 12, {0, 0, 0, 0}, false},
        {"source 127.0.0.1", 4, 12, {127, 0, 0, 1}, false},
        {"source multicast", 4, 12, {224, 0, 0, 1}, false},
        {"to multicast", 4, 16, {224, 0, 0, 1}, false},
        {"to broadcast", 4, 16, {255, 255, 255, 255}, false},
        {"to IPv6 multicast", 6, 24, {0xff, 2, 0, 0}, false},
        {"source IPv6 multicast", 6, 8, {0xff, 2, 0, 0}, false},
        {"an extension header", 6, 4, {0, 20, 60, 64}, false},
        {"a fragment of IPv6", 6, 4, {0, 20, 44, 64}, false},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        check_row = rows[i].name;
        uint8_t bytes[200], out[ICMP_MESSAGE_MAX];
        struct words words = {.version = rows[i].version};
        size_t length = words_put(bytes, &words);
        memcpy(bytes + rows[i].at, rows[i].bytes, 4);
        CHECK_EQ(error_for(bytes, length, ICMP_NO_ROUTE, out) != 0, rows[i].answered);
    }
    uint8_t bytes[200], out[ICMP_MESSAGE_MAX];
    struct words words = {.version = 6};
    size_t length = words_put(bytes, &words);
    check_row = "source ::";
    memset(bytes + 8, 0, 16);
    CHECK_EQ(error_for(bytes, length, ICMP_NO_ROUTE, out), 0);
}

TEST(errors_get_no_error)
{
    for (unsigned type = 0; type < 256; type++) {
        for (uint8_t version = 4; version <= 6; version += 2) {
            uint8_t bytes[200], out[ICMP_MESSAGE_MAX];
            struct words words = {.version = version};
            size_t length = words_put(bytes, &words), header = version == 4 ? 20 : 40;
            bytes[version == 4 ? 9 : 6] = version == 4 ? IP_ICMP : IP_ICMP6;
            bytes[header] = (uint8_t)type;
            bool question = version == 4 ? type == 0 || type == 8 || type == 13 || type == 14
                                         : type >= 128 && type != 137; /* a redirect */
            CHECK_EQ(error_for(bytes, length, ICMP_NO_ROUTE, out) != 0, question);
            /* Without a type it may be an error. */
            put16(bytes + (version == 4 ? 2 : 4), version == 4 ? 20 : 0);
            CHECK_EQ(error_for(bytes, header, ICMP_NO_ROUTE, out), 0);
        }
    }
}

TEST(only_available_bytes_are_quoted)
{
    uint8_t bytes[200], out[ICMP_MESSAGE_MAX];
    struct words words = {.version = 4, .payload = 100};
    words_put(bytes, &words);
    struct ip_packet packet;
    CHECK(ip_parse(bytes, 140, &packet));
    CHECK_EQ(icmp_error(out, &packet, 40, ICMP_TOO_BIG, 1400), 28 + 40);
    CHECK_EQ(icmp_error(out, &packet, 19, ICMP_TOO_BIG, 1400), 0);
    CHECK_EQ(icmp_error(out, &packet, 500, ICMP_TOO_BIG, 1400), 28 + 140);
}

TEST(a_burst_and_then_a_steady_rate)
{
    enum { MS = 1000 * 1000 };
    struct icmp_limit limit = {0};
    uint64_t now = 5;
    int burst = 0;
    while (icmp_allowed(&limit, now))
        burst++;
    CHECK_EQ(burst, 50);
    int trickle = 0;
    for (int ms = 0; ms < 1000; ms++)
        trickle += icmp_allowed(&limit, now += MS);
    CHECK_EQ(trickle, 100);
    now += 3600ull * 1000 * MS;
    for (burst = 0; icmp_allowed(&limit, now);)
        burst++;
    CHECK_EQ(burst, 50); /* the burst is limited after an idle hour */
}
