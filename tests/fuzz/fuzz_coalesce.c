/*
 * Packets, some complete and in order, some random: each is in exactly one run, in the order of its
 * flow, and splitting a joined packet gives the original packets.
 */
#include "fuzz.h"

#include "coalesce.h"
#include "packets.h"
#include "split.h"

enum { PACKETS_MAX = 200 };

struct packets {
    struct ip_packet at[PACKETS_MAX];
    unsigned place[PACKETS_MAX]; /* 1 + position among all written packets */
    unsigned count;
};

/* The next packet of one of a few flows, with some changes. */
static uint8_t *make_packet(struct input *input, uint32_t *streams, size_t *length)
{
    static uint8_t bytes[WORDS_MAX];
    static const uint16_t sizes[] = {0, 1, 40, 100, 100, 100, 1000, 20000};
    uint8_t kind = take8(input), change = take8(input), value = take8(input);
    uint32_t *stream = &streams[kind & 7];
    struct words words = {
        .version = kind & 1 ? 6 : 4,
        .protocol = kind & 2 ? IP_UDP : IP_TCP,
        .port = kind & 4,
        .fragmentable = kind & 8,
        .payload = sizes[kind >> 5],
        .sequence = *stream,
        .id = (uint16_t)(*stream / 100),
        .flags = change == 1 ? value : 0,
        .options = change == 2 ? value / 4 % 11 * 4 : 0,
        .tos = change == 3 ? value : 0,
        .ttl = change == 4 ? value : 0,
        .window = change == 5 ? value : 0,
        .no_checksum = change == 6,
    };
    *stream += (uint32_t)words.payload;
    *length = words_put(bytes, &words);
    if (change >= 128)
        bytes[value % *length] ^= (uint8_t)(1u << change % 8);
    uint8_t *copy = malloc(*length);
    RULE(copy);
    memcpy(copy, bytes, *length);
    return copy;
}

static void add(struct coalescer *coalescer, struct packets *packets, uint8_t *bytes, size_t length)
{
    struct ip_packet *packet = &packets->at[packets->count];
    if (!ip_parse(bytes, length, packet)) {
        free(bytes);
        return;
    }
    packets->count++;
    coalesce_add(coalescer, packet, 5);
}

/* The packet that contains this piece of a run. */
static unsigned owner_of(const struct packets *packets, const struct iovec *piece)
{
    const uint8_t *start = piece->iov_base;
    for (unsigned i = 0; i < packets->count; i++) {
        const struct ip_packet *packet = &packets->at[i];
        if (start >= packet->data && start < packet->data + packet->length) {
            RULE(piece->iov_len <= packet->length - (size_t)(start - packet->data));
            return i;
        }
    }
    bool found = false;
    RULE(found);
    return 0;
}

/* Whether packets are equal but for IPv4 ids that have no meaning. */
static void check_same(const struct ip_packet *original, uint8_t *segment, size_t length)
{
    RULE(original->length == length);
    if (original->version == 4 && original->data[6] & 0x40) {
        memcpy(segment + 4, original->data + 4, 2);
        memcpy(segment + 10, original->data + 10, 2);
    }
    /* One's complement has two zeros; a sender may use either. */
    size_t field = original->header + (original->protocol == IP_TCP ? 16u : 6u);
    RULE(words_verify(original->data, length));
    memcpy(segment + field, original->data + field, 2);
    RULE(memcmp(original->data, segment, length) == 0);
}

