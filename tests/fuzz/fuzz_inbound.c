/*
 * Datagrams over loopback into a whole forwarder, and packets out of its device. Written packets
 * are complete and from the peer's prefix, queued messages are unchanged, and every datagram is
 * counted exactly once: as a packet, a control frame, an ARP or NDP message, or a drop.
 */
#include "fuzz.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/udp.h>
#include <unistd.h>

#include "inbound.h"
#include "split.h"

#ifndef UDP_SEGMENT
#define UDP_SEGMENT 103
#endif
#ifndef UDP_GRO
#define UDP_GRO 104
#endif

enum { DATAGRAMS_MAX = 40 };

struct world {
    struct forwarder forwarder;
    int device; /* the program's end */
    int peer;   /* a socket of the peer */
    struct sockaddr_in ours;
    uint64_t control; /* control frames that were queued */
};

static int udp_socket(uint32_t host, struct sockaddr_in *name)
{
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK, 0);
    socklen_t size = sizeof *name;
    *name = (struct sockaddr_in){.sin_family = AF_INET, .sin_addr.s_addr = htonl(host)};
    RULE(fd >= 0 && bind(fd, (struct sockaddr *)name, size) == 0);
    RULE(getsockname(fd, (struct sockaddr *)name, &size) == 0);
    return fd;
}

static struct world *world_new(void)
{
    struct world *world = calloc(1, sizeof *world);
    struct sockaddr_in theirs;
    int pair[2], on = 1, room = 4 << 20;
    RULE(world && socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK, 0, pair) == 0);
    RULE(setsockopt(pair[0], SOL_SOCKET, SO_SNDBUF, &room, sizeof room) == 0);
    struct forwarder *forwarder = &world->forwarder;
    int fd = udp_socket(INADDR_LOOPBACK, &world->ours);
    RULE(setsockopt(fd, IPPROTO_UDP, UDP_GRO, &on, sizeof on) == 0);
    RULE(setsockopt(fd, IPPROTO_IP, IP_RECVTOS, &on, sizeof on) == 0);
    world->peer = udp_socket(INADDR_LOOPBACK + 1, &theirs);
    world->device = pair[1];

    forwarder->device = (struct device){.fd = pair[0], .output = pair[0], .offload_header = true};
    forwarder->vtep = (struct vtep){.vni = 1, .mac = {2, 1, 2, 3, 4, 5}};
    forwarder->coalescer.tcp = forwarder->coalescer.udp = true;
    forwarder->trains.segments = TRAIN_SEGMENTS_MAX;
    forwarder->receive_most = RECEIVE_BATCH;
    forwarder->underlays[0] = (struct underlay){.receiving.fd = fd, .count = 1, .fds = {fd}};
    struct address address = {.size = 4};
    memcpy(address.bytes, &theirs.sin_addr, 4);
    RULE(peers_put(&forwarder->peers, 0, &address, 8472, any_vtep_mac));
    struct route routes[] = {
        {.network = {10, 244, 2}, .length = 24, .version = 4, .value = 0},
        {.network = {0xfd, 0x10, 2, 4, 4, 2}, .length = 48, .version = 6, .value = 0},
    };
    forwarder->routes = route_table_new(routes, 2);
    RULE(forwarder->routes);
    return world;
}

/* Valid headers, and an inner packet from the fuzzer's bytes. */
static size_t put_datagram(struct input *input, uint8_t *out)
{
    uint8_t kind = take8(input);
    size_t length = 0, size = take16(input) % 3000;
    if (kind & 1) {
        struct vxlan_frame frame = {
            .vni = 1,
            .ethertype = kind & 4   ? ETHERTYPE_CONTROL
                         : kind & 2 ? ETHERTYPE_IP6
                                    : ETHERTYPE_IP4,
            .destination = any_vtep_mac,
            .source = any_vtep_mac,
        };
        vxlan_put(out, &frame);
        length = VXLAN_OVERHEAD;
    }
    for (; size && input->left; size--)
        out[length++] = take8(input);
    return length;
}

