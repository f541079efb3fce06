/*
 * Outbound: device to peers.
 *
 *   packet or frame -> peer, by route or FDB -> parcel with its headers -> segments -> trains
 */
#include "outbound.h"

#include <string.h>

#include "ethernet.h"
#include "send.h"
#include "split.h"
#include "storm.h"

enum {
    OUTBOUND_BUDGET = 4, /* batches for each wake-up */
    PREFIX_ROOM = 32,    /* VXLAN and Ethernet headers with tags are shorter, all headers longer */
};

/*
 * A packet from the device, ready to be sent: `prefix` bytes of VXLAN and Ethernet headers lie
 * before it. For a frame that is not IP (version 0) only data, length and link are set.
 */
struct parcel {
    struct ip_packet packet;
    struct device_packet *read;
    uint32_t prefix;
    uint32_t hash; /* of its flow */
    uint8_t ecn;
    struct split split; /* of a super-packet */
};

/* Segments that lie apart get their headers in the gaps between them: then the whole train is one
 * piece of memory. */
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
        uint8_t *header = apart ? payload - header_size : send_take_header(forwarder, header_size);
        memcpy(header, before, sizeof before); /* bytes beyond the prefix are overwritten */
        size_t payload_size = split_next(split, header + prefix, &payload);
        const struct iovec pieces[2] = {{header, header_size}, {payload, payload_size}};
        send_add(forwarder, ticket, pieces, 2);
    }
}

static void forward_single(struct forwarder *forwarder, const struct parcel *parcel,
                           struct ticket ticket)
{
    const struct iovec piece = {parcel->packet.data - parcel->prefix,
                                parcel->prefix + parcel->packet.length};
    send_add(forwarder, ticket, &piece, 1);
}

/* Starts a split of a super-packet that was read in one piece or apart, and sets the layout for
 * reading the next one. */
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

/* Does the offloads that the kernel left to the device: starts a split, or finishes a checksum.
 * Returns false, and counts a drop, if the offload header contradicts the packet. */
static bool start_offloads(struct forwarder *forwarder, struct parcel *parcel,
                           struct counters *counters)
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

/* Whether a packet is too big for the path to a peer; then its sender gets an ICMP error. A packet
 * that may be fragmented is left to the underlay, if one datagram can hold it. */
static bool too_big(struct forwarder *forwarder, struct peer *peer, const struct parcel *parcel,
                    uint32_t longest)
{
    const struct ip_packet *packet = &parcel->packet;
    uint32_t tag = parcel->prefix - VXLAN_OVERHEAD, most = DATAGRAM_MAX - parcel->prefix;
    uint32_t mtu = peer->mtu && peer->mtu < most ? peer->mtu - tag : most;
    if (longest <= mtu || (longest <= most && send_may_fragment(packet, longest)))
        return false;
    if (packet->version)
        send_icmp(forwarder, packet, device_leading(parcel->read), ICMP_TOO_BIG,
                  send_reported_mtu(packet, mtu));
    return true;
}

/* The socket that a flow uses, by its hash. */
static unsigned socket_of_flow(const struct underlay *underlay, uint32_t hash)
{
    return (unsigned)(((uint64_t)hash * underlay->count) >> 32);
}

/* Sends a parcel to a peer. The same parcel can be sent to further peers: the headers of its
 * segments are then written again, with the same bytes. */
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
    unsigned socket = socket_of_flow(underlay, parcel->hash);
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
    struct counters *unknown = &forwarder->peers.unknown;
    struct parcel parcel;
    struct ip_packet *packet = &parcel.packet;
    if (!ip_parse(read->data, read->length, packet)) {
        count_drops(unknown, DROP_not_ip, 1);
        return;
    }
    if (ip_is_multicast(packet)) {
        count_drops(unknown, DROP_multicast, 1);
        return;
    }
    uint16_t index = route_lookup(forwarder->routes, packet->destination, packet->address_size);
    if (index == ROUTE_NONE) {
        count_drops(unknown, DROP_no_route, 1);
        send_icmp(forwarder, packet, device_leading(read), ICMP_NO_ROUTE, 0);
        return;
    }
    struct vxlan_frame frame = {
        .vni = forwarder->vtep.vni,
        .ethertype = packet->version == 4 ? ETHERTYPE_IP4 : ETHERTYPE_IP6,
        .destination = forwarder->peers.at[index].mac,
        .source = forwarder->vtep.mac,
    };
    vxlan_put(packet->data - VXLAN_OVERHEAD, &frame); /* into the headroom */
    parcel.read = read;
    parcel.prefix = VXLAN_OVERHEAD;
    parcel.hash = ip_flow_hash(packet);
    parcel.ecn = ip_ecn(packet);
    if (start_offloads(forwarder, &parcel, &forwarder->peers.at[index].counters))
        forward_to(forwarder, index, &parcel);
}

