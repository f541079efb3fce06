#include "checksum.h"

#include "check.h"
#include "packets.h"

static uint16_t network_order(uint16_t folded)
{
    uint8_t bytes[2];
    checksum_store(bytes, folded);
    return get16(bytes);
}

static void check_twins(const uint8_t *data, size_t length)
{
    uint16_t portable = checksum_fold(checksum_add_portable(0, data, length));
    CHECK_EQ(checksum_fold(checksum_add(0, data, length)), portable);
    CHECK_EQ(network_order(portable), words_sum(0, data, length));
}

TEST(implementations_agree_for_every_length_and_alignment)
{
    uint64_t random = 1;
    for (size_t length = 0; length <= 300; length++) {
        for (size_t start = 0; start < 32; start++) {
            uint8_t *room = malloc(start + length + 1);
            CHECK(room);
            check_random_fill(&random, room, start + length);
            check_twins(room + start, length);
            free(room);
        }
    }
}

TEST(implementations_agree_on_random_super_packets)
{
    uint64_t random = 2;
    for (int round = 0; round < 50; round++) {
        size_t length = check_random(&random) % 65536;
        uint8_t *room = malloc(length + 1);
        CHECK(room);
        check_random_fill(&random, room, length);
        check_twins(room, length);
        free(room);
    }
}

TEST(the_largest_sum_does_not_overflow)
{
    static uint8_t ones[65536];
    memset(ones, 0xff, sizeof ones);
    for (size_t length = sizeof ones - 300; length <= sizeof ones; length++)
        check_twins(ones, length);
    CHECK_EQ(checksum_fold(checksum_add(UINT64_MAX >> 1, ones, sizeof ones)),
             checksum_fold(checksum_add_portable(UINT64_MAX >> 1, ones, sizeof ones)));
}

TEST(partial_sums_of_even_length_add_up)
{
    uint64_t random = 3;
    uint8_t data[1000];
    check_random_fill(&random, data, sizeof data);
    uint16_t whole = checksum_fold(checksum_add(0, data, sizeof data));
    for (size_t cut = 0; cut <= sizeof data; cut += 2)
        CHECK_EQ(
            checksum_fold(checksum_add(checksum_add(0, data, cut), data + cut, sizeof data - cut)),
            whole);
}

TEST(folding_keeps_every_carry)
{
    static const struct {
        uint64_t sum;
        uint16_t folded;
    } rows[] = {
        {0, 0},
        {0xffff, 0xffff},
        {0x10000, 1},
        {0x1fffe, 0xffff},
        {0xffffffff, 0xffff},
        {0x100000000, 1},
        {UINT64_MAX, 0xffff},
        {UINT64_MAX - 1, 0xfffe},
        {0xffffffff00000001, 1},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        CHECK_EQ(checksum_fold(rows[i].sum), rows[i].folded);
}

TEST(a_word_adds_its_two_bytes)
{
    const uint8_t bytes[2] = {0x12, 0x34};
    CHECK_EQ(checksum_word(0x1234), checksum_add(0, bytes, 2));
}

TEST(pseudo_headers_match_the_rfcs)
{
    struct words rows[] = {{.version = 4}, {.version = 6}};
    for (size_t i = 0; i < 2; i++) {
        uint8_t packet[200];
        words_put(packet, &rows[i]);
        size_t at = rows[i].version == 4 ? 12 : 8, size = rows[i].version == 4 ? 4 : 16;
        uint32_t length = rows[i].version == 4 ? 1234 : 0x12345;
        uint64_t sum = checksum_pseudo(packet + at, packet + at + size, size, IP_UDP, length);
        CHECK_EQ(network_order(checksum_fold(sum)), words_pseudo(packet, IP_UDP, length));
    }
}

TEST(the_backend_has_a_name)
{
    const char *name = checksum_backend();
    CHECK(strcmp(name, "avx2") == 0 || strcmp(name, "portable") == 0);
}
