#include "trains.h"

#include <string.h>

static bool can_join(const struct trains *trains, const struct train *train, struct ticket ticket,
                     size_t bytes)
{
    return !train->full && !ticket.alone && train->peer == ticket.peer &&
           train->socket == ticket.socket && train->ecn == ticket.ecn && train->own == ticket.own &&
           bytes <= train->size && train->segments < trains->segments &&
           train->bytes + bytes <= TRAIN_BYTES_MAX;
}

static struct train *begin(struct trains *trains, struct ticket ticket, size_t bytes)
{
    if (trains->count == TRAINS_MAX)
        return NULL;
    struct train *train = &trains->at[trains->count++];
    train->bytes = 0;
    train->piece_count = train->segments = 0;
    train->size = (uint16_t)bytes;
    train->peer = ticket.peer;
    train->socket = ticket.socket;
    train->ecn = ticket.ecn;
    train->own = ticket.own;
    train->full = false;
    train->error = 0;
    return train;
}

/* Merges a piece that follows the last one in memory: the kernel copies few long pieces faster than
 * many short ones. */
static void append(struct train *train, const struct iovec *piece)
{
    if (train->piece_count) {
        struct iovec *last = &train->pieces[train->piece_count - 1];
        if ((uint8_t *)last->iov_base + last->iov_len == piece->iov_base) {
            last->iov_len += piece->iov_len;
            return;
        }
    }
    train->pieces[train->piece_count++] = *piece;
}

bool trains_add(struct trains *trains, struct ticket ticket, const struct iovec *pieces,
                unsigned count)
{
    size_t bytes = 0;
    for (unsigned i = 0; i < count; i++)
        bytes += pieces[i].iov_len;

    unsigned key = (ticket.peer * 31u + ticket.socket) % sizeof trains->newest;
    uint8_t *newest = &trains->newest[key];
    struct train *train = *newest ? &trains->at[*newest - 1] : NULL;
    if (!train || !can_join(trains, train, ticket, bytes)) {
        train = begin(trains, ticket, bytes);
        if (!train)
            return false;
        *newest = (uint8_t)trains->count;
    }
    for (unsigned i = 0; i < count; i++)
        append(train, &pieces[i]);
    train->bytes += (uint32_t)bytes;
    train->segments++;
    train->full = bytes < train->size;
    return true;
}

void trains_reset(struct trains *trains)
{
    trains->count = 0;
    memset(trains->newest, 0, sizeof trains->newest);
}

void train_datagram(const struct train *train, struct train_cursor *cursor, struct train *single)
{
    single->bytes = single->piece_count = 0;
    while (single->bytes < train->size && cursor->piece < train->piece_count) {
        const struct iovec *piece = &train->pieces[cursor->piece];
        size_t left = piece->iov_len - cursor->offset, wanted = train->size - single->bytes;
        size_t taken = left < wanted ? left : wanted;
        single->pieces[single->piece_count++] = (struct iovec){
            (uint8_t *)piece->iov_base + cursor->offset, taken};
        single->bytes += (uint32_t)taken;
        cursor->offset = taken < left ? cursor->offset + taken : 0;
        cursor->piece += taken == left;
    }
}
