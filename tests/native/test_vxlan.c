#include "vxlan.h"

#include "check.h"

static const uint8_t ours[MAC_SIZE] = {2, 1, 2, 3, 4, 5};
static const uint8_t theirs[MAC_SIZE] = {2, 9, 8, 7, 6, 5};

TEST(the_header_matches_the_rfc)
{
    static const uint8_t expected[VXLAN_OVERHEAD] = {
        0x08, 0, 0, 0, 0x12, 0x34, 0x56, 0, 2, 9, 8, 7, 6, 5, 2, 1, 2, 3, 4, 5, 0x86, 0xdd,
    };
    uint8_t bytes[VXLAN_OVERHEAD];
    memset(bytes, 0xff, sizeof bytes);
    struct vxlan_frame frame = {
        .vni = 0x123456, .ethertype = ETHERTYPE_IP6, .destination = theirs, .source = ours};
    vxlan_put(bytes, &frame);
    CHECK(memcmp(bytes, expected, sizeof bytes) == 0);
}

TEST(written_headers_can_be_parsed)
{
    static const uint32_t vnis[] = {0, 1, 255, 256, 0x800000, VNI_MAX};
    for (size_t i = 0; i < sizeof vnis / sizeof *vnis; i++) {
        uint8_t bytes[VXLAN_OVERHEAD];
        struct vxlan_frame frame = {
            .vni = vnis[i], .ethertype = ETHERTYPE_IP4, .destination = theirs, .source = ours};
        struct vxlan_frame parsed;
        vxlan_put(bytes, &frame);
        CHECK_EQ(vxlan_parse(bytes, sizeof bytes, &parsed), VXLAN_OK);
        CHECK_EQ(parsed.vni, vnis[i]);
        CHECK_EQ(parsed.ethertype, ETHERTYPE_IP4);
        CHECK(memcmp(parsed.destination, theirs, MAC_SIZE) == 0);
        CHECK(memcmp(parsed.source, ours, MAC_SIZE) == 0);
    }
}

TEST(only_the_i_flag_matters)
{
    for (unsigned flags = 0; flags < 256; flags++) {
        uint8_t bytes[VXLAN_OVERHEAD] = {(uint8_t)flags, 0xff, 0xff, 0xff, 0, 0, 7, 0xff};
        struct vxlan_frame frame = {.vni = 99};
        enum vxlan_verdict verdict = vxlan_parse(bytes, sizeof bytes, &frame);
        CHECK_EQ(verdict, flags & 8 ? VXLAN_OK : VXLAN_NO_VNI);
        CHECK_EQ(frame.vni, flags & 8 ? 7 : 99);
    }
}

TEST(truncated_headers_are_refused)
{
    uint8_t bytes[VXLAN_OVERHEAD] = {8};
    for (size_t length = 0; length < VXLAN_OVERHEAD; length++) {
        uint8_t *exact = check_exact(bytes, length);
        struct vxlan_frame frame = {.vni = 99};
        CHECK_EQ(vxlan_parse(exact, length, &frame), VXLAN_SHORT);
        CHECK_EQ(frame.vni, 99);
        free(exact);
    }
}
