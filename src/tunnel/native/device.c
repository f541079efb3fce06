#include "device.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

static ssize_t read_one(const struct device *device, uint8_t *room, struct device_packet *packet)
{
    size_t header = device->offload_header ? OFFLOAD_HEADER : 0;
    uint8_t *start = room + DEVICE_HEADROOM - header;
    ssize_t got;
    do {
        got = read(device->fd, start, header + DEVICE_PACKET_MAX);
    } while (got < 0 && errno == EINTR);
    if (got < 0)
        return -errno;
    if (got == 0)
        return -EPIPE; /* the program at the other end of a pair has gone */
    packet->data = room + DEVICE_HEADROOM;
    packet->length = (size_t)got < header ? 0 : (size_t)got - header;
    memset(&packet->offload, 0, sizeof packet->offload);
    if (header && packet->length)
        memcpy(&packet->offload, start, sizeof packet->offload);
    return got;
}

int device_read(const struct device *device, struct device_batch *batch)
{
    uint8_t *room = batch->room;
    batch->count = 0;
    while (batch->count < DEVICE_BATCH &&
           batch->room + sizeof batch->room - room >= DEVICE_HEADROOM + DEVICE_PACKET_MAX) {
        struct device_packet *packet = &batch->packets[batch->count];
        ssize_t got = read_one(device, room, packet);
        if (got < 0)
            return batch->count || got == -EAGAIN ? (int)batch->count : (int)got;
        batch->count++;
        size_t used = DEVICE_HEADROOM + packet->length;
        room += (used + 15) & ~(size_t)15;
    }
    return (int)batch->count;
}

int device_write(const struct device *device, const struct iovec *pieces, unsigned count)
{
    unsigned skip = device->offload_header ? 0 : 1;
    ssize_t put;
    do {
        put = writev(device->fd, pieces + skip, (int)(count - skip));
    } while (put < 0 && errno == EINTR);
    return put < 0 ? -errno : 0;
}
