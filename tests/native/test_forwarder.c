/*
 * A whole forwarder between a socket pair, which is its device, and UDP sockets on loopback. Errors
 * of the kernel are simulated.
 */
#include "inbound.h"
#include "outbound.h"
#include "run.h"
#include "trace.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/udp.h>
#include <signal.h>
#include <unistd.h>

#include "check.h"
#include "packets.h"
#include "split.h"

#ifndef UDP_SEGMENT
#define UDP_SEGMENT 103
#endif
#ifndef UDP_GRO
#define UDP_GRO 104
#endif

enum { MSS = 1000, OTHER = 1 /* index of a second peer */ };

static const uint8_t mac[MAC_SIZE] = {2, 1, 2, 3, 4, 5};

struct world {
    struct forwarder forwarder;
    int device; /* the program's end */
    int peer;   /* a socket of peer 0, 127.0.0.2 */
    struct sockaddr_in ours;
};

/* ---- simulated errors of the kernel ---- */

/* The error of sendmmsg() for messages that are trains (or for all), and how many times. */
static struct {
    int error;
    int times;
    bool singles;
} refusal;

/* The error of writev() for the next packets with more than two pieces. */
static int write_refusals;

int __real_sendmmsg(int fd, struct mmsghdr *messages, unsigned count, int flags);
int __wrap_sendmmsg(int fd, struct mmsghdr *messages, unsigned count, int flags);
ssize_t __real_writev(int fd, const struct iovec *pieces, int count);
ssize_t __wrap_writev(int fd, const struct iovec *pieces, int count);

static bool is_train(const struct msghdr *message)
{
    const struct cmsghdr *control = CMSG_FIRSTHDR(message);
    return control && control->cmsg_level == IPPROTO_UDP && control->cmsg_type == UDP_SEGMENT;
}

static bool refused(const struct msghdr *message)
{
    return refusal.times && (refusal.singles || is_train(message));
}

/* Like the kernel: sends messages up to one with an error, and reports the error only for the
 * first. */
int __wrap_sendmmsg(int fd, struct mmsghdr *messages, unsigned count, int flags)
{
    unsigned good = 0;
    while (good < count && !refused(&messages[good].msg_hdr))
        good++;
    if (good)
        return __real_sendmmsg(fd, messages, good, flags);
    refusal.times--;
    errno = refusal.error;
    return -1;
}

ssize_t __wrap_writev(int fd, const struct iovec *pieces, int count)
{
    if (count <= 2 || !write_refusals)
        return __real_writev(fd, pieces, count);
    write_refusals--;
    errno = EINVAL;
    return -1;
}

/* ---- set-up ---- */

static int udp_socket(uint32_t host, struct sockaddr_in *name)
{
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK, 0);
    socklen_t size = sizeof *name;
    *name = (struct sockaddr_in){.sin_family = AF_INET, .sin_addr.s_addr = htonl(host)};
    CHECK(fd >= 0 && bind(fd, (struct sockaddr *)name, size) == 0);
    CHECK(getsockname(fd, (struct sockaddr *)name, &size) == 0);
    return fd;
}

static void put_peer(struct world *world, uint16_t index, const struct sockaddr_in *name)
{
    struct address address = {.size = 4};
    memcpy(address.bytes, &name->sin_addr, 4);
    CHECK(peers_put(&world->forwarder.peers, index, &address, ntohs(name->sin_port), mac));
}

static struct world *world_new(void)
{
    struct world *world = calloc(1, sizeof *world);
    struct sockaddr_in theirs, others;
    int pair[2], on = 1, room = 1 << 20;
    CHECK(world && socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK, 0, pair) == 0);
    CHECK(setsockopt(pair[1], SOL_SOCKET, SO_SNDBUF, &room, sizeof room) == 0);
    struct forwarder *forwarder = &world->forwarder;
    int fd = udp_socket(INADDR_LOOPBACK, &world->ours);
    CHECK(setsockopt(fd, IPPROTO_UDP, UDP_GRO, &on, sizeof on) == 0);
    CHECK(setsockopt(fd, IPPROTO_IP, IP_RECVTOS, &on, sizeof on) == 0);
    world->device = pair[1];
    world->peer = udp_socket(INADDR_LOOPBACK + 1, &theirs);
    CHECK(setsockopt(world->peer, IPPROTO_IP, IP_RECVTOS, &on, sizeof on) == 0);
    close(udp_socket(INADDR_LOOPBACK + 2, &others));

    forwarder->device = (struct device){.fd = pair[0], .output = pair[0], .offload_header = true};
    forwarder->vtep.vni = 7;
    memcpy(forwarder->vtep.mac, mac, MAC_SIZE);
    forwarder->coalescer.tcp = forwarder->coalescer.udp = true;
    forwarder->trains.segments = TRAIN_SEGMENTS_MAX;
    forwarder->receive_most = RECEIVE_BATCH;
    forwarder->underlays[0] = (struct underlay){.receiving.fd = fd, .count = 1, .fds = {fd}};
    put_peer(world, 0, &theirs);
    put_peer(world, OTHER, &others);
    struct route routes[] = {
        {.network = {10, 244, 1}, .length = 24, .version = 4, .value = 0},
        {.network = {10, 244, 2}, .length = 24, .version = 4, .value = 0},
        {.network = {0xfd, 0x10, 2, 4, 4, 1}, .length = 48, .version = 6, .value = 0},
        {.network = {0xfd, 0x10, 2, 4, 4, 2}, .length = 48, .version = 6, .value = 0},
        {.network = {10, 244, 3}, .length = 24, .version = 4, .value = OTHER},
    };
    forwarder->routes = route_table_new(routes, sizeof routes / sizeof *routes);
    CHECK(forwarder->routes);
    return world;
}

static void world_free(struct world *world)
{
    struct forwarder *forwarder = &world->forwarder;
    close(forwarder->device.fd);
    close(forwarder->underlays[0].receiving.fd);
    close(world->device);
    close(world->peer);
    peers_free(&forwarder->peers);
    route_table_free(forwarder->routes);
    free(world);
}

static uint64_t dropped(const struct world *world, uint16_t peer, enum drop reason)
{
    const struct peers *peers = &world->forwarder.peers;
    return (peer == PEER_NONE ? &peers->unknown : &peers->at[peer].counters)->drops[reason];
}

/* The sum of all drops, to detect packets that are counted twice. */
static uint64_t dropped_in_all(const struct world *world)
{
    uint64_t sum = 0;
    for (int reason = 0; reason < DROP_REASONS; reason++)
        sum += dropped(world, PEER_NONE, (enum drop)reason) + dropped(world, 0, (enum drop)reason) +
               dropped(world, OTHER, (enum drop)reason);
    return sum;
}

/* ---- outbound ---- */

/* Sends the forwarder a packet, like a device with virtio headers. */
static void write_device(const struct world *world, const struct offload *offload,
                         const uint8_t *bytes, size_t length)
{
    struct iovec pieces[2] = {{(void *)(uintptr_t)offload, sizeof *offload},
                              {(void *)(uintptr_t)bytes, length}};
    CHECK_EQ(__real_writev(world->device, pieces, 2), length + sizeof *offload);
}

static size_t write_words(const struct world *world, const struct words *words)
{
    static uint8_t bytes[WORDS_MAX];
    struct offload none = {0};
    size_t length = words_put(bytes, words);
    write_device(world, &none, bytes, length);
    return length;
}

static void write_super(const struct world *world, const struct words *words)
{
    static uint8_t bytes[WORDS_MAX];
    bool tcp = words->protocol != IP_UDP;
    struct offload offload = {
        .flags = OFFLOAD_NEEDS_CSUM,
        .gso_type = !tcp                  ? GSO_UDP
                    : words->version == 6 ? GSO_TCP6
                                          : GSO_TCP4,
        .gso_size = MSS,
        .checksum_start = words->version == 6 ? 40 : 20,
        .checksum_offset = tcp ? TCP_CHECK : UDP_CHECK,
    };
    write_device(world, &offload, bytes, words_put(bytes, words));
}

