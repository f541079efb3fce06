/*
 * The device: a descriptor that gives and takes one packet a call.
 *
 * A TUN device, or one end of a SOCK_SEQPACKET pair whose other end a program holds.
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
    /* What stays free before each packet that was read, for headers to be put there. */
    DEVICE_HEADROOM = 32,
    DEVICE_PACKET_MAX = 65536,
    /* Four full super-packets, or a batch of small ones side by side: fits the L2 cache. */
    DEVICE_ROOM = 4 * (DEVICE_PACKET_MAX + 2 * DEVICE_HEADROOM),
};

struct device {
    int fd;
    bool offload_header;
};

struct device_packet {
    uint8_t *data;
    size_t length;
    struct offload offload; /* zero where the device gives none */
};

struct device_batch {
    unsigned count;
    struct device_packet packets[DEVICE_BATCH];
    uint8_t room[DEVICE_ROOM];
};

/*
 * Reads until the device is empty or the batch is full. Returns the number of packets, or
 * -errno if there was none and the device is in trouble.
 */
int device_read(const struct device *device, struct device_batch *batch);

/*
 * Writes one packet: pieces[0] is its offload header, left out where the device takes none.
 * Returns 0 or -errno.
 */
int device_write(const struct device *device, const struct iovec *pieces, unsigned count);

#endif
