/*
 * Ethernet: the header of a frame, with at most one 802.1Q tag.
 *
 * IEEE 802.3, 802.1Q. A second tag is not parsed: it counts as the type of the payload.
 */
#ifndef TUNNEL_ETHERNET_H
#define TUNNEL_ETHERNET_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "bytes.h"
#include "vxlan.h"

struct ethernet {
    const uint8_t *destination;
    const uint8_t *source;
    uint16_t type; /* of the payload */
    uint16_t vlan; /* 1 to 4094; 0 without a tag, and for a tag that only has a priority */
    uint8_t size;  /* of the header, with its tag */
};

/* IEEE 802.1Q, 9.5: customer and service tags are treated alike. */
static inline bool ethernet_is_tag(uint16_t type)
{
    return type == ETHERTYPE_VLAN || type == ETHERTYPE_SERVICE_VLAN;
}

/* Parses the header of a frame. Returns false, with `header` unchanged, if it is truncated. */
static inline bool ethernet_parse(const uint8_t *frame, size_t length, struct ethernet *header)
{
    if (length < ETHERNET_HEADER)
        return false;
    uint16_t type = get16(frame + 12), vlan = 0;
    uint8_t size = ETHERNET_HEADER;
    if (ethernet_is_tag(type)) {
        if (length < ETHERNET_HEADER + VLAN_TAG)
            return false;
        vlan = get16(frame + 14) & 0xfff;
        type = get16(frame + 16);
        size = ETHERNET_HEADER + VLAN_TAG;
    }
    *header = (struct ethernet){frame, frame + MAC_SIZE, type, vlan, size};
    return true;
}

static inline bool ethernet_is_ip(const struct ethernet *header)
{
    return header->type == ETHERTYPE_IP4 || header->type == ETHERTYPE_IP6;
}

static inline uint8_t ethernet_ip_version(const struct ethernet *header)
{
    return header->type == ETHERTYPE_IP4 ? 4 : 6;
}

/* Whether it is a broadcast or multicast address: 802.3, 3.2.3. */
static inline bool mac_is_group(const uint8_t *mac)
{
    return mac[0] & 1;
}

/* Whether it is neither a group address nor zero. */
static inline bool mac_is_host(const uint8_t *mac)
{
    static const uint8_t none[MAC_SIZE];
    return !mac_is_group(mac) && memcmp(mac, none, MAC_SIZE) != 0;
}

/* Whether bridges never forward frames to it, such as spanning tree and pause frames: 802.1Q, table
 * 8-1. */
static inline bool mac_is_link_local(const uint8_t *mac)
{
    static const uint8_t reserved[5] = {0x01, 0x80, 0xc2};
    return memcmp(mac, reserved, sizeof reserved) == 0 && mac[5] < 16;
}

#endif
