/*
 * The FDB: which peer a MAC is behind, in its VLAN if it has one.
 *
 * One for all workers: what one learns the others know at once. Look-ups take no lock and never
 * wait; whoever changes an entry takes a mutex. Entries are put by somebody (static) or learned
 * from frames. Learned ones age and are bounded, in all and for each peer, so that a peer that
 * floods us with MACs fills its own share; static ones are never overwritten by what is learned.
 *
 * Times are monotonic seconds, and come from the caller.
 */
#ifndef TUNNEL_FDB_H
#define TUNNEL_FDB_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "bytes.h"
#include "vxlan.h"

enum {
    FDB_NONE = 0xffff,        /* no peer */
    FDB_STATIC_MAX = 1 << 16, /* static entries */
    FDB_LIMIT_MAX = 1 << 20,
};

struct fdb;

struct fdb_limits {
    uint32_t learned; /* entries in all */
    uint32_t share;   /* of which from one peer */
    uint32_t ageing;  /* seconds after which an entry that was not seen again is none */
};

struct fdb_entry {
    uint8_t mac[MAC_SIZE];
    uint16_t vlan;  /* 0 for none */
    uint16_t index; /* of the peer */
    bool fixed;     /* static */
    uint32_t age;   /* seconds since it was seen, 0 of a static one */
};

struct fdb_counters {
    uint64_t learned;      /* entries made by learning, ever */
    uint64_t moved;        /* entries that went to another peer */
    uint64_t aged;         /* entries forgotten for their age */
    uint64_t refused_full; /* frames whose source was not learned: no room for more */
};

static inline uint64_t fdb_key(const uint8_t *mac, uint16_t vlan)
{
    return (uint64_t)get32(mac) << 32 | (uint64_t)get16(mac + 4) << 16 | vlan;
}

/* `seed` makes the places of entries hard to guess. NULL if memory ran out. */
struct fdb *fdb_new(struct fdb_limits limits, uint64_t seed);

void fdb_free(struct fdb *fdb);

/* The peer that a key is behind, or FDB_NONE. */
uint16_t fdb_lookup(const struct fdb *fdb, uint64_t key, uint32_t now);

/* Takes note of a frame's source. Group addresses and zero are never learned. */
void fdb_learn(struct fdb *fdb, uint64_t key, uint16_t index, uint32_t now);

/* Puts a static entry, over a learned one or another static one as well. Returns false if there
 * are FDB_STATIC_MAX already. */
bool fdb_put(struct fdb *fdb, uint64_t key, uint16_t index);

/* Removes an entry of either kind. Returns whether there was one. */
bool fdb_remove(struct fdb *fdb, uint64_t key);

/* Removes the entries of one peer, or of all (FDB_NONE); static ones too unless `learned_only`. */
void fdb_flush(struct fdb *fdb, uint16_t index, bool learned_only);

/* Copies up to `room` entries that hold at `now`; returns how many there were to copy. */
size_t fdb_entries(struct fdb *fdb, struct fdb_entry *out, size_t room, uint32_t now);

struct fdb_counters fdb_counters(struct fdb *fdb);

#endif
