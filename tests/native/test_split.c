#include "split.h"

#include "check.h"
#include "packets.h"

enum { MSS = 1000 };

/* A super-packet as the kernel delivers it: total lengths, and unfinished checksums. */
static struct offload offload_for(const struct words *words, uint16_t size)
{
    bool tcp = words->protocol != IP_UDP;
    return (struct offload){
        .flags = OFFLOAD_NEEDS_CSUM,
        .gso_type = !tcp                  ? GSO_UDP
                    : words->version == 6 ? GSO_TCP6
                                          : GSO_TCP4,
        .gso_size = size,
        .checksum_start = words->version == 6 ? 40 : 20,
        .checksum_offset = tcp ? TCP_CHECK : UDP_CHECK,
    };
}

static uint8_t *super_packet(const struct words *words, struct ip_packet *packet)
{
    static uint8_t bytes[WORDS_MAX];
    size_t length = words_put(bytes, words);
    uint8_t *exact = check_exact(bytes, length);
    CHECK(ip_parse(exact, length, packet));
    return exact;
}

/* The exact bytes of segment `index`. */
static size_t expected_segment(uint8_t *out, const struct words *words, size_t index, size_t size)
{
    struct words segment = *words;
    size_t offset = index * size, left = words->payload - offset;
    bool last = left <= size;
    segment.payload = last ? left : size;
    segment.id = (uint16_t)(words->id + index);
    segment.sequence = words->sequence + (uint32_t)offset;
    if (!last)
        segment.flags &= (uint8_t) ~(TCP_FIN | TCP_PSH);
    if (index)
        segment.flags &= (uint8_t)~TCP_CWR;
    return words_put(out, &segment);
}

static void check_split(const struct words *words, uint16_t size)
{
    struct ip_packet packet;
    uint8_t *bytes = super_packet(words, &packet);
    struct offload offload = offload_for(words, size);
    struct split split;
    CHECK(split_open(&split, &packet, &offload));
    size_t index = 0;
    for (; !split_done(&split); index++) {
        uint8_t got[WORDS_MAX], expected[WORDS_MAX], *payload;
        uint8_t *header = malloc(split.header);
        CHECK(header);
        size_t length = split_next(&split, header, &payload);
        memcpy(got, header, split.header);
        memcpy(got + split.header, payload, length);
        CHECK_EQ(expected_segment(expected, words, index, size), split.header + length);
        CHECK(memcmp(got, expected, split.header + length) == 0);
        CHECK(words_verify(got, split.header + length));
        free(header);
    }
    CHECK_EQ(index, (words->payload + size - 1) / size);
    free(bytes);
}

TEST(segments_equal_those_of_a_sender_without_offload)
{
    static const uint8_t flags[] = {TCP_ACK, TCP_ACK | TCP_PSH, TCP_ACK | TCP_PSH | TCP_FIN,
                                    TCP_ACK | TCP_CWR | TCP_ECE | TCP_PSH};
    for (size_t i = 0; i < sizeof flags; i++) {
        for (uint8_t version = 4; version <= 6; version += 2) {
            struct words words = {
                .version = version,
                .flags = flags[i],
                .options = (uint8_t)(i * 4),
                .id = 0xfffe, /* wraps */
                .sequence = 0xfffffc00,
                .payload = 5 * MSS + 123,
            };
            check_split(&words, MSS);
        }
    }
}

TEST(payloads_of_every_remainder)
{
    for (size_t payload = 1; payload < 300; payload++) {
        for (uint8_t version = 4; version <= 6; version += 2) {
            struct words words = {.version = version, .payload = payload};
            check_split(&words, 100);
            check_split(&words, 7);
        }
    }
}

TEST(each_udp_segment_is_a_datagram)
{
    /* The payload follows from the sequence number, which UDP does not have. */
    for (uint8_t version = 4; version <= 6; version += 2) {
        struct words words = {.version = version, .protocol = IP_UDP, .payload = 4567, .id = 9};
        check_split(&words, MSS);
        words.payload = MSS;
        check_split(&words, MSS);
        words.payload = 40;
        check_split(&words, 1);
    }
}