/* Receives the peer's next datagram, 0 if there is none, and checks its headers. */
static size_t receive_frame(const struct world *world, uint8_t *packet)
{
    static uint8_t bytes[65536];
    struct vxlan_frame frame;
    ssize_t got = recv(world->peer, bytes, sizeof bytes, 0);
    if (got < 0)
        return 0;
    CHECK_EQ(vxlan_parse(bytes, (size_t)got, &frame), VXLAN_OK);
    CHECK_EQ(frame.vni, 7);
    CHECK(memcmp(frame.destination, mac, MAC_SIZE) == 0);
    CHECK_EQ(frame.ethertype, bytes[VXLAN_OVERHEAD] >> 4 == 6 ? ETHERTYPE_IP6 : ETHERTYPE_IP4);
    memcpy(packet, bytes + VXLAN_OVERHEAD, (size_t)got - VXLAN_OVERHEAD);
    return (size_t)got - VXLAN_OVERHEAD;
}

/* The peer must receive the payload of the super-packet in order, with correct checksums. */
static void check_stream_arrives(const struct world *world, const struct words *words)
{
    uint8_t packet[65536];
    size_t length,
        header = (words->version == 6 ? 40 : 20) + (words->protocol == IP_UDP ? 8u : 20u);
    size_t offset = 0;
    while (offset < words->payload && (length = receive_frame(world, packet))) {
        CHECK(words_verify(packet, length));
        for (size_t i = header; i < length; i++, offset++)
            CHECK_EQ(packet[i], words_byte(words->sequence + (uint32_t)offset));
    }
    CHECK_EQ(offset, words->payload);
    CHECK_EQ(receive_frame(world, packet), 0);
}

TEST(a_packet_is_sent_unchanged)
{
    for (uint8_t version = 4; version <= 6; version += 2) {
        struct world *world = world_new();
        struct words words = {.version = version, .payload = 77};
        uint8_t expected[300], got[65536];
        size_t length = write_words(world, &words);
        words_put(expected, &words);
        CHECK_EQ(forwarder_outbound(&world->forwarder), 1);
        CHECK_EQ(receive_frame(world, got), length);
        CHECK(memcmp(got, expected, length) == 0);
        const struct traffic *traffic = &world->forwarder.peers.at[0].counters.outbound;
        CHECK_EQ(traffic->packets, 1);
        CHECK_EQ(traffic->bytes, length);
        CHECK_EQ(world->forwarder.work.datagrams_sent, 1);
        CHECK_EQ(forwarder_outbound(&world->forwarder), 0);
        world_free(world);
    }
}

TEST(a_device_without_headers)
{
    struct world *world = world_new();
    world->forwarder.device.offload_header = false;
    uint8_t bytes[300], got[65536];
    struct words words = {.payload = 10};
    size_t length = words_put(bytes, &words);
    CHECK_EQ(write(world->device, bytes, length), length);
    CHECK_EQ(forwarder_outbound(&world->forwarder), 1);
    CHECK_EQ(receive_frame(world, got), length);
    world_free(world);
}

TEST(a_super_packet_leaves_as_a_train)
{
    for (uint8_t version = 4; version <= 6; version += 2) {
        for (int udp = 0; udp < 2; udp++) {
            struct world *world = world_new();
            struct words words = {
                .version = version, .protocol = udp ? IP_UDP : IP_TCP, .payload = 30 * MSS + 7};
            write_super(world, &words);
            CHECK_EQ(forwarder_outbound(&world->forwarder), 1);
            check_stream_arrives(world, &words);
            CHECK_EQ(world->forwarder.work.super_packets_read, 1);
            CHECK_EQ(world->forwarder.work.trains_sent, 1);
            CHECK_EQ(world->forwarder.work.sends, 1);
            CHECK_EQ(world->forwarder.peers.at[0].counters.outbound.packets, 31);
            world_free(world);
        }
    }
}

TEST(without_trains_each_segment_is_sent_alone)
{
    struct world *world = world_new();
    world->forwarder.trains.segments = 1;
    struct words words = {.payload = 30 * MSS};
    write_super(world, &words);
    CHECK_EQ(forwarder_outbound(&world->forwarder), 1);
    check_stream_arrives(world, &words);
    CHECK_EQ(world->forwarder.work.trains_sent, 0);
    CHECK_EQ(world->forwarder.work.datagrams_sent, 30);
    world_free(world);
}

TEST(headers_last_until_they_are_sent)
{
    /* More segments than the slab and the trains have space for. */
    struct world *world = world_new();
    world->forwarder.trains.segments = 20;
    struct words words = {.payload = 60000};
    static uint8_t bytes[WORDS_MAX];
    struct offload offload = {
        .flags = OFFLOAD_NEEDS_CSUM,
        .gso_type = GSO_TCP4,
        .gso_size = 30,
        .checksum_start = 20,
        .checksum_offset = TCP_CHECK,
    };
    int room = 16 << 20;
    setsockopt(world->peer, SOL_SOCKET, SO_RCVBUFFORCE, &room, sizeof room);
    write_device(world, &offload, bytes, words_put(bytes, &words));
    CHECK_EQ(forwarder_outbound(&world->forwarder), 1);
    CHECK_EQ(world->forwarder.peers.at[0].counters.outbound.packets, 2000);
    uint8_t packet[65536];
    size_t length, count = 0;
    uint32_t sequence = 0;
    while ((length = receive_frame(world, packet))) {
        CHECK(words_verify(packet, length));
        CHECK(get32(packet + 24) >= sequence); /* an ordinary user's buffer may lose some */
        sequence = get32(packet + 24) + 30;
        count++;
    }
    CHECK(count > 100);
    world_free(world);
}

/* Jumbo segments that are read apart: each packet begins where the last one ended, and none exceeds
 * the largest packet. */
TEST(reads_stay_inside_the_batch)
{
    enum { JUMBO = 65000, OVERSIZE = 131000 };
    struct world *world = world_new();
    struct forwarder *forwarder = &world->forwarder;
    const struct device_batch *batch = &forwarder->packets;
    static const size_t payloads[] = {65100, 64900, 40000, 65100, 1000};
    static uint8_t bytes[OVERSIZE];
    struct words words = {.protocol = IP_UDP, .payload = payloads[0]};
    struct offload none = {0}, offload = {
                                   .flags = OFFLOAD_NEEDS_CSUM,
                                   .gso_type = GSO_UDP,
                                   .gso_size = JUMBO,
                                   .checksum_start = 20,
                                   .checksum_offset = UDP_CHECK,
                               };
    write_device(world, &offload, bytes, words_put(bytes, &words));
    CHECK_EQ(forwarder_outbound(forwarder), 1);
    CHECK_EQ(forwarder->device.expected.size, JUMBO);
    for (size_t i = 0; i < sizeof payloads / sizeof *payloads; i++) {
        words.payload = payloads[i];
        write_device(world, payloads[i] == payloads[0] ? &offload : &none, bytes,
                     words_put(bytes, &words));
    }
    while (forwarder_outbound(forwarder) > 0)
        for (unsigned i = 0; i < batch->count; i++)
            CHECK(batch->packets[i].data < batch->room + DEVICE_ROOM - DEVICE_PACKET_MAX);
    CHECK_EQ(forwarder->peers.at[0].counters.outbound.packets, 2 + 2 + 1 + 1 + 2 + 1);
    CHECK_EQ(dropped_in_all(world), 0);

    write_device(world, &none, bytes, OVERSIZE);
    CHECK_EQ(forwarder_outbound(forwarder), 1);
    CHECK(batch->packets[0].length <= DEVICE_PACKET_MAX);
    world_free(world);
}

