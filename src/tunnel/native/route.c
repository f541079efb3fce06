#include "route.h"

#include <stdlib.h>
#include <string.h>

#include "bytes.h"

enum { STEP = 6, SLOTS = 1 << STEP };

/* The first two steps are one look-up. Without it, 10,000 prefixes cost three times as much as 10.
 */
enum { JUMP = 2 * STEP, JUMPS = 1 << JUMP };

/* The result of a step: the index of a node, or a value with LEAF set. */
enum { LEAF = 1 << 30 };

/* An address as a number; its first bit is the highest. */
struct bits {
    uint64_t high;
    uint64_t low;
};

struct node {
    struct bits shared; /* the first `depth` bits of every prefix below */
    uint64_t children;  /* slots that have a node */
    uint64_t changes;   /* slots where the value differs from the slot before */
    uint32_t first_child;
    uint32_t first_value;
    uint16_t inherited; /* value for an address that differs in the shared bits */
    uint8_t depth;
};

struct route_table {
    struct node *nodes; /* 0: root of IPv4, 1: root of IPv6 */
    uint16_t *values;
    uint32_t node_count, node_room;
    uint32_t value_count, value_room;
    uint32_t jumps[2][JUMPS];
};

static struct bits load_bits(const uint8_t *address, size_t size)
{
    if (size == 4)
        return (struct bits){.high = (uint64_t)get32(address) << 32};
    return (struct bits){.high = get64(address), .low = get64(address + 8)};
}

/* Whether the first `count` bits are equal. */
static bool same_prefix(struct bits a, struct bits b, unsigned count)
{
    uint64_t high = a.high ^ b.high, low = a.low ^ b.low;
    if (count == 0)
        return true;
    if (count <= 64)
        return high >> (64 - count) == 0;
    return high == 0 && low >> (128 - count) == 0;
}

/* The `count` bits from bit `depth` on; bits after the last are zero. */
static unsigned bits_at(struct bits bits, unsigned depth, unsigned count)
{
    if (depth >= 64)
        return (unsigned)((bits.low << (depth - 64)) >> (64 - count));
    uint64_t window = bits.high << depth;
    if (depth)
        window |= bits.low >> (64 - depth);
    return (unsigned)(window >> (64 - count));
}

static unsigned shared_bits(struct bits a, struct bits b)
{
    if (a.high != b.high)
        return (unsigned)__builtin_clzll(a.high ^ b.high);
    return a.low != b.low ? 64 + (unsigned)__builtin_clzll(a.low ^ b.low) : 128;
}

static uint32_t follow(const struct route_table *table, const struct node *node, unsigned slot)
{
    uint64_t up_to = ~0ull >> (63 - slot);
    if (node->children >> slot & 1)
        return node->first_child + (uint32_t)__builtin_popcountll(node->children & up_to) - 1;
    uint32_t rank = (uint32_t)__builtin_popcountll(node->changes & up_to) - 1;
    return LEAF | table->values[node->first_value + rank];
}

uint16_t route_lookup(const struct route_table *table, const uint8_t *address, size_t size)
{
    struct bits bits = load_bits(address, size);
    unsigned family = size != 4;
    const struct node *node = &table->nodes[family];
    if (!same_prefix(bits, node->shared, node->depth))
        return node->inherited;
    uint32_t next = table->jumps[family][bits_at(bits, node->depth, JUMP)];
    while (!(next & LEAF)) {
        node = &table->nodes[next];
        if (!same_prefix(bits, node->shared, node->depth))
            return node->inherited;
        next = follow(table, node, bits_at(bits, node->depth, STEP));
    }
    return (uint16_t)next;
}

bool route_table_names(const struct route_table *table, uint16_t value)
{
    for (uint32_t i = 0; i < table->value_count; i++)
        if (table->values[i] == value)
            return true;
    return false;
}

bool route_is_canonical(const struct route *route)
{
    for (unsigned bit = route->length; bit < 128; bit++)
        if (route->network[bit / 8] >> (7 - bit % 8) & 1)
            return false;
    return true;
}

/* ---- building ---- */

static int compare(const void *left, const void *right)
{
    const struct route *a = left, *b = right;
    int order = a->version - b->version;
    if (!order)
        order = memcmp(a->network, b->network, sizeof a->network);
    return order ? order : a->length - b->length;
}

static bool reserve_nodes(struct route_table *table, uint32_t more)
{
    uint32_t room = table->node_room;
    while (room < table->node_count + more)
        room = room ? room * 2 : 16;
    struct node *nodes = realloc(table->nodes, room * sizeof *nodes);
    if (!nodes)
        return false;
    table->nodes = nodes;
    table->node_room = room;
    return true;
}

