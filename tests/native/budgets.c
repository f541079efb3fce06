/*
 * Runs each operation of the packet path ROUNDS times, so that test_budgets.py can count its
 * instructions. With the argument "time" prints nanoseconds per call as JSON, for
 * benchmarks/micro.py.
 *
 * An operation is a function op_<name>. Its input is made before the call, and is in the cache.
 */
#include <fcntl.h>
#include <netinet/udp.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include "checksum.h"
#include "codec.h"
#include "coalesce.h"
#include "decap.h"
#include "inbound.h"
#include "outbound.h"
#include "packets.h"
#include "route.h"
#include "split.h"
#include "trains.h"

enum { ROUNDS = 100, SEGMENTS = 40, PAYLOAD = 1400, ROUTES = 10000, FRAMES = 64 };
enum { STRIDE = 2048, FRAME = PAYLOAD + 40 };
enum { MACS = 10000, TRAIN = SEGMENTS * (FRAME + VXLAN_OVERHEAD) };
enum { REPEATS = 7, LEAST_NS = 2000000 };

#define OPERATION(name)                                                                            \
    __attribute__((noinline)) static void op_##name(uint32_t place __attribute__((unused)))

static volatile uint64_t sink;
static uint8_t packets[SEGMENTS][STRIDE];
static uint8_t super_packet[65536];
static uint8_t header[SPLIT_HEADER_MAX + VXLAN_OVERHEAD];
static uint8_t frames[FRAMES * (FRAME + VXLAN_OVERHEAD)], plain[FRAMES * FRAME];
static uint32_t sizes[FRAMES], frame_sizes[FRAMES];
static struct codec_frame found[FRAMES];
static struct coalescer coalescer;
static struct trains trains;
static struct ip_packet super, parsed[SEGMENTS];
static struct route_table *table, *ten;
static const struct vtep vtep = {.vni = 1, .mac = {2, 0, 0x5e, 0, 0x53, 1}};
static const struct codec_macs macs = {{2, 0, 0x5e, 0, 0x53, 2}, {2, 0, 0x5e, 0, 0x53, 1}};
static const struct offload offload = {.flags = OFFLOAD_NEEDS_CSUM,
                                       .gso_type = GSO_TCP4,
                                       .gso_size = PAYLOAD,
                                       .checksum_start = 20,
                                       .checksum_offset = TCP_CHECK};
static const struct vxlan_frame frame = {1, ETHERTYPE_IP4, macs.destination, macs.source};
static struct fdb *fdb;
static const struct iovec pieces[2] = {{header, VXLAN_OVERHEAD + 40}, {super_packet, PAYLOAD}};

OPERATION(checksum)
{
    sink += checksum_add(0, super_packet, PAYLOAD);
}

OPERATION(checksum_64)
{
    sink += checksum_add(0, super_packet, 64);
}

OPERATION(checksum_64k)
{
    sink += checksum_add(0, super_packet, sizeof super_packet);
}

OPERATION(checksum_portable)
{
    sink += checksum_add_portable(0, super_packet, PAYLOAD);
}

/* The headers of the packet as read from the device; split does not change them. */
OPERATION(split)
{
    struct split split;
    uint8_t *payload;
    if (!split_open(&split, &super, &offload))
        abort();
    while (!split_done(&split))
        sink += split_next(&split, header, &payload);
}

OPERATION(coalesce)
{
    for (int i = 0; i < SEGMENTS; i++)
        coalesce_add(&coalescer, &parsed[i], 0);
    coalesce_finish(&coalescer);
    sink += coalescer.count;
    coalesce_reset(&coalescer);
}

OPERATION(encap)
{
    vxlan_put(header, &frame);
}

OPERATION(trains)
{
    for (int i = 0; i < SEGMENTS; i++)
        trains_add(&trains, (struct ticket){.peer = 1}, pieces, 2);
    trains_reset(&trains);
}

OPERATION(decap)
{
    struct ip_packet packet;
    if (decap(&vtep, frames, FRAME + VXLAN_OVERHEAD, 0, &packet) != DROP_NONE)
        abort();
    sink += packet.length;
}

OPERATION(parse)
{
    struct ip_packet packet;
    sink += ip_parse(packets[0], FRAME, &packet);
}