/* A segment too large for a datagram; and one segment that claims to be larger than the packet. */
TEST(segment_lengths_come_from_the_packet)
{
    struct world *world = world_new();
    struct forwarder *forwarder = &world->forwarder;
    static uint8_t bytes[WORDS_MAX];
    struct words words = {.payload = IP_MAX - 40};
    struct offload offload = {
        .flags = OFFLOAD_NEEDS_CSUM,
        .gso_type = GSO_TCP4,
        .gso_size = 0xffff,
        .checksum_start = 20,
        .checksum_offset = TCP_CHECK,
    };
    write_device(world, &offload, bytes, words_put(bytes, &words));
    CHECK_EQ(forwarder_outbound(forwarder), 1);
    CHECK_EQ(dropped(world, 0, DROP_too_big), 1);
    CHECK_EQ(forwarder->peers.at[0].counters.outbound.packets, 0);
    CHECK_EQ(forwarder->work.icmp_sent, 1);

    forwarder->peers.at[0].mtu = 1400;
    words.payload = 100;
    write_device(world, &offload, bytes, words_put(bytes, &words));
    CHECK_EQ(forwarder_outbound(forwarder), 1);
    check_stream_arrives(world, &words);
    CHECK_EQ(dropped_in_all(world), 1);
    world_free(world);
}

TEST(a_header_outlives_the_batch_before_its_own)
{
    /* All trains are in use at datagram 640; its header stays in the slab while longer ones follow.
     */
    enum { SIZE = 30, SHORT = 641, LONG = 400 };
    struct world *world = world_new();
    world->forwarder.trains.segments = 10;
    struct words words[2] = {
        {.protocol = IP_UDP, .payload = SHORT * SIZE},
        {.options = 40, .payload = LONG * SIZE},
    };
    int room = 16 << 20;
    setsockopt(world->peer, SOL_SOCKET, SO_RCVBUFFORCE, &room, sizeof room);
    for (size_t i = 0; i < 2; i++) {
        static uint8_t bytes[WORDS_MAX];
        struct offload offload = {
            .flags = OFFLOAD_NEEDS_CSUM,
            .gso_type = i ? GSO_TCP4 : GSO_UDP,
            .gso_size = SIZE,
            .checksum_start = 20,
            .checksum_offset = i ? TCP_CHECK : UDP_CHECK,
        };
        write_device(world, &offload, bytes, words_put(bytes, &words[i]));
    }
    CHECK_EQ(forwarder_outbound(&world->forwarder), 2);
    uint8_t packet[65536];
    unsigned count = 0;
    for (size_t length; (length = receive_frame(world, packet)); count++)
        CHECK(words_verify(packet, length));
    CHECK(count > 100); /* an ordinary user's buffer may lose some */
    world_free(world);
}

TEST(outer_ecn_equals_inner_ecn)
{
    struct world *world = world_new();
    for (uint8_t ecn = 0; ecn < 4; ecn++) {
        struct words words = {.tos = (uint8_t)(0xb8 | ecn), .payload = 10};
        write_words(world, &words);
    }
    CHECK_EQ(forwarder_outbound(&world->forwarder), 4);
    for (uint8_t ecn = 0; ecn < 4; ecn++) {
        uint8_t bytes[300], control[64];
        struct iovec piece = {bytes, sizeof bytes};
        struct msghdr message = {
            .msg_iov = &piece,
            .msg_iovlen = 1,
            .msg_control = control,
            .msg_controllen = sizeof control,
        };
        CHECK(recvmsg(world->peer, &message, 0) > 0);
        const struct cmsghdr *tos = CMSG_FIRSTHDR(&message);
        CHECK(tos && tos->cmsg_type == IP_TOS);
        CHECK_EQ(*CMSG_DATA(tos), ecn);
    }
    world_free(world);
}

TEST(outbound_drops_are_counted)
{
    static const struct {
        const char *name;
        struct words words;
        size_t at;
        uint8_t value[4];
        uint16_t peer;
        enum drop reason;
    } rows[] = {
        {"version 5", {0}, 0, {0x55, 0, 0, 40}, PEER_NONE, DROP_not_ip},
        {"cut off", {0}, 0, {0x45, 0, 1, 40}, PEER_NONE, DROP_not_ip},
        {"no route", {0}, 16, {10, 9, 9, 9}, PEER_NONE, DROP_no_route},
        {"multicast", {0}, 16, {224, 0, 0, 1}, PEER_NONE, DROP_multicast},
        {"broadcast", {0}, 16, {255, 255, 255, 255}, PEER_NONE, DROP_multicast},
        {"more than a datagram", {.payload = 65446}, 8, {64, 6, 0, 0}, 0, DROP_too_big},
        {"not resolved", {0}, 16, {10, 244, 3, 1}, OTHER, DROP_unresolved},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        check_row = rows[i].name;
        struct world *world = world_new();
        struct address none = {0};
        static uint8_t bytes[WORDS_MAX];
        struct offload offload = {0};
        CHECK(peers_put(&world->forwarder.peers, OTHER, &none, 8472, mac));
        size_t length = words_put(bytes, &rows[i].words);
        memcpy(bytes + rows[i].at, rows[i].value, 4);
        write_device(world, &offload, bytes, length);
        CHECK_EQ(forwarder_outbound(&world->forwarder), 1);
        CHECK_EQ(dropped(world, rows[i].peer, rows[i].reason), 1);
        CHECK_EQ(dropped_in_all(world), 1);
        CHECK_EQ(world->forwarder.work.datagrams_sent, 0);
        world_free(world);
    }
}

TEST(contradictory_offload_headers_are_counted)
{
    static const struct offload rows[] = {
        {.gso_type = GSO_TCP4, .gso_size = 0, .flags = 1, .checksum_start = 20},
        {.gso_type = GSO_TCP6, .gso_size = 9, .flags = 1, .checksum_start = 20},
        {.flags = OFFLOAD_NEEDS_CSUM, .checksum_start = 1000},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct world *world = world_new();
        uint8_t bytes[300];
        struct words words = {.payload = 20};
        write_device(world, &rows[i], bytes, words_put(bytes, &words));
        CHECK_EQ(forwarder_outbound(&world->forwarder), 1);
        CHECK_EQ(dropped(world, 0, DROP_bad_offload), 1);
        CHECK_EQ(dropped_in_all(world), 1);
        world_free(world);
    }
}

TEST(a_truncated_offload_header_is_counted)
{
    struct world *world = world_new();
    CHECK_EQ(write(world->device, "123", 3), 3);
    CHECK_EQ(forwarder_outbound(&world->forwarder), 1);
    CHECK_EQ(dropped(world, PEER_NONE, DROP_not_ip), 1);
    world_free(world);
}

TEST(no_route_sends_an_icmp_error)
{
    struct world *world = world_new();
    uint8_t bytes[300], got[2000];
    struct offload offload = {0};
    struct words words = {.payload = 20};
    size_t length = words_put(bytes, &words);
    bytes[18] = 99; /* 10.244.99.1 */
    for (int i = 0; i < 60; i++)
        write_device(world, &offload, bytes, length);
    CHECK_EQ(forwarder_outbound(&world->forwarder), 60);
    unsigned reported = 0;
    for (; read(world->device, got, sizeof got) > 0; reported++)
        CHECK(got[OFFLOAD_HEADER + 9] == IP_ICMP && got[OFFLOAD_HEADER + 20] == 3);
    CHECK(reported >= 50 && reported < 60);
    CHECK_EQ(world->forwarder.work.icmp_sent, reported);
    CHECK_EQ(dropped(world, PEER_NONE, DROP_no_route), 60);
    world_free(world);
}

TEST(a_closed_device_is_an_error)
{
    struct world *world = world_new();
    struct words words = {.payload = 20};
    write_words(world, &words);
    shutdown(world->device, SHUT_RDWR);
    CHECK_EQ(forwarder_outbound(&world->forwarder), 1);
    CHECK_EQ(forwarder_outbound(&world->forwarder), -EPIPE);
    world_free(world);
}

