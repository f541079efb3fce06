/* Outbound: device to peers. */
#include "forwarder.h"

#include <errno.h>
#include <string.h>
#include <time.h>

#include "ethernet.h"
#include "split.h"
#include "storm.h"

enum {
    OUTBOUND_BUDGET = 4, /* batches for one wake-up */
    LINK_MAX = ETHERNET_HEADER + 2 * VLAN_TAG,
    PREFIX_ROOM = 32, /* VXLAN and Ethernet headers with tags are shorter, all headers longer */
};

/* The Ethernet header of an answer to a packet, if it came with one. False where none may be given:
 * to what was sent to all, or from no single host (RFC 1122 3.2.2). */
static bool put_link_back(uint8_t *out, const struct ip_packet *packet)
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

static void tell_sender(struct forwarder *forwarder, const struct ip_packet *packet,
                        size_t available, enum icmp_reason reason, uint32_t mtu)
{
    uint8_t message[OFFLOAD_HEADER + LINK_MAX + ICMP_MESSAGE_MAX] = {0};
    uint8_t *frame = message + OFFLOAD_HEADER;
    if (!put_link_back(frame, packet))
        return;
    size_t length = icmp_error(frame + packet->link, packet, available, reason, mtu);
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    /* Asked last: what is not to be answered takes no share of what others get. */
    if (!length ||
        !icmp_allowed(&forwarder->icmp, (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec))
        return;
    const struct iovec pieces[2] = {{message, OFFLOAD_HEADER}, {frame, packet->link + length}};
    if (device_write(&forwarder->device, pieces, 2) == 0)
        forwarder->work.icmp_sent++;
}

/* Whether the underlay has to fragment a packet of this length: its sender allows it, or would not
 * send less however small the MTU is that he is told (RFC 8200, 5), or cannot be told: not IP. */
static bool may_fragment(const struct ip_packet *packet, size_t length)
{
    if (packet->version == 4)
        return !(packet->data[6] & 0x40);
    return packet->version != 6 || length <= IP6_MTU_MIN;
}

/* The MTU to tell a sender: what IPv6 has to carry anyway is never refused. */
static uint32_t told_mtu(const struct ip_packet *packet, uint32_t mtu)
{
    return packet->version == 6 && mtu < IP6_MTU_MIN ? IP6_MTU_MIN : mtu;
}

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

/* The inner packet of a datagram, as far as its first piece goes: its lengths are right, we wrote
 * them, but not all of it need be there. Returns the bytes before it, 0 if it is no IP packet. */
static uint32_t packet_of(const struct forwarder *forwarder, const struct train *single,
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
 * Sends the datagrams of a refused train one by one, but for those longer than `limit` that may
 * not be fragmented: their senders are told. Returns whether any went.
 */
static bool send_singly(struct forwarder *forwarder, int fd, const struct train *train,
                        uint32_t limit)
{
    struct train single = {
        .segments = 1, .peer = train->peer, .ecn = train->ecn, .own = train->own};
    struct train *const list[1] = {&single};
    struct ip_packet packet, told = {0};
    bool went = false;
    struct train_cursor next = {0};
    for (unsigned i = 0; i < train->segments; i++) {
        train_datagram(train, &next, &single);
        single.error = 0;
        uint32_t prefix = single.bytes > limit ? packet_of(forwarder, &single, &packet) : 0;
        if (prefix && !may_fragment(&packet, packet.length)) {
            single.error = EMSGSIZE;
            if (!told.data || !ip_same_hosts(&told, &packet)) /* once for a super-packet */
                tell_sender(forwarder, &packet, single.pieces[0].iov_len - prefix, ICMP_TOO_BIG,
                            told_mtu(&packet, limit - prefix));
            told = packet;
        } else {
            underlay_send(fd, list, 1, &forwarder->peers, &forwarder->work);
        }
        count_sent(forwarder, &single);
        went |= !single.error;
    }
    return went;
}

/*
 * What the kernel refused. The whole train was refused, nothing of it was sent.
 *
 * A datagram larger than the path's MTU is EMSGSIZE, EINVAL before Linux 6.14: where the sender
 * can be told to send less it is told, and the path goes on to take trains. Any other EINVAL,
 * and EIO, say that this path takes no trains, if it then takes the datagrams singly.
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
    bool went = send_singly(forwarder, fd, train, too_big ? mtu - outer : DATAGRAM_MAX);
    if (went && no_trains && !too_big) {
        peer->trains = false;
        forwarder->news = true;
    }
}

static void send_all(struct forwarder *forwarder, int fd, struct train *const *trains,
                     unsigned count)
{
    while (count) {
        unsigned dealt_with = underlay_send(fd, trains, count, &forwarder->peers, &forwarder->work);
        for (unsigned i = 0; i < dealt_with; i++) {
            if (trains[i]->error)
                send_refused(forwarder, fd, trains[i]);
            else
                count_sent(forwarder, trains[i]);
        }
        trains += dealt_with;
        count -= dealt_with;
    }
}

static unsigned socket_fd_index(const struct underlay *underlay, uint32_t hash)
{
    return (unsigned)(((uint64_t)hash * underlay->count) >> 32);
}

/* One call a socket. */
void forwarder_flush(struct forwarder *forwarder)
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

static void add_to_train(struct forwarder *forwarder, struct ticket ticket,
                         const struct iovec *pieces, unsigned count)
{
    if (trains_add(&forwarder->trains, ticket, pieces, count))
        return;
    size_t used = forwarder->slab_used; /* the header in `pieces` stays taken */
    forwarder_flush(forwarder);
    forwarder->slab_used = used;
    trains_add(&forwarder->trains, ticket, pieces, count);
}

/* A header of the slab, which lasts until the trains are flushed. */
static uint8_t *take_header(struct forwarder *forwarder, size_t size)
{
    size = (size + 7) & ~(size_t)7;
    if (forwarder->slab_used + size > SLAB_ROOM)
        forwarder_flush(forwarder);
    uint8_t *header = forwarder->slab + forwarder->slab_used;
    forwarder->slab_used += size;
    return header;
}

/*
 * A packet from the device and what stands before it in a datagram: `prefix` bytes, VXLAN and
 * Ethernet headers, which lie there already. Of one that is not IP (version 0) there is no more to
 * know than where it is.
 */
struct parcel {
    struct ip_packet packet;
    struct device_packet *read;
    uint32_t prefix;
    uint32_t hash; /* of its flow */
    uint8_t ecn;
    struct split split; /* of a super-packet */
};

/* Segments that lie apart get their headers right there: then the whole train is one piece. */
static void forward_super(struct forwarder *forwarder, struct parcel *parcel, struct ticket ticket)
{
    struct split *split = &parcel->split;
    uint32_t prefix = parcel->prefix;
    bool apart = split->stride != split->size;
    size_t header_size = prefix + split->header;
    uint8_t before[PREFIX_ROOM];
    memcpy(before, split->packet.data - prefix, sizeof before);
    forwarder->work.super_packets_read++;
    while (!split_done(split)) {
        uint8_t *payload = split_payload(split);
        uint8_t *header = apart ? payload - header_size : take_header(forwarder, header_size);
        memcpy(header, before, sizeof before); /* what is too much of it is written over */
        size_t payload_size = split_next(split, header + prefix, &payload);
        const struct iovec pieces[2] = {{header, header_size}, {payload, payload_size}};
        add_to_train(forwarder, ticket, pieces, 2);
    }
}

static void forward_single(struct forwarder *forwarder, const struct parcel *parcel,
                           struct ticket ticket)
{
    const struct iovec piece = {parcel->packet.data - parcel->prefix,
                                parcel->prefix + parcel->packet.length};
    add_to_train(forwarder, ticket, &piece, 1);
}

/* Opens a split of what was read, in one piece or apart, and learns how to read the next. */
static bool open_split(struct forwarder *forwarder, struct parcel *parcel)
{
    struct device_packet *read = parcel->read;
    struct split *split = &parcel->split;
    if (!split_open(split, &parcel->packet, &read->offload))
        return false;
    device_expect(&forwarder->device, parcel->packet.link + split->header, split->size);
    struct layout layout = read->layout;
    if (layout.header == split->header && layout.size == split->size)
        split->stride = layout.stride;
    else if (layout.size)
        device_gather(read);
    return true;
}

/* Begins what the device left to do: to cut, or to finish a checksum. False, and counted, where its
 * offload header makes no sense. */
static bool take_on(struct forwarder *forwarder, struct parcel *parcel, struct counters *counters)
{
    const struct offload *offload = &parcel->read->offload;
    bool done = true;
    if (offload->gso_type != GSO_NONE)
        done = open_split(forwarder, parcel);
    else if (offload->flags & OFFLOAD_NEEDS_CSUM)
        done = split_checksum(&parcel->packet, offload);
    if (!done)
        count_drops(counters, DROP_bad_offload, 1);
    return done;
}

/* Packets longer than the path to a peer takes: dropped where their sender can be told, and left
 * to the underlay to fragment where not, if one datagram can hold them. */
static bool too_big(struct forwarder *forwarder, struct peer *peer, const struct parcel *parcel,
                    uint32_t longest)
{
    const struct ip_packet *packet = &parcel->packet;
    uint32_t tag = parcel->prefix - VXLAN_OVERHEAD, most = DATAGRAM_MAX - parcel->prefix;
    uint32_t mtu = peer->mtu && peer->mtu < most ? peer->mtu - tag : most;
    if (longest <= mtu || (longest <= most && may_fragment(packet, longest)))
        return false;
    if (packet->version)
        tell_sender(forwarder, packet, device_leading(parcel->read), ICMP_TOO_BIG,
                    told_mtu(packet, mtu));
    return true;
}

/* Sends a parcel to a peer. It can be sent to another one afterwards: its segments' headers are
 * then written once more, the same as they are. */
static void forward_to(struct forwarder *forwarder, uint16_t index, struct parcel *parcel)
{
    struct peer *peer = &forwarder->peers.at[index];
    const struct ip_packet *packet = &parcel->packet;
    const struct split *split = &parcel->split;
    unsigned family = peer->address.size == 16;
    const struct underlay *underlay = &forwarder->underlays[family];
    if (!peer->address.size || !underlay->count) {
        count_drops(&peer->counters, DROP_unresolved, 1);
        return;
    }
    unsigned socket = socket_fd_index(underlay, parcel->hash);
    struct ticket ticket = {
        .peer = index,
        .socket = (uint8_t)(family * SOCKETS_MAX + socket),
        .ecn = parcel->ecn,
        .alone = !peer->trains,
    };
    bool super = parcel->read->offload.gso_type != GSO_NONE;
    uint32_t longest = super ? split->header + split->size : packet->length;
    if (too_big(forwarder, peer, parcel, longest))
        count_drops(&peer->counters, DROP_too_big, super ? split_segments(split) : 1);
    else if (super)
        forward_super(forwarder, parcel, ticket);
    else
        forward_single(forwarder, parcel, ticket);
}

static void forward_packet(struct forwarder *forwarder, struct device_packet *read)
{
    struct counters *nobody = &forwarder->peers.nobody;
    struct parcel parcel;
    struct ip_packet *packet = &parcel.packet;
    if (!ip_parse(read->data, read->length, packet)) {
        count_drops(nobody, DROP_not_ip, 1);
        return;
    }
    if (ip_is_multicast(packet)) {
        count_drops(nobody, DROP_multicast, 1);
        return;
    }
    uint16_t index = route_lookup(forwarder->routes, packet->destination, packet->address_size);
    if (index == ROUTE_NONE) {
        count_drops(nobody, DROP_no_route, 1);
        tell_sender(forwarder, packet, device_leading(read), ICMP_NO_ROUTE, 0);
        return;
    }
    struct vxlan_frame frame = {
        .vni = forwarder->vtep.vni,
        .ethertype = packet->version == 4 ? ETHERTYPE_IP4 : ETHERTYPE_IP6,
        .destination = forwarder->peers.at[index].mac,
        .source = forwarder->vtep.mac,
    };
    vxlan_put(packet->data - VXLAN_OVERHEAD, &frame); /* in the headroom */
    parcel.read = read;
    parcel.prefix = VXLAN_OVERHEAD;
    parcel.hash = ip_flow_hash(packet);
    parcel.ecn = ip_ecn(packet);
    if (take_on(forwarder, &parcel, &forwarder->peers.at[index].counters))
        forward_to(forwarder, index, &parcel);
}

/* ---- frames ---- */

/* To every peer: head-end replication, RFC 7348 4.2. */
static void flood(struct forwarder *forwarder, struct parcel *parcel)
{
    struct peers *peers = &forwarder->peers;
    bool super = parcel->read->offload.gso_type != GSO_NONE;
    uint32_t frames = super ? split_segments(&parcel->split) : 1;
    forwarder->work.frames_flooded++;
    for (size_t i = 0; i < peers->room; i++) {
        struct peer *peer = &peers->at[i];
        if (!peer->used)
            continue;
        if (!storm_allowed(&peer->flooded[0], forwarder->bridge.storm, frames,
                           forwarder->bridge.now_ns)) {
            count_drops(&peer->counters, DROP_storm, frames);
            continue;
        }
        if (super)
            split_rewind(&parcel->split);
        forward_to(forwarder, (uint16_t)i, parcel);
    }
}

/* The hash of a frame that is not IP: all that two hosts say to each other keeps its order. */
static uint32_t frame_hash(const struct ethernet *header)
{
    return (get32(header->destination + 2) ^ get32(header->source + 2)) * 0x9e3779b1;
}

/* A second tag is looked behind if there is a super-frame to cut; in all else, to keep order and to
 * be right about congestion, that goes like the others behind two tags. */
static bool look_behind(struct ethernet *header, const struct device_packet *read)
{
    size_t size = header->size + (size_t)VLAN_TAG;
    if (read->offload.gso_type == GSO_NONE || !ethernet_is_tag(header->type) ||
        device_leading(read) < size)
        return false;
    header->type = get16(read->data + size - 2);
    header->size = (uint8_t)size;
    return true;
}

/* A frame whose IP packet does not parse goes as one that is not IP. */
static void open_parcel(struct parcel *parcel, struct device_packet *read, struct ethernet header)
{
    bool nested = look_behind(&header, read);
    device_pull(read, header.size);
    parcel->read = read;
    parcel->prefix = VXLAN_HEADER + header.size;
    parcel->hash = frame_hash(&header);
    parcel->ecn = 0;
    if (!ethernet_is_ip(&header) || !ip_parse(read->data, read->length, &parcel->packet) ||
        parcel->packet.version != ethernet_ip_version(&header)) {
        parcel->packet = (struct ip_packet){
            .data = read->data,
            .length = (uint32_t)read->length,
        };
    } else if (!nested) {
        parcel->hash = ip_flow_hash(&parcel->packet);
        parcel->ecn = ip_ecn(&parcel->packet);
    }
    parcel->packet.link = header.size;
}

/* A question by ARP or NDP that the table answers. In a VLAN the same address is another's. */
static bool is_answered(struct forwarder *forwarder, const struct ethernet *header,
                        const struct ip_packet *packet)
{
    struct neighbour_message question;
    enum neighbour_verdict verdict = NEIGHBOUR_NONE;
    if (header->type == ETHERTYPE_ARP)
        verdict = arp_parse(packet->data, packet->length, &question);
    else if (packet->protocol == IP_ICMP6)
        verdict = ndp_parse(packet, &question);
    if (verdict != NEIGHBOUR_OK || !question.asks || header->vlan || mac_is_group(header->source))
        return false;
    const uint8_t *mac = neighbour_find(forwarder->neighbours, question.target, question.size);
    /* Who asks for himself wants to know whether there is somebody else. */
    if (!mac || memcmp(mac, header->source, MAC_SIZE) == 0) {
        forwarder->work.neighbour_floods += mac_is_group(header->destination);
        return false;
    }
    uint8_t answer[OFFLOAD_HEADER + NEIGHBOUR_ANSWER_MAX] = {0};
    uint8_t *frame = answer + OFFLOAD_HEADER;
    size_t length = neighbour_answer(frame, &question, mac, header->source);
    const struct iovec pieces[2] = {{answer, OFFLOAD_HEADER}, {frame, length}};
    if (device_write(&forwarder->device, pieces, 2) == 0)
        forwarder->work.neighbour_answers++;
    return true;
}

static void forward_frame(struct forwarder *forwarder, struct device_packet *read)
{
    const struct bridge *bridge = &forwarder->bridge;
    struct counters *nobody = &forwarder->peers.nobody;
    struct ethernet header;
    if (!ethernet_parse(read->data, read->length, &header)) {
        count_drops(nobody, DROP_bad_frame, 1);
        return;
    }
    bool group = mac_is_group(header.destination);
    if (group && mac_is_link_local(header.destination)) {
        count_drops(nobody, DROP_link_local, 1);
        return;
    }
    vxlan_put_header(read->data - VXLAN_HEADER, forwarder->vtep.vni); /* in the headroom */
    uint16_t index = FDB_NONE;
    if (!group)
        index = fdb_lookup(bridge->fdb, fdb_key(header.destination, header.vlan), bridge->now);
    struct peer *peer = peers_get(&forwarder->peers, index);
    struct parcel parcel;
    open_parcel(&parcel, read, header);
    if (is_answered(forwarder, &header, &parcel.packet))
        return;
    if (!peer && !bridge->flood) {
        count_drops(nobody, group ? DROP_no_flood : DROP_no_fdb, 1);
        return;
    }
    if (!take_on(forwarder, &parcel, peer ? &peer->counters : nobody))
        return;
    if (peer)
        forward_to(forwarder, index, &parcel);
    else
        flood(forwarder, &parcel);
}

/* ---- both ---- */

static void forward(struct forwarder *forwarder, struct device_packet *read)
{
    if (read->layout.size && read->offload.gso_type == GSO_NONE)
        device_gather(read);
    if (forwarder->bridge.fdb)
        forward_frame(forwarder, read);
    else
        forward_packet(forwarder, read);
}

void forwarder_say(struct forwarder *forwarder, uint16_t index, const uint8_t *frame, size_t length)
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
    uint8_t *start = take_header(forwarder, VXLAN_HEADER + length);
    vxlan_put_header(start, forwarder->vtep.vni);
    memcpy(start + VXLAN_HEADER, frame, length);
    const struct iovec piece = {start, VXLAN_HEADER + length};
    add_to_train(forwarder, ticket, &piece, 1);
}

int forwarder_outbound(struct forwarder *forwarder)
{
    int moved = 0;
    for (int batch = 0; batch < OUTBOUND_BUDGET; batch++) {
        int count = device_read(&forwarder->device, &forwarder->packets);
        if (count < 0)
            return moved ? moved : count;
        forwarder->work.device_reads += (unsigned)count;
        bridge_tick(&forwarder->bridge);
        for (int i = 0; i < count; i++)
            forward(forwarder, &forwarder->packets.packets[i]);
        forwarder_flush(forwarder);
        moved += count;
        if (count < DEVICE_BATCH)
            break;
    }
    return moved;
}

/* ---- what would be ---- */

/* The peer whose packet or frame it is, NULL where there is none. */
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
    struct counters *counters = peer ? &peer->counters : &forwarder->peers.nobody;
    struct trains *trains = &forwarder->trains; /* empty between two moves */

    const struct device device = forwarder->device;
    const struct icmp_limit icmp = forwarder->icmp;
    const struct work work = forwarder->work;
    const struct counters counted = *counters;
    const bool flood = forwarder->bridge.flood;
    forwarder->device.output = -1; /* what senders are told goes nowhere */
    forwarder->bridge.flood = false;
    counters->last_drop = 0;
    forward(forwarder, read);
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
