#include "peers.h"

#include <stdlib.h>
#include <string.h>

#include "bytes.h"

static uint16_t *bucket_of(const struct peers *peers, const struct address *address)
{
    uint64_t hash = get64(address->bytes) * 0x9e3779b97f4a7c15u;
    hash = (hash ^ hash >> 32 ^ get64(address->bytes + 8)) * 0x9e3779b97f4a7c15u;
    return &peers->buckets[(hash >> 32) & (peers->room - 1)];
}

static void link_to_bucket(struct peers *peers, uint16_t index)
{
    struct peer *peer = &peers->at[index];
    if (!peer->used || !peer->address.size)
        return;
    uint16_t *bucket = bucket_of(peers, &peer->address);
    peer->next = *bucket;
    *bucket = index;
}

static void unlink_from_bucket(struct peers *peers, uint16_t index)
{
    struct peer *peer = &peers->at[index];
    if (!peer->used || !peer->address.size)
        return;
    uint16_t *link = bucket_of(peers, &peer->address);
    while (*link != index)
        link = &peers->at[*link].next;
    *link = peer->next;
}

static bool grow(struct peers *peers, uint16_t index)
{
    size_t room = peers->room ? peers->room : 16;
    while (room <= index)
        room *= 2;
    if (room == peers->room)
        return true;
    uint16_t *buckets = malloc(room * sizeof *buckets);
    struct peer *at = buckets ? realloc(peers->at, room * sizeof *at) : NULL;
    if (!at) {
        free(buckets);
        return false;
    }
    memset(at + peers->room, 0, (room - peers->room) * sizeof *at);
    memset(buckets, 0xff, room * sizeof *buckets);
    free(peers->buckets);
    peers->at = at;
    peers->room = room;
    peers->buckets = buckets;
    for (size_t i = 0; i < room; i++)
        link_to_bucket(peers, (uint16_t)i);
    return true;
}

static void set_target(struct peer *peer, uint16_t port)
{
    memset(&peer->to, 0, sizeof peer->to);
    if (peer->address.size == 4) {
        peer->to.in4.sin_family = AF_INET;
        peer->to.in4.sin_port = htons(port);
        memcpy(&peer->to.in4.sin_addr, peer->address.bytes, 4);
        peer->to_size = sizeof peer->to.in4;
    } else if (peer->address.size == 16) {
        peer->to.in6.sin6_family = AF_INET6;
        peer->to.in6.sin6_port = htons(port);
        memcpy(&peer->to.in6.sin6_addr, peer->address.bytes, 16);
        peer->to_size = sizeof peer->to.in6;
    }
}

bool peers_put(struct peers *peers, uint16_t index, const struct address *address, uint16_t port,
               const uint8_t mac[MAC_SIZE])
{
    if (index == PEER_NONE || !grow(peers, index))
        return false;
    unlink_from_bucket(peers, index);
    struct peer *peer = &peers->at[index];
    if (!peer->used || !address_equal(&peer->address, address)) {
        peer->trains = true;
        peer->mtu = 0;
    }
    peer->used = true;
    peer->address = *address;
    memcpy(peer->mac, mac, MAC_SIZE);
    set_target(peer, port);
    link_to_bucket(peers, index);
    return true;
}

void peers_remove(struct peers *peers, uint16_t index)
{
    struct peer *peer = peers_get(peers, index);
    if (!peer)
        return;
    unlink_from_bucket(peers, index);
    counters_add(&peers->removed, &peer->counters);
    memset(peer, 0, sizeof *peer);
}

struct peer *peers_get(const struct peers *peers, uint16_t index)
{
    return index < peers->room && peers->at[index].used ? &peers->at[index] : NULL;
}

uint16_t peers_find(const struct peers *peers, const struct address *address)
{
    if (!peers->room)
        return PEER_NONE;
    uint16_t index = *bucket_of(peers, address);
    while (index != PEER_NONE && !address_equal(&peers->at[index].address, address))
        index = peers->at[index].next;
    return index;
}

/* The next peer after `index` with the same address. */
static uint16_t next_at(const struct peers *peers, uint16_t index)
{
    const struct address *address = &peers->at[index].address;
    do
        index = peers->at[index].next;
    while (index != PEER_NONE && !address_equal(&peers->at[index].address, address));
    return index;
}

bool peers_are_several(const struct peers *peers, uint16_t index)
{
    return next_at(peers, index) != PEER_NONE;
}

uint16_t peers_find_mac(const struct peers *peers, uint16_t index, const uint8_t *mac)
{
    uint16_t found = index;
    while (found != PEER_NONE && memcmp(peers->at[found].mac, mac, MAC_SIZE) != 0)
        found = next_at(peers, found);
    return found == PEER_NONE ? index : found;
}

void peers_free(struct peers *peers)
{
    free(peers->at);
    free(peers->buckets);
    *peers = (struct peers){0};
}
