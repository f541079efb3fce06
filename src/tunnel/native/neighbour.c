#include "neighbour.h"

#include <stdlib.h>
#include <string.h>

#include "bytes.h"
#include "checksum.h"
#include "ethernet.h"

/* ---- the table ---- */

static int compare(const void *a, const void *b)
{
    return memcmp(a, b, offsetof(struct neighbour, mac));
}

struct neighbour_table *neighbour_table_new(const struct neighbour *neighbours, size_t count)
{
    struct neighbour_table *table = malloc(sizeof *table + count * sizeof *neighbours);
    if (!table)
        return NULL;
    table->count = count;
    if (count) {
        memcpy(table->at, neighbours, count * sizeof *neighbours);
        qsort(table->at, count, sizeof *neighbours, compare);
    }
    return table;
}

void neighbour_table_free(struct neighbour_table *table)
{
    free(table);
}

const uint8_t *neighbour_find(const struct neighbour_table *table, const uint8_t *address,
                              size_t size)
{
    if (!table)
        return NULL;
    struct neighbour wanted = {.size = (uint8_t)size};
    memcpy(wanted.address, address, size);
    const struct neighbour *found = bsearch(&wanted, table->at, table->count, sizeof wanted,
                                            compare);
    return found ? found->mac : NULL;
}

/* ---- ARP ---- */

enum { ARP_OPERATION = 6, ARP_SENDER_MAC = 8, ARP_SENDER = 14, ARP_TARGET_MAC = 18 };
enum { ARP_TARGET = 24, ARP_REQUEST = 1, ARP_REPLY = 2 };

enum { ARP_ETHERNET = 1, ARP_IEEE_802 = 6 };

/* Ethernet, IPv4, and the sizes of their addresses. */
static const uint8_t arp_kind[ARP_OPERATION] = {0, 1, ETHERTYPE_IP4 >> 8, 0, MAC_SIZE, 4};

static bool is_unicast4(const uint8_t *address)
{
    return address[0] && address[0] != 127 && address[0] < 224;
}

enum neighbour_verdict arp_parse(const uint8_t *body, size_t length,
                                 struct neighbour_message *message)
{
    if (length < ARP_SIZE)
        return NEIGHBOUR_BAD;
    uint16_t hardware = get16(body);
    if ((hardware != ARP_ETHERNET && hardware != ARP_IEEE_802) ||
        memcmp(body + 2, arp_kind + 2, sizeof arp_kind - 2) != 0)
        return NEIGHBOUR_NONE;
    uint16_t operation = get16(body + ARP_OPERATION);
    if (operation != ARP_REQUEST && operation != ARP_REPLY)
        return NEIGHBOUR_NONE;
    const uint8_t *sender = body + ARP_SENDER, *target = body + ARP_TARGET;
    bool probe = !get32(sender); /* RFC 5227: is this address free? */
    bool asks = operation == ARP_REQUEST && memcmp(sender, target, 4) != 0;
    if (!mac_is_host(body + ARP_SENDER_MAC) || (!probe && !is_unicast4(sender)) ||
        (asks && !is_unicast4(target)))
        return NEIGHBOUR_BAD;
    *message = (struct neighbour_message){
        .size = 4,
        .asks = asks,
        .sender = probe ? NULL : sender,
        .sender_mac = body + ARP_SENDER_MAC,
        .target = target,
    };
    return NEIGHBOUR_OK;
}

static size_t answer_arp(uint8_t *out, const struct neighbour_message *message, const uint8_t *mac)
{
    memcpy(out, arp_kind, sizeof arp_kind);
    put16(out + ARP_OPERATION, ARP_REPLY);
    memcpy(out + ARP_SENDER_MAC, mac, MAC_SIZE);
    memcpy(out + ARP_SENDER, message->target, 4);
    memcpy(out + ARP_TARGET_MAC, message->sender_mac, MAC_SIZE);
    memset(out + ARP_TARGET, 0, 4);
    if (message->sender)
        memcpy(out + ARP_TARGET, message->sender, 4);
    return ARP_SIZE;
}

/* ---- NDP ---- */

enum { NDP_SOLICITATION = 135, NDP_ADVERTISEMENT = 136, NDP_HOPS = 255 };
enum { NDP_TARGET = 8, NDP_OPTIONS = 24, NDP_SOURCE_MAC = 1, NDP_TARGET_MAC = 2 };
enum { FLAG_SOLICITED = 0x40, FLAG_OVERRIDE = 0x20 };

static const uint8_t unspecified[16];
static const uint8_t all_nodes[16] = {0xff, 0x02, [15] = 1};
static const uint8_t solicited_node[13] = {0xff, 0x02, [11] = 1, 0xff};

/* Finds the link-layer address option of this type, if there is one. Returns false if the options
 * are malformed. */
static bool find_option(const uint8_t *options, size_t left, uint8_t type, const uint8_t **mac)
{
    *mac = NULL;
    while (left) {
        size_t size = left < 8 ? 0 : (size_t)options[1] * 8;
        if (!size || size > left)
            return false;
        if (options[0] == type && size == 8)
            *mac = options + 2;
        options += size;
        left -= size;
    }
    return true;
}

