/*
 * Frames from a TAP device to two peers, and from one of them to the device, through a whole
 * forwarder with an FDB and a table of neighbours. What is sent is the frame or its segments, what
 * is written is allowed, messages are valid, and every drop is counted.
 */
#include "fuzz.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#include "ethernet.h"
#include "inbound.h"
#include "outbound.h"
#include "split.h"

enum { PEERS = 2, STEPS_MAX = 40, ROOM = 1 << 17 };

struct world {
    struct forwarder forwarder;
    int device; /* the program's end */
    int peers[PEERS];
    struct sockaddr_in ours;
    uint64_t received; /* datagrams that peers received */
};

static const uint8_t our_mac[MAC_SIZE] = {2, 1, 2, 3, 4, 5};
static const uint8_t macs[8][MAC_SIZE] = {
    {2, 1, 2, 3, 4, 5},
    {2, 0, 0, 0, 0, 1},                   /* static, behind peer 1 */
    {2, 0, 0, 0, 0, 2},                   /* sometimes learned */
    {0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, /* broadcast */
    {0x33, 0x33, 0xff, 0, 0, 1},
    {0x01, 0x80, 0xc2, 0, 0, 3},
    {2, 'v', 't', 'e', 'p', 0},
    {2, 0, 0, 0, 0, 3},
};

static int udp_socket(uint32_t host, struct sockaddr_in *name)
{
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK, 0), on = 1;
    int room = 32 << 20; /* a super-frame can be 40,000 datagrams, each of which takes 768 bytes */
    socklen_t size = sizeof *name;
    *name = (struct sockaddr_in){.sin_family = AF_INET, .sin_addr.s_addr = htonl(host)};
    RULE(fd >= 0 && bind(fd, (struct sockaddr *)name, size) == 0);
    RULE(getsockname(fd, (struct sockaddr *)name, &size) == 0);
    RULE(setsockopt(fd, IPPROTO_IP, IP_RECVTOS, &on, sizeof on) == 0);
    setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &room, sizeof room);
    return fd;
}

static void put_tables(struct forwarder *forwarder)
{
    struct route routes[] = {
        {.network = {10, 244, 0}, .length = 24, .version = 4, .value = 0},
        {.network = {10, 244, 1}, .length = 24, .version = 4, .value = 1},
        {.network = {0xfd, 0x10, 2, 4, 4, 1}, .length = 48, .version = 6, .value = 1},
    };
    struct neighbour neighbours[] = {
        {.address = {10, 244, 1, 1}, .size = 4, .mac = {2, 0, 0, 0, 0, 1}},
        {.address = {0xfd, [15] = 1}, .size = 16, .mac = {2, 0, 0, 0, 0, 1}},
    };
    forwarder->routes = route_table_new(routes, sizeof routes / sizeof *routes);
    forwarder->neighbours = neighbour_table_new(neighbours, 2);
    struct fdb *fdb = fdb_new((struct fdb_limits){64, 32, 300}, 1);
    RULE(forwarder->routes && forwarder->neighbours && fdb);
    RULE(fdb_put(fdb, fdb_key(macs[1], 0), 1) && fdb_put(fdb, fdb_key(macs[1], 7), 1));
    forwarder->bridge = (struct bridge){.fdb = fdb, .flood = true, .learning = true};
}

static struct world *world_new(void)
{
    struct world *world = calloc(1, sizeof *world);
    int pair[2], room = 4 << 20;
    RULE(world && socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK, 0, pair) == 0);
    for (int i = 0; i < 2; i++)
        RULE(setsockopt(pair[i], SOL_SOCKET, SO_SNDBUF, &room, sizeof room) == 0);
    struct forwarder *forwarder = &world->forwarder;
    int fd = udp_socket(INADDR_LOOPBACK, &world->ours);
    world->device = pair[1];
    for (uint16_t i = 0; i < PEERS; i++) {
        struct sockaddr_in name;
        struct address address = {.size = 4};
        world->peers[i] = udp_socket(INADDR_LOOPBACK + 1 + i, &name);
        memcpy(address.bytes, &name.sin_addr, 4);
        RULE(peers_put(&forwarder->peers, i, &address, ntohs(name.sin_port), macs[i]));
    }
    forwarder->peers.at[1].mtu = 1400;
    forwarder->device = (struct device){
        .fd = pair[0], .output = pair[0], .offload_header = true, .frames = true};
    forwarder->vtep.vni = 1;
    memcpy(forwarder->vtep.mac, our_mac, MAC_SIZE);
    forwarder->coalescer.tcp = forwarder->coalescer.udp = true;
    forwarder->trains.segments = TRAIN_SEGMENTS_MAX;
    forwarder->receive_most = RECEIVE_BATCH;
    forwarder->underlays[0] = (struct underlay){.receiving.fd = fd, .count = 1, .fds = {fd}};
    put_tables(forwarder);
    return world;
}

