/*
 * virtio_net_hdr, the offload header of a packet: virtio 1.2, 5.1.6; linux/virtio_net.h.
 *
 * In the machine's byte order, which is the default of a TUN device.
 */
#ifndef TUNNEL_OFFLOAD_H
#define TUNNEL_OFFLOAD_H

#include <stdint.h>

enum { OFFLOAD_HEADER = 10 };
enum { OFFLOAD_NEEDS_CSUM = 1 };
enum {
    GSO_NONE = 0,
    GSO_TCP4 = 1,
    GSO_TCP6 = 4,
    GSO_UDP = 5,    /* VIRTIO_NET_HDR_GSO_UDP_L4, which kernel headers have since 6.2 */
    GSO_ECN = 0x80, /* a flag, set together with a TCP type */
};

struct offload {
    uint8_t flags;
    uint8_t gso_type;
    uint16_t header_length; /* of all headers; not reliable on packets from the kernel */
    uint16_t gso_size;
    uint16_t checksum_start;
    uint16_t checksum_offset;
};

_Static_assert(sizeof(struct offload) == OFFLOAD_HEADER, "virtio_net_hdr has no padding");

#endif