TEST(send_errors_have_reasons)
{
    static const struct {
        int error;
        enum drop reason;
    } rows[] = {
        {EPERM, DROP_blocked},           {EACCES, DROP_blocked},
        {ENETUNREACH, DROP_unreachable}, {EHOSTUNREACH, DROP_unreachable},
        {ENETDOWN, DROP_unreachable},    {ENOBUFS, DROP_send_full},
        {EAGAIN, DROP_send_full},        {EMSGSIZE, DROP_too_big},
        {EBADF, DROP_send_failed},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct world *world = world_new();
        struct words words = {.payload = 20};
        write_words(world, &words);
        refusal.error = rows[i].error;
        refusal.singles = true;
        refusal.times = 100;
        CHECK_EQ(forwarder_outbound(&world->forwarder), 1);
        CHECK(refusal.times >= 90); /* the number of retries is limited */
        refusal.times = 0;
        CHECK_EQ(dropped(world, 0, rows[i].reason), 1);
        CHECK_EQ(dropped_in_all(world), 1);
        CHECK_EQ(world->forwarder.peers.at[0].counters.outbound.packets, 0);
        world_free(world);
    }
}

TEST(a_full_buffer_is_retried)
{
    static const int errors[] = {EAGAIN, ENOBUFS, EINTR};
    for (size_t i = 0; i < 3; i++) {
        struct world *world = world_new();
        struct words words = {.payload = 10 * MSS};
        write_super(world, &words);
        refusal.error = errors[i];
        refusal.singles = false;
        refusal.times = 2;
        CHECK_EQ(forwarder_outbound(&world->forwarder), 1);
        CHECK_EQ(refusal.times, 0);
        check_stream_arrives(world, &words);
        CHECK_EQ(dropped_in_all(world), 0);
        CHECK(world->forwarder.peers.at[0].trains);
        world_free(world);
    }
}

TEST(a_path_that_refuses_trains_gets_datagrams)
{
    static const int errors[] = {EIO, EINVAL};
    for (size_t i = 0; i < 2; i++) {
        struct world *world = world_new();
        struct words words = {.payload = 30 * MSS + 5};
        refusal.error = errors[i];
        refusal.singles = false;
        refusal.times = 1;
        write_super(world, &words);
        CHECK_EQ(forwarder_outbound(&world->forwarder), 1);
        check_stream_arrives(world, &words); /* all of it, exactly once */
        CHECK(!world->forwarder.peers.at[0].trains);
        CHECK(world->forwarder.peers.at[OTHER].trains);
        CHECK_EQ(world->forwarder.peers.at[0].counters.outbound.packets, 31);
        CHECK_EQ(dropped_in_all(world), 0);
        write_super(world, &words);
        CHECK_EQ(forwarder_outbound(&world->forwarder), 1);
        check_stream_arrives(world, &words);
        CHECK_EQ(world->forwarder.work.trains_sent, 0);
        world_free(world);
    }
}

TEST(order_survives_a_refused_train)
{
    /* Two trains and further packets of one flow; the kernel refuses only the first train. */
    struct world *world = world_new();
    struct words words = {.payload = 10 * MSS};
    write_super(world, &words);
    struct words more = {.payload = MSS + 100, .sequence = 10 * MSS};
    write_words(world, &more);
    refusal.error = EIO;
    refusal.singles = false;
    refusal.times = 1;
    CHECK_EQ(forwarder_outbound(&world->forwarder), 2);
    words.payload += more.payload;
    check_stream_arrives(world, &words);
    world_free(world);
}

/* ---- inbound ---- */

static size_t put_frame(uint8_t *bytes, const struct words *words)
{
    struct vxlan_frame frame = {
        .vni = 7,
        .ethertype = words->version == 6 ? ETHERTYPE_IP6 : ETHERTYPE_IP4,
        .destination = mac,
        .source = any_vtep_mac,
    };
    vxlan_put(bytes, &frame);
    return VXLAN_OVERHEAD + words_put(bytes + VXLAN_OVERHEAD, words);
}

static void send_datagram(const struct world *world, int fd, const uint8_t *bytes, size_t length)
{
    CHECK_EQ(
        sendto(fd, bytes, length, 0, (const struct sockaddr *)&world->ours, sizeof world->ours),
        length);
}

/* Sends `words` in segments of MSS, as one train or as single datagrams. */
static void send_stream(const struct world *world, const struct words *words, bool train)
{
    static uint8_t bytes[65536];
    struct words segment = *words;
    size_t length = 0, left = words->payload;
    int size = 0;
    for (; left; left -= segment.payload, segment.sequence += MSS, segment.id++) {
        segment.payload = left < MSS ? left : MSS;
        size_t frame = put_frame(bytes + length, &segment);
        size = size ? size : (int)frame;
        if (train)
            length += frame;
        else
            send_datagram(world, world->peer, bytes, frame);
    }
    if (!train)
        return;
    CHECK(setsockopt(world->peer, IPPROTO_UDP, UDP_SEGMENT, &size, sizeof size) == 0);
    send_datagram(world, world->peer, bytes, length);
    size = 0;
    CHECK(setsockopt(world->peer, IPPROTO_UDP, UDP_SEGMENT, &size, sizeof size) == 0);
}

/* Reads a packet that the forwarder has written, 0 if there is none. */
static size_t read_device(const struct world *world, struct offload *offload, uint8_t *packet)
{
    static uint8_t bytes[OFFLOAD_HEADER + 65536];
    ssize_t got = read(world->device, bytes, sizeof bytes);
    if (got <= 0)
        return 0;
    CHECK(got > OFFLOAD_HEADER);
    memcpy(offload, bytes, sizeof *offload);
    memcpy(packet, bytes + OFFLOAD_HEADER, (size_t)got - OFFLOAD_HEADER);
    return (size_t)got - OFFLOAD_HEADER;
}

/* The device must receive the bytes of the stream in order; returns the number of packets. */
static unsigned check_stream_written(const struct world *world, const struct words *words)
{
    static uint8_t packet[65536];
    struct offload offload;
    size_t length, offset = 0;
    size_t header = (words->version == 6 ? 40 : 20) + (words->protocol == IP_UDP ? 8u : 20u);
    unsigned count = 0;
    for (; (length = read_device(world, &offload, packet)); count++) {
        CHECK(offload.gso_type != GSO_NONE || words_verify(packet, length));
        CHECK(offload.gso_type == GSO_NONE || offload.gso_size == MSS);
        for (size_t i = header; i < length; i++, offset++)
            CHECK_EQ(packet[i], words_byte(words->sequence + (uint32_t)offset));
    }
    CHECK_EQ(offset, words->payload);
    return count;
}

static int inbound(struct world *world)
{
    return forwarder_inbound(&world->forwarder, &world->forwarder.underlays[0]);
}

TEST(a_train_becomes_a_super_packet)
{
    for (uint8_t version = 4; version <= 6; version += 2) {
        for (int udp = 0; udp < 2; udp++) {
            for (int train = 0; train < 2; train++) {
                struct world *world = world_new();
                struct words words = {
                    .version = version, .protocol = udp ? IP_UDP : IP_TCP, .payload = 20 * MSS + 1};
                send_stream(world, &words, train);
                CHECK_EQ(inbound(world), train ? 1 : 21);
                CHECK_EQ(check_stream_written(world, &words), 1);
                CHECK_EQ(world->forwarder.work.trains_received, train);
                CHECK_EQ(world->forwarder.work.datagrams_received, 21);
                CHECK_EQ(world->forwarder.work.super_packets_written, 1);
                CHECK_EQ(world->forwarder.peers.at[0].counters.inbound.packets, 21);
                CHECK_EQ(inbound(world), 0);
                world_free(world);
            }
        }
    }
}

