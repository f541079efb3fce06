#include "forwarder.h"

#include <errno.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <time.h>

/* What came in has often made the kernel answer by the time it is written (a TCP segment its ACK,
 * an ACK the next segments), so one look at every descriptor saves a wake-up more often than it
 * costs an EAGAIN. */
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
    bool news = forwarder->news;
    forwarder->news = false;
    return news;
}

int forwarder_run(struct forwarder *forwarder, int watch, int stop, int *failed)
{
    int result = 0;
    while (!result) {
        struct epoll_event events[2];
        int ready = epoll_wait(watch, events, 2, -1);
        if (ready < 0 && errno != EINTR) {
            *failed = watch;
            return -errno;
        }
        for (int i = 0; i < ready; i++)
            if (events[i].data.fd == stop)
                return 0;
        gate_begin(&forwarder->gate);
        result = forwarder_move(forwarder, failed);
        gate_end(&forwarder->gate);
    }
    return result;
}

/* A millisecond more or less is nothing to what asks here. */
void bridge_tick(struct bridge *bridge)
{
    struct timespec now;
    if (!bridge->fdb)
        return;
    clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
    bridge->now = (uint32_t)now.tv_sec;
    bridge->now_ns = (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* ---- life ---- */

struct forwarder *forwarder_new(void)
{
    /* Not calloc: once it has freed something as large it keeps such memory, and must clear it. */
    struct forwarder *forwarder = mmap(NULL, sizeof *forwarder, PROT_READ | PROT_WRITE,
                                       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (forwarder == MAP_FAILED)
        return NULL;
    forwarder->routes = route_table_new(NULL, 0);
    if (!forwarder->routes || !gate_open(&forwarder->gate)) {
        route_table_free(forwarder->routes);
        munmap(forwarder, sizeof *forwarder);
        return NULL;
    }
    forwarder->receive_most = RECEIVE_BATCH;
    return forwarder;
}

void forwarder_free(struct forwarder *forwarder)
{
    if (!forwarder)
        return;
    gate_close(&forwarder->gate);
    peers_free(&forwarder->peers);
    route_table_free(forwarder->routes);
    neighbour_table_free(forwarder->neighbours);
    munmap(forwarder, sizeof *forwarder);
}
