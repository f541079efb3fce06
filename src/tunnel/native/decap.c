#include "decap.h"

#include <string.h>

enum { NOT_ECT = 0, ECT1 = 1, ECT0 = 2, CE = 3 };

/* RFC 6040, figure 4. Returns the new inner bits, or -1 for a drop. */
static int ecn_combined(uint8_t inner, uint8_t outer)
{
    if (inner == NOT_ECT)
        return outer == CE ? -1 : NOT_ECT;
    if (inner == CE || outer == CE)
        return CE;
    return outer == ECT1 ? ECT1 : inner;
}

bool vtep_accepts(const struct vtep *vtep, const uint8_t *mac)
{
    return memcmp(mac, vtep->mac, MAC_SIZE) == 0 || memcmp(mac, any_vtep_mac, MAC_SIZE) == 0;
}

/* Parses the IP packet of a frame, and merges the outer ECN bits into it. */
static inline enum drop open_inner(uint8_t *data, size_t length, uint16_t ethertype,
                                   uint8_t outer_ecn, struct ip_packet *packet)
{
    struct ip_packet inner;
    if (!ip_parse(data, length, &inner) || inner.version != (ethertype == ETHERTYPE_IP4 ? 4 : 6))
        return DROP_bad_inner;
    uint8_t before = ip_ecn(&inner);
    int after = ecn_combined(before, outer_ecn);
    if (after < 0)
        return DROP_bad_ecn;
    if (after != before)
        ip_set_ecn(&inner, (uint8_t)after);
    *packet = inner;
    return DROP_NONE;
}

enum drop decap(const struct vtep *vtep, uint8_t *datagram, size_t length, uint8_t outer_ecn,
                struct ip_packet *packet)
{
    struct vxlan_frame frame;
    enum vxlan_verdict verdict = vxlan_parse(datagram, length, &frame);
    if (verdict != VXLAN_OK)
        return verdict == VXLAN_SHORT ? DROP_short_frame : DROP_no_vni;
    if (frame.vni != vtep->vni)
        return DROP_other_vni;
    if (frame.ethertype != ETHERTYPE_IP4 && frame.ethertype != ETHERTYPE_IP6)
        return DROP_ethertype;
    if (!vtep_accepts(vtep, frame.destination))
        return mac_is_group(frame.destination) ? DROP_group_mac : DROP_other_mac;

    return open_inner(datagram + VXLAN_OVERHEAD, length - VXLAN_OVERHEAD, frame.ethertype,
                      outer_ecn, packet);
}

/*
 * Parses the header of a frame. Removes priority tags (VLAN 0) that are followed by another tag:
 * Linux removes all of them, so the header behind them is what must be checked.
 */
static bool open_ethernet(struct inner_frame *frame)
{
    struct ethernet *header = &frame->header;
    if (!ethernet_parse(frame->data, frame->length, header))
        return false;
    while (!header->vlan && ethernet_is_tag(header->type)) {
        memmove(frame->data + VLAN_TAG, frame->data, 2 * MAC_SIZE);
        frame->data += VLAN_TAG;
        frame->length -= VLAN_TAG;
        if (!ethernet_parse(frame->data, frame->length, header))
            return false;
    }
    return true;
}

enum drop decap_frame(const struct vtep *vtep, uint8_t *datagram, size_t length, uint8_t outer_ecn,
                      struct inner_frame *frame)
{
    struct vxlan_frame outer;
    enum vxlan_verdict verdict = vxlan_parse(datagram, length, &outer);
    if (verdict == VXLAN_NO_VNI)
        return DROP_no_vni;
    frame->data = datagram + VXLAN_HEADER;
    frame->length = length - VXLAN_HEADER;
    frame->packet.version = frame->packet.protocol = 0;
    if (verdict == VXLAN_SHORT || !open_ethernet(frame))
        return DROP_short_frame;
    const uint8_t *destination = frame->header.destination;
    if (outer.vni != vtep->vni)
        return DROP_other_vni;
    if (memcmp(frame->header.source, vtep->mac, MAC_SIZE) == 0)
        return DROP_loop;
    if (mac_is_group(destination) && mac_is_link_local(destination))
        return DROP_peer_link_local;
    if (memcmp(destination, any_vtep_mac, MAC_SIZE) == 0)
        memcpy(frame->data, vtep->mac, MAC_SIZE);
    if (!ethernet_is_ip(&frame->header))
        return DROP_NONE;
    uint8_t size = frame->header.size;
    enum drop reason = open_inner(frame->data + size, frame->length - size, frame->header.type,
                                  outer_ecn, &frame->packet);
    frame->packet.link = size;
    return reason;
}
