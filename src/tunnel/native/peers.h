/*
 * Peers: the other nodes, by index and by source address.
 *
 * A kernel vxlan device chooses a source port for each flow, so a peer is identified by its address
 * alone. Several peers may share an address.
 */
#ifndef TUNNEL_PEERS_H
#define TUNNEL_PEERS_H

#include <netinet/in.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "stats.h"
#include "vxlan.h"

enum { PEERS_MAX = 65535, PEER_NONE = 0xffff };

struct address {
    uint8_t bytes[16]; /* IPv4 in the first four, then zeros */
    uint8_t size;      /* 4 or 16; 0 for no address */
};

struct peer {
    struct counters counters;
    struct address address; /* size 0 until the peer's name is resolved */
    union {
        struct sockaddr any;
        struct sockaddr_in in4;
        struct sockaddr_in6 in6;
    } to;
    socklen_t to_size;
    uint8_t mac[MAC_SIZE];
    uint16_t mtu;        /* largest inner packet that the path to it takes, 0 if unknown */
    uint16_t next;       /* next peer in the bucket, PEER_NONE at the end */
    uint64_t flooded[2]; /* state of storm_allowed(): outbound, inbound */
    bool used;
    bool trains; /* false once the path refused a train */
};

struct peers {
    struct peer *at;
    size_t room;
    uint16_t *buckets;       /* by address; as many as `at` has room for */
    struct counters unknown; /* packets of no known peer */
    struct counters removed; /* peers that were removed, together */
};

/* Adds or replaces a peer. Its counters are kept; `mtu` and `trains` are reset if its address
 * changes. Returns false, with nothing changed, if memory ran out. */
bool peers_put(struct peers *peers, uint16_t index, const struct address *address, uint16_t port,
               const uint8_t mac[MAC_SIZE]);

/* Removes a peer, and adds its counters to `removed`, so that sums never decrease. */
void peers_remove(struct peers *peers, uint16_t index);

/* The peer at `index`, NULL if there is none. */
struct peer *peers_get(const struct peers *peers, uint16_t index);

/* One of the peers with this address, or PEER_NONE. */
uint16_t peers_find(const struct peers *peers, const struct address *address);

/* Whether other peers have the same address as this one. */
bool peers_are_several(const struct peers *peers, uint16_t index);

/* The peer with this MAC among those that share the address of peer `index`; else `index`. */
uint16_t peers_find_mac(const struct peers *peers, uint16_t index, const uint8_t *mac);

void peers_free(struct peers *peers);

static inline bool address_equal(const struct address *a, const struct address *b)
{
    return a->size == b->size && memcmp(a->bytes, b->bytes, sizeof a->bytes) == 0;
}

#endif
