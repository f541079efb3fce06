/*
 * Inbound: peers to device.
 *
 *   message -> datagrams -> packet or frame, checked -> runs of segments -> device
 *                        -> control frame, ARP, NDP -> control queue, answer
 */
#include "inbound.h"

#include <errno.h>
#include <string.h>

#include "send.h"
#include "storm.h"

enum {
    INBOUND_BUDGET = 4,      /* batches for each wake-up */
    TRAIN_LARGE = 16 * 1024, /* bytes; larger messages belong to a bulk transfer */
    RECEIVE_LARGE = 4,
    MESSAGE_MAX = 256, /* bytes of an NDP message that is queued for Python */
};

static struct counters *counters_of(struct forwarder *forwarder, uint16_t index)
{
    struct peer *peer = peers_get(&forwarder->peers, index);
    return peer ? &peer->counters : &forwarder->peers.unknown;
}

/* Counts the result of writing `packets` from a peer to the device at once. */
static void count_written(struct forwarder *forwarder, uint16_t index, int error, unsigned packets,
                          uint64_t bytes)
{
    struct counters *counters = counters_of(forwarder, index);
    if (!error) {
        forwarder->work.device_writes++;
        count_traffic(&counters->inbound, packets, bytes);
        return;
    }
    bool full = error == -EAGAIN || error == -ENOBUFS;
    count_drops(counters, full ? DROP_device_full : DROP_device_refused, packets);
}

/* Writes the packets of a joined run as they arrived: headers still lie before each payload. */
static void write_singly(struct forwarder *forwarder, const struct run *run)
{
    uint8_t none[OFFLOAD_HEADER] = {0};
    for (unsigned i = 1; i <= run->segments; i++) {
        const struct iovec *payload = &run->pieces[i];
        size_t header = run->first.link + run->header;
        const struct iovec pieces[2] = {
            {none, OFFLOAD_HEADER},
            {(uint8_t *)payload->iov_base - header, payload->iov_len + header},
        };
        int error = device_write(&forwarder->device, pieces, 2);
        count_written(forwarder, run->peer, error, 1, payload->iov_len + run->header);
    }
}

static void write_run(struct forwarder *forwarder, const struct run *run)
{
    bool joined = run->segments > 1;
    int error = device_write(&forwarder->device, run->pieces, run->segments + 1u);
    if (error == -EINVAL && joined) {
        /* Some kernels refuse valid super-packets: send this one no more of them. */
        bool tcp = run->first.protocol == IP_TCP;
        *(tcp ? &forwarder->coalescer.tcp : &forwarder->coalescer.udp) = false;
        forwarder->attention = true;
        write_singly(forwarder, run);
        return;
    }
    forwarder->work.super_packets_written += joined && !error;
    count_written(forwarder, run->peer, error, run->segments, run->bytes);
}

static void flush_runs(struct forwarder *forwarder)
{
    struct coalescer *coalescer = &forwarder->coalescer;
    coalesce_finish(coalescer);
    for (unsigned i = 0; i < coalescer->count; i++)
        write_run(forwarder, &coalescer->runs[i]);
    coalesce_reset(coalescer);
}

/* The peer whose prefix holds the inner source, if that peer is at this address. */
static uint16_t find_owner(const struct forwarder *forwarder, const struct ip_packet *packet,
                           const struct address *from)
{
    uint16_t index = route_lookup(forwarder->routes, packet->source, packet->address_size);
    if (index == ROUTE_NONE || !address_equal(&forwarder->peers.at[index].address, from))
        return PEER_NONE;
    return index;
}

/* State shared by the datagrams of one message: their sender and, because it seldom changes, the
 * result for the last inner source. */
struct origin {
    uint16_t sender;
    uint16_t owner; /* peer whose prefix holds `source` */
    uint8_t size;   /* of `source`, 0 until there is one */
    const uint8_t *source;
    /* For frames: */
    bool spoofed;     /* `source` is in the prefix of a peer at another address */
    uint16_t bridged; /* sender by `link` and `vlan`, of the peers at this address */
    uint16_t vlan;
    const uint8_t *link; /* source MAC, NULL until there is one */
};

static uint16_t cached_owner(const struct forwarder *forwarder, struct origin *origin,
                             const struct ip_packet *packet, const struct address *from)
{
    if (origin->size != packet->address_size ||
        memcmp(origin->source, packet->source, packet->address_size) != 0) {
        origin->owner = find_owner(forwarder, packet, from);
        origin->size = packet->address_size;
        origin->source = packet->source;
    }
    return origin->owner;
}

static struct control_message message_from(const struct arrival *arrival, uint16_t sender,
                                           uint16_t ethertype, const uint8_t *source)
{
    struct control_message message = {
        .from = arrival->from, .sender = sender, .ethertype = ethertype};
    memcpy(message.source, source, MAC_SIZE);
    return message;
}

