#include "run.h"

#include <errno.h>
#include <sys/epoll.h>

#include "inbound.h"
#include "outbound.h"

/* By the time a packet is written to the device, the kernel has often answered it (a TCP segment
 * with an ACK, an ACK with the next segments). Reading every descriptor once saves a wake-up more
 * often than it costs an EAGAIN. */
int forwarder_move(struct forwarder *forwarder, int *failed)
{
    *failed = forwarder->device.fd;
    int moved = forwarder_outbound(forwarder);
    for (int family = 0; family < 2 && moved >= 0; family++) {
        struct underlay *underlay = &forwarder->underlays[family];
        if (!underlay->count)
            continue;
        *failed = underlay->receiving.fd;
        moved = forwarder_inbound(forwarder, underlay);
    }
    if (moved < 0)
        return moved;
    bool attention = forwarder->attention;
    forwarder->attention = false;
    return attention;
}

int forwarder_run(struct forwarder *forwarder, int epoll, int stop, int *failed)
{
    int result = 0;
    while (!result) {
        struct epoll_event events[2];
        int ready = epoll_wait(epoll, events, 2, -1);
        if (ready < 0 && errno != EINTR) {
            *failed = epoll;
            return -errno;
        }
        for (int i = 0; i < ready; i++)
            if (events[i].data.fd == stop)
                return 0;
        priority_lock_low(&forwarder->lock);
        result = forwarder_move(forwarder, failed);
        priority_unlock_low(&forwarder->lock);
    }
    return result;
}