TEST(without_coalescing_each_packet_is_written)
{
    struct world *world = world_new();
    world->forwarder.coalescer.tcp = false;
    struct words words = {.payload = 20 * MSS + 1};
    send_stream(world, &words, true);
    CHECK_EQ(inbound(world), 1);
    CHECK_EQ(check_stream_written(world, &words), 21);
    world_free(world);
}

TEST(a_device_that_refuses_super_packets_gets_none)
{
    for (int udp = 0; udp < 2; udp++) {
        struct world *world = world_new();
        struct words words = {.protocol = udp ? IP_UDP : IP_TCP, .payload = 20 * MSS + 1};
        write_refusals = 1;
        send_stream(world, &words, true);
        CHECK_EQ(inbound(world), 1);
        CHECK_EQ(write_refusals, 0);
        CHECK_EQ(check_stream_written(world, &words), 21);
        CHECK_EQ(world->forwarder.coalescer.tcp, udp);
        CHECK_EQ(world->forwarder.coalescer.udp, !udp);
        CHECK_EQ(world->forwarder.peers.at[0].counters.inbound.packets, 21);
        CHECK_EQ(dropped_in_all(world), 0);
        world_free(world);
    }
}

TEST(inbound_drops_are_counted)
{
    static const struct {
        const char *name;
        size_t at;
        uint8_t value;
        enum drop reason;
    } rows[] = {
        {"no I flag", 0, 0, DROP_no_vni},
        {"another VNI", 6, 8, DROP_other_vni},
        {"another MAC", 13, 99, DROP_other_mac},
        {"ARP", 21, 6, DROP_ethertype},
        {"bad lengths", 24, 99, DROP_bad_inner},
        {"unrouted source", 22 + 12, 11, DROP_spoofed},
        {"another peer's source", 22 + 14, 3, DROP_spoofed},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        check_row = rows[i].name;
        struct world *world = world_new();
        uint8_t bytes[300];
        struct words words = {.version = 4, .payload = 20};
        size_t length = put_frame(bytes, &words);
        bytes[rows[i].at] = rows[i].value;
        send_datagram(world, world->peer, bytes, length);
        CHECK_EQ(inbound(world), 1);
        CHECK_EQ(dropped(world, 0, rows[i].reason), 1);
        CHECK_EQ(dropped_in_all(world), 1);
        CHECK_EQ(world->forwarder.work.device_writes, 0);
        world_free(world);
    }
}

TEST(short_and_empty_datagrams_are_counted)
{
    struct world *world = world_new();
    uint8_t bytes[21] = {8};
    for (size_t length = 0; length <= sizeof bytes; length++)
        send_datagram(world, world->peer, bytes, length);
    CHECK_EQ(inbound(world), 22);
    CHECK_EQ(dropped(world, 0, DROP_short_frame), 22);
    CHECK_EQ(dropped_in_all(world), 22);
    world_free(world);
}

TEST(an_unknown_source_is_counted_for_no_peer)
{
    struct world *world = world_new();
    struct sockaddr_in name;
    int stranger = udp_socket(INADDR_LOOPBACK + 7, &name);
    uint8_t bytes[300];
    struct words words = {.payload = 20};
    send_datagram(world, stranger, bytes, put_frame(bytes, &words));
    CHECK_EQ(inbound(world), 1);
    CHECK_EQ(dropped(world, PEER_NONE, DROP_unknown_source), 1);
    CHECK_EQ(dropped_in_all(world), 1);
    close(stranger);
    world_free(world);
}

TEST(outer_congestion_marks_the_inner_packet)
{
    struct world *world = world_new();
    int congested = 3;
    CHECK(setsockopt(world->peer, IPPROTO_IP, IP_TOS, &congested, sizeof congested) == 0);
    uint8_t bytes[300];
    struct offload offload;
    struct words cannot_know = {.payload = 20}, capable = {.tos = 2, .payload = 20};
    send_datagram(world, world->peer, bytes, put_frame(bytes, &cannot_know));
    send_datagram(world, world->peer, bytes, put_frame(bytes, &capable));
    CHECK_EQ(inbound(world), 2);
    CHECK_EQ(dropped(world, 0, DROP_bad_ecn), 1);
    size_t length = read_device(world, &offload, bytes);
    CHECK(length && words_verify(bytes, length));
    CHECK_EQ(bytes[1], 3);
    world_free(world);
}

TEST(a_full_device_is_counted)
{
    struct world *world = world_new();
    struct words words = {.protocol = IP_UDP, .payload = MSS};
    uint64_t sent = 0;
    while (!dropped(world, 0, DROP_device_full) && sent < 10000) {
        uint8_t bytes[2000];
        words.port = (uint16_t)sent++;
        send_datagram(world, world->peer, bytes, put_frame(bytes, &words));
        CHECK_EQ(inbound(world), 1);
    }
    CHECK_EQ(dropped(world, 0, DROP_device_full), 1);
    CHECK_EQ(world->forwarder.peers.at[0].counters.inbound.packets, sent - 1);
    world_free(world);
}

TEST(a_device_that_is_down_is_counted)
{
    struct world *world = world_new();
    signal(SIGPIPE, SIG_IGN); /* like Python */
    shutdown(world->device, SHUT_RDWR);
    struct words words = {.payload = 3 * MSS};
    send_stream(world, &words, true);
    CHECK_EQ(inbound(world), 1);
    CHECK_EQ(dropped(world, 0, DROP_device_refused), 3);
    CHECK_EQ(dropped_in_all(world), 3);
    world_free(world);
}

TEST(many_flows_keep_their_order)
{
    uint64_t random = 14;
    struct world *world = world_new();
    enum { FLOWS = 8 };
    uint32_t sent[FLOWS] = {0}, seen[FLOWS] = {0};
    for (int round = 0; round < 30; round++) {
        for (int i = 0; i < 100; i++) {
            uint8_t bytes[2000];
            uint16_t flow = check_random(&random) % FLOWS;
            struct words words = {
                .version = flow % 2 ? 6 : 4,
                .protocol = flow % 4 / 2 ? IP_UDP : IP_TCP,
                .port = flow,
                .sequence = sent[flow],
                .payload = check_random(&random) % 8 ? 100 : 50,
            };
            sent[flow] += (uint32_t)words.payload;
            send_datagram(world, world->peer, bytes, put_frame(bytes, &words));
        }
        while (inbound(world) > 0)
            ;
        static uint8_t packet[65536];
        struct offload offload;
        for (size_t length; (length = read_device(world, &offload, packet));) {
            size_t header = packet[0] >> 4 == 6 ? 40 : 20;
            uint16_t flow = (uint16_t)(get16(packet + header) - 40000);
            for (size_t i = header + (flow % 4 / 2 ? 8 : 20); i < length; i++)
                CHECK_EQ(packet[i], words_byte(seen[flow]++));
        }
    }
    CHECK(memcmp(sent, seen, sizeof sent) == 0);
    CHECK_EQ(dropped_in_all(world), 0);
    world_free(world);
}

/* ---- control frames ---- */

/* Frames other than IP, for `destination`, with a body of that length: "signal", zeros. */
static size_t put_control(uint8_t *bytes, const uint8_t *destination, size_t length)
{
    struct vxlan_frame frame = {
        .vni = 7,
        .ethertype = ETHERTYPE_CONTROL,
        .destination = destination,
        .source = any_vtep_mac,
    };
    vxlan_put(bytes, &frame);
    memset(bytes + VXLAN_OVERHEAD, 0, length);
    memcpy(bytes + VXLAN_OVERHEAD, "signal", length < 6 ? length : 6);
    return VXLAN_OVERHEAD + length;
}

static int move(struct world *world)
{
    int failed = -1;
    return forwarder_move(&world->forwarder, &failed);
}

