#include "decap.h"

#include "check.h"
#include "packets.h"

enum { NOT_ECT, ECT1, ECT0, CE };

static const struct vtep vtep = {.vni = 7, .mac = {2, 1, 2, 3, 4, 5}};
static const uint8_t source[MAC_SIZE] = {2, 9, 8, 7, 6, 5};

static size_t put_datagram(uint8_t *bytes, const struct words *words)
{
    struct vxlan_frame frame = {
        .vni = vtep.vni,
        .ethertype = words->version == 6 ? ETHERTYPE_IP6 : ETHERTYPE_IP4,
        .destination = vtep.mac,
        .source = source,
    };
    vxlan_put(bytes, &frame);
    return VXLAN_OVERHEAD + words_put(bytes + VXLAN_OVERHEAD, words);
}

/* Decapsulates a copy; a drop must leave the packet and the datagram unchanged. */
static enum drop verdict(const uint8_t *bytes, size_t length, uint8_t ecn)
{
    uint8_t *exact = check_exact(bytes, length);
    struct ip_packet packet = {.length = 12345};
    enum drop reason = decap(&vtep, exact, length, ecn, &packet);
    CHECK(reason == DROP_NONE || packet.length == 12345);
    CHECK(reason == DROP_NONE || memcmp(exact, bytes, length) == 0);
    free(exact);
    return reason;
}

TEST(returns_the_inner_packet)
{
    for (uint8_t version = 4; version <= 6; version += 2) {
        uint8_t bytes[300];
        struct words words = {.version = version, .payload = 100};
        size_t length = put_datagram(bytes, &words);
        struct ip_packet packet;
        CHECK_EQ(decap(&vtep, bytes, length, 0, &packet), DROP_NONE);
        CHECK(packet.data == bytes + VXLAN_OVERHEAD);
        CHECK_EQ(packet.length, length - VXLAN_OVERHEAD);
        memcpy(bytes + 8, any_vtep_mac, MAC_SIZE);
        CHECK_EQ(decap(&vtep, bytes, length, 0, &packet), DROP_NONE);
        /* An Ethernet trailer is cut off. */
        CHECK_EQ(decap(&vtep, bytes, length + 9, 0, &packet), DROP_NONE);
        CHECK_EQ(packet.length, length - VXLAN_OVERHEAD);
    }
}

TEST(each_fault_has_a_reason)
{
    static const struct {
        const char *name;
        uint8_t version;
        size_t at;
        uint8_t value;
        enum drop reason;
    } rows[] = {
        {"I flag clear", 4, 0, 0xf7, DROP_no_vni},
        {"VNI of another", 4, 6, 8, DROP_other_vni},
        {"VNI in the reserved byte", 4, 4, 1, DROP_other_vni},
        {"ARP", 4, 21, 0x06, DROP_ethertype},
        {"VLAN tag", 4, 20, 0x81, DROP_ethertype},
        {"MAC of another", 4, 13, 6, DROP_other_mac},
        {"group MAC", 4, 8, 3, DROP_group_mac},
        {"EtherType 6, packet 4", 6, 22, 0x45, DROP_bad_inner},
        {"version 5", 4, 22, 0x55, DROP_bad_inner},
        {"header length 16", 4, 22, 0x44, DROP_bad_inner},
        {"total length too long", 4, 24, 0x10, DROP_bad_inner},
        {"payload length too long", 6, 26, 0x10, DROP_bad_inner},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        check_row = rows[i].name;
        uint8_t bytes[300];
        struct words words = {.version = rows[i].version, .payload = 50};
        size_t length = put_datagram(bytes, &words);
        bytes[rows[i].at] = rows[i].value;
        CHECK_EQ(verdict(bytes, length, 0), rows[i].reason);
    }
}

TEST(reserved_bits_are_ignored)
{
    uint8_t bytes[300];
    struct words words = {.version = 4};
    size_t length = put_datagram(bytes, &words);
    bytes[0] = 0xff;
    bytes[1] = bytes[2] = bytes[3] = bytes[7] = 0xff;
    CHECK_EQ(verdict(bytes, length, 0), DROP_NONE);
}

TEST(truncated_datagrams_are_dropped)
{
    for (uint8_t version = 4; version <= 6; version += 2) {
        uint8_t bytes[300];
        struct words words = {.version = version, .payload = 50};
        size_t length = put_datagram(bytes, &words);
        for (size_t cut = 0; cut < length; cut++)
            CHECK_EQ(verdict(bytes, cut, 0),
                     cut < VXLAN_OVERHEAD ? DROP_short_frame : DROP_bad_inner);
    }
}

TEST(ecn_is_merged_as_in_rfc_6040)
{
    static const int rows[4][4] = {
        /* outer: not-ECT, ECT(1), ECT(0), CE */
        [NOT_ECT] = {NOT_ECT, NOT_ECT, NOT_ECT, -1},
        [ECT1] = {ECT1, ECT1, ECT1, CE},
        [ECT0] = {ECT0, ECT1, ECT0, CE},
        [CE] = {CE, CE, CE, CE},
    };
    for (uint8_t version = 4; version <= 6; version += 2) {
        for (uint8_t inner = 0; inner < 4; inner++) {
            for (uint8_t outer = 0; outer < 4; outer++) {
                uint8_t bytes[300];
                struct words words = {.version = version, .tos = 0xb8 | inner, .payload = 5};
                size_t length = put_datagram(bytes, &words);
                int expected = rows[inner][outer];
                if (expected < 0) {
                    CHECK_EQ(verdict(bytes, length, outer), DROP_bad_ecn);
                    continue;
                }
                struct ip_packet packet;
                CHECK_EQ(decap(&vtep, bytes, length, outer, &packet), DROP_NONE);
                CHECK_EQ(ip_ecn(&packet), expected);
                CHECK(words_verify(packet.data, packet.length));
            }
        }
    }
}