/* ---- frames ---- */

/* Sends a frame to every peer: head-end replication, RFC 7348 4.2. */
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

/* The hash of a frame that is not IP: frames between the same two hosts stay in order. */
static uint32_t frame_hash(const struct ethernet *header)
{
    return (get32(header->destination + 2) ^ get32(header->source + 2)) * 0x9e3779b1;
}

/* Moves the header past a second tag, but only for a super-frame, which has to be split. Its hash
 * and ECN bits are those of any frame with two tags, so that order is kept. */
static bool skip_second_tag(struct ethernet *header, const struct device_packet *read)
{
    size_t size = header->size + (size_t)VLAN_TAG;
    if (read->offload.gso_type == GSO_NONE || !ethernet_is_tag(header->type) ||
        device_leading(read) < size)
        return false;
    header->type = get16(read->data + size - 2);
    header->size = (uint8_t)size;
    return true;
}

/* A frame whose IP packet does not parse is treated like a frame that is not IP. */
static void open_parcel(struct parcel *parcel, struct device_packet *read, struct ethernet header)
{
    bool nested = skip_second_tag(&header, read);
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

/* Answers an ARP request or Neighbour Solicitation from the table of neighbours. Returns whether it
 * did. The same address in a VLAN is another host: no answer there. */
static bool answer_neighbour_request(struct forwarder *forwarder, const struct ethernet *header,
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
    /* A host that asks for its own address looks for a duplicate: let the peers answer. */
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
    struct counters *unknown = &forwarder->peers.unknown;
    struct ethernet header;
    if (!ethernet_parse(read->data, read->length, &header)) {
        count_drops(unknown, DROP_bad_frame, 1);
        return;
    }
    bool group = mac_is_group(header.destination);
    if (group && mac_is_link_local(header.destination)) {
        count_drops(unknown, DROP_link_local, 1);
        return;
    }
    vxlan_put_header(read->data - VXLAN_HEADER, forwarder->vtep.vni); /* into the headroom */
    uint16_t index = FDB_NONE;
    if (!group)
        index = fdb_lookup(bridge->fdb, fdb_key(header.destination, header.vlan), bridge->now);
    struct peer *peer = peers_get(&forwarder->peers, index);
    struct parcel parcel;
    open_parcel(&parcel, read, header);
    if (answer_neighbour_request(forwarder, &header, &parcel.packet))
        return;
    if (!peer && !bridge->flood) {
        count_drops(unknown, group ? DROP_no_flood : DROP_no_fdb, 1);
        return;
    }
    if (!start_offloads(forwarder, &parcel, peer ? &peer->counters : unknown))
        return;
    if (peer)
        forward_to(forwarder, index, &parcel);
    else
        flood(forwarder, &parcel);
}

/* ---- both ---- */

void outbound_forward(struct forwarder *forwarder, struct device_packet *read)
{
    if (read->layout.size && read->offload.gso_type == GSO_NONE)
        device_gather(read);
    if (forwarder->bridge.fdb)
        forward_frame(forwarder, read);
    else
        forward_packet(forwarder, read);
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
            outbound_forward(forwarder, &forwarder->packets.packets[i]);
        send_trains(forwarder);
        moved += count;
        if (count < DEVICE_BATCH)
            break;
    }
    return moved;
}