TEST(control_frames_are_queued_and_reported_once)
{
    static const uint8_t *const destinations[] = {mac, any_vtep_mac};
    for (size_t i = 0; i < 2; i++) {
        struct world *world = world_new();
        const struct control_queue *queue = &world->forwarder.control;
        static uint8_t bytes[2000], body[1000];
        CHECK_EQ(move(world), 0);
        send_datagram(world, world->peer, bytes, put_control(bytes, destinations[i], 1000));
        CHECK_EQ(move(world), 1);
        CHECK_EQ(move(world), 0); /* not reported twice, even if it was not read yet */
        CHECK_EQ(queue->count, 1);
        CHECK_EQ(queue->messages[0].sender, 0);
        CHECK_EQ(queue->messages[0].length, 1000);
        control_queue_copy(queue, 0, body);
        CHECK(memcmp(body, bytes + VXLAN_OVERHEAD, 1000) == 0);
        CHECK_EQ(dropped_in_all(world), 0);
        CHECK_EQ(world->forwarder.peers.at[0].counters.inbound.packets, 0);
        CHECK_EQ(world->forwarder.work.device_writes, 0);
        world_free(world);
    }
}

TEST(control_frames_for_other_nodes_are_counted)
{
    static const struct {
        const char *name;
        size_t at;
        uint8_t value;
        enum drop reason;
    } rows[] = {
        {"no I flag", 0, 0, DROP_no_vni},
        {"another VNI", 6, 8, DROP_other_vni},
        {"another MAC", 13, 99, DROP_other_mac},
        {"a group", 8, 3, DROP_other_mac},
        {"another EtherType", 21, 0xb6, DROP_ethertype},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        check_row = rows[i].name;
        struct world *world = world_new();
        uint8_t bytes[300];
        size_t length = put_control(bytes, mac, 100);
        bytes[rows[i].at] = rows[i].value;
        send_datagram(world, world->peer, bytes, length);
        CHECK_EQ(move(world), 0);
        CHECK_EQ(dropped(world, 0, rows[i].reason), 1);
        CHECK_EQ(dropped_in_all(world), 1);
        CHECK_EQ(world->forwarder.control.count, 0);
        world_free(world);
    }
}

TEST(control_frames_of_unknown_senders_are_dropped)
{
    struct world *world = world_new();
    struct sockaddr_in name;
    int stranger = udp_socket(INADDR_LOOPBACK + 7, &name);
    uint8_t bytes[300];
    send_datagram(world, stranger, bytes, put_control(bytes, mac, 100));
    CHECK_EQ(move(world), 0);
    CHECK_EQ(dropped(world, PEER_NONE, DROP_unknown_source), 1);
    CHECK_EQ(world->forwarder.control.count, 0);
    close(stranger);
    world_free(world);
}

TEST(a_full_queue_drops_control_frames)
{
    struct world *world = world_new();
    uint8_t bytes[300];
    for (unsigned i = 0; i < CONTROL_QUEUE_MAX + 5; i++) {
        send_datagram(world, world->peer, bytes, put_control(bytes, mac, 64));
        CHECK_EQ(inbound(world), 1);
    }
    CHECK_EQ(world->forwarder.control.count, CONTROL_QUEUE_MAX);
    CHECK_EQ(dropped(world, 0, DROP_control_full), 5);
    CHECK_EQ(dropped_in_all(world), 5);
    CHECK_EQ(move(world), 1);
    control_queue_clear(&world->forwarder.control);
    send_datagram(world, world->peer, bytes, put_control(bytes, mac, 64));
    CHECK_EQ(move(world), 1);
    CHECK_EQ(world->forwarder.control.count, 1);
    world_free(world);
}

TEST(every_control_frame_of_a_train_is_queued)
{
    struct world *world = world_new();
    static uint8_t bytes[65536];
    enum { COUNT = 16 };
    size_t length = 0;
    int size = 0;
    for (int i = 0; i < COUNT; i++) {
        size_t frame = put_control(bytes + length, mac, 500);
        bytes[length + VXLAN_OVERHEAD] = (uint8_t)i;
        size = (int)frame;
        length += frame;
    }
    CHECK(setsockopt(world->peer, IPPROTO_UDP, UDP_SEGMENT, &size, sizeof size) == 0);
    send_datagram(world, world->peer, bytes, length);
    CHECK_EQ(move(world), 1);
    CHECK_EQ(world->forwarder.work.trains_received, 1);
    CHECK_EQ(world->forwarder.control.count, COUNT);
    for (unsigned i = 0; i < COUNT; i++) {
        uint8_t body[500];
        control_queue_copy(&world->forwarder.control, i, body);
        CHECK_EQ(body[0], i);
        CHECK(memcmp(body + 1, "ignal", 6) == 0);
    }
    CHECK_EQ(dropped_in_all(world), 0);
    world_free(world);
}

TEST(packets_pass_between_control_frames)
{
    struct world *world = world_new();
    uint8_t bytes[300];
    struct offload offload;
    struct words words = {.payload = 20};
    for (int i = 0; i < 10; i++) {
        send_datagram(world, world->peer, bytes, put_control(bytes, mac, 64));
        send_datagram(world, world->peer, bytes, put_frame(bytes, &words));
        words.sequence += 20;
    }
    CHECK_EQ(move(world), 1);
    CHECK_EQ(world->forwarder.control.count, 10);
    CHECK_EQ(world->forwarder.peers.at[0].counters.inbound.packets, 10);
    CHECK(read_device(world, &offload, bytes) > 0);
    world_free(world);
}

/* ---- path MTU ---- */

/* The MTU in the ICMP error for a packet that is too big for the path, 0 if there is no error. */
static uint32_t reported(const struct world *world, const struct words *words)
{
    static uint8_t packet[65536], original[WORDS_MAX];
    struct offload offload;
    size_t length = read_device(world, &offload, packet);
    if (!length)
        return 0;
    bool four = words->version != 6;
    const uint8_t *icmp = packet + (four ? 20 : 40);
    words_put(original, words);
    CHECK_EQ(packet[0] >> 4, four ? 4 : 6);
    CHECK_EQ(packet[four ? 9 : 6], four ? IP_ICMP : IP_ICMP6);
    CHECK_EQ(icmp[0], four ? 3 : 2);
    CHECK_EQ(icmp[1], four ? 4 : 0);
    /* To the sender, quoting its packet, but for checksums that the device finishes. */
    CHECK(four ? memcmp(packet + 16, original + 12, 4) == 0
               : memcmp(packet + 24, original + 8, 16) == 0);
    CHECK(memcmp(icmp + 8, original, four ? 10 : 40) == 0);
    return four ? get16(icmp + 6) : get32(icmp + 4);
}

TEST(too_big_packets_get_an_icmp_error)
{
    static const struct {
        const char *name;
        uint16_t mtu;
        struct words words;
        uint32_t reported; /* 0 if the packet is sent */
    } rows[] = {
        {"unknown", 0, {.payload = 1400}, 0},
        {"IPv4 fits", 1340, {.payload = 1300}, 0},
        {"IPv4 too long", 1339, {.payload = 1300}, 1339},
        {"IPv4 far too long", 1130, {.payload = 8000}, 1130},
        {"IPv4 UDP", 1327, {.protocol = IP_UDP, .payload = 1300}, 1327},
        {"IPv4 that may be fragmented", 1130, {.fragmentable = true, .payload = 1300}, 0},
        {"IPv6 fits", 1360, {.version = 6, .payload = 1300}, 0},
        {"IPv6 too long", 1359, {.version = 6, .payload = 1300}, 1359},
        {"IPv6 that has to go", 1130, {.version = 6, .payload = 1220}, 0},
        {"IPv6 never reports less", 1130, {.version = 6, .payload = 1221}, 1280},
        {"IPv6 UDP", 1130, {.version = 6, .protocol = IP_UDP, .payload = 1300}, 1280},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        check_row = rows[i].name;
        struct world *world = world_new();
        static uint8_t got[65536];
        world->forwarder.peers.at[0].mtu = rows[i].mtu;
        size_t length = write_words(world, &rows[i].words);
        CHECK_EQ(forwarder_outbound(&world->forwarder), 1);
        CHECK_EQ(reported(world, &rows[i].words), rows[i].reported);
        CHECK_EQ(receive_frame(world, got), rows[i].reported ? 0 : length);
        CHECK_EQ(dropped(world, 0, DROP_too_big), rows[i].reported != 0);
        CHECK_EQ(dropped_in_all(world), rows[i].reported != 0);
        CHECK_EQ(world->forwarder.work.icmp_sent, rows[i].reported != 0);
        world_free(world);
    }
}