OPERATION(flow_hash)
{
    sink += ip_flow_hash(&parsed[0]);
}

OPERATION(route)
{
    uint8_t address[16];
    put32(address, 10u << 24 | place << 8 | 1);
    sink += route_lookup(table, address, 4);
}

OPERATION(route6)
{
    uint8_t address[16] = {0xfd};
    put32(address + 4, place);
    sink += route_lookup(table, address, 16);
}

OPERATION(route_of_ten)
{
    place -= place % (ROUTES / 10);
    uint8_t address[16];
    put32(address, 10u << 24 | place << 8 | 1);
    sink += route_lookup(ten, address, 4);
}

OPERATION(route6_of_ten)
{
    place -= place % (ROUTES / 10);
    uint8_t address[16] = {0xfd};
    put32(address + 4, place);
    sink += route_lookup(ten, address, 16);
}

OPERATION(fdb)
{
    uint8_t mac[MAC_SIZE] = {2};
    put32(mac + 2, place);
    sink += fdb_lookup(fdb, fdb_key(mac, 0), 0);
}

/* ---- a whole forwarder; times include the kernel, instructions do not ---- */

#ifndef UDP_SEGMENT
#define UDP_SEGMENT 103
#endif
#ifndef UDP_GRO
#define UDP_GRO 104
#endif

struct node {
    struct forwarder *forwarder;
    int device; /* the far end */
    int peer;
    struct sockaddr_in ours;
};

static struct node routed, bridged;
static uint8_t train[TRAIN];

static int udp_socket(uint32_t host, struct sockaddr_in *name)
{
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK, 0), on = 1;
    socklen_t size = sizeof *name;
    *name = (struct sockaddr_in){.sin_family = AF_INET, .sin_addr.s_addr = htonl(host)};
    if (fd < 0 || bind(fd, (struct sockaddr *)name, size) ||
        getsockname(fd, (struct sockaddr *)name, &size) ||
        setsockopt(fd, IPPROTO_UDP, UDP_GRO, &on, sizeof on))
        abort();
    return fd;
}

/* The peer's buffer is full: its datagrams are lost. */
static struct node node_new(struct fdb *frames)
{
    struct node node = {.forwarder = forwarder_new()};
    struct sockaddr_in theirs;
    struct address address = {.size = 4};
    struct route route = {.network = {10}, .length = 8, .version = 4};
    int pair[2], room = 1 << 20, segment = FRAME + VXLAN_OVERHEAD;
    if (!node.forwarder || socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK, 0, pair) ||
        setsockopt(pair[0], SOL_SOCKET, SO_SNDBUF, &room, sizeof room) ||
        setsockopt(pair[1], SOL_SOCKET, SO_SNDBUF, &room, sizeof room))
        abort();
    int fd = udp_socket(INADDR_LOOPBACK, &node.ours);
    node.device = pair[1];
    node.peer = udp_socket(INADDR_LOOPBACK + 1, &theirs);
    memcpy(address.bytes, &theirs.sin_addr, 4);
    struct forwarder *forwarder = node.forwarder;
    forwarder->device = (struct device){
        .fd = pair[0], .output = pair[0], .offload_header = true, .frames = frames};
    forwarder->bridge = (struct bridge){.fdb = frames, .flood = true, .learning = true};
    forwarder->vtep = vtep;
    forwarder->coalescer.tcp = true;
    forwarder->trains.segments = TRAIN_SEGMENTS_MAX;
    forwarder->underlays[0] = (struct underlay){.receiving.fd = fd, .count = 1, .fds = {fd}};
    route_table_free(forwarder->routes);
    forwarder->routes = route_table_new(&route, 1);
    if (!peers_put(&forwarder->peers, 0, &address, ntohs(theirs.sin_port), macs.source) ||
        !forwarder->routes || connect(node.peer, (struct sockaddr *)&node.ours, sizeof node.ours) ||
        setsockopt(node.peer, IPPROTO_UDP, UDP_SEGMENT, &segment, sizeof segment))
        abort();
    return node;
}