/* A header, mostly valid, and bytes of the fuzzer after it. */
static size_t put_frame(struct input *input, uint8_t *out)
{
    static const uint16_t types[8] = {ETHERTYPE_IP4,     ETHERTYPE_IP6, ETHERTYPE_ARP, 0x88a8,
                                      ETHERTYPE_CONTROL, ETHERTYPE_IP4, ETHERTYPE_IP6, 0x1234};
    uint8_t hosts = take8(input), kind = take8(input);
    size_t length = ETHERNET_HEADER, size = take16(input) % 40000;
    memcpy(out, macs[hosts & 7], MAC_SIZE);
    memcpy(out + MAC_SIZE, macs[hosts >> 3 & 7], MAC_SIZE);
    if (kind & 8) {
        put16(out + 12, ETHERTYPE_VLAN);
        put16(out + 14, kind >> 4 & 7);
        length += VLAN_TAG;
    }
    put16(out + length - 2, types[kind & 7]);
    if (kind & 0x80)
        length = 0; /* or an empty frame */
    uint8_t last = 0;
    for (; size; size--) /* repeats the last byte, so that few make a large frame */
        out[length++] = last = input->left ? take8(input) : last;
    return length;
}

static uint64_t counted(const struct forwarder *forwarder)
{
    const struct peers *peers = &forwarder->peers;
    uint64_t count = forwarder->work.neighbour_answers;
    for (int reason = 0; reason < DROP_REASONS; reason++)
        count += peers->unknown.drops[reason] + peers->at[0].counters.drops[reason] +
                 peers->at[1].counters.drops[reason];
    for (int i = 0; i < PEERS; i++)
        count += peers->at[i].counters.outbound.packets + peers->at[i].counters.inbound.packets;
    return count;
}

/* Checks that a peer received `frame`, or a segment of it. */
static void check_datagram(const uint8_t *bytes, size_t length, const uint8_t *frame, size_t size,
                           bool whole)
{
    static const uint8_t header[VXLAN_HEADER] = {8, 0, 0, 0, 0, 0, 1, 0};
    struct ethernet read;
    struct ip_packet packet;
    RULE(length >= VXLAN_HEADER && memcmp(bytes, header, VXLAN_HEADER) == 0);
    uint8_t *copy = malloc(length - VXLAN_HEADER);
    RULE(copy);
    memcpy(copy, bytes + VXLAN_HEADER, length -= VXLAN_HEADER);
    RULE(ethernet_parse(copy, length, &read) && memcmp(copy, frame, read.size) == 0);
    RULE(!mac_is_link_local(read.destination) && length <= size);
    if (whole && !ethernet_is_ip(&read))
        RULE(length == size);
    size_t link = read.size + (ethernet_is_tag(read.type) ? (size_t)VLAN_TAG : 0);
    if (!whole)
        RULE(ip_parse(copy + link, length - link, &packet) && packet.length == length - link);
    free(copy);
}

static void drain_peers(struct world *world, const uint8_t *frame, size_t size, bool whole)
{
    static uint8_t bytes[ROOM];
    for (int i = 0; i < PEERS; i++) {
        ssize_t got;
        while ((got = recv(world->peers[i], bytes, sizeof bytes, 0)) >= 0) {
            world->received++;
            check_datagram(bytes, (size_t)got, frame, size, whole);
        }
    }
}

/* Checks that a written frame is for this node, and can be split if it was joined; or that it is a
 * reply to a frame of the device. */
