/*
 * Routes: the longest prefix that holds an address, IPv4 and IPv6.
 *
 * A table is built whole from a list and never changed: replacing it is one pointer, a reader
 * never meets half a change, and its nodes lie packed in memory. Building 10,000 prefixes takes
 * about a millisecond.
 *
 * The tree is a multiway trie of 6-bit steps in the manner of Poptrie (Asai and Ohara, SIGCOMM
 * 2015): a node keeps two 64-bit maps instead of 64 pointers, and the bits that all prefixes
 * below have in common are stepped over in one go.
 */
#ifndef TUNNEL_ROUTE_H
#define TUNNEL_ROUTE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { ROUTE_NONE = 0xffff };

struct route {
    uint8_t network[16]; /* IPv4 in the first four bytes, host bits zero */
    uint8_t length;      /* prefix bits */
    uint8_t version;     /* 4 or 6 */
    uint16_t value;      /* not ROUTE_NONE */
};

struct route_table;

/* Whether all bits behind the prefix length are zero. */
bool route_is_canonical(const struct route *route);

/* Builds a table; sorts `routes` in place. Returns NULL if memory ran out. Of two equal
 * prefixes one stays, which one is not said. */
struct route_table *route_table_new(struct route *routes, size_t count);

void route_table_free(struct route_table *table);

/* Whether some route leads to `value`. */
bool route_table_names(const struct route_table *table, uint16_t value);

/* The value of the longest prefix that holds the 4- or 16-byte address, or ROUTE_NONE. */
uint16_t route_lookup(const struct route_table *table, const uint8_t *address, size_t size);

#endif
