/* Decap: one datagram from a peer to the IP packet inside, or the reason why there is none. */
#ifndef TUNNEL_DECAP_H
#define TUNNEL_DECAP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "ethernet.h"
#include "ip.h"
#include "stats.h"
#include "vxlan.h"

/* What a frame must say to be for us. */
struct vtep {
    uint32_t vni;
    uint8_t mac[MAC_SIZE];
};

/*
 * Checks headers and lengths, and carries the outer ECN bits into the inner packet (RFC 6040
 * 4.2), which is the one change made to `datagram`. Returns DROP_NONE and fills `packet`, or the
 * reason; `packet` is unchanged then. The inner source is the caller's to check.
 */
enum drop decap(const struct vtep *vtep, uint8_t *datagram, size_t length, uint8_t outer_ecn,
                struct ip_packet *packet);

/* An Ethernet frame from a peer, with an IP packet in it or not. */
struct inner_frame {
    uint8_t *data;
    size_t length;
    struct ethernet header;
    struct ip_packet packet; /* version 0: none */
};

/*
 * The same where frames are forwarded, whoever they are for. A frame for any VTEP gets our MAC: it
 * is meant for us. `frame` may be changed although there is a reason.
 */
enum drop decap_frame(const struct vtep *vtep, uint8_t *datagram, size_t length, uint8_t outer_ecn,
                      struct inner_frame *frame);

/* Whether frames for this MAC are for us. */
bool vtep_accepts(const struct vtep *vtep, const uint8_t *mac);

#endif
