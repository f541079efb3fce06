/*
 * Codec: encodes and decodes VXLAN frames for Python programs, singly or in batches.
 *
 * The items of a batch lie end to end in the caller's buffer; their sizes are an array of uint32 in
 * the machine's byte order.
 */
#ifndef TUNNEL_CODEC_H
#define TUNNEL_CODEC_H

#include <stddef.h>
#include <stdint.h>

#include "vxlan.h"

enum codec_fault {
    CODEC_OK,
    CODEC_NOT_IP,
    CODEC_TOO_LONG,
    CODEC_SHORT,
    CODEC_NO_VNI,
    CODEC_SIZES,
    CODEC_ROOM,
};

struct codec_macs {
    uint8_t source[MAC_SIZE];
    uint8_t destination[MAC_SIZE];
};

struct codec_result {
    enum codec_fault fault;
    size_t index; /* of the faulty item */
    size_t done;  /* bytes written by encode, frames written by decode */
};

/* Written by decode for each frame. */
struct codec_frame {
    uint32_t offset; /* of the inner packet in the datagrams' buffer */
    uint32_t size;   /* of the inner packet */
    uint32_t vni;
    uint16_t ethertype;
    uint8_t source[MAC_SIZE];
    uint8_t destination[MAC_SIZE];
    uint16_t reserved; /* zero */
};

_Static_assert(sizeof(struct codec_frame) == 28, "documented in vxlan.py");

/* Writes size + VXLAN_OVERHEAD bytes at `out`. */
enum codec_fault codec_encode(uint8_t *out, const uint8_t *packet, size_t size, uint32_t vni,
                              const struct codec_macs *macs);

enum codec_fault codec_decode(const uint8_t *datagram, size_t size, struct vxlan_frame *frame);

/* On a fault `out` holds the items before the faulty one. */
struct codec_result codec_encode_batch(const uint8_t *packets, size_t packets_size,
                                       const uint8_t *sizes, size_t sizes_size, uint8_t *out,
                                       size_t out_size, uint32_t vni,
                                       const struct codec_macs *macs);

struct codec_result codec_decode_batch(const uint8_t *datagrams, size_t datagrams_size,
                                       const uint8_t *sizes, size_t sizes_size, uint8_t *out,
                                       size_t out_size);

const char *codec_reason(enum codec_fault fault);

#endif
