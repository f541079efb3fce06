/*
 * ICMP errors to the sender of a packet that cannot be forwarded: RFC 792, RFC 1191, RFC 4443.
 *
 * The source of an error is the address that could not be reached. With one of the host's own
 * addresses as its source, a packet from the device would be a martian, which the kernel drops.
 */
#ifndef TUNNEL_ICMP_H
#define TUNNEL_ICMP_H

#include <stddef.h>
#include <stdint.h>

#include "ip.h"

enum icmp_reason { ICMP_NO_ROUTE, ICMP_TOO_BIG };

enum { ICMP_MESSAGE_MAX = 1280 };

/*
 * Writes an IP packet with an ICMP error about `packet`, at most ICMP_MESSAGE_MAX bytes, at `out`.
 * `available` bytes of `packet` can be quoted; `mtu` is for ICMP_TOO_BIG.
 *
 * Returns its length, or 0 if no error may be sent: about an ICMP error, a fragment other than the
 * first, or a source that is not a single host (RFC 1122 3.2.2).
 */
size_t icmp_error(uint8_t *out, const struct ip_packet *packet, size_t available,
                  enum icmp_reason reason, uint32_t mtu);

/* A token bucket for ICMP errors: RFC 4443 2.4 (f). */
struct icmp_limit {
    uint64_t tokens_ns; /* time saved up */
    uint64_t then_ns;
};

/* Whether one more error may be sent at monotonic time `now_ns`; if so, counts it. */
int icmp_allowed(struct icmp_limit *limit, uint64_t now_ns);

#endif
