/*
 * Trains: datagrams for the underlay, gathered so that one system call sends many.
 *
 * A train is one UDP_SEGMENT send: datagrams of one size to one peer from one socket, the last
 * may be shorter. Trains leave in the order in which they began, and a datagram joins only the
 * newest train of its peer and socket, so the order within a flow, which keeps its socket, is
 * never changed.
 */
#ifndef TUNNEL_TRAINS_H
#define TUNNEL_TRAINS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

enum {
    TRAINS_MAX = 64,
    TRAIN_SEGMENTS_MAX = 127, /* the kernel takes 128 since 6.9, but counts the UDP header in */
    TRAIN_BYTES_MAX = 65000,
    DATAGRAM_MAX = 65507, /* UDP over IPv4 */
};

struct train {
    struct iovec pieces[2 * TRAIN_SEGMENTS_MAX];
    uint32_t bytes;
    uint16_t piece_count;
    uint16_t segments;
    uint16_t size; /* of each datagram but the last */
    uint16_t peer;
    uint8_t socket;
    uint8_t ecn;
    bool own;  /* frames of the node's, which are nobody's traffic */
    bool full; /* nothing more may join: its last datagram is a shorter one */
    int error; /* after the send: 0 or the errno */
};

struct trains {
    unsigned segments; /* most in one train; 1: no trains at all */
    unsigned count;
    uint8_t newest[64]; /* by peer and socket: 1 + index of the train that may grow, 0: none */
    struct train at[TRAINS_MAX];
};

/* What a datagram needs to know to find its train. */
struct ticket {
    uint16_t peer;
    uint8_t socket;
    uint8_t ecn;
    bool alone; /* this peer takes no trains */
    bool own;   /* a frame of the node's, not of the device's */
};

/*
 * Adds a datagram of one or two pieces. Returns false, nothing changed, if all trains are taken:
 * send them, reset, and call again.
 */
bool trains_add(struct trains *trains, struct ticket ticket, const struct iovec *pieces,
                unsigned count);

/* A place between two datagrams of a train; zero is before the first. */
struct train_cursor {
    unsigned piece;
    size_t offset;
};

/* Makes `single` hold the train's next datagram alone: its pieces and bytes, none at the end. */
void train_datagram(const struct train *train, struct train_cursor *cursor, struct train *single);

/* Empties the batch. */
void trains_reset(struct trains *trains);

#endif
