#include "codec.h"

#include "check.h"
#include "packets.h"

enum { COUNT = 5 };

static const struct codec_macs macs = {{2, 1, 2, 3, 4, 5}, {2, 9, 8, 7, 6, 5}};

/* Packets end to end, every second one IPv6. */
struct batch {
    uint8_t packets[4000];
    uint32_t sizes[COUNT];
    size_t length;
};

static struct batch batch_of_packets(void)
{
    struct batch batch = {0};
    for (unsigned i = 0; i < COUNT; i++) {
        struct words words = {.version = i % 2 ? 6 : 4, .payload = 100 * i, .sequence = i};
        batch.sizes[i] = (uint32_t)words_put(batch.packets + batch.length, &words);
        batch.length += batch.sizes[i];
    }
    return batch;
}

static struct codec_result encode(const struct batch *batch, uint8_t *out, size_t room)
{
    return codec_encode_batch(batch->packets, batch->length, (const uint8_t *)batch->sizes,
                              sizeof batch->sizes, out, room, 7, &macs);
}

TEST(a_batch_can_be_decoded)
{
    struct batch batch = batch_of_packets();
    size_t room = batch.length + COUNT * VXLAN_OVERHEAD, offset = 0, at = 0;
    uint8_t *out = malloc(room);
    CHECK(out);
    struct codec_result result = encode(&batch, out, room);
    CHECK_EQ(result.fault, CODEC_OK);
    CHECK_EQ(result.done, room);

    uint32_t sizes[COUNT];
    struct codec_frame *frames = malloc(sizeof *frames * COUNT);
    CHECK(frames);
    for (unsigned i = 0; i < COUNT; i++)
        sizes[i] = batch.sizes[i] + VXLAN_OVERHEAD;
    result = codec_decode_batch(out, room, (const uint8_t *)sizes, sizeof sizes, (uint8_t *)frames,
                                sizeof *frames * COUNT);
    CHECK_EQ(result.fault, CODEC_OK);
    CHECK_EQ(result.done, COUNT);
    for (unsigned i = 0; i < COUNT; offset += sizes[i], at += batch.sizes[i], i++) {
        CHECK_EQ(frames[i].offset, offset + VXLAN_OVERHEAD);
        CHECK_EQ(frames[i].size, batch.sizes[i]);
        CHECK_EQ(frames[i].vni, 7);
        CHECK_EQ(frames[i].ethertype, i % 2 ? ETHERTYPE_IP6 : ETHERTYPE_IP4);
        CHECK_EQ(frames[i].reserved, 0);
        CHECK(memcmp(frames[i].source, macs.source, MAC_SIZE) == 0);
        CHECK(memcmp(frames[i].destination, macs.destination, MAC_SIZE) == 0);
        CHECK(memcmp(out + frames[i].offset, batch.packets + at, frames[i].size) == 0);
    }
    free(frames);
    free(out);
}

TEST(the_faulty_packet_is_reported)
{
    static const struct {
        const char *name;
        enum codec_fault fault;
        size_t index;
        size_t less_packets, less_room;
        bool version_5;
    } rows[] = {
        {"the last has no room", CODEC_ROOM, 4, 0, 1, false},
        {"the second has no room", CODEC_ROOM, 1, 0, 1250, false},
        {"sizes exceed the buffer", CODEC_SIZES, 4, 1, 0, false},
        {"the third is no IP", CODEC_NOT_IP, 2, 0, 0, true},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        check_row = rows[i].name;
        struct batch batch = batch_of_packets();
        size_t room = batch.length + COUNT * VXLAN_OVERHEAD - rows[i].less_room;
        if (rows[i].version_5)
            batch.packets[batch.sizes[0] + batch.sizes[1]] = 0x55;
        batch.length -= rows[i].less_packets;
        uint8_t *out = malloc(room);
        CHECK(out);
        struct codec_result result = encode(&batch, out, room);
        CHECK_EQ(result.fault, rows[i].fault);
        CHECK_EQ(result.index, rows[i].index);
        free(out);
    }
}

TEST(the_faulty_datagram_is_reported)
{
    static const struct {
        const char *name;
        uint32_t sizes[3];
        size_t length, room;
        uint8_t flags; /* of the second datagram */
        enum codec_fault fault;
        size_t index;
    } rows[] = {
        {"all right", {22, 30, 22}, 74, 3 * 28, 8, CODEC_OK, 0},
        {"short", {22, 21, 22}, 74, 3 * 28, 8, CODEC_SHORT, 1},
        {"empty", {22, 30, 0}, 74, 3 * 28, 8, CODEC_SHORT, 2},
        {"no I flag", {22, 30, 22}, 74, 3 * 28, 0xf7, CODEC_NO_VNI, 1},
        {"outside", {22, 30, 23}, 74, 3 * 28, 8, CODEC_SIZES, 2},
        {"far outside", {22, UINT32_MAX, 22}, 74, 3 * 28, 8, CODEC_SIZES, 1},
        {"no room", {22, 30, 22}, 74, 3 * 28 - 1, 8, CODEC_ROOM, 2},
        {"no room at all", {22, 30, 22}, 74, 0, 8, CODEC_ROOM, 0},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        check_row = rows[i].name;
        uint8_t bytes[74] = {8};
        bytes[22] = rows[i].flags;
        bytes[52] = 8;
        uint8_t *out = malloc(rows[i].room + 1);
        CHECK(out);
        struct codec_result result = codec_decode_batch(bytes, rows[i].length,
                                                        (const uint8_t *)rows[i].sizes,
                                                        sizeof rows[i].sizes, out, rows[i].room);
        CHECK_EQ(result.fault, rows[i].fault);
        CHECK_EQ(result.index, rows[i].index);
        CHECK(strlen(codec_reason(result.fault)) > 1);
        free(out);
    }
}

TEST(a_packet_that_exceeds_a_datagram_is_too_long)
{
    static uint8_t packet[65536] = {0x45}, out[65536 + VXLAN_OVERHEAD];
    CHECK_EQ(codec_encode(out, packet, 65485, 1, &macs), CODEC_OK);
    CHECK_EQ(codec_encode(out, packet, 65486, 1, &macs), CODEC_TOO_LONG);
    packet[0] = 0x65;
    CHECK_EQ(codec_encode(out, packet, 39, 1, &macs), CODEC_NOT_IP);
    packet[0] = 0x45;
    CHECK_EQ(codec_encode(out, packet, 19, 1, &macs), CODEC_NOT_IP);
    CHECK_EQ(codec_encode(out, packet, 0, 1, &macs), CODEC_NOT_IP);
}
