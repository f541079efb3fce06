#include "decap.h"

#include <string.h>

enum { NOT_ECT = 0, ECT1 = 1, ECT0 = 2, CE = 3 };

/* RFC 6040, figure 4. Returns the inner bits that leave, or -1 for a drop. */
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
        return DROP_other_mac;

    struct ip_packet inner;
    if (!ip_parse(datagram + VXLAN_OVERHEAD, length - VXLAN_OVERHEAD, &inner) ||
        inner.version != (frame.ethertype == ETHERTYPE_IP4 ? 4 : 6))
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
