/*
 * Ethernet: the header of a frame, with one 802.1Q tag or none.
 *
 * IEEE 802.3, 802.1Q. A second tag is not looked behind: what it holds is a frame like any other.
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
    uint16_t type; /* of what is behind the header */
    uint16_t vlan; /* 1 to 4094, 0 for none: a tag with 0 has a priority and no VLAN */
    uint8_t size;  /* of the header, tag included */
};

/* IEEE 802.1Q, 9.5: a customer's and a provider's are alike to us. */
static inline bool ethernet_is_tag(uint16_t type)
{
    return type == ETHERTYPE_VLAN || type == ETHERTYPE_SERVICE_VLAN;
}

/* Reads a frame's header; false, `header` unchanged, if it is not all there. */
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

/* Broadcast and multicast: 802.3, 3.2.3. */
static inline bool mac_is_group(const uint8_t *mac)
{
    return mac[0] & 1;
}

/* Neither a group's nor zero. */
static inline bool mac_is_host(const uint8_t *mac)
{
    static const uint8_t none[MAC_SIZE];
    return !mac_is_group(mac) && memcmp(mac, none, MAC_SIZE) != 0;
}

/* What a bridge never forwards, spanning tree and pause frames among it: 802.1Q, table 8-1. */
static inline bool mac_is_link_local(const uint8_t *mac)
{
    static const uint8_t reserved[5] = {0x01, 0x80, 0xc2};
    return memcmp(mac, reserved, sizeof reserved) == 0 && mac[5] < 16;
}

#endif
