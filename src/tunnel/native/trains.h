/*
 * Trains: collects datagrams for the underlay, so that one system call sends many.
 *
 * A train is one UDP_SEGMENT send: datagrams of one size to one peer from one socket, of which the
 * last may be shorter. Trains are sent in the order of their first datagrams, and a datagram joins
 * only the newest train of its peer and socket. A flow keeps its socket, so its order never
 * changes.
 */
#ifndef TUNNEL_TRAINS_H
#define TUNNEL_TRAINS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

enum {
    TRAINS_MAX = 64,
    TRAIN_SEGMENTS_MAX =
        127, /* the kernel takes 128 since 6.9, but counts the UDP header as payload */
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
    bool own;  /* frames that the node itself sends; not counted as traffic */
    bool full; /* its last datagram is shorter, so that none can follow */
    int error; /* errno after the send, or 0 */
};

struct trains {
    unsigned segments; /* most datagrams in a train; 1 turns trains off */
    unsigned count;
    uint8_t newest[64]; /* by peer and socket: 1 + index of the train that can grow, 0 for none */
    struct train at[TRAINS_MAX];
};

/* Which train a datagram belongs to. */
struct ticket {
    uint16_t peer;
    uint8_t socket;
    uint8_t ecn;
    bool alone; /* this peer gets no trains */
    bool own;   /* from the node itself, not from the device */
};

/*
 * Adds a datagram of one or two pieces. Returns false, with nothing changed, if all trains are in
 * use: send them, reset, and call again.
 */
bool trains_add(struct trains *trains, struct ticket ticket, const struct iovec *pieces,
                unsigned count);

/* A position in a train; zero is the first datagram. */
struct train_cursor {
    unsigned piece;
    size_t offset;
};

/* Sets the pieces and bytes of `single` to those of the next datagram; no pieces at the end. */
void train_datagram(const struct train *train, struct train_cursor *cursor, struct train *single);

/* Empties the batch. */
void trains_reset(struct trains *trains);

#endif
