/* Decap: parses one datagram from a peer, and returns its inner packet or a drop reason. */
#ifndef TUNNEL_DECAP_H
#define TUNNEL_DECAP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "ethernet.h"
#include "ip.h"
#include "stats.h"
#include "vxlan.h"

/* This node's VTEP: VNI and MAC of frames that it accepts. */
struct vtep {
    uint32_t vni;
    uint8_t mac[MAC_SIZE];
};

/*
 * Checks headers and lengths, and merges the outer ECN bits into the inner packet (RFC 6040 4.2),
 * which is the only change to `datagram`. Returns DROP_NONE and fills `packet`, or returns the
 * reason and leaves `packet` unchanged. The caller checks the inner source.
 */
enum drop decap(const struct vtep *vtep, uint8_t *datagram, size_t length, uint8_t outer_ecn,
                struct ip_packet *packet);

/* An Ethernet frame from a peer. */
struct inner_frame {
    uint8_t *data;
    size_t length;
    struct ethernet header;
    struct ip_packet packet; /* version 0 if it holds no IP packet */
};

/*
 * The same in TAP mode, for frames to any destination MAC. A frame for the any-VTEP MAC gets this
 * node's MAC as its destination. `frame` may change even if a reason is returned.
 */
enum drop decap_frame(const struct vtep *vtep, uint8_t *datagram, size_t length, uint8_t outer_ecn,
                      struct inner_frame *frame);

/* Whether `mac` is this node's MAC or the any-VTEP MAC. */
bool vtep_accepts(const struct vtep *vtep, const uint8_t *mac);

#endif
