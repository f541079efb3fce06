/*
 * Split: cuts a super-packet from the device into segments.
 *
 * Each segment gets headers of its own; its payload is a part of the super-packet, which is only
 * pointed at. TCP: the IPv4 id and the sequence number advance. FIN and PSH are only on the last
 * segment, because a receiver must not see the end of data early; CWR is only on the first. UDP:
 * each segment is a datagram.
 */
#ifndef TUNNEL_SPLIT_H
#define TUNNEL_SPLIT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "ip.h"
#include "offload.h"

/* Longest headers of a segment: IPv4 with options, or IPv6 with extensions, and TCP. */
enum { SPLIT_HEADER_MAX = 256 };

struct split {
    struct ip_packet packet;
    uint64_t ip_sum;    /* of the IPv4 header fields that all segments share */
    uint64_t sum;       /* of the pseudo-header, TCP and UDP fields that all segments share */
    uint32_t transport; /* offset of the TCP or UDP header */
    uint32_t header;    /* bytes of all headers */
    uint32_t size;      /* payload bytes of each segment but the last */
    uint32_t stride;    /* from the payload of one segment to that of the next */
    uint32_t offset;    /* payload bytes already returned */
    uint16_t index;     /* segments already returned */
    uint16_t id;        /* of the first, IPv4 */
    uint32_t sequence;  /* of the first, TCP */
    uint8_t flags;      /* TCP */
    bool tcp;
    /* A copy of the headers, because those in the packet may be overwritten. Fields that differ
     * between segments are zero. */
    uint8_t original[SPLIT_HEADER_MAX];
};

/* Starts a split. Returns false, with `split` unchanged, if the packet and its offload header
 * contradict each other. */
bool split_open(struct split *split, const struct ip_packet *packet, const struct offload *offload);

static inline bool split_done(const struct split *split)
{
    return split->offset >= split->packet.length - split->header;
}

/* Goes back to the first segment. */
static inline void split_rewind(struct split *split)
{
    split->offset = split->index = 0;
}

/* The number of segments. */
static inline uint32_t split_segments(const struct split *split)
{
    return (split->packet.length - split->header + split->size - 1) / split->size;
}

/* The payload of the next segment. If segments lie apart, its headers can be written before it. */
static inline uint8_t *split_payload(const struct split *split)
{
    return split->packet.data + split->header + (size_t)split->index * split->stride;
}

/*
 * Writes split->header bytes of headers for the next segment at `header`, sets `payload`, and
 * returns the length of the payload. The split must not be done.
 */
size_t split_next(struct split *split, uint8_t *header, uint8_t **payload);

/* Computes the checksum that a packet without GSO leaves to the device (NEEDS_CSUM). Returns false,
 * with the packet unchanged, if its field is outside the packet. */
bool split_checksum(struct ip_packet *packet, const struct offload *offload);

#endif