static bool ndp_checksum_right(const struct ip_packet *packet)
{
    uint32_t length = packet->length - packet->header;
    uint64_t sum = checksum_pseudo(packet->source, packet->destination, 16, IP_ICMP6, length);
    return checksum_fold(checksum_add(sum, packet->data + packet->header, length)) == 0xffff;
}

/* Checks addresses as RFC 4861 7.1 requires. */
static bool ndp_addresses_agree(const struct ip_packet *packet, bool solicitation,
                                const struct neighbour_message *message)
{
    const uint8_t *to = packet->destination;
    const uint8_t *icmp = packet->data + packet->header;
    if (message->target[0] == 0xff || packet->source[0] == 0xff)
        return false;
    if (!solicitation) /* a solicited advertisement goes to one host */
        return message->sender && !(to[0] == 0xff && icmp[4] & FLAG_SOLICITED);
    if (message->sender)
        return true;
    return !message->sender_mac && memcmp(to, solicited_node, sizeof solicited_node) == 0;
}

enum neighbour_verdict ndp_parse(const struct ip_packet *packet, struct neighbour_message *message)
{
    if (!ndp_may_be(packet) || packet->data[7] != NDP_HOPS)
        return NEIGHBOUR_NONE;
    struct ip_packet behind = *packet;
    ip_skip_extensions(&behind);
    packet = &behind;
    const uint8_t *icmp = packet->data + packet->header;
    uint32_t length = packet->length - packet->header;
    if (packet->protocol != IP_ICMP6 || !length ||
        (icmp[0] != NDP_SOLICITATION && icmp[0] != NDP_ADVERTISEMENT))
        return NEIGHBOUR_NONE;
    bool solicitation = icmp[0] == NDP_SOLICITATION;
    if (length < NDP_OPTIONS || icmp[1] || !ndp_checksum_right(packet))
        return NEIGHBOUR_BAD;
    struct neighbour_message read = {
        .size = 16,
        .asks = solicitation,
        .sender = memcmp(packet->source, unspecified, 16) ? packet->source : NULL,
        .target = icmp + NDP_TARGET,
    };
    if (!find_option(icmp + NDP_OPTIONS, length - NDP_OPTIONS,
                     solicitation ? NDP_SOURCE_MAC : NDP_TARGET_MAC, &read.sender_mac) ||
        (read.sender_mac && !mac_is_host(read.sender_mac)) ||
        !ndp_addresses_agree(packet, solicitation, &read))
        return NEIGHBOUR_BAD;
    if (!solicitation)
        read.sender = read.target; /* an advertisement is about its target, not about its source */
    *message = read;
    return NEIGHBOUR_OK;
}

static size_t answer_ndp(uint8_t *out, const struct neighbour_message *message, const uint8_t *mac)
{
    enum { LENGTH = NDP_SIZE - 40 };
    uint8_t *icmp = out + 40;
    memset(out, 0, NDP_SIZE);
    out[0] = 0x60;
    put16(out + 4, LENGTH);
    out[6] = IP_ICMP6;
    out[7] = NDP_HOPS;
    memcpy(out + 8, message->target, 16);
    memcpy(out + 24, message->sender ? message->sender : all_nodes, 16);
    icmp[0] = NDP_ADVERTISEMENT;
    icmp[4] = (uint8_t)(FLAG_OVERRIDE | (message->sender ? FLAG_SOLICITED : 0));
    memcpy(icmp + NDP_TARGET, message->target, 16);
    icmp[NDP_OPTIONS] = NDP_TARGET_MAC;
    icmp[NDP_OPTIONS + 1] = 1;
    memcpy(icmp + NDP_OPTIONS + 2, mac, MAC_SIZE);
    uint64_t sum = checksum_pseudo(out + 8, out + 24, 16, IP_ICMP6, LENGTH);
    checksum_store(icmp + 2, (uint16_t)~checksum_fold(checksum_add(sum, icmp, LENGTH)));
    return NDP_SIZE;
}

/* ---- both ---- */

size_t neighbour_answer(uint8_t *out, const struct neighbour_message *message, const uint8_t *mac,
                        const uint8_t *to)
{
    static const uint8_t all_nodes_mac[MAC_SIZE] = {0x33, 0x33, [5] = 1};
    bool arp = message->size == 4;
    /* Duplicate address detection has no source address: reply to all nodes (RFC 4861 7.2.4). */
    memcpy(out, arp || message->sender ? to : all_nodes_mac, MAC_SIZE);
    memcpy(out + MAC_SIZE, mac, MAC_SIZE);
    put16(out + 2 * MAC_SIZE, arp ? ETHERTYPE_ARP : ETHERTYPE_IP6);
    uint8_t *body = out + ETHERNET_HEADER;
    return ETHERNET_HEADER +
           (arp ? answer_arp(body, message, mac) : answer_ndp(body, message, mac));
}
