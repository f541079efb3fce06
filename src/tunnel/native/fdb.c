#include "fdb.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

enum { PEERS = 1 << 16, LOOKUP_TRIES = 4 };

/* The value of a node: USED, FIXED, how often the node was used before (14 bits), the index of the
 * peer (16 bits), and the time of the last frame (32 bits). */
#define USED ((uint64_t)1 << 63)
#define FIXED ((uint64_t)1 << 62)
#define TIMES_USED ((uint64_t)0x3fff << 48)
#define ONE_TIME ((uint64_t)1 << 48)

/*
 * An entry in the chain of its bucket. Readers walk chains while a writer changes them. A removed
 * node keeps its key and its `next`, so that a reader on it still reaches the end of the chain;
 * only its value says that it is unused. Before a node gets another key, its use count is
 * incremented: if a value has the same count before and after the key was read, value and key
 * belong together. A reader that found nothing while any node was reused starts again.
 */
struct node {
    _Atomic uint64_t key;
    _Atomic uint64_t value;
    _Atomic uint32_t next; /* in its bucket, 0 at the end */
    uint32_t free;         /* next unused node */
};

struct fdb {
    struct fdb_limits limits;
    uint64_t seed;
    uint64_t mask; /* buckets - 1 */
    _Atomic uint32_t *buckets;
    struct node *nodes; /* the first is not used */
    _Atomic uint32_t recycled;

    pthread_mutex_t lock; /* guards everything below, and changes of chains */
    uint32_t free;        /* first unused node that was used before, 0 for none */
    uint32_t fresh;       /* first node that was never used */
    uint32_t fixed;       /* number of static entries */
    struct fdb_counters counters;
    _Atomic uint64_t refused_full;
    /* Written under the lock; also read without it, to refuse cheaply. */
    _Atomic uint32_t expired; /* time of the last call of expire() */
    _Atomic uint32_t learned; /* number of learned entries */
    _Atomic uint32_t learned_from[PEERS];
};

static uint64_t load(const _Atomic uint64_t *from)
{
    return atomic_load_explicit(from, memory_order_acquire);
}

static uint32_t load32(const _Atomic uint32_t *from)
{
    return atomic_load_explicit(from, memory_order_acquire);
}

static uint16_t index_of(uint64_t value)
{
    return (uint16_t)(value >> 32);
}

static uint64_t value_of(uint16_t index, uint32_t seen)
{
    return USED | (uint64_t)index << 32 | seen;
}

static bool is_same_use(uint64_t a, uint64_t b)
{
    return !((a ^ b) & TIMES_USED);
}

/* Whether the entry is valid. The clock of another thread may be one second ahead. */
static bool holds(const struct fdb *fdb, uint64_t value, uint32_t now)
{
    if (!(value & USED))
        return false;
    int32_t age = (int32_t)(now - (uint32_t)value);
    return value & FIXED || age < (int32_t)fdb->limits.ageing;
}

static _Atomic uint32_t *bucket_of(const struct fdb *fdb, uint64_t key)
{
    uint64_t hash = (key ^ fdb->seed) * 0x9e3779b97f4a7c15u;
    hash = (hash ^ hash >> 32) * 0x9e3779b97f4a7c15u;
    return &fdb->buckets[hash >> 32 & fdb->mask];
}

/* The node of a key and its value, NULL and 0 if there is none. */
static struct node *find(const struct fdb *fdb, uint64_t key, uint64_t *value)
{
    struct node *node;
    for (uint32_t at = load32(bucket_of(fdb, key)); at; at = load32(&node->next)) {
        node = &fdb->nodes[at];
        if (load(&node->key) != key)
            continue;
        *value = load(&node->value);
        if (load(&node->key) == key && *value & USED && is_same_use(*value, load(&node->value)))
            return node;
    }
    *value = 0;
    return NULL;
}

uint16_t fdb_lookup(const struct fdb *fdb, uint64_t key, uint32_t now)
{
    uint32_t before, after = load32(&fdb->recycled);
    uint64_t value;
    int tries = 0;
    do {
        before = after;
        if (find(fdb, key, &value))
            return holds(fdb, value, now) ? index_of(value) : FDB_NONE;
        after = load32(&fdb->recycled);
    } while (before != after && ++tries < LOOKUP_TRIES);
    return FDB_NONE; /* does not wait: a frame for an unknown MAC can be flooded */
}

/* ---- changes, with the lock held ---- */

