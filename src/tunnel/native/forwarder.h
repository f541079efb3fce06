/*
 * The forwarder: one device, the sockets, and the tables between them.
 *
 *   outbound   read device -> split -> look up route -> put headers -> send trains
 *   inbound    receive trains -> parse -> check source -> coalesce -> write device
 *
 * With a TAP device frames take the same paths. The FDB replaces the routes, unknown destinations
 * are flooded, and the Ethernet header stays with the packets that are split and coalesced.
 *
 * This file has the state of one worker, which borrows its descriptors. Packets that cannot be
 * forwarded are counted, never reported; an error return means that a descriptor no longer works.
 *
 *   run.h      both directions, once or in a thread
 *   outbound.h, inbound.h, trace.h      use send.h, which uses this file
 */
#ifndef TUNNEL_FORWARDER_H
#define TUNNEL_FORWARDER_H

#include <stdbool.h>

#include "coalesce.h"
#include "control_queue.h"
#include "decap.h"
#include "device.h"
#include "fdb.h"
#include "icmp.h"
#include "neighbour.h"
#include "peers.h"
#include "priority_lock.h"
#include "route.h"
#include "stats.h"
#include "trains.h"
#include "underlay.h"

enum {
    SOCKETS_MAX = 64,
    SLAB_ROOM = 1 << 16, /* bytes for the headers of the segments of one batch */
};

/* The sockets of one underlay family: the first receives, all send. */
struct underlay {
    struct underlay_socket receiving;
    unsigned count;
    int fds[SOCKETS_MAX];
};

/* State for forwarding frames. */
struct bridge {
    struct fdb *fdb; /* borrowed; NULL in TUN mode, where packets are forwarded by routes */
    bool flood;      /* frames for unknown MACs and for groups go to every peer */
    bool learning;
    uint32_t storm; /* most flooded frames per second to or from a peer, 0 for no limit */
    uint32_t now;   /* monotonic seconds at the start of the batch */
    uint64_t now_ns;
};

struct forwarder {
    struct priority_lock lock; /* low: the thread that moves packets; high: all others */
    bool attention;            /* the control plane has work: see forwarder_move() */
    struct device device;
    struct vtep vtep;
    struct peers peers;
    struct route_table *routes;
    struct bridge bridge;
    struct neighbour_table *neighbours; /* answers ARP and NDP; may be NULL */
    struct underlay underlays[2];       /* IPv4, IPv6 */
    struct icmp_limit icmp;
    struct work work;

    struct device_batch packets;
    struct trains trains;
    size_t slab_used;
    uint8_t slab[SLAB_ROOM];

    unsigned receive_most; /* messages for the next receive call */
    struct coalescer coalescer;
    struct receiver receiver;
    struct control_queue control;
};

/* Reads the clock if frames are forwarded: FDB ageing and the storm limit need it. */
void bridge_tick(struct bridge *bridge);

/* A forwarder without peers and routes, everything else zero; NULL if memory ran out. Its buffers
 * take 5 MiB of address space; a page becomes real memory when a packet first touches it. */
struct forwarder *forwarder_new(void);

void forwarder_free(struct forwarder *forwarder);

#endif
