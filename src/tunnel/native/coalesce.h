/*
 * Coalesce: joins segments of one flow into a super-packet that the device takes in one write.
 *
 * The opposite of split. The kernel takes a joined packet as already verified, so both checksums
 * are verified first, and only segments that split would make from one super-packet are joined.
 * Packets are written in the order of their arrival. A segment joins an earlier run of its flow
 * only if it overtakes no packet of that flow that way.
 *
 * Packets with an Ethernet header before them (`link`) are written with it, and are joined only if
 * their headers are equal.
 *
 * Payload is pointed at, never copied: the packets must stay in place until the batch is written.
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

/* One packet for the device: a single one as it arrived, or several joined. */
struct run {
    struct iovec pieces[1 + RUN_SEGMENTS_MAX]; /* 0: offload header, and new headers if joined */
    uint8_t header_bytes[OFFLOAD_HEADER + RUN_HEADER_MAX];
    struct ip_packet first;
    uint64_t flow_sum; /* valid if `checked` */
    uint32_t bytes;    /* of all its packets as they arrived */
    uint32_t length;   /* of the packet to write */
    uint32_t sequence; /* TCP: next expected */
    uint16_t
        header; /* bytes of the IP and TCP or UDP headers, without `first.link` bytes of Ethernet */
    uint16_t size; /* payload of the first segment */
    uint16_t segments;
    uint16_t peer;
    bool checked; /* the checksums of the first segment are correct */
    bool push;
};

struct coalescer {
    bool tcp; /* join TCP segments */
    bool udp; /* join UDP datagrams */
    unsigned count;
    uint8_t open[256]; /* by flow hash: 1 + index of the run that can grow, 0 for none */
    struct run runs[RUNS_MAX];
};

/* Adds a packet from `peer` to the batch. Finishes a checksum that the sender left to a network
 * card (ip_finish_checksum). The batch must not be full. */
void coalesce_add(struct coalescer *coalescer, struct ip_packet *packet, uint16_t peer);

static inline bool coalesce_full(const struct coalescer *coalescer)
{
    return coalescer->count == RUNS_MAX;
}

/* Writes the headers of joined packets: the batch is ready for the device. */
void coalesce_finish(struct coalescer *coalescer);

/* Empties the batch. */
void coalesce_reset(struct coalescer *coalescer);

#endif
