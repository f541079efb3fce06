/*
 * Inner IP packets: parses headers, and checks lengths and checksums.
 *
 * RFC 791, RFC 8200, RFC 9293 (TCP), RFC 768 (UDP).
 */
#ifndef TUNNEL_IP_H
#define TUNNEL_IP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum {
    IP_MAX = 65535,     /* IPv4 total length; jumbograms are not forwarded */
    IP6_MTU_MIN = 1280, /* smallest MTU of an IPv6 link: RFC 8200, 5 */
    IP_TCP = 6,
    IP_UDP = 17,
    IP_ICMP = 1,
    IP_ICMP6 = 58,
    TCP_CHECK = 16, /* offset of the checksum in the header */
    UDP_CHECK = 6,
    UDP_HEADER = 8,
};

enum { TCP_FIN = 0x01, TCP_SYN = 0x02, TCP_RST = 0x04, TCP_PSH = 0x08 };
enum { TCP_ACK = 0x10, TCP_URG = 0x20, TCP_ECE = 0x40, TCP_CWR = 0x80 };

struct ip_packet {
    uint8_t *data;
    uint32_t length;      /* from the IP header, never more than is available */
    uint16_t header;      /* bytes of the IP header; IPv6: the fixed 40 */
    uint8_t version;      /* 4 or 6 */
    uint8_t protocol;     /* IPv6: the first Next Header value */
    uint8_t address_size; /* 4 or 16 */
    bool fragment;        /* is a fragment */
    bool plain;           /* no IPv4 options, no IPv6 extension header, no fragment */
    uint8_t link;         /* bytes of the Ethernet header before `data`, 0 in TUN mode */
    const uint8_t *source;
    const uint8_t *destination;
};

/*
 * Parses `length` bytes at `data`, and ignores bytes after the length in the IP header. Returns
 * false, with `packet` unchanged, if this is not an IP packet or it is incomplete.
 */
bool ip_parse(uint8_t *data, size_t length, struct ip_packet *packet);

/* Skips the extension headers of an IPv6 packet that any host can skip, as far as they are
 * complete: `header` and `protocol` are then those of the header behind them. */
void ip_skip_extensions(struct ip_packet *packet);

/* Bytes of the TCP header at `offset`, 0 if it is incomplete. */
size_t ip_tcp_header(const struct ip_packet *packet, size_t offset);

/* A hash of addresses, protocol and ports. Fragments have no ports: their hash is that of their
 * addresses, as in the kernel's flow dissector. */
uint32_t ip_flow_hash(const struct ip_packet *packet);

/* The sum of addresses and protocol, which is the same for all packets of a flow. */
uint64_t ip_flow_sum(const struct ip_packet *packet);

/* Whether the IPv4 and the TCP or UDP checksum of a plain packet are correct; `flow_sum` is
 * ip_flow_sum() of the packet. */
bool ip_checksums_right(const struct ip_packet *packet, uint64_t flow_sum);

/*
 * Finishes a TCP or UDP checksum that the sender left to a network card: its field holds the sum of
 * the pseudo-header. A kernel vxlan device sends such packets, and a veth pair has no card that
 * would finish them. A correct checksum of the same value is computed again, with the same result.
 * Returns whether the field held that sum.
 */
bool ip_finish_checksum(struct ip_packet *packet);

/* Whether two packets have the same source and destination addresses. */
static inline bool ip_same_hosts(const struct ip_packet *a, const struct ip_packet *b)
{
    if (a->version != b->version)
        return false;
    /* Constant lengths, which the compiler inlines. */
    return a->version == 4 ? memcmp(a->source, b->source, 8) == 0
                           : memcmp(a->source, b->source, 32) == 0;
}

/* Whether two packets have equal Ethernet headers. */
bool ip_same_link(const struct ip_packet *a, const struct ip_packet *b);

bool ip_is_multicast(const struct ip_packet *packet);

uint8_t ip_ecn(const struct ip_packet *packet);

/* Sets the two ECN bits, and updates the IPv4 header checksum. */
void ip_set_ecn(struct ip_packet *packet, uint8_t ecn);

/* Computes and stores the checksum of an IPv4 header. */
void ip_finish_header(uint8_t *header, size_t length);

#endif
