/*
 * The forwarder: one device, the sockets, and the tables between them.
 *
 *   outbound   read device -> split -> look up route -> put headers -> send trains
 *   inbound    receive trains -> parse -> check source -> coalesce -> write device
 *
 * With a TAP device frames go the same ways: the FDB stands in the place of the routes, or a frame
 * goes to every peer, and the Ethernet header goes along with what is split and coalesced.
 *
 * It owns all state of one worker and borrows its descriptors. Packets that cannot be forwarded
 * are counted, never reported; an error return means that a descriptor is of no use any more.
 */
#ifndef TUNNEL_FORWARDER_H
#define TUNNEL_FORWARDER_H

#include <stdbool.h>

#include "coalesce.h"
#include "decap.h"
#include "device.h"
#include "fdb.h"
#include "gate.h"
#include "icmp.h"
#include "inbox.h"
#include "neighbour.h"
#include "peers.h"
#include "route.h"
#include "stats.h"
#include "trains.h"
#include "underlay.h"

enum {
    SOCKETS_MAX = 64,
    SLAB_ROOM = 1 << 16, /* headers of the segments of one batch */
};

/* The sockets of one underlay family: the first receives, all send. */
struct underlay {
    struct underlay_socket receiving;
    unsigned count;
    int fds[SOCKETS_MAX];
};

/* What there is where frames are forwarded. */
struct bridge {
    struct fdb *fdb; /* borrowed; NULL: packets are, by their routes */
    bool flood;      /* frames for nobody known, and for all, go to every peer */
    bool learning;
    uint32_t storm; /* flooded frames a second to or from a peer, 0: any number */
    uint32_t now;   /* of this batch: monotonic seconds */
    uint64_t now_ns;
};

struct forwarder {
    struct gate gate; /* between the thread that moves packets and all others */
    bool news;        /* an offload lost or letters came, since forwarder_move() last said so */
    struct device device;
    struct vtep vtep;
    struct peers peers;
    struct route_table *routes;
    struct bridge bridge;
    struct neighbour_table *neighbours; /* whose MACs we tell who asks, NULL: nobody's */
    struct underlay underlays[2];       /* IPv4, IPv6 */
    struct icmp_limit icmp;
    struct work work;

    struct device_batch packets;
    struct trains trains;
    size_t slab_used;
    uint8_t slab[SLAB_ROOM];

    unsigned receive_most; /* messages for the next receive, by what the last one gave */
    struct coalescer coalescer;
    struct receiver receiver;
    struct inbox inbox;
};

/* Looks at the clock, if there is need of it. */
void bridge_tick(struct bridge *bridge);

/* A forwarder with no peer and no route, all else zero; NULL if memory ran out. Its buffers take
 * 5 MiB of address space, of which only what packets touch is ever made real. */
struct forwarder *forwarder_new(void);

void forwarder_free(struct forwarder *forwarder);

/* Sends a peer a frame of our own when the batch is flushed; dropped, and counted, where that peer
 * has no address. */
void forwarder_say(struct forwarder *forwarder, uint16_t index, const uint8_t *frame,
                   size_t length);

/* Sends every train of the batch. */
void forwarder_flush(struct forwarder *forwarder);

/* Moves up to one budget. Both return what they moved, or -errno. */
int forwarder_outbound(struct forwarder *forwarder);
int forwarder_inbound(struct forwarder *forwarder, struct underlay *underlay);

/*
 * Moves up to one budget each way. Returns 1 when an offload was turned off or letters came since
 * this last said so, else 0, or -errno with the descriptor in trouble in `failed`.
 */
int forwarder_move(struct forwarder *forwarder, int *failed);

/* What would become of a packet from the device. */
struct trace {
    uint16_t peer; /* that gets it, PEER_NONE where nobody does, or everybody */
    bool flooded;  /* everybody does */
    enum drop reason;
    int fd;                 /* of the socket that sends it, -1 where none does */
    const uint8_t *headers; /* VXLAN and Ethernet as they leave, in the packet's memory */
    size_t headers_size;    /* 0 where it is not sent */
};

/*
 * Takes a packet, alone in its memory with DEVICE_GAP bytes before it, the very way that the
 * device's packets go, up to where it would be sent. Nothing is sent or counted, nobody is told.
 */
void forwarder_trace(struct forwarder *forwarder, struct device_packet *read, struct trace *trace);

/*
 * Does that in a thread of its own whenever `watch`, an epoll, is ready, until its member `stop`
 * is, through the gate each time, so that others may use the forwarder meanwhile. Returns 0 when
 * it was stopped, else when and what forwarder_move() did other than 0.
 */
int forwarder_run(struct forwarder *forwarder, int watch, int stop, int *failed);

#endif
