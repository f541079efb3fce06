/*
 * Inner IP packets: where their parts are, and whether the lengths agree.
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
    IP_MAX = 65535,     /* IPv4 total length; we move no jumbograms */
    IP6_MTU_MIN = 1280, /* every link that carries IPv6 takes as much: RFC 8200, 5 */
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
    uint32_t length;      /* by the IP header, never more than what was there */
    uint16_t header;      /* IP header bytes; IPv6: the fixed 40 */
    uint8_t version;      /* 4 or 6 */
    uint8_t protocol;     /* IPv6: the first next-header value */
    uint8_t address_size; /* 4 or 16 */
    bool fragment;        /* part of a fragmented packet */
    bool plain;           /* no IPv4 options, no IPv6 extension header, no fragment */
    uint8_t link; /* bytes of Ethernet header before `data` that go with it, 0 in TUN mode */
    const uint8_t *source;
    const uint8_t *destination;
};

/*
 * Finds the parts of `length` bytes at `data`. Bytes behind the IP length are cut off.
 * Returns false, `packet` unchanged, if this is no IP packet or it is not whole.
 */
bool ip_parse(uint8_t *data, size_t length, struct ip_packet *packet);

/* Moves the header of an IPv6 packet on to what is behind those extensions that any host may step
 * over, and are all there. */
void ip_skip_extensions(struct ip_packet *packet);

/* TCP header bytes at `offset`, 0 if they are not all there. */
size_t ip_tcp_header(const struct ip_packet *packet, size_t offset);

/* A hash of addresses, protocol and ports. Fragments have no ports: they share the hash of their
 * addresses, as with the kernel's flow dissector. */
uint32_t ip_flow_hash(const struct ip_packet *packet);

/* The sum of addresses and protocol, which all packets of a flow have in common. */
uint64_t ip_flow_sum(const struct ip_packet *packet);

/* Both checksums, IPv4's and TCP's or UDP's, of a plain packet whose protocol is one of them and
 * whose flow has that sum. */
bool ip_checksums_right(const struct ip_packet *packet, uint64_t flow_sum);

/*
 * Finishes a TCP or UDP checksum that its sender left to a network card, if this packet has one:
 * the field then holds the sum of the pseudo-header alone. A kernel vxlan device does so, and on a
 * veth pair no card ever comes. A finished checksum that happens to look so is only made again.
 * Returns whether the packet had one.
 */
bool ip_finish_checksum(struct ip_packet *packet);

/* Whether two packets have the same source and destination addresses. */
static inline bool ip_same_hosts(const struct ip_packet *a, const struct ip_packet *b)
{
    if (a->version != b->version)
        return false;
    /* Lengths that the compiler knows. */
    return a->version == 4 ? memcmp(a->source, b->source, 8) == 0
                           : memcmp(a->source, b->source, 32) == 0;
}

/* Whether two packets have the same Ethernet header before them. */
bool ip_same_link(const struct ip_packet *a, const struct ip_packet *b);

bool ip_is_multicast(const struct ip_packet *packet);

uint8_t ip_ecn(const struct ip_packet *packet);

/* Writes the two ECN bits, and mends the IPv4 header checksum. */
void ip_set_ecn(struct ip_packet *packet, uint8_t ecn);

/* Fills in the checksum of an IPv4 header. */
void ip_finish_header(uint8_t *header, size_t length);

#endif
