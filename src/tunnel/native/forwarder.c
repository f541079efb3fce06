#include "forwarder.h"

#include <sys/mman.h>
#include <time.h>

void bridge_tick(struct bridge *bridge)
{
    struct timespec now;
    if (!bridge->fdb)
        return;
    clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
    bridge->now = (uint32_t)now.tv_sec;
    bridge->now_ns = (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

struct forwarder *forwarder_new(void)
{
    /* Not calloc: after a free() of this size malloc reuses the memory, and calloc clears it. */
    struct forwarder *forwarder = mmap(NULL, sizeof *forwarder, PROT_READ | PROT_WRITE,
                                       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (forwarder == MAP_FAILED)
        return NULL;
    forwarder->routes = route_table_new(NULL, 0);
    if (!forwarder->routes || !priority_lock_init(&forwarder->lock)) {
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
    priority_lock_destroy(&forwarder->lock);
    peers_free(&forwarder->peers);
    route_table_free(forwarder->routes);
    neighbour_table_free(forwarder->neighbours);
    munmap(forwarder, sizeof *forwarder);
}