TEST(too_big_super_packets_get_one_icmp_error)
{
    for (uint8_t version = 4; version <= 6; version += 2) {
        for (int udp = 0; udp < 2; udp++) {
            for (int fits = 0; fits < 2; fits++) {
                struct words words = {
                    .version = version, .protocol = udp ? IP_UDP : IP_TCP, .payload = 30 * MSS + 7};
                struct world *world = world_new();
                uint32_t segment = MSS + (version == 4 ? 20u : 40u) + (udp ? 8u : 20u);
                /* The smallest MTU of IPv6 is 1,280; all of these are smaller. */
                bool goes = fits || version == 6;
                world->forwarder.peers.at[0].mtu = (uint16_t)(segment - !fits);
                write_super(world, &words);
                CHECK_EQ(forwarder_outbound(&world->forwarder), 1);
                CHECK_EQ(reported(world, &words), goes ? 0 : segment - 1);
                CHECK_EQ(dropped(world, 0, DROP_too_big), goes ? 0 : 31);
                CHECK_EQ(dropped_in_all(world), goes ? 0 : 31);
                CHECK_EQ(world->forwarder.work.super_packets_read, goes);
                if (goes)
                    check_stream_arrives(world, &words);
                world_free(world);
            }
        }
    }
}

TEST(long_ipv6_segments_get_an_icmp_error)
{
    struct world *world = world_new();
    static uint8_t bytes[WORDS_MAX];
    struct words words = {.version = 6, .payload = 10 * 1300};
    struct offload offload = {
        .flags = OFFLOAD_NEEDS_CSUM,
        .gso_type = GSO_TCP6,
        .gso_size = 1300,
        .checksum_start = 40,
        .checksum_offset = TCP_CHECK,
    };
    world->forwarder.peers.at[0].mtu = 1300;
    write_device(world, &offload, bytes, words_put(bytes, &words));
    CHECK_EQ(forwarder_outbound(&world->forwarder), 1);
    CHECK_EQ(reported(world, &words), 1300);
    CHECK_EQ(dropped(world, 0, DROP_too_big), 10);
    world_free(world);
}

TEST(the_path_mtu_of_a_peer_applies_to_no_other)
{
    struct world *world = world_new();
    struct words words = {.payload = 1300};
    uint8_t got[65536];
    world->forwarder.peers.at[OTHER].mtu = 1130;
    size_t length = write_words(world, &words);
    CHECK_EQ(forwarder_outbound(&world->forwarder), 1);
    CHECK_EQ(receive_frame(world, got), length);
    CHECK_EQ(dropped_in_all(world), 0);
    world_free(world);
}

TEST(icmp_errors_are_rate_limited)
{
    struct world *world = world_new();
    static uint8_t got[65536];
    struct words words = {.payload = 1300};
    struct offload offload;
    world->forwarder.peers.at[0].mtu = 1130;
    for (int i = 0; i < 60; i++)
        write_words(world, &words);
    CHECK_EQ(forwarder_outbound(&world->forwarder), 60);
    unsigned messages = 0;
    while (read_device(world, &offload, got))
        messages++;
    CHECK(messages >= 50 && messages < 60);
    CHECK_EQ(world->forwarder.work.icmp_sent, messages);
    CHECK_EQ(dropped(world, 0, DROP_too_big), 60);
    world_free(world);
}

TEST(a_train_refused_as_too_big_is_sent_singly_on_a_wide_path)
{
    struct world *world = world_new();
    struct words words = {.version = 6, .payload = 5 * MSS};
    write_super(world, &words);
    refusal.error = EMSGSIZE;
    refusal.singles = false;
    refusal.times = 1;
    CHECK_EQ(forwarder_outbound(&world->forwarder), 1);
    check_stream_arrives(world, &words);
    CHECK_EQ(dropped_in_all(world), 0);
    CHECK(world->forwarder.peers.at[0].trains);
    world_free(world);
}

/* ---- trace ---- */

enum { PREFIX_MAX = VXLAN_OVERHEAD + VLAN_TAG };

/* Traces a packet that is alone in its memory, and checks that it has no effect. Copies the headers
 * before the packet to `headers`, of PREFIX_MAX bytes. */
static struct trace trace(struct world *world, const uint8_t *bytes, size_t length,
                          uint8_t *headers)
{
    struct forwarder *forwarder = &world->forwarder;
    const struct work none = {0};
    const bool flood = forwarder->bridge.flood;
    uint8_t got[64], *memory = malloc(DEVICE_GAP + length);
    CHECK(memory);
    struct device_packet read = {.data = memory + DEVICE_GAP, .length = length};
    struct trace trace;
    memcpy(read.data, bytes, length);
    forwarder_trace(forwarder, &read, &trace);
    CHECK(trace.headers_size <= PREFIX_MAX);
    memcpy(headers, trace.headers, trace.headers_size);
    free(memory);

    CHECK_EQ(dropped_in_all(world), 0);
    CHECK_EQ(forwarder->peers.unknown.last_drop, 0);
    CHECK_EQ(forwarder->peers.at[0].counters.last_drop, 0);
    CHECK_EQ(forwarder->peers.at[0].counters.outbound.packets, 0);
    CHECK(memcmp(&forwarder->work, &none, sizeof none) == 0);
    CHECK_EQ(forwarder->device.output, forwarder->device.fd);
    CHECK_EQ(forwarder->bridge.flood, flood);
    CHECK_EQ(forwarder->trains.count, 0);
    CHECK_EQ(forwarder->slab_used, 0);
    CHECK(recv(world->peer, got, sizeof got, 0) < 0);
    CHECK(recv(world->device, got, sizeof got, 0) < 0);
    return trace;
}

/* A forwarder in TAP mode, and a MAC that is behind peer 0. */
static struct world *frames_new(void)
{
    struct world *world = world_new();
    struct fdb *fdb = fdb_new((struct fdb_limits){100, 100, 300}, 1);
    CHECK(fdb && fdb_put(fdb, fdb_key(mac, 0), 0) && fdb_put(fdb, fdb_key(mac, 7), 0));
    world->forwarder.device.frames = true;
    world->forwarder.bridge = (struct bridge){.fdb = fdb, .flood = true};
    return world;
}

static void frames_free(struct world *world)
{
    fdb_free(world->forwarder.bridge.fdb);
    world_free(world);
}

/* Writes a frame from a host to a MAC, with a tag unless `vlan` is 0. Returns its length. */
static size_t put_ethernet(uint8_t *out, const uint8_t *to, uint16_t vlan,
                           const struct words *words)
{
    static const uint8_t from[MAC_SIZE] = {2, 9, 9, 9, 9, 9};
    uint8_t *type = out + 2 * MAC_SIZE;
    memcpy(out, to, MAC_SIZE);
    memcpy(out + MAC_SIZE, from, MAC_SIZE);
    if (vlan) {
        put16(type, ETHERTYPE_VLAN);
        put16(type + 2, vlan);
        type += VLAN_TAG;
    }
    put16(type, words->version == 6 ? ETHERTYPE_IP6 : ETHERTYPE_IP4);
    return (size_t)(type + 2 - out) + words_put(type + 2, words);
}