/* Queues a control frame. Returns why not: the frame may be anything but IP. */
static enum drop queue_control_frame(struct forwarder *forwarder, const uint8_t *data,
                                     size_t length, const struct arrival *arrival, uint16_t sender)
{
    struct vxlan_frame frame;
    if (vxlan_parse(data, length, &frame) != VXLAN_OK || frame.ethertype != ETHERTYPE_CONTROL)
        return DROP_ethertype;
    if (!vtep_accepts(&forwarder->vtep, frame.destination))
        return DROP_other_mac;
    struct control_message message = message_from(arrival, sender, ETHERTYPE_CONTROL, frame.source);
    if (!control_queue_put(&forwarder->control, &message, data + VXLAN_OVERHEAD,
                           length - VXLAN_OVERHEAD))
        return DROP_control_full;
    forwarder->attention = true;
    return DROP_NONE;
}

/* ---- ARP and NDP ---- */

static bool is_at(const struct forwarder *forwarder, uint16_t index, const struct address *from)
{
    const struct peer *peer = peers_get(&forwarder->peers, index);
    return peer && address_equal(&peer->address, from);
}

/* Whether an address is in the prefix of a peer that is not at `from`. */
static bool is_of_other_peer(const struct forwarder *forwarder, const uint8_t *address, size_t size,
                             const struct address *from)
{
    uint16_t owner = route_lookup(forwarder->routes, address, size);
    return owner != ROUTE_NONE && !is_at(forwarder, owner, from);
}

/* Queues a copy of an ARP or NDP message that announces the MAC of an address. */
static void queue_neighbour_message(struct forwarder *forwarder, const struct arrival *arrival,
                                    uint16_t sender, const struct neighbour_message *message,
                                    const struct inner_frame *frame)
{
    uint8_t header = frame->header.size;
    size_t length = message->size == 4 ? ARP_SIZE : frame->packet.length;
    struct control_message copy = message_from(arrival, sender, frame->header.type,
                                               frame->header.source);
    forwarder->work.neighbours_heard++;
    if (message->sender && message->sender_mac && length <= MESSAGE_MAX)
        forwarder->attention |= control_queue_put(&forwarder->control, &copy, frame->data + header,
                                                  length);
}

/* Parses an ARP or NDP message, if a frame without a VLAN holds one. */
static enum neighbour_verdict parse_neighbour_message(const struct inner_frame *frame,
                                                      struct neighbour_message *message)
{
    bool arp = frame->header.type == ETHERTYPE_ARP;
    if ((!arp && !ndp_may_be(&frame->packet)) || frame->header.vlan)
        return NEIGHBOUR_NONE;
    if (mac_is_group(frame->header.source))
        return NEIGHBOUR_BAD;
    if (!arp)
        return ndp_parse(&frame->packet, message);
    uint8_t header = frame->header.size;
    return arp_parse(frame->data + header, frame->length - header, message);
}

static void answer(struct forwarder *forwarder, uint16_t sender,
                   const struct neighbour_message *question, const uint8_t *to)
{
    uint8_t frame[NEIGHBOUR_ANSWER_MAX];
    const uint8_t *mac = neighbour_find(forwarder->neighbours, question->target, question->size);
    if (!mac)
        return;
    send_own_frame(forwarder, sender, frame, neighbour_answer(frame, question, mac, to));
    forwarder->work.neighbour_answers++;
}

/* Which peer at an address sent a message: the one whose prefix holds the sender's address, or the
 * one that has the source MAC, else any. */
static uint16_t sender_of_message(const struct forwarder *forwarder,
                                  const struct neighbour_message *message, const uint8_t *source,
                                  const struct address *from, uint16_t any)
{
    uint16_t owner = PEER_NONE;
    if (message->sender)
        owner = route_lookup(forwarder->routes, message->sender, message->size);
    return is_at(forwarder, owner, from) ? owner : peers_find_mac(&forwarder->peers, any, source);
}

/*
 * Handles ARP and NDP messages for this node (in TUN mode). Returns true if the datagram held a
 * valid one; otherwise sets `reason` if it held a bad one.
 */
static bool handle_neighbour_message(struct forwarder *forwarder, uint8_t *data, size_t length,
                                     const struct arrival *arrival, uint16_t sender,
                                     enum drop *reason)
{
    struct inner_frame frame;
    struct neighbour_message message;
    if (decap_frame(&forwarder->vtep, data, length, arrival->ecn, &frame) != DROP_NONE)
        return false;
    const uint8_t *to = frame.header.destination, *source = frame.header.source;
    enum neighbour_verdict verdict = parse_neighbour_message(&frame, &message);
    if (verdict == NEIGHBOUR_NONE || (!mac_is_group(to) && !vtep_accepts(&forwarder->vtep, to)))
        return false;
    if (verdict == NEIGHBOUR_BAD)
        *reason = DROP_bad_neighbour;
    else if (message.sender &&
             is_of_other_peer(forwarder, message.sender, message.size, &arrival->from))
        *reason = DROP_spoofed;
    else
        *reason = DROP_NONE;
    if (*reason != DROP_NONE)
        return false;
    sender = sender_of_message(forwarder, &message, source, &arrival->from, sender);
    queue_neighbour_message(forwarder, arrival, sender, &message, &frame);
    if (message.asks)
        answer(forwarder, sender, &message, source);
    return true;
}

