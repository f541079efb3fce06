#include "vxlan.h"

#include <string.h>

#include "bytes.h"

const uint8_t any_vtep_mac[MAC_SIZE] = {0x02, 'v', 't', 'e', 'p', 0x00};

void vxlan_put_header(uint8_t *bytes, uint32_t vni)
{
    put32(bytes, (uint32_t)VXLAN_FLAG_VNI << 24);
    put32(bytes + 4, vni << 8);
}

void vxlan_put(uint8_t *bytes, const struct vxlan_frame *frame)
{
    vxlan_put_header(bytes, frame->vni);
    memcpy(bytes + 8, frame->destination, MAC_SIZE);
    memcpy(bytes + 14, frame->source, MAC_SIZE);
    put16(bytes + 20, frame->ethertype);
}
