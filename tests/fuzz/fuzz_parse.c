/* Parses a datagram with every outer ECN value, as a packet and as a frame, and its inner packet
 * for ICMP, ARP and NDP. */
#include "fuzz.h"

#include "codec.h"
#include "decap.h"
#include "icmp.h"
#include "neighbour.h"
#include "packets.h"

static void check_icmp(const struct ip_packet *packet)
{
    for (int reason = ICMP_NO_ROUTE; reason <= ICMP_TOO_BIG; reason++) {
        uint8_t *out = malloc(ICMP_MESSAGE_MAX);
        RULE(out);
        size_t length = icmp_error(out, packet, packet->length, (enum icmp_reason)reason, 1280);
        struct ip_packet message;
        RULE(length <= ICMP_MESSAGE_MAX);
        if (length) {
            RULE(ip_parse(out, length, &message) && message.length == length);
            RULE(message.version == packet->version && !ip_is_multicast(&message));
            uint32_t sum = message.version == 6 ? words_pseudo(out, IP_ICMP6, length - 40) : 0;
            RULE(words_sum(sum, out + message.header, length - message.header) == 0xffff);
        }
        free(out);
    }
}

static void check_decap(const uint8_t *data, size_t size, uint8_t ecn)
{
    const struct vtep vtep = {.vni = 1, .mac = {2, 1, 2, 3, 4, 5}};
    struct input input = {data, size};
    size_t length;
    uint8_t *datagram = take_exact(&input, size, &length);
    struct ip_packet packet;
    enum drop reason = decap(&vtep, datagram, length, ecn, &packet);
    if (reason == DROP_NONE) {
        struct ip_packet again;
        RULE(packet.data == datagram + VXLAN_OVERHEAD);
        RULE(packet.length >= packet.header && packet.length <= length - VXLAN_OVERHEAD);
        RULE(ip_parse(packet.data, packet.length, &again) && again.length == packet.length);
        if (ecn == 3)
            RULE(ip_ecn(&packet) == 3);
        ip_flow_hash(&packet);
        check_icmp(&packet);
    } else {
        RULE(memcmp(datagram, data, size) == 0);
    }
    free(datagram);
}

/* Checks that a reply is valid, and about the target of the request. */
static void check_answer(const struct neighbour_message *question)
{
    static const uint8_t mac[MAC_SIZE] = {2, 0, 0, 0, 0, 1}, asker[MAC_SIZE] = {2, 0, 0, 0, 0, 2};
    uint8_t *out = malloc(NEIGHBOUR_ANSWER_MAX);
    RULE(out);
    size_t length = neighbour_answer(out, question, mac, asker);
    struct ethernet header;
    struct ip_packet packet;
    struct neighbour_message read;
    RULE(length <= NEIGHBOUR_ANSWER_MAX && ethernet_parse(out, length, &header));
    uint8_t *body = out + header.size;
    if (question->size == 4)
        RULE(arp_parse(body, length - header.size, &read) == NEIGHBOUR_OK);
    else
        RULE(ip_parse(body, length - header.size, &packet) &&
             ndp_parse(&packet, &read) == NEIGHBOUR_OK);
    RULE(!read.asks && read.sender && memcmp(read.sender, question->target, read.size) == 0);
    RULE(memcmp(read.sender_mac, mac, MAC_SIZE) == 0);
    free(out);
}

static void check_frame(const uint8_t *data, size_t size)
{
    const struct vtep vtep = {.vni = 1, .mac = {2, 1, 2, 3, 4, 5}};
    struct input input = {data, size};
    size_t length;
    uint8_t *datagram = take_exact(&input, size, &length);
    struct inner_frame frame;
    struct neighbour_message message;
    if (decap_frame(&vtep, datagram, length, 0, &frame) == DROP_NONE) {
        enum neighbour_verdict verdict = NEIGHBOUR_NONE;
        size_t header = frame.header.size;
        RULE(frame.data + frame.length == datagram + length && header <= frame.length);
        if (frame.packet.version)
            verdict = ndp_parse(&frame.packet, &message);
        else if (frame.header.type == ETHERTYPE_ARP)
            verdict = arp_parse(frame.data + header, frame.length - header, &message);
        if (verdict == NEIGHBOUR_OK && message.asks)
            check_answer(&message);
    }
    free(datagram);
}

static void check_codec(const uint8_t *data, size_t size)
{
    struct vxlan_frame frame;
    if (codec_decode(data, size, &frame) != CODEC_OK)
        return;
    struct codec_macs macs;
    memcpy(macs.source, frame.source, MAC_SIZE);
    memcpy(macs.destination, frame.destination, MAC_SIZE);
    uint8_t *out = malloc(size);
    RULE(out && frame.vni <= VNI_MAX);
    enum codec_fault fault = codec_encode(out, data + VXLAN_OVERHEAD, size - VXLAN_OVERHEAD,
                                          frame.vni, &macs);
    if (fault == CODEC_OK) {
        RULE(memcmp(out + 4, data + 4, 3) == 0);
        RULE(memcmp(out + VXLAN_HEADER, data + VXLAN_HEADER, 2 * MAC_SIZE) == 0);
        RULE(memcmp(out + VXLAN_OVERHEAD, data + VXLAN_OVERHEAD, size - VXLAN_OVERHEAD) == 0);
    }
    free(out);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    for (uint8_t ecn = 0; ecn < 4; ecn++)
        check_decap(data, size, ecn);
    check_frame(data, size);
    check_codec(data, size);
    return 0;
}
