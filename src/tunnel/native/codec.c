#include "codec.h"

#include <string.h>

#include "trains.h"

/* The EtherType for the IP version of a packet, 0 if it is not IP. */
static uint16_t ethertype_of(const uint8_t *packet, size_t size)
{
    if (size >= 20 && packet[0] >> 4 == 4)
        return ETHERTYPE_IP4;
    return size >= 40 && packet[0] >> 4 == 6 ? ETHERTYPE_IP6 : 0;
}

enum codec_fault codec_encode(uint8_t *out, const uint8_t *packet, size_t size, uint32_t vni,
                              const struct codec_macs *macs)
{
    struct vxlan_frame frame = {
        .vni = vni,
        .ethertype = ethertype_of(packet, size),
        .source = macs->source,
        .destination = macs->destination,
    };
    if (!frame.ethertype)
        return CODEC_NOT_IP;
    if (size > DATAGRAM_MAX - VXLAN_OVERHEAD)
        return CODEC_TOO_LONG;
    vxlan_put(out, &frame);
    memcpy(out + VXLAN_OVERHEAD, packet, size);
    return CODEC_OK;
}

enum codec_fault codec_decode(const uint8_t *datagram, size_t size, struct vxlan_frame *frame)
{
    switch (vxlan_parse(datagram, size, frame)) {
    case VXLAN_SHORT:
        return CODEC_SHORT;
    case VXLAN_NO_VNI:
        return CODEC_NO_VNI;
    default:
        return CODEC_OK;
    }
}

static uint32_t size_at(const uint8_t *sizes, size_t index)
{
    uint32_t size;
    memcpy(&size, sizes + index * sizeof size, sizeof size);
    return size;
}

static struct codec_result at_fault(enum codec_fault fault, size_t index)
{
    return (struct codec_result){.fault = fault, .index = index};
}

struct codec_result codec_encode_batch(const uint8_t *packets, size_t packets_size,
                                       const uint8_t *sizes, size_t sizes_size, uint8_t *out,
                                       size_t out_size, uint32_t vni, const struct codec_macs *macs)
{
    size_t count = sizes_size / sizeof(uint32_t), done = 0;
    if (sizes_size % sizeof(uint32_t))
        return at_fault(CODEC_SIZES, count);
    for (size_t i = 0; i < count; i++) {
        size_t size = size_at(sizes, i);
        if (size > packets_size)
            return at_fault(CODEC_SIZES, i);
        if (size + VXLAN_OVERHEAD > out_size - done)
            return at_fault(CODEC_ROOM, i);
        enum codec_fault fault = codec_encode(out + done, packets, size, vni, macs);
        if (fault != CODEC_OK)
            return at_fault(fault, i);
        packets += size;
        packets_size -= size;
        done += size + VXLAN_OVERHEAD;
    }
    return (struct codec_result){.done = done};
}

struct codec_result codec_decode_batch(const uint8_t *datagrams, size_t datagrams_size,
                                       const uint8_t *sizes, size_t sizes_size, uint8_t *out,
                                       size_t out_size)
{
    size_t count = sizes_size / sizeof(uint32_t), offset = 0;
    if (sizes_size % sizeof(uint32_t) || datagrams_size > UINT32_MAX)
        return at_fault(CODEC_SIZES, count);
    for (size_t i = 0; i < count; i++) {
        size_t size = size_at(sizes, i);
        struct vxlan_frame frame;
        if (size > datagrams_size - offset)
            return at_fault(CODEC_SIZES, i);
        if ((i + 1) * sizeof(struct codec_frame) > out_size)
            return at_fault(CODEC_ROOM, i);
        enum codec_fault fault = codec_decode(datagrams + offset, size, &frame);
        if (fault != CODEC_OK)
            return at_fault(fault, i);
        struct codec_frame entry = {
            .offset = (uint32_t)(offset + VXLAN_OVERHEAD),
            .size = (uint32_t)(size - VXLAN_OVERHEAD),
            .vni = frame.vni,
            .ethertype = frame.ethertype,
        };
        memcpy(entry.source, frame.source, MAC_SIZE);
        memcpy(entry.destination, frame.destination, MAC_SIZE);
        memcpy(out + i * sizeof entry, &entry, sizeof entry);
        offset += size;
    }
    return (struct codec_result){.done = count};
}

const char *codec_reason(enum codec_fault fault)
{
    switch (fault) {
    case CODEC_NOT_IP:
        return "packet is not IPv4 or IPv6";
    case CODEC_TOO_LONG:
        return "packet is longer than a UDP datagram can carry";
    case CODEC_SHORT:
        return "datagram is shorter than VXLAN and Ethernet headers (22 bytes)";
    case CODEC_NO_VNI:
        return "datagram is not VXLAN: its I flag is not set";
    case CODEC_SIZES:
        return "sizes do not match: not an array of uint32, or more bytes than the buffer holds";
    case CODEC_ROOM:
        return "the out buffer is too small";
    default:
        return "ok";
    }
}