static void check_joined(const struct packets *packets, const struct run *run)
{
    static uint8_t bytes[WORDS_MAX], segment[WORDS_MAX];
    struct offload offload;
    size_t length = run->pieces[0].iov_len - OFFLOAD_HEADER;
    RULE(length == run->header && length <= RUN_HEADER_MAX);
    memcpy(&offload, run->pieces[0].iov_base, OFFLOAD_HEADER);
    memcpy(bytes, (uint8_t *)run->pieces[0].iov_base + OFFLOAD_HEADER, length);
    for (unsigned i = 1; i <= run->segments; i++) {
        memcpy(bytes + length, run->pieces[i].iov_base, run->pieces[i].iov_len);
        length += run->pieces[i].iov_len;
    }
    struct ip_packet packet;
    struct split split;
    RULE(length == run->length && length <= IP_MAX);
    RULE(ip_parse(bytes, length, &packet) && packet.length == length && packet.plain);
    RULE(packet.version == 6 || words_sum(0, bytes, 20) == 0xffff);
    RULE(split_open(&split, &packet, &offload));
    for (unsigned i = 1; i <= run->segments; i++) {
        uint8_t *payload;
        RULE(!split_done(&split));
        size_t part = split_next(&split, segment, &payload);
        memcpy(segment + split.header, payload, part);
        unsigned owner = owner_of(packets, &run->pieces[i]);
        check_same(&packets->at[owner], segment, split.header + part);
    }
    RULE(split_done(&split));
}

static void check_runs(const struct coalescer *coalescer, struct packets *packets)
{
    unsigned place = 0;
    for (unsigned i = 0; i < coalescer->count; i++) {
        const struct run *run = &coalescer->runs[i];
        for (unsigned j = 1; j <= run->segments; j++) {
            unsigned owner = owner_of(packets, &run->pieces[j]);
            RULE(!packets->place[owner]);
            packets->place[owner] = ++place;
        }
        if (run->segments > 1) {
            check_joined(packets, run);
            continue;
        }
        const struct ip_packet *packet = &packets->at[owner_of(packets, &run->pieces[1])];
        RULE(run->pieces[1].iov_base == packet->data);
        RULE(run->pieces[1].iov_len == packet->length);
    }
    RULE(place == packets->count);
}

static bool same_addresses(const struct ip_packet *a, const struct ip_packet *b)
{
    return a->version == b->version && memcmp(a->source, b->source, 2u * a->address_size) == 0;
}

/* Whether order matters between two packets: same flow, as far as visible, and not a pure ACK. */
static bool ordered(const struct ip_packet *a, const struct ip_packet *b)
{
    if (!same_addresses(a, b))
        return false;
    if (!a->plain || !b->plain)
        return true;
    if (a->protocol != b->protocol || a->length < a->header + 20u || b->length < b->header + 20u)
        return false;
    if (memcmp(a->data + a->header, b->data + b->header, 4) != 0)
        return false;
    return a->protocol != IP_TCP || (a->length > a->header + ip_tcp_header(a, a->header) &&
                                     b->length > b->header + ip_tcp_header(b, b->header));
}

static void check_order(const struct packets *packets)
{
    for (unsigned i = 0; i < packets->count; i++)
        for (unsigned j = 0; j < i; j++)
            if (ordered(&packets->at[j], &packets->at[i]))
                RULE(packets->place[j] < packets->place[i]);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct coalescer coalescer;
    static struct packets packets;
    struct input input = {data, size};
    uint32_t streams[8] = {0};
    uint8_t joins = take8(&input);
    memset(&packets, 0, sizeof packets);
    coalesce_reset(&coalescer);
    coalescer.tcp = joins & 1;
    coalescer.udp = joins & 2;
    while (input.left && packets.count < PACKETS_MAX && !coalesce_full(&coalescer)) {
        size_t length;
        uint8_t *bytes;
        if (*input.data == 0x10) /* bytes as they are */ {
            take8(&input);
            bytes = take_exact(&input, take8(&input), &length);
        } else {
            bytes = make_packet(&input, streams, &length);
        }
        add(&coalescer, &packets, bytes, length);
    }
    coalesce_finish(&coalescer);
    check_runs(&coalescer, &packets);
    check_order(&packets);
    for (unsigned i = 0; i < packets.count; i++)
        free(packets.at[i].data);
    return 0;
}