static void move_out(struct node *node, size_t link)
{
    static uint8_t link_header[] = {2, 0, 0x5e, 0, 0x53, 2, 2, 0, 0x5e, 0, 0x53, 1, 8, 0};
    struct offload written = offload;
    written.checksum_start = (uint16_t)(20 + link);
    struct iovec parts[3] = {
        {&written, sizeof written}, {link_header, link}, {super_packet, super.length}};
    if (writev(node->device, parts, 3) < 0 || forwarder_outbound(node->forwarder) != 1)
        abort();
}

static void move_in(struct node *node)
{
    static uint8_t written[65536 + 64];
    if (send(node->peer, train, sizeof train, 0) != sizeof train ||
        forwarder_inbound(node->forwarder, &node->forwarder->underlays[0]) != 1 ||
        read(node->device, written, sizeof written) < SEGMENTS * PAYLOAD)
        abort();
}

OPERATION(outbound)
{
    move_out(&routed, 0);
}

OPERATION(outbound_frames)
{
    move_out(&bridged, ETHERNET_HEADER);
}

OPERATION(inbound)
{
    move_in(&routed);
}

OPERATION(inbound_frames)
{
    move_in(&bridged);
}

OPERATION(encode)
{
    struct codec_result result = codec_encode_batch(plain, sizeof plain, (const uint8_t *)sizes,
                                                    sizeof sizes, frames, sizeof frames, 1, &macs);
    if (result.fault != CODEC_OK)
        abort();
}

OPERATION(decode)
{
    struct codec_result result = codec_decode_batch(
        frames, sizeof frames, (const uint8_t *)frame_sizes, sizeof frame_sizes, (uint8_t *)found,
        sizeof found);
    if (result.fault != CODEC_OK)
        abort();
}

/* `count` prefixes of each family, spread over one range. */
static struct route_table *make_routes(uint32_t count)
{
    struct route *routes = calloc(2 * count, sizeof *routes);
    if (!routes)
        abort();
    for (uint32_t i = 0; i < count; i++) {
        uint32_t place = i * (ROUTES / count);
        routes[i] = (struct route){.length = 24, .version = 4, .value = (uint16_t)(i % 1000)};
        put32(routes[i].network, 10u << 24 | place << 8);
        routes[count + i] = (struct route){.network = {0xfd}, .length = 64, .version = 6};
        put32(routes[count + i].network + 4, place);
    }
    struct route_table *made = route_table_new(routes, 2 * count);
    free(routes);
    if (!made)
        abort();
    return made;
}

static struct ip_packet parse(uint8_t *data, size_t length)
{
    struct ip_packet packet;
    if (!ip_parse(data, length, &packet))
        abort();
    return packet;
}

static void fill(void)
{
    for (uint32_t i = 0; i < SEGMENTS; i++)
        words_put(packets[i], &(struct words){.payload = PAYLOAD, .sequence = 1 + i * PAYLOAD});
    for (uint32_t i = 0; i < FRAMES; i++) {
        memcpy(plain + i * FRAME, packets[0], FRAME);
        sizes[i] = FRAME;
        frame_sizes[i] = FRAME + VXLAN_OVERHEAD;
    }
    super = parse(super_packet,
                  words_put(super_packet, &(struct words){.payload = SEGMENTS * PAYLOAD}));
    for (int i = 0; i < SEGMENTS; i++)
        parsed[i] = parse(packets[i], FRAME);
    table = make_routes(ROUTES);
    ten = make_routes(10);
    for (size_t i = 0; i < SEGMENTS; i++) {
        uint8_t *datagram = train + i * (FRAME + VXLAN_OVERHEAD);
        vxlan_put(datagram, &(struct vxlan_frame){1, ETHERTYPE_IP4, vtep.mac, macs.source});
        memcpy(datagram + VXLAN_OVERHEAD, packets[i], FRAME);
    }
    fdb = fdb_new((struct fdb_limits){MACS, MACS, 300}, 1);
    if (!fdb)
        abort();
    for (uint32_t i = 0; i < MACS; i++) {
        uint8_t mac[MAC_SIZE] = {2};
        put32(mac + 2, i);
        fdb_learn(fdb, fdb_key(mac, 0), (uint16_t)(i % 1000), 0);
    }
    struct fdb *few = fdb_new((struct fdb_limits){10, 10, 300}, 1);
    if (!few || !fdb_put(few, fdb_key(macs.source, 0), 0))
        abort();
    routed = node_new(NULL);
    bridged = node_new(few);
    coalescer.tcp = true;
    trains.segments = TRAIN_SEGMENTS_MAX;
}