/* ---- packets ---- */

/* Handles datagrams that hold no packet to route. Returns true if it was handled; otherwise
 * `reason` is why it is dropped, or DROP_NONE if it is a packet to route. */
static bool handle_other(struct forwarder *forwarder, uint8_t *data, size_t length,
                         const struct arrival *arrival, uint16_t sender, enum drop *reason)
{
    if (*reason == DROP_ethertype) {
        *reason = queue_control_frame(forwarder, data, length, arrival, sender);
        if (*reason == DROP_NONE)
            return true;
    }
    if (*reason != DROP_NONE && *reason != DROP_ethertype && *reason != DROP_other_mac &&
        *reason != DROP_group_mac)
        return false;
    return handle_neighbour_message(forwarder, data, length, arrival, sender, reason);
}

static void unpack_packet(struct forwarder *forwarder, uint8_t *data, size_t length,
                          const struct arrival *arrival, struct origin *origin)
{
    struct ip_packet packet;
    enum drop reason = decap(&forwarder->vtep, data, length, arrival->ecn, &packet);
    uint16_t owner = PEER_NONE;
    if ((reason != DROP_NONE || packet.protocol == IP_ICMP6) &&
        handle_other(forwarder, data, length, arrival, origin->sender, &reason))
        return;
    if (reason == DROP_NONE) {
        owner = cached_owner(forwarder, origin, &packet, &arrival->from);
        if (owner == PEER_NONE)
            reason = DROP_spoofed;
    }
    if (reason != DROP_NONE) {
        count_drops(counters_of(forwarder, origin->sender), reason, 1);
        return;
    }
    if (coalesce_full(&forwarder->coalescer))
        flush_runs(forwarder);
    coalesce_add(&forwarder->coalescer, &packet, owner);
}

/* ---- frames ---- */

/* Which peer at an address sent a frame: the one that the FDB has for the source MAC, or the one
 * that has that MAC itself, else any. */
static uint16_t sender_of_frame(const struct forwarder *forwarder, const struct ethernet *header,
                                const struct address *from, uint16_t any)
{
    const struct peers *peers = &forwarder->peers;
    if (!peers_are_several(peers, any))
        return any;
    uint16_t index = fdb_lookup(forwarder->bridge.fdb, fdb_key(header->source, header->vlan),
                                forwarder->bridge.now);
    return is_at(forwarder, index, from) ? index : peers_find_mac(peers, any, header->source);
}

/* Learns the source MAC, once for consecutive equal ones of a message. */
static void learn_source(struct forwarder *forwarder, struct origin *origin,
                         const struct ethernet *header, const struct address *from)
{
    const struct bridge *bridge = &forwarder->bridge;
    if (origin->link && origin->vlan == header->vlan &&
        memcmp(origin->link, header->source, MAC_SIZE) == 0)
        return;
    origin->link = header->source;
    origin->vlan = header->vlan;
    origin->bridged = sender_of_frame(forwarder, header, from, origin->sender);
    if (bridge->learning)
        fdb_learn(bridge->fdb, fdb_key(header->source, header->vlan), origin->bridged, bridge->now);
}

static bool is_spoofed(const struct forwarder *forwarder, struct origin *origin,
                       const struct ip_packet *packet, const struct address *from)
{
    if (origin->size != packet->address_size ||
        memcmp(origin->source, packet->source, packet->address_size) != 0) {
        origin->spoofed = is_of_other_peer(forwarder, packet->source, packet->address_size, from);
        origin->size = packet->address_size;
        origin->source = packet->source;
    }
    return origin->spoofed;
}

/* Writes a frame that is not IP at once: its order among IP packets does not matter. */
static void write_frame(struct forwarder *forwarder, const struct inner_frame *frame,
                        uint16_t index)
{
    uint8_t none[OFFLOAD_HEADER] = {0};
    const struct iovec pieces[2] = {{none, OFFLOAD_HEADER}, {frame->data, frame->length}};
    int error = device_write(&forwarder->device, pieces, 2);
    count_written(forwarder, index, error, 1, frame->length - frame->header.size);
}