static void send_one(struct world *world, struct input *input)
{
    static uint8_t bytes[4096];
    size_t length = put_datagram(input, bytes);
    int tos = take8(input) & 3;
    uint16_t segment = take8(input);
    union {
        struct cmsghdr align;
        uint8_t room[CMSG_SPACE(sizeof tos) + CMSG_SPACE(sizeof segment)];
    } control = {0};
    struct iovec piece = {bytes, length};
    struct msghdr message = {
        .msg_name = &world->ours,
        .msg_namelen = sizeof world->ours,
        .msg_iov = &piece,
        .msg_iovlen = 1,
        .msg_control = &control,
        .msg_controllen = CMSG_SPACE(sizeof tos),
    };
    control.align = (struct cmsghdr){CMSG_LEN(sizeof tos), IPPROTO_IP, IP_TOS};
    memcpy(CMSG_DATA(&control.align), &tos, sizeof tos);
    if (segment && length > segment && length / segment < 60) {
        message.msg_controllen = sizeof control;
        struct cmsghdr *next = CMSG_NXTHDR(&message, &control.align);
        *next = (struct cmsghdr){CMSG_LEN(sizeof segment), IPPROTO_UDP, UDP_SEGMENT};
        memcpy(CMSG_DATA(next), &segment, sizeof segment);
    }
    RULE(sendmsg(world->peer, &message, 0) == (ssize_t)length);
}

/* Reads the control queue like Python. */
static void take_control_messages(struct world *world)
{
    static uint8_t body[65536];
    struct control_queue *queue = &world->forwarder.control;
    size_t used = 0;
    for (unsigned i = 0; i < queue->count; i++) {
        const struct control_message *message = &queue->messages[i];
        RULE(message->sender == 0 && message->offset == used);
        RULE(message->stored <= message->length && message->length <= 65507 - VXLAN_OVERHEAD);
        control_queue_copy(queue, i, body);
        used += message->stored;
        world->control += message->ethertype == ETHERTYPE_CONTROL;
    }
    RULE(queue->used == used);
    control_queue_clear(queue);
}

static uint64_t accounted(const struct world *world)
{
    const struct forwarder *forwarder = &world->forwarder;
    const struct counters *counters = &forwarder->peers.at[0].counters;
    uint64_t count = counters->inbound.packets + world->control + forwarder->work.neighbours_heard;
    for (int reason = 0; reason < DROP_REASONS; reason++)
        count += counters->drops[reason] + forwarder->peers.unknown.drops[reason];
    return count;
}

/* Checks that a written packet is from the peer's prefix, and can be split if it was joined. */
static void check_written(uint8_t *bytes, size_t length)
{
    static const uint8_t net4[3] = {10, 244, 2}, net6[6] = {0xfd, 0x10, 2, 4, 4, 2};
    struct offload offload;
    struct ip_packet packet;
    struct split split;
    RULE(length > OFFLOAD_HEADER);
    memcpy(&offload, bytes, sizeof offload);
    RULE(ip_parse(bytes + OFFLOAD_HEADER, length - OFFLOAD_HEADER, &packet));
    RULE(packet.length == length - OFFLOAD_HEADER);
    RULE(packet.version == 4 ? memcmp(packet.source, net4, 3) == 0
                             : memcmp(packet.source, net6, 6) == 0);
    RULE(offload.gso_type == GSO_NONE || split_open(&split, &packet, &offload));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct world *world;
    static uint8_t bytes[OFFLOAD_HEADER + 65536];
    if (!world)
        world = world_new();
    struct forwarder *forwarder = &world->forwarder;
    struct input input = {data, size};
    for (int i = 0; i < DATAGRAMS_MAX && input.left; i++)
        send_one(world, &input);
    while (forwarder_inbound(forwarder, &forwarder->underlays[0]) > 0)
        ;
    take_control_messages(world);
    RULE(accounted(world) == forwarder->work.datagrams_received);
    ssize_t length;
    while ((length = read(world->device, bytes, sizeof bytes)) > 0)
        check_written(bytes, (size_t)length);
    RULE(errno == EAGAIN);
    return 0;
}
