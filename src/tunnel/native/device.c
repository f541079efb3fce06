#include "device.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

/* Fills `pieces` for reading a packet to `data`, by its layout. Returns their number. */
static unsigned lay_out(struct device_packet *packet, struct iovec *pieces)
{
    struct layout layout = packet->layout;
    if (!layout.size) {
        pieces[0] = (struct iovec){packet->data, DEVICE_PACKET_MAX};
        return 1;
    }
    pieces[0] = (struct iovec){packet->data, layout.header + layout.size};
    size_t room = pieces[0].iov_len;
    uint8_t *payload = packet->data + layout.header;
    unsigned count = 1;
    for (; room < DEVICE_PACKET_MAX; room += layout.size) {
        payload += layout.stride;
        pieces[count++] = (struct iovec){payload, layout.size};
    }
    pieces[count - 1].iov_len -= room - DEVICE_PACKET_MAX;
    return count;
}

/* Returns the bytes of `room` that are used, or -errno. */
static ssize_t read_one(struct device *device, uint8_t *room, struct device_packet *packet)
{
    struct iovec pieces[1 + DEVICE_PARTS_MAX];
    size_t header = device->offload_header ? OFFLOAD_HEADER : 0;
    packet->data = room + DEVICE_GAP;
    packet->layout = device->expected;
    packet->offload = (struct offload){0};
    pieces[0] = (struct iovec){&packet->offload, header};
    unsigned count = 1 + lay_out(packet, pieces + 1);

    ssize_t got;
    do {
        got = readv(device->fd, pieces + !header, (int)(count - !header));
    } while (got < 0 && errno == EINTR);
    if (got < 0)
        return -errno;
    if (got == 0)
        return -EPIPE; /* the program has closed its end of the pair */
    packet->length = (size_t)got < header ? 0 : (size_t)got - header;

    size_t leading = device_leading(packet);
    if (leading == packet->length) {
        packet->layout = (struct layout){0};
        return (ssize_t)(DEVICE_GAP + leading);
    }
    size_t gaps = (packet->length - leading - 1) / packet->layout.size + 1;
    size_t gap = packet->layout.stride - packet->layout.size;
    return (ssize_t)(DEVICE_GAP + packet->length + gaps * gap);
}

static void count_ordinary(struct device *device, const struct device_packet *packet)
{
    if (packet->offload.gso_type == GSO_NONE && device->patience && !--device->patience)
        device->expected = (struct layout){0};
}

int device_read(struct device *device, struct device_batch *batch)
{
    size_t used = 0;
    batch->count = 0;
    while (batch->count < DEVICE_BATCH && DEVICE_ROOM - used >= DEVICE_READ_MAX) {
        struct device_packet *packet = &batch->packets[batch->count];
        ssize_t took = read_one(device, batch->room + used, packet);
        if (took < 0)
            return batch->count || took == -EAGAIN ? (int)batch->count : (int)took;
        count_ordinary(device, packet);
        batch->count++;
        used += (size_t)took;
    }
    return (int)batch->count;
}

void device_expect(struct device *device, uint32_t header, uint32_t size)
{
    if (size < DEVICE_APART_MIN || header > DEVICE_HEADER_MAX)
        return;
    uint32_t gap = device->frames ? DEVICE_FRAME_GAP : DEVICE_GAP;
    device->expected = (struct layout){header, size, header + gap + size};
    device->patience = DEVICE_PATIENCE;
}

void device_gather(struct device_packet *packet)
{
    struct layout layout = packet->layout;
    size_t done = device_leading(packet);
    uint8_t *payload = packet->data + layout.header;
    while (done < packet->length) {
        size_t left = packet->length - done;
        size_t part = left < layout.size ? left : layout.size;
        payload += layout.stride;
        memmove(packet->data + done, payload, part);
        done += part;
    }
    packet->layout = (struct layout){0};
}

int device_write(const struct device *device, const struct iovec *pieces, unsigned count)
{
    unsigned skip = device->offload_header ? 0 : 1;
    ssize_t put;
    do {
        put = writev(device->output, pieces + skip, (int)(count - skip));
    } while (put < 0 && errno == EINTR);
    return put < 0 ? -errno : 0;
}
