/*
 * Split: one super-packet from the device to the segments that go on the wire.
 *
 * A segment is a header of its own and a piece of the super-packet's payload, which is only
 * pointed at. TCP: IPv4 id + i, sequence + offset; FIN and PSH stay on the last segment, a
 * receiver must not see the end of data early; CWR stays on the first, it is said once. UDP: a
 * datagram each.
 */
#ifndef TUNNEL_SPLIT_H
#define TUNNEL_SPLIT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "ip.h"
#include "offload.h"

/* Longest header that a segment can have: IP header or fixed IPv6 with extensions, and TCP. */
enum { SPLIT_HEADER_MAX = 256 };

struct split {
    struct ip_packet packet;
    uint64_t ip_sum;    /* of what the IPv4 headers of all segments have in common */
    uint64_t sum;       /* of what all have in common from there: pseudo-header, TCP or UDP */
    uint32_t transport; /* where TCP or UDP starts */
    uint32_t header;    /* all header bytes */
    uint32_t size;      /* payload bytes of each segment but the last */
    uint32_t stride;    /* from one segment's payload to the next's; `size` unless they lie apart */
    uint32_t offset;    /* payload bytes already given out */
    uint16_t index;     /* segments already given out */
    uint16_t id;        /* of the first, IPv4 */
    uint32_t sequence;  /* of the first, TCP */
    uint8_t flags;      /* TCP */
    bool tcp;
    /* Headers, those in the packet may be written over; what each segment has its own of is zero.
     */
    uint8_t original[SPLIT_HEADER_MAX];
};

/*
 * Begins a split. Returns false, `split` unchanged, if the packet and its offload header
 * contradict each other.
 */
bool split_open(struct split *split, const struct ip_packet *packet, const struct offload *offload);

static inline bool split_done(const struct split *split)
{
    return split->offset >= split->packet.length - split->header;
}

/* Back to the first segment. */
static inline void split_rewind(struct split *split)
{
    split->offset = split->index = 0;
}

/* How many segments it is. */
static inline uint32_t split_segments(const struct split *split)
{
    return (split->packet.length - split->header + split->size - 1) / split->size;
}

/* Where the next segment's payload lies; its header may be written right before it. */
static inline uint8_t *split_payload(const struct split *split)
{
    return split->packet.data + split->header + (size_t)split->index * split->stride;
}

/*
 * Gives the next segment: writes split->header bytes at `header`, points `payload` at its part
 * and returns the payload's length. Not to be called when split_done().
 */
size_t split_next(struct split *split, uint8_t *header, uint8_t **payload);

/*
 * Finishes the one checksum that a packet without GSO left to the device (NEEDS_CSUM).
 * Returns false, the packet unchanged, if it would lie outside.
 */
bool split_checksum(struct ip_packet *packet, const struct offload *offload);

#endif
