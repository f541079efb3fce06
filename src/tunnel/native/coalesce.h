/*
 * Coalesce: segments of one flow to a super-packet that the device takes in one write.
 *
 * The opposite of split, and as careful: what is joined here is handed over as already checked,
 * so both checksums are verified first, and only segments that split would have made from one
 * super-packet are joined. Packets leave in the order in which they came; a segment may join an
 * earlier one of its flow only if nothing of that flow lies between that it must not overtake.
 *
 * Packets with an Ethernet header before them (their `link`) are written with it, and joined only
 * if it is the same.
 *
 * Payload is pointed at, never copied: the packets must stay where they are until the batch is
 * written.
 */
#ifndef TUNNEL_COALESCE_H
#define TUNNEL_COALESCE_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

#include "ip.h"
#include "offload.h"

enum {
    RUNS_MAX = 64,
    RUN_SEGMENTS_MAX = 128,
    /* Ethernet with a tag; IPv6 without extensions, or IPv4 without options; TCP */
    RUN_HEADER_MAX = 18 + 40 + 60,
};

/* One packet for the device: a single one as it came, or several joined. */
struct run {
    struct iovec pieces[1 + RUN_SEGMENTS_MAX]; /* 0: offload header, and own headers if joined */
    uint8_t header_bytes[OFFLOAD_HEADER + RUN_HEADER_MAX];
    struct ip_packet first;
    uint64_t flow_sum; /* once `checked` */
    uint32_t bytes;    /* of all packets in it, as they came */
    uint32_t length;   /* of the packet to write */
    uint32_t sequence; /* TCP: that comes next */
    uint16_t header;   /* IP and TCP or UDP header bytes; before them, `first.link` of Ethernet */
    uint16_t size;     /* payload of the first segment */
    uint16_t segments;
    uint16_t peer;
    bool checked; /* the first segment's checksums were verified */
    bool push;
};

struct coalescer {
    bool tcp; /* join TCP segments */
    bool udp; /* join UDP datagrams */
    unsigned count;
    uint8_t open[256]; /* by flow hash: 1 + index of the run that may grow, 0 for none */
    struct run runs[RUNS_MAX];
};

/* Takes a packet from `peer` into the batch, and finishes a checksum that its sender left to a
 * network card (ip_finish_checksum). Not to be called when coalesce_full(). */
void coalesce_add(struct coalescer *coalescer, struct ip_packet *packet, uint16_t peer);

static inline bool coalesce_full(const struct coalescer *coalescer)
{
    return coalescer->count == RUNS_MAX;
}

/* Writes the headers of runs that grew: the batch is ready for the device. */
void coalesce_finish(struct coalescer *coalescer);

/* Empties the batch. */
void coalesce_reset(struct coalescer *coalescer);

#endif
