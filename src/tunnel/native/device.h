/*
 * The device: a descriptor that reads or writes one packet for each call.
 *
 * A TUN or TAP device, or one end of a SOCK_SEQPACKET pair whose other end a program holds. With a
 * TAP device, "packet" means an Ethernet frame in this file.
 */
#ifndef TUNNEL_DEVICE_H
#define TUNNEL_DEVICE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>

#include "offload.h"

enum {
    DEVICE_BATCH = 64,
    /* Headroom before each packet: VXLAN and Ethernet headers. */
    DEVICE_GAP = 22,
    DEVICE_FRAME_GAP = 8, /* a frame has its Ethernet header already */
    DEVICE_PACKET_MAX = 65535 + 18,
    /* Only segments of at least this size are read apart, which bounds pieces and memory. */
    DEVICE_APART_MIN = 1000,
    DEVICE_PARTS_MAX = DEVICE_PACKET_MAX / DEVICE_APART_MIN + 2,
    DEVICE_HEADER_MAX = 256,
    /* Most bytes that one read takes, with gaps. */
    DEVICE_READ_MAX = DEVICE_PACKET_MAX + DEVICE_PARTS_MAX * (DEVICE_GAP + DEVICE_HEADER_MAX),
    /* Several full super-packets, or a batch of small ones side by side: fits the L2 cache. */
    DEVICE_ROOM = 4 * DEVICE_READ_MAX,
    /* After so many packets in a row that are no super-packets, none is expected. */
    DEVICE_PATIENCE = 64,
};

/*
 * How the segments of a super-packet lie apart in memory: the first `header + size` bytes of the
 * packet in one piece, then every `size` bytes after a gap that has space for headers. If `size` is
 * 0, the packet is in one piece.
 */
struct layout {
    uint32_t header;
    uint32_t size;
    uint32_t stride; /* from one segment's payload to the next's */
};

struct device {
    int fd;
    int output; /* to write to; with several workers, a queue that the kernel steers no flows to */
    bool offload_header;
    bool frames;            /* a TAP device */
    struct layout expected; /* of the next super-packet */
    unsigned patience;
};

struct device_packet {
    uint8_t *data;
    size_t length;
    struct layout layout;
    struct offload offload; /* zero if the device has no offload headers */
};

struct device_batch {
    unsigned count;
    struct device_packet packets[DEVICE_BATCH];
    uint8_t room[DEVICE_ROOM];
};

/* Bytes at the start of the packet that are in one piece. */
static inline size_t device_leading(const struct device_packet *packet)
{
    size_t first = packet->layout.header + packet->layout.size;
    return packet->layout.size && packet->length > first ? first : packet->length;
}

/*
 * Reads until the device is empty or the batch is full. Returns the number of packets, or -errno if
 * the first read failed.
 */
int device_read(struct device *device, struct device_batch *batch);

/* Removes `size` bytes from the start of a packet; they must be in one piece. */
static inline void device_pull(struct device_packet *packet, uint32_t size)
{
    packet->data += size;
    packet->length -= size;
    packet->layout.header -= packet->layout.size ? size : 0;
    packet->offload.checksum_start = (uint16_t)(packet->offload.checksum_start - size);
}

/* Sets the layout for reading the next super-packet to that of the last one: `header` bytes of
 * headers, `size` bytes of payload in each segment. */
void device_expect(struct device *device, uint32_t header, uint32_t size);

/* Moves a packet that was read apart into one piece. */
void device_gather(struct device_packet *packet);

/*
 * Writes one packet. pieces[0] is its offload header, which is skipped if the device has no offload
 * headers. Returns 0 or -errno.
 */
int device_write(const struct device *device, const struct iovec *pieces, unsigned count);

#endif