static void count_one(struct fdb *fdb, uint64_t value, uint32_t more)
{
    if (value & FIXED) {
        fdb->fixed += more;
        return;
    }
    atomic_fetch_add_explicit(&fdb->learned, more, memory_order_relaxed);
    atomic_fetch_add_explicit(&fdb->learned_from[index_of(value)], more, memory_order_relaxed);
}

/* Changes a value, but not its use count. */
static void set_value(struct fdb *fdb, struct node *node, uint64_t value)
{
    uint64_t before = load(&node->value);
    if (before & USED)
        count_one(fdb, before, (uint32_t)-1);
    if (value & USED)
        count_one(fdb, value, 1);
    /* A thread without the lock may have refreshed the time: losing that does no harm. */
    atomic_store_explicit(&node->value, (before & TIMES_USED) | value, memory_order_release);
}

static void insert(struct fdb *fdb, uint64_t key, uint64_t value)
{
    uint32_t at = fdb->free;
    if (at) {
        fdb->free = fdb->nodes[at].free;
        atomic_fetch_add_explicit(&fdb->recycled, 1, memory_order_relaxed);
    } else {
        at = fdb->fresh++;
    }
    struct node *node = &fdb->nodes[at];
    uint64_t times = (load(&node->value) + ONE_TIME) & TIMES_USED;
    _Atomic uint32_t *bucket = bucket_of(fdb, key);
    atomic_store_explicit(&node->value, times, memory_order_relaxed);
    atomic_store_explicit(&node->key, key, memory_order_release);
    atomic_store_explicit(&node->next, load32(bucket), memory_order_release);
    set_value(fdb, node, value);
    atomic_store_explicit(bucket, at, memory_order_release);
}

static void remove_node(struct fdb *fdb, struct node *node)
{
    uint32_t at = (uint32_t)(node - fdb->nodes);
    _Atomic uint32_t *link = bucket_of(fdb, load(&node->key));
    while (load32(link) != at)
        link = &fdb->nodes[load32(link)].next;
    atomic_store_explicit(link, load32(&node->next), memory_order_release);
    set_value(fdb, node, 0);
    node->free = fdb->free;
    fdb->free = at;
}

/* Removes expired entries, at most once per second. */
static void expire(struct fdb *fdb, uint32_t now)
{
    if (load32(&fdb->expired) == now)
        return;
    atomic_store_explicit(&fdb->expired, now, memory_order_relaxed);
    for (uint32_t at = 1; at < fdb->fresh; at++) {
        struct node *node = &fdb->nodes[at];
        uint64_t value = load(&node->value);
        if (value & USED && !holds(fdb, value, now)) {
            remove_node(fdb, node);
            fdb->counters.aged++;
        }
    }
}

/* ---- learning ---- */

static bool is_full(const struct fdb *fdb, uint16_t index)
{
    return load32(&fdb->learned) >= fdb->limits.learned ||
           load32(&fdb->learned_from[index]) >= fdb->limits.share;
}

static void learn_locked(struct fdb *fdb, uint64_t key, uint16_t index, uint32_t now)
{
    uint64_t before;
    struct node *node = find(fdb, key, &before);
    if (before & FIXED)
        return;
    if (node && index_of(before) == index) { /* another worker has learned it */
        set_value(fdb, node, value_of(index, now));
        return;
    }
    if (is_full(fdb, index)) {
        expire(fdb, now);
        node = find(fdb, key, &before); /* it may have expired */
    }
    /* An entry that moves only counts against the share of its new peer. */
    bool room = node ? load32(&fdb->learned_from[index]) < fdb->limits.share : !is_full(fdb, index);
    if (!room) {
        atomic_fetch_add_explicit(&fdb->refused_full, 1, memory_order_relaxed);
    } else if (node) {
        fdb->counters.moved += holds(fdb, before, now);
        set_value(fdb, node, value_of(index, now));
    } else {
        fdb->counters.learned++;
        insert(fdb, key, value_of(index, now));
    }
}

void fdb_learn(struct fdb *fdb, uint64_t key, uint16_t index, uint32_t now)
{
    if (key >> 56 & 1 || !(key >> 16))
        return;
    uint64_t value;
    struct node *node = find(fdb, key, &value);
    if (value & FIXED)
        return;
    if (node && index_of(value) == index) {
        uint64_t seen = (value & ~(uint64_t)UINT32_MAX) | now;
        /* Another thread that changes it now is as recent: do not retry. */
        if (seen != value)
            atomic_compare_exchange_strong_explicit(&node->value, &value, seen,
                                                    memory_order_release, memory_order_relaxed);
        return;
    }
    if (!node && is_full(fdb, index) && load32(&fdb->expired) == now) {
        atomic_fetch_add_explicit(&fdb->refused_full, 1, memory_order_relaxed);
        return; /* a flood of sources takes no lock */
    }
    pthread_mutex_lock(&fdb->lock);
    learn_locked(fdb, key, index, now);
    pthread_mutex_unlock(&fdb->lock);
}

