#include "ip.h"

#include <string.h>

#include "bytes.h"
#include "checksum.h"

enum { EXT_HOP = 0, EXT_ROUTING = 43, EXT_FRAGMENT = 44, EXT_ESP = 50, EXT_AH = 51 };
enum { EXT_OPTIONS = 60, EXT_MOBILITY = 135, EXT_HIP = 139, EXT_SHIM6 = 140 };

static bool is_extension(uint8_t next)
{
    switch (next) {
    case EXT_HOP:
    case EXT_ROUTING:
    case EXT_FRAGMENT:
    case EXT_AH:
    case EXT_OPTIONS:
    case EXT_MOBILITY:
    case EXT_HIP:
    case EXT_SHIM6:
        return true;
    default:
        return false;
    }
}

static bool parse4(uint8_t *data, size_t length, struct ip_packet *packet)
{
    size_t header = (size_t)(data[0] & 15) * 4;
    size_t total = get16(data + 2);
    if (header < 20 || total < header || total > length)
        return false;
    bool fragment = (get16(data + 6) & 0x3fff) != 0; /* more fragments, or an offset */
    *packet = (struct ip_packet){
        .data = data,
        .length = (uint32_t)total,
        .header = (uint16_t)header,
        .version = 4,
        .protocol = data[9],
        .address_size = 4,
        .fragment = fragment,
        .plain = header == 20 && !fragment,
        .source = data + 12,
        .destination = data + 16,
    };
    return true;
}

static bool parse6(uint8_t *data, size_t length, struct ip_packet *packet)
{
    size_t total = 40 + (size_t)get16(data + 4);
    if (total > length || total > IP_MAX)
        return false;
    *packet = (struct ip_packet){
        .data = data,
        .length = (uint32_t)total,
        .header = 40,
        .version = 6,
        .protocol = data[6],
        .address_size = 16,
        .fragment = data[6] == EXT_FRAGMENT,
        .plain = !is_extension(data[6]),
        .source = data + 8,
        .destination = data + 24,
    };
    return true;
}

bool ip_parse(uint8_t *data, size_t length, struct ip_packet *packet)
{
    if (length >= 20 && data[0] >> 4 == 4)
        return parse4(data, length, packet);
    if (length >= 40 && data[0] >> 4 == 6)
        return parse6(data, length, packet);
    return false;
}

void ip_skip_extensions(struct ip_packet *packet)
{
    while (packet->protocol == EXT_HOP || packet->protocol == EXT_ROUTING ||
           packet->protocol == EXT_OPTIONS) {
        const uint8_t *extension = packet->data + packet->header;
        size_t left = packet->length - packet->header;
        size_t size = left < 8 ? 8 : 8 * (extension[1] + 1u);
        if (size > left)
            return;
        packet->protocol = extension[0];
        packet->header = (uint16_t)(packet->header + size);
    }
}

size_t ip_tcp_header(const struct ip_packet *packet, size_t offset)
{
    if (packet->length < offset + 20)
        return 0;
    size_t header = (size_t)(packet->data[offset + 12] >> 4) * 4;
    return header >= 20 && packet->length >= offset + header ? header : 0;
}

static uint32_t mix(uint32_t hash, uint32_t word)
{
    hash = (hash ^ word) * 0x9e3779b1;
    return hash ^ hash >> 15;
}

uint32_t ip_flow_hash(const struct ip_packet *packet)
{
    uint32_t hash = packet->protocol;
    for (const uint8_t *word = packet->source; word < packet->source + 2 * packet->address_size;
         word += 4)
        hash = mix(hash, get32(word));
    bool ports = packet->plain && (packet->protocol == IP_TCP || packet->protocol == IP_UDP);
    if (ports && packet->length >= packet->header + 4u)
        hash = mix(hash, get32(packet->data + packet->header));
    return hash;
}

uint64_t ip_flow_sum(const struct ip_packet *packet)
{
    return checksum_pseudo(packet->source, packet->destination, packet->address_size,
                           packet->protocol, 0);
}

bool ip_checksums_right(const struct ip_packet *packet, uint64_t flow_sum)
{
    if (packet->version == 4 &&
        checksum_fold(checksum_add_portable(0, packet->data, packet->header)) != 0xffff)
        return false;
    uint32_t length = packet->length - packet->header;
    uint64_t sum = flow_sum + checksum_word((uint16_t)length);
    return checksum_fold(checksum_add(sum, packet->data + packet->header, length)) == 0xffff;
}

bool ip_finish_checksum(struct ip_packet *packet)
{
    bool tcp = packet->protocol == IP_TCP;
    uint32_t field = packet->header + (tcp ? (uint32_t)TCP_CHECK : (uint32_t)UDP_CHECK);
    uint32_t length = packet->length - packet->header;
    if (!packet->plain || (!tcp && packet->protocol != IP_UDP) || packet->length < field + 2)
        return false;
    uint64_t pseudo = checksum_pseudo(packet->source, packet->destination, packet->address_size,
                                      packet->protocol, length);
    uint8_t unfinished[2];
    checksum_store(unfinished, checksum_fold(pseudo));
    if (memcmp(packet->data + field, unfinished, sizeof unfinished) != 0)
        return false;
    uint64_t sum = checksum_add(0, packet->data + packet->header, length);
    uint16_t check = (uint16_t)~checksum_fold(sum);
    checksum_store(packet->data + field, check ? check : 0xffff);
    return true;
}

bool ip_same_link(const struct ip_packet *a, const struct ip_packet *b)
{
    const uint8_t *one = a->data - a->link, *other = b->data - b->link;
    /* Constant lengths, which the compiler inlines: the header without its tag, and the tag. */
    return a->link == b->link && memcmp(one, other, 14) == 0 &&
           (a->link == 14 || memcmp(one + 14, other + 14, 4) == 0);
}

bool ip_is_multicast(const struct ip_packet *packet)
{
    const uint8_t *address = packet->destination;
    if (packet->version == 6)
        return address[0] == 0xff;
    return address[0] >> 4 == 0xe || get32(address) == 0xffffffff;
}

uint8_t ip_ecn(const struct ip_packet *packet)
{
    return packet->version == 4 ? packet->data[1] & 3 : packet->data[1] >> 4 & 3;
}

void ip_set_ecn(struct ip_packet *packet, uint8_t ecn)
{
    if (packet->version == 6) {
        packet->data[1] = (uint8_t)((packet->data[1] & 0xcf) | ecn << 4);
        return;
    }
    /* RFC 1624: updated incrementally, so that a wrong checksum stays wrong. */
    uint16_t before = get16(packet->data);
    packet->data[1] = (uint8_t)((packet->data[1] & 0xfc) | ecn);
    uint32_t sum = (uint16_t)~get16(packet->data + 10) + (uint32_t)(uint16_t)~before;
    sum += get16(packet->data);
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    put16(packet->data + 10, (uint16_t)~sum);
}

void ip_finish_header(uint8_t *header, size_t length)
{
    memset(header + 10, 0, 2);
    checksum_store(header + 10, (uint16_t)~checksum_fold(checksum_add_portable(0, header, length)));
}
