/* A datagram with every outer ECN, and what ICMP would say of the packet inside. */
#include "fuzz.h"

#include "codec.h"
#include "decap.h"
#include "icmp.h"
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
    check_codec(data, size);
    return 0;
}
