/*
 * The counters of all peers, added up over the workers.
 *
 * Each worker counts by itself. A reader copies what one worker counts in one pass, because that
 * worker moves no packet meanwhile, and makes use of the sums afterwards.
 */
#ifndef TUNNEL_COUNTER_TABLE_H
#define TUNNEL_COUNTER_TABLE_H

#include <stdbool.h>
#include <stddef.h>

#include "peers.h"

struct counter_row {
    struct counters counters;
    bool used;
    bool trains; /* every worker sends this peer trains */
};

struct counter_table {
    struct counter_row unknown; /* packets of no known peer */
    struct counter_row removed; /* peers that were removed, together */
    struct counter_row *peers;  /* by index */
    size_t count;
};

/* Adds what one worker counted; `trains` says whether that worker sends trains at all. Returns
 * false, with nothing changed, if memory ran out. */
bool counter_table_add(struct counter_table *table, const struct peers *peers, bool trains);

void counter_table_free(struct counter_table *table);

#endif
