#include "split.h"

#include <string.h>

#include "bytes.h"
#include "checksum.h"

enum { TCP_SEQUENCE = 4, TCP_FLAGS = 13, UDP_LENGTH = 4 };
enum { IP4_LENGTH = 2, IP4_ID = 4, IP4_CHECK = 10, IP6_LENGTH = 4 };

/* Whether extension headers may precede the transport header. Then only the offload header says
 * which one it is, and where. */
static bool has_extensions(const struct ip_packet *packet)
{
    return packet->version == 6 && !packet->plain;
}

static bool type_matches(const struct ip_packet *packet, uint8_t type)
{
    bool extended = has_extensions(packet);
    switch (type) {
    case GSO_TCP4:
        return packet->version == 4 && packet->protocol == IP_TCP;
    case GSO_TCP6:
        return packet->version == 6 && (extended || packet->protocol == IP_TCP);
    case GSO_UDP:
        return extended || packet->protocol == IP_UDP;
    default:
        return false;
    }
}

/* Clears the fields that differ between segments, and sums up the rest of the header. */
static void clear_ip(struct split *split, uint8_t *header)
{
    if (split->packet.version == 6)
        return; /* no checksum, and the length is written for each segment */
    split->id = get16(header + IP4_ID);
    memset(header + IP4_LENGTH, 0, 4); /* and the id, which follows */
    memset(header + IP4_CHECK, 0, 2);
    split->ip_sum = checksum_add_portable(0, header, split->packet.header);
}

static void clear_transport(struct split *split, uint8_t *header)
{
    const struct ip_packet *packet = &split->packet;
    uint64_t pseudo = checksum_pseudo(packet->source, packet->destination, packet->address_size,
                                      split->tcp ? IP_TCP : IP_UDP, 0);
    if (split->tcp) {
        split->sequence = get32(header + TCP_SEQUENCE);
        split->flags = header[TCP_FLAGS];
        memset(header + TCP_SEQUENCE, 0, 4);
        header[TCP_FLAGS] = 0;
        memset(header + TCP_CHECK, 0, 2);
    } else {
        memset(header + UDP_LENGTH, 0, 4); /* and the checksum, which follows */
    }
    split->sum = checksum_add_portable(pseudo, header, split->header - split->transport);
}

bool split_open(struct split *split, const struct ip_packet *packet, const struct offload *offload)
{
    uint8_t type = offload->gso_type & (uint8_t)~GSO_ECN;
    bool tcp = type != GSO_UDP;
    uint32_t transport = offload->checksum_start;

    if (!type_matches(packet, type) || packet->fragment || !offload->gso_size ||
        !(offload->flags & OFFLOAD_NEEDS_CSUM))
        return false;
    if (transport < packet->header || (!has_extensions(packet) && transport != packet->header) ||
        offload->checksum_offset != (tcp ? TCP_CHECK : UDP_CHECK))
        return false;
    size_t transport_header = tcp ? ip_tcp_header(packet, transport) : UDP_HEADER;
    size_t header = transport + transport_header;
    if (!transport_header || header > SPLIT_HEADER_MAX || header >= packet->length)
        return false;

    split->packet = *packet;
    split->transport = transport;
    split->header = (uint32_t)header;
    uint32_t payload = packet->length - split->header;
    split->size = split->stride = payload < offload->gso_size ? payload : offload->gso_size;
    split->offset = split->index = 0;
    split->tcp = tcp;
    memcpy(split->original, packet->data, header);
    clear_ip(split, split->original);
    clear_transport(split, split->original + transport);
    return true;
}

static void put_ip(const struct split *split, uint8_t *header, size_t length)
{
    if (split->packet.version == 6) {
        put16(header + IP6_LENGTH, (uint16_t)(length - 40));
        return;
    }
    uint16_t id = (uint16_t)(split->id + split->index);
    put16(header + IP4_LENGTH, (uint16_t)length);
    put16(header + IP4_ID, id);
    uint64_t sum = split->ip_sum + checksum_word((uint16_t)length) + checksum_word(id);
    checksum_store(header + IP4_CHECK, (uint16_t)~checksum_fold(sum));
}

/* Returns the sum of the fields that were written. */
static uint64_t put_tcp(const struct split *split, uint8_t *tcp, bool last)
{
    uint32_t sequence = split->sequence + split->offset;
    uint8_t flags = split->flags;
    if (!last)
        flags &= (uint8_t) ~(TCP_FIN | TCP_PSH);
    if (split->index)
        flags &= (uint8_t)~TCP_CWR;
    put32(tcp + TCP_SEQUENCE, sequence);
    tcp[TCP_FLAGS] = flags;
    return checksum_word((uint16_t)(sequence >> 16)) + checksum_word((uint16_t)sequence) +
           checksum_word(flags);
}

size_t split_next(struct split *split, uint8_t *header, uint8_t **payload)
{
    uint32_t left = split->packet.length - split->header - split->offset;
    uint32_t length = left < split->size ? left : split->size;
    uint8_t *transport = header + split->transport;
    uint16_t behind_ip = (uint16_t)(split->header - split->transport + length);

    *payload = split_payload(split);
    memcpy(header, split->original, split->header);
    put_ip(split, header, split->header + length);
    uint64_t sum = split->sum + checksum_word(behind_ip);
    if (split->tcp) {
        sum += put_tcp(split, transport, length == left);
    } else {
        put16(transport + UDP_LENGTH, behind_ip);
        sum += checksum_word(behind_ip);
    }
    uint16_t check = (uint16_t)~checksum_fold(checksum_add(sum, *payload, length));
    /* Zero would mean that a UDP datagram has no checksum. */
    checksum_store(transport + (split->tcp ? TCP_CHECK : UDP_CHECK),
                   !split->tcp && !check ? 0xffff : check);

    split->offset += length;
    split->index++;
    return length;
}

bool split_checksum(struct ip_packet *packet, const struct offload *offload)
{
    uint32_t start = offload->checksum_start;
    uint32_t field = start + offload->checksum_offset;
    if (start < packet->header || field + 2 > packet->length)
        return false;
    /* The field already holds the sum of the pseudo-header. */
    uint64_t sum = checksum_add(0, packet->data + start, packet->length - start);
    uint16_t check = (uint16_t)~checksum_fold(sum);
    /* Not zero, which UDP reads as no checksum; for other protocols 0xffff means the same. */
    checksum_store(packet->data + field, check ? check : 0xffff);
    return true;
}
