#include "trace.h"

#include "ethernet.h"
#include "outbound.h"

/* The peer that a packet or frame is for, NULL if there is none. */
static struct peer *peer_of(const struct forwarder *forwarder, const struct device_packet *read)
{
    const struct bridge *bridge = &forwarder->bridge;
    struct ethernet header;
    struct ip_packet packet;
    uint16_t index = PEER_NONE;
    if (!bridge->fdb && ip_parse(read->data, read->length, &packet) && !ip_is_multicast(&packet))
        index = route_lookup(forwarder->routes, packet.destination, packet.address_size);
    else if (bridge->fdb && ethernet_parse(read->data, read->length, &header))
        index = fdb_lookup(bridge->fdb, fdb_key(header.destination, header.vlan), bridge->now);
    return peers_get(&forwarder->peers, index);
}

void forwarder_trace(struct forwarder *forwarder, struct device_packet *read, struct trace *trace)
{
    bridge_tick(&forwarder->bridge);
    struct peer *peer = peer_of(forwarder, read);
    struct counters *counters = peer ? &peer->counters : &forwarder->peers.unknown;
    struct trains *trains = &forwarder->trains; /* empty between two moves */

    const struct device device = forwarder->device;
    const struct icmp_limit icmp = forwarder->icmp;
    const struct work work = forwarder->work;
    const struct counters counted = *counters;
    const bool flood = forwarder->bridge.flood;
    forwarder->device.output = -1; /* ICMP errors go nowhere */
    forwarder->bridge.flood = false;
    counters->last_drop = 0;
    outbound_forward(forwarder, read);
    enum drop reason = counters->last_drop ? (enum drop)(counters->last_drop - 1) : DROP_NONE;
    *counters = counted;
    forwarder->bridge.flood = flood;
    forwarder->work = work;
    forwarder->icmp = icmp;
    forwarder->device = device;

    bool none = reason == DROP_no_fdb || reason == DROP_no_flood;
    *trace = (struct trace){
        .peer = peer ? (uint16_t)(peer - forwarder->peers.at) : PEER_NONE,
        .flooded = none && flood,
        .reason = none && flood ? DROP_NONE : reason,
        .fd = -1,
        .headers = read->data,
    };
    if (trains->count) {
        const struct train *train = &trains->at[0];
        trace->fd =
            forwarder->underlays[train->socket / SOCKETS_MAX].fds[train->socket % SOCKETS_MAX];
        trace->headers = train->pieces[0].iov_base;
        trace->headers_size = (size_t)(read->data - trace->headers);
    }
    trains_reset(trains);
    forwarder->slab_used = 0;
}