/* ---- requests ---- */

bool fdb_put(struct fdb *fdb, uint64_t key, uint16_t index)
{
    uint64_t value = value_of(index, 0) | FIXED, before;
    pthread_mutex_lock(&fdb->lock);
    struct node *node = find(fdb, key, &before);
    bool room = fdb->fixed < FDB_STATIC_MAX || before & FIXED;
    if (room && node)
        set_value(fdb, node, value);
    else if (room)
        insert(fdb, key, value);
    pthread_mutex_unlock(&fdb->lock);
    return room;
}

bool fdb_remove(struct fdb *fdb, uint64_t key)
{
    uint64_t value;
    pthread_mutex_lock(&fdb->lock);
    struct node *node = find(fdb, key, &value);
    if (node)
        remove_node(fdb, node);
    pthread_mutex_unlock(&fdb->lock);
    return node;
}

void fdb_flush(struct fdb *fdb, uint16_t index, bool learned_only)
{
    pthread_mutex_lock(&fdb->lock);
    for (uint32_t at = 1; at < fdb->fresh; at++) {
        struct node *node = &fdb->nodes[at];
        uint64_t value = load(&node->value);
        if (value & USED && (index == FDB_NONE || index_of(value) == index) &&
            !(learned_only && value & FIXED))
            remove_node(fdb, node);
    }
    pthread_mutex_unlock(&fdb->lock);
}

static struct fdb_entry entry_of(const struct node *node, uint64_t value, uint32_t now)
{
    uint64_t key = load(&node->key);
    int32_t age = value & FIXED ? 0 : (int32_t)(now - (uint32_t)value);
    struct fdb_entry entry = {
        .vlan = (uint16_t)key,
        .index = index_of(value),
        .fixed = value & FIXED,
        .age = age > 0 ? (uint32_t)age : 0,
    };
    put32(entry.mac, (uint32_t)(key >> 32));
    put16(entry.mac + 4, (uint16_t)(key >> 16));
    return entry;
}

size_t fdb_entries(struct fdb *fdb, struct fdb_entry *out, size_t room, uint32_t now)
{
    size_t count = 0;
    pthread_mutex_lock(&fdb->lock);
    for (uint32_t at = 1; at < fdb->fresh; at++) {
        uint64_t value = load(&fdb->nodes[at].value);
        if (!holds(fdb, value, now))
            continue;
        if (count < room)
            out[count] = entry_of(&fdb->nodes[at], value, now);
        count++;
    }
    pthread_mutex_unlock(&fdb->lock);
    return count;
}

struct fdb_counters fdb_counters(struct fdb *fdb)
{
    pthread_mutex_lock(&fdb->lock);
    struct fdb_counters counters = fdb->counters;
    pthread_mutex_unlock(&fdb->lock);
    counters.refused_full = load(&fdb->refused_full);
    return counters;
}

struct fdb *fdb_new(struct fdb_limits limits, uint64_t seed)
{
    size_t nodes = (size_t)limits.learned + FDB_STATIC_MAX + 1, buckets = 1;
    while (buckets < nodes)
        buckets *= 2;
    /* calloc: untouched pages of zeros take no real memory. */
    struct fdb *fdb = calloc(1, sizeof *fdb);
    if (!fdb)
        return NULL;
    fdb->limits = limits;
    fdb->seed = seed;
    fdb->mask = buckets - 1;
    fdb->fresh = 1;
    fdb->buckets = calloc(buckets, sizeof *fdb->buckets);
    fdb->nodes = calloc(nodes, sizeof *fdb->nodes);
    if (!fdb->buckets || !fdb->nodes || pthread_mutex_init(&fdb->lock, NULL)) {
        free(fdb->buckets);
        free(fdb->nodes);
        free(fdb);
        return NULL;
    }
    return fdb;
}

void fdb_free(struct fdb *fdb)
{
    if (!fdb)
        return;
    pthread_mutex_destroy(&fdb->lock);
    free(fdb->buckets);
    free(fdb->nodes);
    free(fdb);
}