TEST(a_trace_matches_what_is_sent)
{
    for (int row = 0; row < 6; row++) {
        bool frames = row >= 2;
        uint16_t vlan = row >= 4 ? 7 : 0;
        struct words words = {.version = row % 2 ? 6 : 4, .payload = 77};
        struct world *world = frames ? frames_new() : world_new();
        uint8_t bytes[300], headers[PREFIX_MAX], got[400];
        struct offload none = {0};
        size_t length = frames ? put_ethernet(bytes, mac, vlan, &words) : words_put(bytes, &words);
        struct trace traced = trace(world, bytes, length, headers);
        CHECK_EQ(traced.peer, 0);
        CHECK_EQ(traced.reason, DROP_NONE);
        CHECK(!traced.flooded);
        CHECK_EQ(traced.fd, world->forwarder.underlays[0].fds[0]);
        CHECK_EQ(traced.headers_size, VXLAN_OVERHEAD + (vlan ? VLAN_TAG : 0));

        write_device(world, &none, bytes, length);
        CHECK_EQ(forwarder_outbound(&world->forwarder), 1);
        size_t before = frames ? VXLAN_HEADER
                               : VXLAN_OVERHEAD; /* a frame has its Ethernet header */
        CHECK_EQ(recv(world->peer, got, sizeof got, 0), before + length);
        CHECK(memcmp(got, headers, traced.headers_size) == 0);
        CHECK(memcmp(got + before, bytes, length) == 0);
        frames ? frames_free(world) : world_free(world);
    }
}

TEST(a_trace_reports_drop_reasons)
{
    static const struct {
        const char *name;
        size_t payload;
        uint8_t destination[4];
        uint16_t peer;
        enum drop reason;
    } rows[] = {
        {"no route", 0, {10, 9, 9, 9}, PEER_NONE, DROP_no_route},
        {"multicast", 0, {224, 0, 0, 1}, PEER_NONE, DROP_multicast},
        {"multicast that a route covers", 0, {225, 0, 0, 1}, PEER_NONE, DROP_multicast},
        {"longer than the path takes", 600, {10, 244, 1, 1}, 0, DROP_too_big},
        {"not resolved", 0, {10, 244, 3, 1}, OTHER, DROP_unresolved},
    };
    struct world *world = world_new();
    struct address none = {0};
    uint8_t bytes[700], headers[PREFIX_MAX];
    struct route routes[] = {
        {.network = {10, 244, 1}, .length = 24, .version = 4, .value = 0},
        {.network = {10, 244, 3}, .length = 24, .version = 4, .value = OTHER},
        {.network = {225}, .length = 8, .version = 4, .value = 0},
    };
    route_table_free(world->forwarder.routes);
    world->forwarder.routes = route_table_new(routes, sizeof routes / sizeof *routes);
    world->forwarder.peers.at[0].mtu = 500;
    CHECK(world->forwarder.routes);
    CHECK(peers_put(&world->forwarder.peers, OTHER, &none, 8472, mac));
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        check_row = rows[i].name;
        struct words words = {.payload = rows[i].payload};
        size_t length = words_put(bytes, &words);
        memcpy(bytes + 16, rows[i].destination, 4);
        struct trace traced = trace(world, bytes, length, headers);
        CHECK_EQ(traced.peer, rows[i].peer);
        CHECK_EQ(traced.reason, rows[i].reason);
        CHECK_EQ(traced.fd, -1);
        CHECK_EQ(traced.headers_size, 0);
        CHECK(!traced.flooded);
    }
    world_free(world);
}

TEST(a_trace_reports_the_peer_of_a_frame)
{
    static const struct {
        const char *name;
        uint8_t to[MAC_SIZE];
        uint16_t vlan;
        size_t payload;
        uint16_t peer;
        bool flooded;
        enum drop reason;
    } rows[] = {
        {"known", {2, 1, 2, 3, 4, 5}, 0, 9, 0, false, DROP_NONE},
        {"known in its VLAN", {2, 1, 2, 3, 4, 5}, 7, 9, 0, false, DROP_NONE},
        {"not known in another", {2, 1, 2, 3, 4, 5}, 8, 9, PEER_NONE, true, DROP_NONE},
        {"unknown", {2, 1, 2, 3, 4, 6}, 0, 9, PEER_NONE, true, DROP_NONE},
        {"broadcast", {255, 255, 255, 255, 255, 255}, 0, 9, PEER_NONE, true, DROP_NONE},
        {"spanning tree", {1, 0x80, 0xc2}, 0, 9, PEER_NONE, false, DROP_link_local},
        {"longer than the path takes", {2, 1, 2, 3, 4, 5}, 0, 600, 0, false, DROP_too_big},
    };
    struct world *world = frames_new();
    world->forwarder.peers.at[0].mtu = 500;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        check_row = rows[i].name;
        uint8_t bytes[700], headers[PREFIX_MAX];
        struct words words = {.payload = rows[i].payload};
        size_t length = put_ethernet(bytes, rows[i].to, rows[i].vlan, &words);
        struct trace traced = trace(world, bytes, length, headers);
        CHECK_EQ(traced.peer, rows[i].peer);
        CHECK_EQ(traced.flooded, rows[i].flooded);
        CHECK_EQ(traced.reason, rows[i].reason);
        CHECK_EQ(traced.fd >= 0, traced.peer == 0 && traced.reason == DROP_NONE);
    }
    frames_free(world);
}

TEST(an_answered_request_goes_to_no_peer)
{
    struct neighbour known = {.address = {10, 244, 1, 1}, .size = 4, .mac = {2, 1, 2, 3, 4, 5}};
    uint8_t frame[ETHERNET_HEADER + ARP_SIZE], headers[PREFIX_MAX];
    struct world *world = frames_new();
    memset(frame, 0xff, MAC_SIZE);
    memset(frame + MAC_SIZE, 2, MAC_SIZE);
    put16(frame + 12, ETHERTYPE_ARP);
    uint8_t *arp = frame + ETHERNET_HEADER;
    memcpy(arp, (uint8_t[]){0, 1, 8, 0, 6, 4, 0, 1, 2, 2, 2, 2, 2, 2, 10, 244, 2, 1}, 18);
    memcpy(arp + 18, (uint8_t[]){0, 0, 0, 0, 0, 0, 10, 244, 1, 1}, 10);
    CHECK(trace(world, frame, sizeof frame, headers).flooded);

    world->forwarder.neighbours = neighbour_table_new(&known, 1);
    CHECK(world->forwarder.neighbours);
    struct trace traced = trace(world, frame, sizeof frame, headers);
    CHECK(!traced.flooded);
    CHECK_EQ(traced.peer, PEER_NONE);
    CHECK_EQ(traced.reason, DROP_NONE);
    CHECK_EQ(traced.fd, -1);
    neighbour_table_free(world->forwarder.neighbours);
    frames_free(world);
}

TEST(a_trace_never_reads_past_the_end)
{
    uint64_t seed = 1;
    uint8_t bytes[120], headers[PREFIX_MAX];
    struct world *packets = world_new(), *frames = frames_new();
    for (int round = 0; round < 8; round++) {
        struct words words = {.version = round % 2 ? 6 : 4, .payload = 20};
        bool random = round >= 4;
        size_t whole = words_put(bytes, &words);
        if (random)
            check_random_fill(&seed, bytes, whole);
        for (size_t length = 0; length <= whole; length++) {
            struct trace traced = trace(packets, bytes, length, headers);
            CHECK(random || (traced.reason == DROP_NONE) == (length == whole));
        }
        whole = put_ethernet(bytes, mac, round % 4 >= 2 ? 7 : 0, &words);
        if (random)
            check_random_fill(&seed, bytes + MAC_SIZE, whole - MAC_SIZE);
        for (size_t length = 0; length <= whole; length++)
            trace(frames, bytes, length, headers);
    }
    world_free(packets);
    frames_free(frames);
}