/* Checks a frame: why it must be dropped, or DROP_NONE. */
static enum drop check_frame(struct forwarder *forwarder, struct origin *origin,
                             const struct inner_frame *frame, const struct arrival *arrival)
{
    const struct bridge *bridge = &forwarder->bridge;
    const struct address *from = &arrival->from;
    struct neighbour_message message;
    enum neighbour_verdict verdict = parse_neighbour_message(frame, &message);
    bool is_message = verdict == NEIGHBOUR_OK;
    if (verdict == NEIGHBOUR_BAD)
        return DROP_bad_neighbour;
    if (frame->packet.version && is_spoofed(forwarder, origin, &frame->packet, from))
        return DROP_spoofed;
    if (is_message && message.sender &&
        is_of_other_peer(forwarder, message.sender, message.size, from))
        return DROP_spoofed;
    learn_source(forwarder, origin, &frame->header, from);
    struct peer *peer = peers_get(&forwarder->peers, origin->bridged);
    if (mac_is_group(frame->header.destination) &&
        !storm_allowed(&peer->flooded[1], bridge->storm, 1, bridge->now_ns))
        return DROP_peer_storm;
    if (is_message)
        queue_neighbour_message(forwarder, arrival, origin->bridged, &message, frame);
    return DROP_NONE;
}

static bool is_control(const struct forwarder *forwarder, const struct inner_frame *frame)
{
    return frame->header.type == ETHERTYPE_CONTROL && frame->header.size == ETHERNET_HEADER &&
           vtep_accepts(&forwarder->vtep, frame->header.destination);
}

static void unpack_frame(struct forwarder *forwarder, uint8_t *data, size_t length,
                         const struct arrival *arrival, struct origin *origin)
{
    struct inner_frame frame;
    enum drop reason = decap_frame(&forwarder->vtep, data, length, arrival->ecn, &frame);
    uint16_t index = origin->sender;
    if (reason == DROP_NONE && is_control(forwarder, &frame)) {
        reason = queue_control_frame(forwarder, data, length, arrival, index);
        if (reason == DROP_NONE)
            return;
    }
    if (reason == DROP_NONE) {
        reason = check_frame(forwarder, origin, &frame, arrival);
        index = origin->bridged;
    }
    if (reason != DROP_NONE) {
        count_drops(counters_of(forwarder, index), reason, 1);
        return;
    }
    if (!frame.packet.version) {
        write_frame(forwarder, &frame, index);
        return;
    }
    if (coalesce_full(&forwarder->coalescer))
        flush_runs(forwarder);
    coalesce_add(&forwarder->coalescer, &frame.packet, index);
}

/* ---- both ---- */

static void unpack(struct forwarder *forwarder, const struct arrival *arrival)
{
    struct work *work = &forwarder->work;
    size_t datagrams = arrival->length ? (arrival->length - 1) / arrival->size + 1 : 1;
    struct origin origin = {.sender = peers_find(&forwarder->peers, &arrival->from)};
    work->datagrams_received += datagrams;
    work->trains_received += datagrams > 1;
    if (origin.sender == PEER_NONE || arrival->cut) {
        enum drop reason = arrival->cut ? DROP_short_frame : DROP_unknown_source;
        count_drops(counters_of(forwarder, origin.sender), reason, datagrams);
        return;
    }
    for (size_t i = 0; i < datagrams; i++) {
        size_t offset = i * arrival->size;
        size_t left = arrival->length - offset,
               length = left < arrival->size ? left : arrival->size;
        if (forwarder->bridge.fdb)
            unpack_frame(forwarder, arrival->data + offset, length, arrival, &origin);
        else
            unpack_packet(forwarder, arrival->data + offset, length, arrival, &origin);
    }
}

/* Few large messages at once, so that they are still in the cache when they are written. */
static unsigned receive_most(size_t mean_bytes)
{
    return mean_bytes > TRAIN_LARGE ? RECEIVE_LARGE : RECEIVE_BATCH;
}

int forwarder_inbound(struct forwarder *forwarder, struct underlay *underlay)
{
    int moved = 0;
    for (int batch = 0; batch < INBOUND_BUDGET; batch++) {
        unsigned most = forwarder->receive_most;
        int count = underlay_receive(&underlay->receiving, &forwarder->receiver, most,
                                     &forwarder->work);
        if (count < 0)
            return moved ? moved : count;
        size_t bytes = 0;
        bridge_tick(&forwarder->bridge);
        for (int i = 0; i < count; i++) {
            struct arrival arrival = underlay_arrival(&forwarder->receiver, (unsigned)i);
            bytes += arrival.length;
            unpack(forwarder, &arrival);
        }
        flush_runs(forwarder);
        if (forwarder->trains.count) /* answers to ARP and NDP */
            send_trains(forwarder);
        moved += count;
        if (count)
            forwarder->receive_most = receive_most(bytes / (unsigned)count);
        if ((unsigned)count < most)
            break;
    }
    return moved;
}
