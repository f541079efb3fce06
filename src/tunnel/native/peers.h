/*
 * Peers: the other nodes by index, and by the address that they send from.
 *
 * A kernel vxlan device sends from a port that it chooses for each flow, so a peer is known by
 * its address alone; several peers may share one.
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
    uint8_t bytes[16]; /* IPv4 in the first four, the rest zero */
    uint8_t size;      /* 4 or 16, 0 for none */
};

struct peer {
    struct counters counters;
    struct address address; /* size 0: not resolved yet */
    union {
        struct sockaddr any;
        struct sockaddr_in in4;
        struct sockaddr_in6 in6;
    } to;
    socklen_t to_size;
    uint8_t mac[MAC_SIZE];
    uint16_t mtu;        /* largest inner packet that its path takes, 0 where that is not known */
    uint16_t next;       /* in its bucket, PEER_NONE at the end */
    uint64_t flooded[2]; /* storm_allowed(): outbound, inbound */
    bool used;
    bool trains; /* false once its path refused a train */
};

struct peers {
    struct peer *at;
    size_t room;
    uint16_t *buckets;      /* by address, as many as `at` has room for */
    struct counters nobody; /* of packets whose peer is not known */
    struct counters gone;   /* of peers that were removed, together */
};

/* Puts or replaces a peer; counters and what was learned of its path are kept unless its
 * address changes. Returns false if memory ran out; nothing has changed then. */
bool peers_put(struct peers *peers, uint16_t index, const struct address *address, uint16_t port,
               const uint8_t mac[MAC_SIZE]);

/* Forgets a peer; its counters are kept among those of peers gone, so that sums never go back. */
void peers_remove(struct peers *peers, uint16_t index);

/* The peer at `index`, NULL if there is none. */
struct peer *peers_get(const struct peers *peers, uint16_t index);

/* Any peer with this address, or PEER_NONE. */
uint16_t peers_find(const struct peers *peers, const struct address *address);

/* Whether others have the address of this one. */
bool peers_are_several(const struct peers *peers, uint16_t index);

/* Of the peers with the address of this one, that whose MAC it is; else this one. */
uint16_t peers_find_mac(const struct peers *peers, uint16_t index, const uint8_t *mac);

void peers_free(struct peers *peers);

static inline bool address_equal(const struct address *a, const struct address *b)
{
    return a->size == b->size && memcmp(a->bytes, b->bytes, sizeof a->bytes) == 0;
}

#endif
