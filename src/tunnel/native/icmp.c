#include "icmp.h"

#include <string.h>

#include "bytes.h"
#include "checksum.h"

enum { QUOTE4 = 548 /* in 576 bytes, RFC 1812 4.3.2.3 */, QUOTE6 = 1280 - 48 };
enum { TYPE4_UNREACHABLE = 3, CODE4_HOST = 1, CODE4_FRAGMENTATION = 4 };
enum { TYPE6_UNREACHABLE = 1, CODE6_ADDRESS = 3, TYPE6_TOO_BIG = 2, TYPE6_REDIRECT = 137 };
enum { FRAGMENT6 = 44, FRAGMENT6_SIZE = 8 }; /* RFC 8200 4.5 */
enum { INTERVAL_NS = 10 * 1000 * 1000, BURST = 50 };

static int is_error4(const struct ip_packet *packet)
{
    if (packet->protocol != IP_ICMP)
        return 0;
    if (packet->length <= packet->header)
        return 1;
    switch (packet->data[packet->header]) {
    case 0:
    case 8:
    case 13:
    case 14:
        return 0;
    default:
        return 1;
    }
}

/* An ICMPv6 error or a redirect may follow an extension header, so a packet with extensions gets no
 * error. A first fragment does, because its sender would not learn the MTU otherwise; it holds the
 * ICMP type. */
static int is_error6(const struct ip_packet *packet, size_t quote)
{
    size_t header = packet->header;
    uint8_t protocol = packet->protocol;
    if (!packet->plain) {
        const uint8_t *fragment = packet->data + header;
        if (protocol != FRAGMENT6 || quote < header + FRAGMENT6_SIZE ||
            get16(fragment + 2) & 0xfff8)
            return 1;
        protocol = fragment[0];
        header += FRAGMENT6_SIZE;
        if (protocol != IP_ICMP6)
            return protocol != IP_TCP && protocol != IP_UDP;
    }
    if (protocol != IP_ICMP6)
        return 0;
    uint8_t type = quote > header ? packet->data[header] : 0;
    return type < 128 || type == TYPE6_REDIRECT;
}

static size_t error4(uint8_t *out, const struct ip_packet *packet, size_t quote,
                     enum icmp_reason reason, uint32_t mtu)
{
    uint8_t top = packet->source[0];
    if (is_error4(packet) || get16(packet->data + 6) & 0x1fff || !top || top == 127 || top >= 224)
        return 0;
    quote = quote < QUOTE4 ? quote : QUOTE4;
    size_t length = 28 + quote;
    uint8_t *icmp = out + 20;
    memset(out, 0, 28);
    out[0] = 0x45;
    out[1] = 0xc0; /* internetwork control, RFC 1812 4.3.2.5 */
    put16(out + 2, (uint16_t)length);
    out[8] = 64;
    out[9] = IP_ICMP;
    memcpy(out + 12, packet->destination, 4);
    memcpy(out + 16, packet->source, 4);
    ip_finish_header(out, 20);

    icmp[0] = TYPE4_UNREACHABLE;
    icmp[1] = reason == ICMP_TOO_BIG ? CODE4_FRAGMENTATION : CODE4_HOST;
    if (reason == ICMP_TOO_BIG)
        put16(icmp + 6, (uint16_t)mtu);
    memcpy(icmp + 8, packet->data, quote);
    checksum_store(icmp + 2, (uint16_t)~checksum_fold(checksum_add(0, icmp, 8 + quote)));
    return length;
}

static size_t error6(uint8_t *out, const struct ip_packet *packet, size_t quote,
                     enum icmp_reason reason, uint32_t mtu)
{
    static const uint8_t unspecified[16];
    if (is_error6(packet, quote) || packet->source[0] == 0xff ||
        memcmp(packet->source, unspecified, 16) == 0)
        return 0;
    quote = quote < QUOTE6 ? quote : QUOTE6;
    uint8_t *icmp = out + 40;
    memset(out, 0, 48);
    out[0] = 0x60;
    put16(out + 4, (uint16_t)(8 + quote));
    out[6] = IP_ICMP6;
    out[7] = 64;
    memcpy(out + 8, packet->destination, 16);
    memcpy(out + 24, packet->source, 16);

    icmp[0] = reason == ICMP_TOO_BIG ? TYPE6_TOO_BIG : TYPE6_UNREACHABLE;
    icmp[1] = reason == ICMP_TOO_BIG ? 0 : CODE6_ADDRESS;
    if (reason == ICMP_TOO_BIG)
        put32(icmp + 4, mtu);
    memcpy(icmp + 8, packet->data, quote);
    uint64_t sum = checksum_pseudo(out + 8, out + 24, 16, IP_ICMP6, (uint32_t)(8 + quote));
    checksum_store(icmp + 2, (uint16_t)~checksum_fold(checksum_add(sum, icmp, 8 + quote)));
    return 48 + quote;
}

size_t icmp_error(uint8_t *out, const struct ip_packet *packet, size_t available,
                  enum icmp_reason reason, uint32_t mtu)
{
    size_t quote = available < packet->length ? available : packet->length;
    if (quote < packet->header || ip_is_multicast(packet))
        return 0;
    return packet->version == 4 ? error4(out, packet, quote, reason, mtu)
                                : error6(out, packet, quote, reason, mtu);
}

int icmp_allowed(struct icmp_limit *limit, uint64_t now_ns)
{
    const uint64_t most = (uint64_t)BURST * INTERVAL_NS;
    uint64_t saved = limit->tokens_ns + (now_ns - limit->then_ns);
    limit->tokens_ns = limit->then_ns && saved < most ? saved : most;
    limit->then_ns = now_ns;
    if (limit->tokens_ns < INTERVAL_NS)
        return 0;
    limit->tokens_ns -= INTERVAL_NS;
    return 1;
}
