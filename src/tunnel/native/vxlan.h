/*
 * VXLAN (RFC 7348) and inner Ethernet headers: the 22 bytes before an inner packet.
 *
 *   flags 0x08 | 3 reserved | VNI, 3 bytes | reserved | destination MAC | source MAC | EtherType
 */
#ifndef TUNNEL_VXLAN_H
#define TUNNEL_VXLAN_H

#include <stddef.h>
#include <stdint.h>

#include "bytes.h"

enum {
    VXLAN_HEADER = 8,
    VXLAN_FLAG_VNI = 0x08,
    ETHERNET_HEADER = 14,
    VXLAN_OVERHEAD = VXLAN_HEADER + ETHERNET_HEADER,
    VNI_MAX = (1 << 24) - 1,
    VLAN_TAG = 4,
    ETHERTYPE_IP4 = 0x0800,
    ETHERTYPE_ARP = 0x0806,
    ETHERTYPE_VLAN = 0x8100,
    ETHERTYPE_IP6 = 0x86dd,
    ETHERTYPE_SERVICE_VLAN = 0x88a8, /* of a provider */
    ETHERTYPE_CONTROL = 0x88b5 /* IEEE 802 local experimental */,
    MAC_SIZE = 6,
};

/* The any-VTEP MAC, the destination of a packet for a VTEP whose MAC is unknown: "vtep" between 02
 * (locally administered) and 00. Every node accepts it besides its own MAC. */
extern const uint8_t any_vtep_mac[MAC_SIZE];

struct vxlan_frame {
    uint32_t vni;
    uint16_t ethertype;
    const uint8_t *destination;
    const uint8_t *source;
};

enum vxlan_verdict { VXLAN_OK, VXLAN_SHORT, VXLAN_NO_VNI };

/* Writes the VXLAN header only. */
void vxlan_put_header(uint8_t *bytes, uint32_t vni);

void vxlan_put(uint8_t *bytes, const struct vxlan_frame *frame);

/* Parses the headers: VXLAN_SHORT if they are incomplete, VXLAN_NO_VNI if the I flag is clear.
 * Other bits are ignored, as the RFC requires. `frame` points into `bytes`. */
static inline enum vxlan_verdict vxlan_parse(const uint8_t *bytes, size_t length,
                                             struct vxlan_frame *frame)
{
    if (length < VXLAN_OVERHEAD)
        return VXLAN_SHORT;
    if (!(bytes[0] & VXLAN_FLAG_VNI))
        return VXLAN_NO_VNI;
    *frame = (struct vxlan_frame){
        .vni = get32(bytes + 4) >> 8,
        .ethertype = get16(bytes + 20),
        .destination = bytes + 8,
        .source = bytes + 14,
    };
    return VXLAN_OK;
}

#endif
