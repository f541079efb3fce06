/*
 * The control queue: control frames, ARP and NDP messages from peers, until Python reads them.
 *
 * The queue is bounded, because anyone who can send from a peer's address can fill it. A reserve
 * is left for control frames of addresses that have few messages in it. Zeros at the end of a body
 * take no space: probes are padded with them.
 */
#ifndef TUNNEL_CONTROL_QUEUE_H
#define TUNNEL_CONTROL_QUEUE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "peers.h"

enum {
    CONTROL_QUEUE_MAX = 256,
    CONTROL_QUEUE_NEIGHBOURS_MAX = CONTROL_QUEUE_MAX / 2, /* ARP and NDP fill no more than half */
    CONTROL_QUEUE_BYTES = 1 << 17,
    /* Further messages, and their bytes, for addresses that have no more than that queued. */
    CONTROL_QUEUE_RESERVE = 64,
    CONTROL_QUEUE_RESERVE_BYTES = 1 << 15,
};

struct control_message {
    struct address from;
    uint16_t sender; /* one of the peers at that address */
    uint16_t ethertype;
    uint8_t source[MAC_SIZE]; /* of the frame that held the message */
    uint32_t offset;          /* of the stored part of the body, in the queue's bytes */
    uint32_t stored;          /* bytes */
    uint32_t length;          /* of the body; the bytes that are not stored are zeros at its end */
    /* Messages from this address in the queue, and their stored bytes, this one included. */
    uint32_t count_from;
    uint32_t bytes_from;
};

struct control_queue {
    unsigned count;
    size_t used;
    struct control_message messages[CONTROL_QUEUE_MAX + CONTROL_QUEUE_RESERVE];
    uint8_t bytes[CONTROL_QUEUE_BYTES + CONTROL_QUEUE_RESERVE_BYTES];
};

/* Queues a message: `about` gives all but its place and sizes. Returns false, with nothing changed,
 * if there is no space for it. */
bool control_queue_put(struct control_queue *queue, const struct control_message *about,
                       const uint8_t *body, size_t length);

/* Writes the whole body of a message at `out`. */
void control_queue_copy(const struct control_queue *queue, unsigned index, uint8_t *out);

/* Removes every message. */
void control_queue_clear(struct control_queue *queue);

#endif
