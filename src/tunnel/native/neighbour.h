/*
 * Neighbours: which MAC an overlay address has, and the questions for it.
 *
 * ARP (RFC 826, RFC 5227) and Neighbour Discovery (RFC 4861, RFC 4862): parses what comes from
 * outside, finds who is asked for in a table, and builds the answer. A table is built whole from a
 * list and replaced by one pointer, like routes.
 */
#ifndef TUNNEL_NEIGHBOUR_H
#define TUNNEL_NEIGHBOUR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "ip.h"
#include "vxlan.h"

enum {
    ARP_SIZE = 28,
    NDP_SIZE = 40 + 24 + 8, /* with the one option that says a MAC */
    NEIGHBOUR_ANSWER_MAX = ETHERNET_HEADER + NDP_SIZE,
};

struct neighbour {
    uint8_t address[16]; /* IPv4 in the first four bytes, the rest zero */
    uint8_t size;        /* of the address, 4 or 16 */
    uint8_t mac[MAC_SIZE];
};

struct neighbour_table {
    size_t count;
    struct neighbour at[]; /* sorted */
};

/* NULL if memory ran out. Of two entries for one address one stays, which one is not said. */
struct neighbour_table *neighbour_table_new(const struct neighbour *neighbours, size_t count);

void neighbour_table_free(struct neighbour_table *table);

/* The MAC of an address of 4 or 16 bytes, or NULL. No table has none. */
const uint8_t *neighbour_find(const struct neighbour_table *table, const uint8_t *address,
                              size_t size);

/* What an ARP or NDP message says. Pointers are into the message. */
struct neighbour_message {
    uint8_t size;              /* of addresses: 4 is ARP, 16 is NDP */
    bool asks;                 /* for the MAC of `target` */
    const uint8_t *sender;     /* NULL: whoever sent it has no address yet */
    const uint8_t *sender_mac; /* NULL: not said */
    const uint8_t *target;     /* whose MAC is asked for or told */
};

enum neighbour_verdict { NEIGHBOUR_NONE, NEIGHBOUR_OK, NEIGHBOUR_BAD };

/* Reads the body of a frame whose EtherType is ARP; NEIGHBOUR_NONE if it is ARP for other than
 * IPv4 on Ethernet or, which hosts take as well, IEEE 802 networks. */
enum neighbour_verdict arp_parse(const uint8_t *body, size_t length,
                                 struct neighbour_message *message);

/* Whether a packet is worth reading by ndp_parse(). */
static inline bool ndp_may_be(const struct ip_packet *packet)
{
    return packet->version == 6 && (packet->protocol == IP_ICMP6 || !packet->plain);
}

/* Reads a packet; NEIGHBOUR_NONE unless it is a Neighbour Solicitation or Advertisement that no
 * router has forwarded. NEIGHBOUR_BAD where RFC 4861 7.1 says that it is not valid. */
enum neighbour_verdict ndp_parse(const struct ip_packet *packet, struct neighbour_message *message);

/*
 * Writes the frame that answers a question: `mac` is the target's, `to` that of who asked. Returns
 * its length, at most NEIGHBOUR_ANSWER_MAX.
 */
size_t neighbour_answer(uint8_t *out, const struct neighbour_message *message, const uint8_t *mac,
                        const uint8_t *to);

#endif
