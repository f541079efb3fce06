/*
 * Routes: longest-prefix match for IPv4 and IPv6.
 *
 * A table is built from a list and never changed. It is replaced by one pointer, so a reader never
 * sees half of a change, and its nodes are contiguous in memory. Building 10,000 prefixes takes
 * about a millisecond.
 *
 * The tree is a multiway trie of 6-bit steps like Poptrie (Asai and Ohara, SIGCOMM 2015): a node
 * has two 64-bit maps instead of 64 pointers, and bits that all prefixes below share are skipped at
 * once.
 */
#ifndef TUNNEL_ROUTE_H
#define TUNNEL_ROUTE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { ROUTE_NONE = 0xffff };

struct route {
    uint8_t network[16]; /* IPv4 in the first four bytes; host bits are zero */
    uint8_t length;      /* prefix bits */
    uint8_t version;     /* 4 or 6 */
    uint16_t value;      /* not ROUTE_NONE */
};

struct route_table;

/* Whether all bits after the prefix length are zero. */
bool route_is_canonical(const struct route *route);

/* Builds a table, and sorts `routes` in place. Returns NULL if memory ran out. Of two equal
 * prefixes either is used. */
struct route_table *route_table_new(struct route *routes, size_t count);

void route_table_free(struct route_table *table);

/* Whether any route has this value. */
bool route_table_names(const struct route_table *table, uint16_t value);

/* The value of the longest prefix that contains the 4- or 16-byte address, or ROUTE_NONE. */
uint16_t route_lookup(const struct route_table *table, const uint8_t *address, size_t size);

#endif
