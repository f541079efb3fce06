/* Splits a packet by its offload header: the segments must be valid, and contain the packet. */
#include "fuzz.h"

#include "packets.h"
#include "split.h"

static void check_segment(const struct split *split, const uint8_t *segment, size_t length)
{
    uint8_t *copy = malloc(length);
    struct ip_packet packet;
    RULE(copy);
    memcpy(copy, segment, length);
    RULE(ip_parse(copy, length, &packet) && packet.length == length);
    RULE(packet.version == 6 || words_sum(0, copy, packet.header) == 0xffff);
    size_t behind = length - split->transport;
    /* words_pseudo() needs the transport protocol, not that of the extension header. */
    uint32_t sum = words_pseudo(copy, split->tcp ? IP_TCP : IP_UDP, behind);
    RULE(words_sum(sum, copy + split->transport, behind) == 0xffff);
    RULE(split->tcp || get16(copy + split->transport + 4) == behind);
    RULE(split->tcp || get16(copy + split->transport + 6) != 0);
    free(copy);
}

static void check_split(struct split *split, const struct offload *offload)
{
    static uint8_t segment[2 * 65536];
    const struct ip_packet *packet = &split->packet;
    const uint8_t *next = packet->data + split->header, *end = packet->data + packet->length;
    uint32_t sequence = get32(packet->data + split->transport + 4);
    RULE(split->header <= SPLIT_HEADER_MAX && !split_done(split));
    while (!split_done(split)) {
        uint8_t *header = malloc(split->header), *payload;
        RULE(header);
        size_t length = split_next(split, header, &payload);
        RULE(payload == next && length && length <= (size_t)(end - next));
        next += length;
        RULE(next == end || length == offload->gso_size);
        RULE(next == end || !split->tcp || !(header[split->transport + 13] & (TCP_FIN | TCP_PSH)));
        RULE(!split->tcp || get32(header + split->transport + 4) == sequence);
        sequence += (uint32_t)length;
        memcpy(segment, header, split->header);
        memcpy(segment + split->header, payload, length);
        check_segment(split, segment, split->header + length);
        free(header);
    }
    RULE(next == end);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input input = {data, size};
    struct offload offload = {
        .flags = take8(&input),
        .gso_type = take8(&input),
        .header_length = take16(&input),
        .gso_size = take16(&input),
        .checksum_start = take16(&input),
        .checksum_offset = take16(&input),
    };
    size_t length;
    uint8_t *bytes = take_exact(&input, 65536, &length);
    struct ip_packet packet;
    struct split split = {0};
    if (ip_parse(bytes, length, &packet)) {
        if (split_open(&split, &packet, &offload))
            check_split(&split, &offload);
        split_checksum(&packet, &offload);
    }
    free(bytes);
    return 0;
}
