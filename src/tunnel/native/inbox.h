/*
 * The inbox: control frames, ARP and NDP from peers, kept until Python takes them.
 *
 * Bounded, because anybody who can send from a peer's address can fill it, but for a reserve that
 * is there for control frames of those who have few letters in it. Zeros at a letter's end take no
 * room: that is how probes are padded.
 */
#ifndef TUNNEL_INBOX_H
#define TUNNEL_INBOX_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "peers.h"

enum {
    INBOX_LETTERS = 256,
    INBOX_COPIES = INBOX_LETTERS / 2, /* what is no control frame leaves room for those */
    INBOX_ROOM = 1 << 17,
    INBOX_RESERVE = 64, /* letters more, and bytes, for who has no more than that */
    INBOX_RESERVE_ROOM = 1 << 15,
};

struct letter {
    struct address from;
    uint16_t sender; /* some peer with that address */
    uint16_t ethertype;
    uint8_t source[MAC_SIZE]; /* of the frame it came in */
    uint32_t offset;          /* of what was kept of the body, in the inbox's room */
    uint32_t kept;
    uint32_t length;         /* of the body; zeros are missing at its end */
    uint32_t letters, bytes; /* from this address, up to this one */
};

struct inbox {
    unsigned count;
    size_t used;
    struct letter letters[INBOX_LETTERS + INBOX_RESERVE];
    uint8_t room[INBOX_ROOM + INBOX_RESERVE_ROOM];
};

/* Copies a letter in, all but its place and sizes as `about` has it. Returns false, nothing
 * changed, if there is no room for it. */
bool inbox_put(struct inbox *inbox, const struct letter *about, const uint8_t *body, size_t length);

/* Writes a letter's body, all of it, at `out`. */
void inbox_copy(const struct inbox *inbox, unsigned index, uint8_t *out);

/* Empties it. */
void inbox_clear(struct inbox *inbox);

#endif
