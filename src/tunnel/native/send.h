/*
 * Sends what the two directions share: trains of datagrams to peers, and ICMP errors to the senders
 * of packets from the device.
 */
#ifndef TUNNEL_SEND_H
#define TUNNEL_SEND_H

#include "forwarder.h"

/* Memory for headers, valid until the trains are sent. May send all trains first. */
uint8_t *send_take_header(struct forwarder *forwarder, size_t size);

/* Adds a datagram to a train. Sends all trains first if there is no space for another one. */
void send_add(struct forwarder *forwarder, struct ticket ticket, const struct iovec *pieces,
              unsigned count);

/* Adds a frame of this node's own for a peer; dropped and counted if that peer has no address. */
void send_own_frame(struct forwarder *forwarder, uint16_t index, const uint8_t *frame,
                    size_t length);

/* Sends every train, with one call for each socket. */
void send_trains(struct forwarder *forwarder);

/* Writes an ICMP error about `packet` to the device, unless the RFCs or the rate limit forbid it.
 * `available` bytes of the packet lie in one piece. */
void send_icmp(struct forwarder *forwarder, const struct ip_packet *packet, size_t available,
               enum icmp_reason reason, uint32_t mtu);

/*
 * Whether the underlay must fragment a packet of this length that is too large for it: the sender
 * allows it, would not send less at any MTU (RFC 8200, 5), or gets no ICMP because it is not IP.
 */
static inline bool send_may_fragment(const struct ip_packet *packet, size_t length)
{
    if (packet->version == 4)
        return !(packet->data[6] & 0x40);
    return packet->version != 6 || length <= IP6_MTU_MIN;
}

/* The MTU that an ICMP error reports: never less than what every IPv6 link has to carry. */
static inline uint32_t send_reported_mtu(const struct ip_packet *packet, uint32_t mtu)
{
    return packet->version == 6 && mtu < IP6_MTU_MIN ? IP6_MTU_MIN : mtu;
}

#endif
