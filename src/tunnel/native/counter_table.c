#include "counter_table.h"

#include <stdlib.h>
#include <string.h>

static bool grow(struct counter_table *table, size_t count)
{
    if (count <= table->count)
        return true;
    struct counter_row *peers = realloc(table->peers, count * sizeof *peers);
    if (!peers)
        return false;
    memset(peers + table->count, 0, (count - table->count) * sizeof *peers);
    table->peers = peers;
    table->count = count;
    return true;
}

static void add(struct counter_row *row, const struct counters *counters)
{
    counters_add(&row->counters, counters);
    if (!row->counters.last_drop)
        row->counters.last_drop = counters->last_drop;
}

bool counter_table_add(struct counter_table *table, const struct peers *peers, bool trains)
{
    if (!grow(table, peers->room))
        return false;
    for (size_t i = 0; i < peers->room; i++) {
        const struct peer *peer = &peers->at[i];
        struct counter_row *row = &table->peers[i];
        if (!peer->used)
            continue;
        add(row, &peer->counters);
        row->trains = trains && peer->trains && (row->trains || !row->used);
        row->used = true;
    }
    add(&table->unknown, &peers->unknown);
    add(&table->removed, &peers->removed);
    return true;
}

void counter_table_free(struct counter_table *table)
{
    free(table->peers);
    *table = (struct counter_table){0};
}
