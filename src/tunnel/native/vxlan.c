#include "vxlan.h"

#include <string.h>

#include "bytes.h"

enum { FLAG_VNI = 0x08 };

const uint8_t any_vtep_mac[MAC_SIZE] = {0x02, 'v', 't', 'e', 'p', 0x00};

void vxlan_put_header(uint8_t *bytes, uint32_t vni)
{
    put32(bytes, (uint32_t)FLAG_VNI << 24);
    put32(bytes + 4, vni << 8);
}

void vxlan_put(uint8_t *bytes, const struct vxlan_frame *frame)
{
    vxlan_put_header(bytes, frame->vni);
    memcpy(bytes + 8, frame->destination, MAC_SIZE);
    memcpy(bytes + 14, frame->source, MAC_SIZE);
    put16(bytes + 20, frame->ethertype);
}

enum vxlan_verdict vxlan_parse(const uint8_t *bytes, size_t length, struct vxlan_frame *frame)
{
    if (length < VXLAN_OVERHEAD)
        return VXLAN_SHORT;
    if (!(bytes[0] & FLAG_VNI))
        return VXLAN_NO_VNI;
    *frame = (struct vxlan_frame){
        .vni = get32(bytes + 4) >> 8,
        .ethertype = get16(bytes + 20),
        .destination = bytes + 8,
        .source = bytes + 14,
    };
    return VXLAN_OK;
}