TEST(the_largest_packet)
{
    struct words words = {.version = 4, .payload = 65535 - 40};
    check_split(&words, 1388);
    check_split(&words, 65535);
    words = (struct words){.version = 6, .payload = 65535 - 60};
    check_split(&words, 1368);
}

TEST(a_zero_udp_checksum_is_sent_as_all_ones)
{
    struct words words = {.version = 6, .protocol = IP_UDP, .payload = 2};
    for (unsigned port = 0; port < 65536; port++) {
        words.port = (uint16_t)port;
        struct ip_packet packet;
        uint8_t *bytes = super_packet(&words, &packet);
        bool ones = get16(bytes + 40 + UDP_CHECK) == 0xffff;
        struct offload offload = offload_for(&words, 2);
        struct split split;
        uint8_t header[SPLIT_HEADER_MAX], *payload;
        CHECK(split_open(&split, &packet, &offload));
        split_next(&split, header, &payload);
        if (ones)
            CHECK_EQ(get16(header + 40 + UDP_CHECK), 0xffff);
        free(bytes);
        if (ones)
            return;
    }
    bool found = false;
    CHECK(found);
}

TEST(tcp_behind_an_extension_header)
{
    uint8_t plain[600], bytes[600];
    struct words words = {.version = 6, .payload = 250};
    size_t length = words_put(plain, &words);
    memcpy(bytes, plain, 40);
    memset(bytes + 40, 0, 8);
    bytes[40] = IP_TCP; /* a hop-by-hop header of padding */
    memcpy(bytes + 48, plain + 40, length - 40);
    bytes[6] = 0;
    put16(bytes + 4, (uint16_t)(length - 40 + 8));
    struct ip_packet packet;
    CHECK(ip_parse(bytes, length + 8, &packet));
    struct offload offload = offload_for(&words, 100);
    offload.checksum_start = 48;
    struct split split;
    CHECK(split_open(&split, &packet, &offload));
    unsigned count = 0;
    for (; !split_done(&split); count++) {
        uint8_t got[600], *payload;
        size_t part = split_next(&split, got, &payload);
        memcpy(got + split.header, payload, part);
        CHECK_EQ(get16(got + 4), split.header + part - 40);
        uint32_t sum = words_pseudo(got, IP_TCP, split.header + part - 48);
        CHECK_EQ(words_sum(sum, got + 48, split.header + part - 48), 0xffff);
    }
    CHECK_EQ(count, 3);
}

TEST(contradictions_are_refused)
{
    static const struct {
        const char *name;
        struct words words;
        struct offload change; /* xor */
    } rows[] = {
        {"size zero", {.payload = 9}, {.gso_size = MSS}},
        {"no checksum to do", {.payload = 9}, {.flags = OFFLOAD_NEEDS_CSUM}},
        {"unknown type", {.payload = 9}, {.gso_type = GSO_TCP4 ^ 3}},
        {"none", {.payload = 9}, {.gso_type = GSO_TCP4}},
        {"TCP6 of IPv4", {.payload = 9}, {.gso_type = GSO_TCP4 ^ GSO_TCP6}},
        {"UDP of TCP", {.payload = 9}, {.gso_type = GSO_TCP4 ^ GSO_UDP}},
        {"TCP4 of IPv6", {.version = 6, .payload = 9}, {.gso_type = GSO_TCP4 ^ GSO_TCP6}},
        {"TCP6 of UDP",
         {.version = 6, .protocol = IP_UDP, .payload = 9},
         {.gso_type = GSO_UDP ^ GSO_TCP6, .checksum_offset = TCP_CHECK ^ UDP_CHECK}},
        {"UDP of TCP, 6",
         {.version = 6, .payload = 9},
         {.gso_type = GSO_UDP ^ GSO_TCP6, .checksum_offset = TCP_CHECK ^ UDP_CHECK}},
        {"start inside the IP header", {.payload = 9}, {.checksum_start = 20 ^ 16}},
        {"start behind the TCP header", {.payload = 9}, {.checksum_start = 20 ^ 24}},
        {"start behind the end", {.version = 6, .payload = 9}, {.checksum_start = 0xff00}},
        {"UDP's field in TCP", {.payload = 9}, {.checksum_offset = TCP_CHECK ^ UDP_CHECK}},
        {"headers alone", {.payload = 0}, {0}},
        {"UDP headers alone", {.protocol = IP_UDP, .payload = 0}, {0}},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        check_row = rows[i].name;
        struct ip_packet packet;
        uint8_t *bytes = super_packet(&rows[i].words, &packet);
        struct offload offload = offload_for(&rows[i].words, MSS);
        offload.flags ^= rows[i].change.flags;
        offload.gso_type ^= rows[i].change.gso_type;
        offload.gso_size ^= rows[i].change.gso_size;
        offload.checksum_start ^= rows[i].change.checksum_start;
        offload.checksum_offset ^= rows[i].change.checksum_offset;
        struct split split = {.index = 4711};
        CHECK(!split_open(&split, &packet, &offload));
        CHECK_EQ(split.index, 4711);
        free(bytes);
    }
}