static bool push_value(struct route_table *table, uint16_t value)
{
    if (table->value_count == table->value_room) {
        uint32_t room = table->value_room ? table->value_room * 2 : 64;
        uint16_t *values = realloc(table->values, room * sizeof *values);
        if (!values)
            return false;
        table->values = values;
        table->value_room = room;
    }
    table->values[table->value_count++] = value;
    return true;
}

/* The depth at which the routes of a node diverge: the first bit in which two of them differ, or
 * the last bit of the shortest, whichever is first. */
static unsigned parting_depth(const struct route *routes, size_t count)
{
    struct bits first = load_bits(routes[0].network, 16);
    unsigned depth = shared_bits(first, load_bits(routes[count - 1].network, 16));
    for (size_t i = 0; i < count; i++)
        if (routes[i].length < depth + 1u)
            depth = routes[i].length ? routes[i].length - 1u : 0;
    return depth;
}

/*
 * Fills nodes[index] with sorted `routes`, which share at least their first `depth` bits.
 * `inherited` is the value of the longest prefix above. Children are allocated side by side before
 * they are filled, so that the rank of a slot is the index of its child. The recursion is at most
 * 22 levels deep.
 */
static bool build(struct route_table *table, uint32_t index, const struct route *routes,
                  size_t count, unsigned depth, uint16_t inherited)
{
    if (count) {
        unsigned parting = parting_depth(routes, count);
        depth = parting > depth ? parting : depth;
    }
    uint16_t value[SLOTS];
    size_t start[SLOTS + 1]; /* first route of slot s that goes deeper */
    size_t deeper[SLOTS] = {0};
    struct node node = {.depth = (uint8_t)depth, .inherited = inherited};

    for (unsigned slot = 0; slot < SLOTS; slot++)
        value[slot] = inherited;
    for (size_t i = 0; i < count; i++) {
        struct bits bits = load_bits(routes[i].network, 16);
        unsigned slot = bits_at(bits, depth, STEP);
        if (routes[i].length > depth + STEP) {
            if (!deeper[slot]++)
                start[slot] = i;
            node.children |= 1ull << slot;
            continue;
        }
        /* In sorted order a longer prefix follows, and overwrites slots of a shorter one. */
        unsigned span = 1u << (depth + STEP - routes[i].length);
        for (unsigned s = slot; s < slot + span; s++)
            value[s] = routes[i].value;
    }
    if (count)
        node.shared = load_bits(routes[0].network, 16);

    node.first_value = table->value_count;
    for (unsigned slot = 0; slot < SLOTS; slot++) {
        if (slot && value[slot] == value[slot - 1])
            continue;
        node.changes |= 1ull << slot;
        if (!push_value(table, value[slot]))
            return false;
    }
    uint32_t children = (uint32_t)__builtin_popcountll(node.children);
    if (!reserve_nodes(table, children))
        return false;
    node.first_child = table->node_count;
    table->node_count += children;
    table->nodes[index] = node;

    uint32_t child = node.first_child;
    for (unsigned slot = 0; slot < SLOTS; slot++) {
        if (!deeper[slot])
            continue;
        if (!build(table, child++, routes + start[slot], deeper[slot], depth + STEP, value[slot]))
            return false;
    }
    return true;
}

static void fill_jumps(struct route_table *table, unsigned family)
{
    const struct node *root = &table->nodes[family];
    for (unsigned slot = 0; slot < JUMPS; slot++) {
        uint32_t next = follow(table, root, slot >> STEP);
        /* A deeper child first compares further shared bits. */
        if (!(next & LEAF) && table->nodes[next].depth == root->depth + STEP)
            next = follow(table, &table->nodes[next], slot & (SLOTS - 1));
        table->jumps[family][slot] = next;
    }
}

struct route_table *route_table_new(struct route *routes, size_t count)
{
    struct route_table *table = calloc(1, sizeof *table);
    if (!table)
        return NULL;
    if (count)
        qsort(routes, count, sizeof *routes, compare);
    size_t four = 0;
    while (four < count && routes[four].version == 4)
        four++;
    const struct route *six = count ? routes + four : routes; /* NULL + 0 is not C */
    if (reserve_nodes(table, 2)) {
        table->node_count = 2;
        if (build(table, 0, routes, four, 0, ROUTE_NONE) &&
            build(table, 1, six, count - four, 0, ROUTE_NONE)) {
            fill_jumps(table, 0);
            fill_jumps(table, 1);
            return table;
        }
    }
    route_table_free(table);
    return NULL;
}

void route_table_free(struct route_table *table)
{
    if (!table)
        return;
    free(table->nodes);
    free(table->values);
    free(table);
}
