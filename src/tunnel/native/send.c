#include "send.h"

#include <errno.h>
#include <string.h>
#include <time.h>

#include "ethernet.h"

enum { LINK_MAX = ETHERNET_HEADER + 2 * VLAN_TAG };

/* ---- ICMP errors ---- */

/* Writes the Ethernet header of a reply, if the packet has one. Returns false if no reply is
 * allowed: the packet was sent to a group, or its source is not a single host (RFC 1122 3.2.2). */
static bool put_reply_link(uint8_t *out, const struct ip_packet *packet)
{
    if (!packet->link)
        return true;
    const uint8_t *link = packet->data - packet->link;
    if (mac_is_group(link) || mac_is_group(link + MAC_SIZE))
        return false;
    memcpy(out, link, packet->link);
    memcpy(out, link + MAC_SIZE, MAC_SIZE);
    memcpy(out + MAC_SIZE, link, MAC_SIZE);
    return true;
}

void send_icmp(struct forwarder *forwarder, const struct ip_packet *packet, size_t available,
               enum icmp_reason reason, uint32_t mtu)
{
    uint8_t message[OFFLOAD_HEADER + LINK_MAX + ICMP_MESSAGE_MAX] = {0};
    uint8_t *frame = message + OFFLOAD_HEADER;
    if (!put_reply_link(frame, packet))
        return;
    size_t length = icmp_error(frame + packet->link, packet, available, reason, mtu);
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    /* Last, so that packets that get no answer use nothing of the rate limit. */
    if (!length ||
        !icmp_allowed(&forwarder->icmp, (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec))
        return;
    const struct iovec pieces[2] = {{message, OFFLOAD_HEADER}, {frame, packet->link + length}};
    if (device_write(&forwarder->device, pieces, 2) == 0)
        forwarder->work.icmp_sent++;
}

/* ---- trains ---- */

static uint64_t inner_bytes(const struct train *train)
{
    return train->bytes - (uint64_t)train->segments * VXLAN_OVERHEAD;
}

static enum drop drop_reason(int error)
{
    switch (error) {
    case EPERM:
    case EACCES:
        return DROP_blocked;
    case ENETUNREACH:
    case EHOSTUNREACH:
    case ENETDOWN:
    case EHOSTDOWN:
    case EADDRNOTAVAIL:
        return DROP_unreachable;
    case EAGAIN:
    case ENOBUFS:
    case ENOMEM:
        return DROP_send_full;
    case EMSGSIZE:
        return DROP_too_big;
    default:
        return DROP_send_failed;
    }
}

static void count_sent(struct forwarder *forwarder, const struct train *train)
{
    struct counters *counters = &forwarder->peers.at[train->peer].counters;
    if (train->error)
        count_drops(counters, drop_reason(train->error), train->segments);
    else if (!train->own)
        count_traffic(&counters->outbound, train->segments, inner_bytes(train));
}

/* Parses the inner packet of a datagram. Its lengths are right, because this program wrote them,
 * but the first piece may hold only part of it. Returns the bytes before the packet, 0 if it is not
 * IP. */
static uint32_t parse_inner(const struct forwarder *forwarder, const struct train *single,
                            struct ip_packet *packet)
{
    uint8_t *frame = (uint8_t *)single->pieces[0].iov_base + VXLAN_HEADER;
    struct ethernet header;
    if (!ethernet_parse(frame, single->bytes - VXLAN_HEADER, &header) || !ethernet_is_ip(&header))
        return 0;
    uint32_t prefix = VXLAN_HEADER + header.size;
    if (!ip_parse(frame + header.size, single->bytes - prefix, packet))
        return 0;
    packet->link = forwarder->device.frames ? header.size : 0;
    return prefix;
}

/*
 * Sends the datagrams of a refused train one by one. Those longer than `limit` that must not be
 * fragmented are dropped, and their senders get an ICMP error. Returns whether any was sent.
 */
static bool send_singly(struct forwarder *forwarder, int fd, const struct train *train,
                        uint32_t limit)
{
    struct train single = {
        .segments = 1, .peer = train->peer, .ecn = train->ecn, .own = train->own};
    struct train *const list[1] = {&single};
    struct ip_packet packet, reported = {0};
    bool sent = false;
    struct train_cursor next = {0};
    for (unsigned i = 0; i < train->segments; i++) {
        train_datagram(train, &next, &single);
        single.error = 0;
        uint32_t prefix = single.bytes > limit ? parse_inner(forwarder, &single, &packet) : 0;
        if (prefix && !send_may_fragment(&packet, packet.length)) {
            single.error = EMSGSIZE;
            if (!reported.data ||
                !ip_same_hosts(&reported, &packet)) /* one error for a super-packet */
                send_icmp(forwarder, &packet, single.pieces[0].iov_len - prefix, ICMP_TOO_BIG,
                          send_reported_mtu(&packet, limit - prefix));
            reported = packet;
        } else {
            underlay_send(fd, list, 1, &forwarder->peers, &forwarder->work);
        }
        count_sent(forwarder, &single);
        sent |= !single.error;
    }
    return sent;
}

/*
 * Handles a train that the kernel refused as a whole.
 *
 * EMSGSIZE (EINVAL before Linux 6.14) means that a datagram is larger than the path MTU: the sender
 * gets an ICMP error, and the peer keeps getting trains. Any other EINVAL, and EIO, mean that this
 * path takes no trains, if it then takes the datagrams one by one.
 */
static void send_refused(struct forwarder *forwarder, int fd, struct train *train)
{
    struct peer *peer = &forwarder->peers.at[train->peer];
    uint32_t outer = UDP_HEADER + (peer->address.size == 4 ? 20 : 40);
    bool no_trains = train->segments > 1 && (train->error == EIO || train->error == EINVAL);
    if (!no_trains && train->error != EMSGSIZE) {
        count_sent(forwarder, train);
        return;
    }
    uint32_t mtu = train->error == EIO ? 0 : underlay_path_mtu(peer);
    bool too_big = mtu > outer + VXLAN_OVERHEAD && train->size > mtu - outer;
    bool sent = send_singly(forwarder, fd, train, too_big ? mtu - outer : DATAGRAM_MAX);
    if (sent && no_trains && !too_big) {
        peer->trains = false;
        forwarder->attention = true;
    }
}

static void send_all(struct forwarder *forwarder, int fd, struct train *const *trains,
                     unsigned count)
{
    while (count) {
        unsigned handled = underlay_send(fd, trains, count, &forwarder->peers, &forwarder->work);
        for (unsigned i = 0; i < handled; i++) {
            if (trains[i]->error)
                send_refused(forwarder, fd, trains[i]);
            else
                count_sent(forwarder, trains[i]);
        }
        trains += handled;
        count -= handled;
    }
}

void send_trains(struct forwarder *forwarder)
{
    struct trains *trains = &forwarder->trains;
    struct train *list[TRAINS_MAX];
    bool done[TRAINS_MAX] = {false};

    for (unsigned first = 0; first < trains->count; first++) {
        if (done[first])
            continue;
        uint8_t socket = trains->at[first].socket;
        int fd = forwarder->underlays[socket / SOCKETS_MAX].fds[socket % SOCKETS_MAX];
        unsigned count = 0;
        for (unsigned i = first; i < trains->count; i++) {
            if (trains->at[i].socket != socket)
                continue;
            list[count++] = &trains->at[i];
            done[i] = true;
        }
        send_all(forwarder, fd, list, count);
    }
    trains_reset(trains);
    forwarder->slab_used = 0;
}

void send_add(struct forwarder *forwarder, struct ticket ticket, const struct iovec *pieces,
              unsigned count)
{
    if (trains_add(&forwarder->trains, ticket, pieces, count))
        return;
    size_t used = forwarder->slab_used; /* keeps the header that `pieces` points to */
    send_trains(forwarder);
    forwarder->slab_used = used;
    trains_add(&forwarder->trains, ticket, pieces, count);
}

uint8_t *send_take_header(struct forwarder *forwarder, size_t size)
{
    size = (size + 7) & ~(size_t)7;
    if (forwarder->slab_used + size > SLAB_ROOM)
        send_trains(forwarder);
    uint8_t *header = forwarder->slab + forwarder->slab_used;
    forwarder->slab_used += size;
    return header;
}

void send_own_frame(struct forwarder *forwarder, uint16_t index, const uint8_t *frame,
                    size_t length)
{
    struct peer *peer = &forwarder->peers.at[index];
    unsigned family = peer->address.size == 16;
    if (!peer->address.size || !forwarder->underlays[family].count) {
        count_drops(&peer->counters, DROP_unresolved, 1);
        return;
    }
    struct ticket ticket = {
        .peer = index,
        .socket = (uint8_t)(family * SOCKETS_MAX),
        .alone = !peer->trains,
        .own = true,
    };
    uint8_t *start = send_take_header(forwarder, VXLAN_HEADER + length);
    vxlan_put_header(start, forwarder->vtep.vni);
    memcpy(start + VXLAN_HEADER, frame, length);
    const struct iovec piece = {start, VXLAN_HEADER + length};
    send_add(forwarder, ticket, &piece, 1);
}