TEST(fragments_are_refused)
{
    struct words words = {.payload = 100, .fragmentable = true};
    struct ip_packet packet;
    uint8_t *bytes = super_packet(&words, &packet);
    bytes[6] = 0x20;
    CHECK(ip_parse(bytes, packet.length, &packet));
    struct offload offload = offload_for(&words, 10);
    struct split split;
    CHECK(!split_open(&split, &packet, &offload));
    free(bytes);
}

TEST(the_ecn_flag_and_the_header_length_are_ignored)
{
    struct words words = {.payload = 100};
    struct ip_packet packet;
    uint8_t *bytes = super_packet(&words, &packet);
    struct offload offload = offload_for(&words, 10);
    offload.gso_type |= GSO_ECN;
    offload.header_length = 0xffff;
    struct split split;
    CHECK(split_open(&split, &packet, &offload));
    CHECK_EQ(split.header, 40);
    free(bytes);
}

TEST(a_checksum_left_to_the_device_is_computed)
{
    for (uint8_t version = 4; version <= 6; version += 2) {
        for (int udp = 0; udp < 2; udp++) {
            struct words words = {
                .version = version, .protocol = udp ? IP_UDP : IP_TCP, .payload = 33};
            struct ip_packet packet;
            uint8_t *bytes = super_packet(&words, &packet);
            uint8_t *expected = check_exact(bytes, packet.length);
            struct offload offload = offload_for(&words, 0);
            offload.gso_type = GSO_NONE;
            /* The kernel stores the sum of the pseudo-header there. */
            size_t behind = packet.length - packet.header;
            put16(bytes + offload.checksum_start + offload.checksum_offset,
                  (uint16_t)words_pseudo(bytes, packet.protocol, behind));
            CHECK(split_checksum(&packet, &offload));
            CHECK(memcmp(bytes, expected, packet.length) == 0);
            free(expected);
            free(bytes);
        }
    }
}

TEST(a_checksum_outside_is_refused)
{
    static const struct {
        uint16_t start, offset;
    } rows[] = {{0, 16}, {19, 16}, {20, 39}, {20, 65535}, {65535, 65535}, {60, 0}, {59, 0}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct words words = {.payload = 20};
        struct ip_packet packet;
        uint8_t *bytes = super_packet(&words, &packet);
        uint8_t *before = check_exact(bytes, packet.length);
        struct offload offload = {.checksum_start = rows[i].start,
                                  .checksum_offset = rows[i].offset};
        CHECK(!split_checksum(&packet, &offload));
        CHECK(memcmp(bytes, before, packet.length) == 0);
        free(before);
        free(bytes);
    }
}
