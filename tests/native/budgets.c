/*
 * What test_budgets.py counts instructions of: each operation of the packet path, ROUNDS times.
 *
 * An operation is a function op_<name>; what it works on is made before it is called.
 */
#include <stdio.h>
#include <stdlib.h>

#include "checksum.h"
#include "codec.h"
#include "coalesce.h"
#include "decap.h"
#include "packets.h"
#include "route.h"
#include "split.h"
#include "trains.h"

enum { ROUNDS = 100, SEGMENTS = 40, PAYLOAD = 1400, ROUTES = 10000, FRAMES = 64 };
enum { STRIDE = 2048, FRAME = PAYLOAD + 40 };

#define OPERATION __attribute__((noinline)) static void

static volatile uint64_t sink;
static uint8_t packets[SEGMENTS][STRIDE];
static uint8_t super_packet[65536];
static uint8_t header[SPLIT_HEADER_MAX + VXLAN_OVERHEAD];
static uint8_t frames[FRAMES * (FRAME + VXLAN_OVERHEAD)], plain[FRAMES * FRAME];
static uint32_t sizes[FRAMES], frame_sizes[FRAMES];
static struct codec_frame found[FRAMES];
static struct coalescer coalescer;
static struct trains trains;
static const struct vtep vtep = {.vni = 1, .mac = {2, 0, 0x5e, 0, 0x53, 1}};
static const struct codec_macs macs = {{2, 0, 0x5e, 0, 0x53, 2}, {2, 0, 0x5e, 0, 0x53, 1}};

OPERATION op_checksum(void)
{
    sink += checksum_add(0, super_packet, PAYLOAD);
}

OPERATION op_checksum_portable(void)
{
    sink += checksum_add_portable(0, super_packet, PAYLOAD);
}

/* The packet's headers as the device gave them: split reads them only. */
OPERATION op_split(const struct ip_packet *packet, const struct offload *offload)
{
    struct split split;
    uint8_t *payload;
    if (!split_open(&split, packet, offload))
        abort();
    while (!split_done(&split))
        sink += split_next(&split, header, &payload);
}

OPERATION op_coalesce(const struct ip_packet *parsed)
{
    for (int i = 0; i < SEGMENTS; i++)
        coalesce_add(&coalescer, &parsed[i], 0);
    coalesce_finish(&coalescer);
    sink += coalescer.count;
    coalesce_reset(&coalescer);
}

OPERATION op_encap(const struct vxlan_frame *frame)
{
    vxlan_put(header, frame);
}

OPERATION op_trains(const struct iovec *pieces)
{
    for (int i = 0; i < SEGMENTS; i++)
        trains_add(&trains, (struct ticket){.peer = 1}, pieces, 2);
    trains_reset(&trains);
}

OPERATION op_decap(void)
{
    struct ip_packet packet;
    if (decap(&vtep, frames, FRAME + VXLAN_OVERHEAD, 0, &packet) != DROP_NONE)
        abort();
    sink += packet.length;
}

OPERATION op_parse(void)
{
    struct ip_packet packet;
    sink += ip_parse(packets[0], FRAME, &packet);
}

OPERATION op_flow_hash(const struct ip_packet *packet)
{
    sink += ip_flow_hash(packet);
}

OPERATION op_route(const struct route_table *table, uint32_t i)
{
    uint8_t address[16];
    put32(address, 10u << 24 | i << 8 | 1);
    sink += route_lookup(table, address, 4);
}

OPERATION op_route6(const struct route_table *table, uint32_t i)
{
    uint8_t address[16] = {0xfd};
    put32(address + 4, i);
    sink += route_lookup(table, address, 16);
}

OPERATION op_route_of_ten(const struct route_table *table, uint32_t i)
{
    uint8_t address[16];
    put32(address, 10u << 24 | i << 8 | 1);
    sink += route_lookup(table, address, 4);
}

OPERATION op_route6_of_ten(const struct route_table *table, uint32_t i)
{
    uint8_t address[16] = {0xfd};
    put32(address + 4, i);
    sink += route_lookup(table, address, 16);
}

OPERATION op_encode(void)
{
    struct codec_result result = codec_encode_batch(plain, sizeof plain, (const uint8_t *)sizes,
                                                    sizeof sizes, frames, sizeof frames, 1, &macs);
    if (result.fault != CODEC_OK)
        abort();
}

OPERATION op_decode(void)
{
    struct codec_result result = codec_decode_batch(
        frames, sizeof frames, (const uint8_t *)frame_sizes, sizeof frame_sizes, (uint8_t *)found,
        sizeof found);
    if (result.fault != CODEC_OK)
        abort();
}

/* `count` prefixes of each family, all over the same range. */
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
    struct route_table *table = route_table_new(routes, 2 * count);
    free(routes);
    if (!table)
        abort();
    return table;
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
}

int main(void)
{
    fill();
    struct route_table *table = make_routes(ROUTES), *ten = make_routes(10);
    size_t length = words_put(super_packet, &(struct words){.payload = SEGMENTS * PAYLOAD});
    struct ip_packet super = parse(super_packet, length);
    struct offload offload = {.flags = OFFLOAD_NEEDS_CSUM,
                              .gso_type = GSO_TCP4,
                              .gso_size = PAYLOAD,
                              .checksum_start = 20,
                              .checksum_offset = TCP_CHECK};
    struct ip_packet parsed[SEGMENTS];
    for (int i = 0; i < SEGMENTS; i++)
        parsed[i] = parse(packets[i], FRAME);
    struct vxlan_frame frame = {1, ETHERTYPE_IP4, macs.destination, macs.source};
    struct iovec pieces[2] = {{header, VXLAN_OVERHEAD + 40}, {super_packet, PAYLOAD}};

    coalescer.tcp = true;
    trains.segments = TRAIN_SEGMENTS_MAX;
    for (uint32_t i = 0; i < ROUNDS; i++) {
        op_checksum();
        op_checksum_portable();
        op_split(&super, &offload);
        op_coalesce(parsed);
        op_encap(&frame);
        op_trains(pieces);
        op_encode();
        op_decode();
        op_decap();
        op_parse();
        op_flow_hash(parsed);
        op_route(table, i * 97 % ROUTES);
        op_route6(table, i * 97 % ROUTES);
        op_route_of_ten(ten, i % 10 * (ROUTES / 10));
        op_route6_of_ten(ten, i % 10 * (ROUTES / 10));
    }
    route_table_free(table);
    route_table_free(ten);
    printf("%s\n", checksum_backend());
    return 0;
}
