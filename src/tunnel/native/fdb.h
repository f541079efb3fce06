/*
 * The FDB (forwarding database): maps a MAC and VLAN to a peer.
 *
 * All workers share one FDB, so an entry that one learns is valid for the others at once. Look-ups
 * take no lock and never wait; changes take a mutex. Entries are static (added by request) or
 * learned from frames. Learned entries age. Their number is limited, in total and for each peer, so
 * that a peer that floods MACs only fills its own share. Learning never replaces a static entry.
 *
 * Times are monotonic seconds and come from the caller.
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
    uint32_t learned; /* learned entries in total */
    uint32_t share;   /* learned entries of one peer */
    uint32_t ageing;  /* seconds after its last frame until a learned entry expires */
};

struct fdb_entry {
    uint8_t mac[MAC_SIZE];
    uint16_t vlan;  /* 0 for no VLAN */
    uint16_t index; /* of the peer */
    bool fixed;     /* static */
    uint32_t age;   /* seconds since its last frame, 0 for a static entry */
};

struct fdb_counters {
    uint64_t learned;      /* entries that were learned */
    uint64_t moved;        /* entries that changed to another peer */
    uint64_t aged;         /* entries that expired */
    uint64_t refused_full; /* frames whose source was not learned because a limit was reached */
};

static inline uint64_t fdb_key(const uint8_t *mac, uint16_t vlan)
{
    return (uint64_t)get32(mac) << 32 | (uint64_t)get16(mac + 4) << 16 | vlan;
}

/* Returns NULL if memory ran out. `seed` makes hash collisions unpredictable. */
struct fdb *fdb_new(struct fdb_limits limits, uint64_t seed);

void fdb_free(struct fdb *fdb);

/* The index of the peer for a key, or FDB_NONE. */
uint16_t fdb_lookup(const struct fdb *fdb, uint64_t key, uint32_t now);

/* Learns the source of a frame. Group addresses and zero are never learned. */
void fdb_learn(struct fdb *fdb, uint64_t key, uint16_t index, uint32_t now);

/* Adds a static entry, or replaces an entry of either kind by one. Returns false if there are
 * FDB_STATIC_MAX. */
bool fdb_put(struct fdb *fdb, uint64_t key, uint16_t index);

/* Removes an entry of either kind. Returns whether there was one. */
bool fdb_remove(struct fdb *fdb, uint64_t key);

/* Removes the entries of one peer, or of all (FDB_NONE); static ones too unless `learned_only`. */
void fdb_flush(struct fdb *fdb, uint16_t index, bool learned_only);

/* Copies up to `room` entries that have not expired at `now`. Returns how many there are. */
size_t fdb_entries(struct fdb *fdb, struct fdb_entry *out, size_t room, uint32_t now);

struct fdb_counters fdb_counters(struct fdb *fdb);

#endif
