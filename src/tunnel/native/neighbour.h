/*
 * Neighbours: the table of overlay addresses and their MACs, and the messages that ask for them.
 *
 * ARP (RFC 826, RFC 5227) and Neighbour Discovery (RFC 4861, RFC 4862): parses messages, finds the
 * target of a request in the table, and writes the reply. Like the routes, a table is built from a
 * list, never changed, and replaced by one pointer.
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
    NDP_SIZE = 40 + 24 + 8, /* with one link-layer address option */
    NEIGHBOUR_ANSWER_MAX = ETHERNET_HEADER + NDP_SIZE,
};

struct neighbour {
    uint8_t address[16]; /* IPv4 in the first four bytes, then zeros */
    uint8_t size;        /* of the address, 4 or 16 */
    uint8_t mac[MAC_SIZE];
};

struct neighbour_table {
    size_t count;
    struct neighbour at[]; /* sorted */
};

/* Returns NULL if memory ran out. Of two entries for one address either is used. */
struct neighbour_table *neighbour_table_new(const struct neighbour *neighbours, size_t count);

void neighbour_table_free(struct neighbour_table *table);

/* The MAC of an address of 4 or 16 bytes, or NULL. `table` may be NULL. */
const uint8_t *neighbour_find(const struct neighbour_table *table, const uint8_t *address,
                              size_t size);

/* The content of an ARP or NDP message. Pointers point into the message. */
struct neighbour_message {
    uint8_t size;              /* of addresses: 4 for ARP, 16 for NDP */
    bool asks;                 /* requests the MAC of `target` */
    const uint8_t *sender;     /* NULL if the sender has no address yet */
    const uint8_t *sender_mac; /* NULL if the message does not contain it */
    const uint8_t *target;     /* address whose MAC is requested or announced */
};

enum neighbour_verdict { NEIGHBOUR_NONE, NEIGHBOUR_OK, NEIGHBOUR_BAD };

/* Parses the body of a frame with EtherType ARP. NEIGHBOUR_NONE if it is not ARP for IPv4 on
 * Ethernet or IEEE 802 networks, which hosts accept as well. */
enum neighbour_verdict arp_parse(const uint8_t *body, size_t length,
                                 struct neighbour_message *message);

/* A quick test whether a packet can be an NDP message. */
static inline bool ndp_may_be(const struct ip_packet *packet)
{
    return packet->version == 6 && (packet->protocol == IP_ICMP6 || !packet->plain);
}

/* Parses a packet. NEIGHBOUR_NONE unless it is a Neighbour Solicitation or Advertisement that no
 * router has forwarded; NEIGHBOUR_BAD if it is invalid by RFC 4861 7.1. */
enum neighbour_verdict ndp_parse(const struct ip_packet *packet, struct neighbour_message *message);

/*
 * Writes the frame with the reply to a request: `mac` is the target's, `to` is that of the host
 * that asked. Returns its length, at most NEIGHBOUR_ANSWER_MAX.
 */
size_t neighbour_answer(uint8_t *out, const struct neighbour_message *message, const uint8_t *mac,
                        const uint8_t *to);

#endif