/* Encode is first: it makes the frames for decap and decode. */
static const struct operation {
    const char *name; /* for the output */
    void (*call)(uint32_t place);
    uint32_t packets; /* handled by one call */
} operations[] = {
    {"encode_batch, 64 frames", op_encode, FRAMES},
    {"decode_batch, 64 frames", op_decode, FRAMES},
    {"checksum, 64 B", op_checksum_64, 1},
    {"checksum, 1,400 B", op_checksum, 1},
    {"checksum, 1,400 B, portable", op_checksum_portable, 1},
    {"checksum, 64 KiB", op_checksum_64k, 1},
    {"split, a TCP super-packet of 40 x 1,400 B", op_split, SEGMENTS},
    {"coalesce, 40 TCP segments of 1,400 B", op_coalesce, SEGMENTS},
    {"encap: one header", op_encap, 1},
    {"trains: 40 datagrams to one peer", op_trains, SEGMENTS},
    {"decap, a frame of 1,400 B", op_decap, 1},
    {"parse an inner packet", op_parse, 1},
    {"flow hash", op_flow_hash, 1},
    {"FDB look-up, 10,000 MACs", op_fdb, 1},
    {"outbound, a TCP super-packet of 40 x 1,400 B", op_outbound, SEGMENTS},
    {"outbound, the same as a frame", op_outbound_frames, SEGMENTS},
    {"inbound, a train of 40 x 1,400 B", op_inbound, SEGMENTS},
    {"inbound, the same as frames", op_inbound_frames, SEGMENTS},
    {"route look-up, IPv4, 10 prefixes", op_route_of_ten, 1},
    {"route look-up, IPv4, 10,000 prefixes", op_route, 1},
    {"route look-up, IPv6, 10 prefixes", op_route6_of_ten, 1},
    {"route look-up, IPv6, 10,000 prefixes", op_route6, 1},
};

enum { OPERATIONS = sizeof operations / sizeof *operations };

/* Calls it for places of the route table that are far apart. */
static void repeat(const struct operation *operation, uint32_t count)
{
    for (uint32_t i = 0, place = 0; i < count; i++) {
        operation->call(place);
        place = place + 97 < ROUTES ? place + 97 : place + 97 - ROUTES;
    }
}

static uint64_t nanoseconds(const struct operation *operation, uint32_t count)
{
    struct timespec start, end;
    clock_gettime(CLOCK_MONOTONIC, &start);
    repeat(operation, count);
    clock_gettime(CLOCK_MONOTONIC, &end);
    return (uint64_t)(end.tv_sec - start.tv_sec) * 1000000000 + (uint64_t)end.tv_nsec -
           (uint64_t)start.tv_nsec;
}

/* The time of one call: the minimum of some repeats, because disturbances only add. */
static double least_time(const struct operation *operation)
{
    uint32_t count = ROUNDS;
    while (nanoseconds(operation, count) < LEAST_NS)
        count *= 2;
    uint64_t least = UINT64_MAX;
    for (int i = 0; i < REPEATS; i++) {
        uint64_t took = nanoseconds(operation, count);
        if (took < least)
            least = took;
    }
    return (double)least / count;
}

static void print_times(void)
{
    for (int i = 0; i < OPERATIONS; i++)
        printf("%s{\"name\": \"%s\", \"packets\": %u, \"ns\": %.2f}", i ? ",\n " : "[",
               operations[i].name, operations[i].packets, least_time(&operations[i]));
    puts("]");
}

int main(int argc, char **argv)
{
    fill();
    if (argc == 2 && strcmp(argv[1], "time") == 0) {
        print_times();
    } else {
        for (int i = 0; i < OPERATIONS; i++)
            repeat(&operations[i], ROUNDS);
        printf("%s\n", checksum_backend());
    }
    fdb_free(bridged.forwarder->bridge.fdb);
    fdb_free(fdb);
    forwarder_free(routed.forwarder);
    forwarder_free(bridged.forwarder);
    route_table_free(table);
    route_table_free(ten);
    return 0;
}