static void drain_device(struct world *world, bool from_peer)
{
    static uint8_t bytes[ROOM];
    ssize_t got;
    while ((got = read(world->device, bytes, sizeof bytes)) > 0) {
        struct offload offload;
        struct ethernet header;
        struct ip_packet packet;
        struct split split;
        size_t length = (size_t)got - OFFLOAD_HEADER;
        uint8_t *frame = bytes + OFFLOAD_HEADER;
        RULE(got > OFFLOAD_HEADER && ethernet_parse(frame, length, &header));
        memcpy(&offload, bytes, sizeof offload);
        if (from_peer)
            RULE(memcmp(header.source, our_mac, MAC_SIZE) != 0);
        RULE(!mac_is_link_local(header.destination));
        RULE(memcmp(header.destination, any_vtep_mac, MAC_SIZE) != 0 || !from_peer);
        if (ethernet_is_ip(&header)) {
            RULE(ip_parse(frame + header.size, length - header.size, &packet));
            RULE(packet.length == length - header.size);
            RULE(packet.version == ethernet_ip_version(&header));
        }
        offload.checksum_start = (uint16_t)(offload.checksum_start - header.size);
        RULE(offload.gso_type == GSO_NONE || split_open(&split, &packet, &offload));
    }
    RULE(errno == EAGAIN);
}

static void take_control_messages(struct world *world)
{
    static uint8_t body[ROOM];
    struct control_queue *queue = &world->forwarder.control;
    for (unsigned i = 0; i < queue->count; i++) {
        const struct control_message *queued = &queue->messages[i];
        struct neighbour_message message;
        struct ip_packet packet;
        RULE(queued->sender == 0);
        control_queue_copy(queue, i, body);
        if (queued->ethertype == ETHERTYPE_ARP)
            RULE(arp_parse(body, queued->length, &message) == NEIGHBOUR_OK && message.sender);
        else if (queued->ethertype == ETHERTYPE_IP6)
            RULE(ip_parse(body, queued->length, &packet) &&
                 ndp_parse(&packet, &message) == NEIGHBOUR_OK && message.sender_mac);
        else
            RULE(queued->ethertype == ETHERTYPE_CONTROL);
    }
    control_queue_clear(queue);
}

static void outbound(struct world *world, struct input *input)
{
    static uint8_t bytes[OFFLOAD_HEADER + ROOM];
    struct forwarder *forwarder = &world->forwarder;
    struct offload offload = {
        .flags = take8(input) & 1,
        .gso_type = take8(input) % 8,
        .gso_size = take16(input) % 2000,
        .checksum_start = take8(input),
        .checksum_offset = take8(input),
    };
    size_t size = put_frame(input, bytes + OFFLOAD_HEADER);
    memcpy(bytes, &offload, sizeof offload);
    if (!size)
        return; /* an empty message means the end of a socket pair */
    uint8_t *frame = bytes + OFFLOAD_HEADER;
    uint64_t before = counted(forwarder), sent = 0;
    RULE(send(world->device, bytes, OFFLOAD_HEADER + size, 0) == (ssize_t)(OFFLOAD_HEADER + size));
    RULE(forwarder_outbound(forwarder) == 1);
    RULE(counted(forwarder) > before);
    drain_peers(world, frame, size, offload.gso_type == GSO_NONE);
    for (int i = 0; i < PEERS; i++)
        sent += forwarder->peers.at[i].counters.outbound.packets;
    RULE(sent == world->received);
    drain_device(world, false);
}

static void inbound(struct world *world, struct input *input)
{
    static uint8_t bytes[VXLAN_HEADER + ROOM];
    struct forwarder *forwarder = &world->forwarder;
    vxlan_put_header(bytes, 1);
    size_t length = VXLAN_HEADER + put_frame(input, bytes + VXLAN_HEADER);
    int tos = take8(input) & 3;
    RULE(setsockopt(world->peers[0], IPPROTO_IP, IP_TOS, &tos, sizeof tos) == 0);
    uint64_t before = counted(forwarder), messages = forwarder->control.count;
    RULE(sendto(world->peers[0], bytes, length, 0, (struct sockaddr *)&world->ours,
                sizeof world->ours) == (ssize_t)length);
    RULE(forwarder_inbound(forwarder, &forwarder->underlays[0]) == 1);
    RULE(counted(forwarder) + forwarder->control.count > before + messages);
    drain_device(world, true);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct world *world;
    if (!world)
        world = world_new();
    struct input input = {data, size};
    for (int i = 0; i < STEPS_MAX && input.left; i++) {
        if (take8(&input) & 1)
            outbound(world, &input);
        else
            inbound(world, &input);
    }
    take_control_messages(world);
    fdb_flush(world->forwarder.bridge.fdb, FDB_NONE,
              true); /* every input starts with the same state */
    return 0;
}
