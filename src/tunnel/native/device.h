/*
 * The device: a descriptor that gives and takes one packet a call.
 *
 * A TUN or TAP device, or one end of a SOCK_SEQPACKET pair whose other end a program holds. What is
 * said of packets here is said of a TAP device's Ethernet frames, too.
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
    /* What stays free before each packet: VXLAN and Ethernet headers. */
    DEVICE_GAP = 22,
    DEVICE_FRAME_GAP = 8, /* a frame brings the Ethernet header */
    DEVICE_PACKET_MAX = 65535 + 18,
    /* Only segments of this size and more are read apart: fewer pieces, bounded room. */
    DEVICE_APART_MIN = 1000,
    DEVICE_PARTS_MAX = DEVICE_PACKET_MAX / DEVICE_APART_MIN + 2,
    DEVICE_HEADER_MAX = 256,
    /* Most that one read takes, gaps included. */
    DEVICE_READ_MAX = DEVICE_PACKET_MAX + DEVICE_PARTS_MAX * (DEVICE_GAP + DEVICE_HEADER_MAX),
    /* Several full super-packets, or a batch of small ones side by side: fits the L2 cache. */
    DEVICE_ROOM = 4 * DEVICE_READ_MAX,
    /* Packets that are none until no super-packet is expected any more. */
    DEVICE_PATIENCE = 64,
};

/*
 * How the segments of a super-packet lie apart: the first `header + size` bytes of the packet in
 * one piece, then each `size` bytes behind a gap in which its headers fit. A size of 0: all in one
 * piece.
 */
struct layout {
    uint32_t header;
    uint32_t size;
    uint32_t stride; /* from one segment's payload to the next's */
};

struct device {
    int fd;
    int output; /* to write to: of several queues' workers, one that learns no flows */
    bool offload_header;
    bool frames;            /* a TAP device: gives and takes Ethernet frames */
    struct layout expected; /* of the next super-packet: most often that of the last */
    unsigned patience;
};

struct device_packet {
    uint8_t *data;
    size_t length;
    struct layout layout;
    struct offload offload; /* zero where the device gives none */
};

struct device_batch {
    unsigned count;
    struct device_packet packets[DEVICE_BATCH];
    uint8_t room[DEVICE_ROOM];
};

/* Bytes at the packet's start that are in one piece. */
static inline size_t device_leading(const struct device_packet *packet)
{
    size_t first = packet->layout.header + packet->layout.size;
    return packet->layout.size && packet->length > first ? first : packet->length;
}

/*
 * Reads until the device is empty or the batch is full. Returns the number of packets, or
 * -errno if there was none and the device is in trouble.
 */
int device_read(struct device *device, struct device_batch *batch);

/* Takes `size` bytes off a packet's start: those that are in one piece, at most. */
static inline void device_pull(struct device_packet *packet, uint32_t size)
{
    packet->data += size;
    packet->length -= size;
    packet->layout.header -= packet->layout.size ? size : 0;
    packet->offload.checksum_start = (uint16_t)(packet->offload.checksum_start - size);
}

/* Says how the super-packet just read was cut, `header` being all of its headers, which is how the
 * next one will be read. */
void device_expect(struct device *device, uint32_t header, uint32_t size);

/* Brings a packet that was read apart into one piece. */
void device_gather(struct device_packet *packet);

/*
 * Writes one packet: pieces[0] is its offload header, left out where the device takes none.
 * Returns 0 or -errno.
 */
int device_write(const struct device *device, const struct iovec *pieces, unsigned count);

#endif
