/*
 * ICMP for the sender of a packet that cannot be forwarded: RFC 792, RFC 1191, RFC 4443.
 *
 * The message comes from the address that could not be reached. A packet from a device with one
 * of the host's own addresses as its source is a martian, and the kernel would drop it.
 */
#ifndef TUNNEL_ICMP_H
#define TUNNEL_ICMP_H

#include <stddef.h>
#include <stdint.h>

#include "ip.h"

enum icmp_reason { ICMP_NO_ROUTE, ICMP_TOO_BIG };

enum { ICMP_MESSAGE_MAX = 1280 };

/*
 * Writes a whole IP packet that tells the sender of `packet` why, at most ICMP_MESSAGE_MAX bytes
 * at `out`; `available` bytes of `packet` can be quoted; `mtu` is for ICMP_TOO_BIG.
 *
 * Returns its length, or 0 where no such message may be sent: in answer to an ICMP error, a
 * fragment other than the first, or a source that is no single host (RFC 1122 3.2.2).
 */
size_t icmp_error(uint8_t *out, const struct ip_packet *packet, size_t available,
                  enum icmp_reason reason, uint32_t mtu);

/* At most a burst of messages at once and then a steady trickle: RFC 4443 2.4 (f). */
struct icmp_limit {
    uint64_t tokens_ns; /* saved up time */
    uint64_t then_ns;
};

/* Whether one more message may go out at monotonic time `now_ns`. */
int icmp_allowed(struct icmp_limit *limit, uint64_t now_ns);

#endif
