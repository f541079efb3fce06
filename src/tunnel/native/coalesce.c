#include "coalesce.h"

#include <string.h>

#include "bytes.h"
#include "checksum.h"

/* What a packet does to the open runs. */
enum role {
    JOINS,   /* joins the run of its flow, or starts one */
    PASSES,  /* stays alone, ends no run */
    ENDS,    /* stays alone, ends the run of its flow */
    BARRIER, /* its flow is unknown: ends all runs */
};

enum { TCP_SEQUENCE = 4, TCP_ACKNOWLEDGEMENT = 8, TCP_OFFSET = 12, TCP_FLAGS = 13 };
enum { TCP_WINDOW = 14, TCP_URGENT = 18, UDP_LENGTH = 4, IP4_DF = 0x40 };

static enum role tcp_role(const struct ip_packet *packet, uint16_t *header)
{
    size_t tcp_header = ip_tcp_header(packet, packet->header);
    if (!tcp_header)
        return BARRIER;
    uint8_t flags = packet->data[packet->header + TCP_FLAGS];
    *header = (uint16_t)(packet->header + tcp_header);
    if (flags & (TCP_SYN | TCP_FIN | TCP_RST | TCP_URG | TCP_CWR) || !(flags & TCP_ACK))
        return ENDS;
    return packet->length == *header ? PASSES : JOINS;
}

static enum role udp_role(const struct ip_packet *packet, uint16_t *header)
{
    *header = (uint16_t)(packet->header + UDP_HEADER);
    if (packet->length < *header)
        return BARRIER;
    const uint8_t *udp = packet->data + packet->header;
    /* The kernel would add a checksum to a joined datagram: one without must stay alone. */
    if (get16(udp + UDP_LENGTH) != packet->length - packet->header || !get16(udp + UDP_CHECK))
        return ENDS;
    return packet->length == *header ? ENDS : JOINS;
}

static enum role role_of(const struct coalescer *coalescer, const struct ip_packet *packet,
                         uint16_t *header)
{
    if (!packet->plain)
        return BARRIER;
    if (packet->protocol == IP_TCP && coalescer->tcp)
        return tcp_role(packet, header);
    if (packet->protocol == IP_UDP && coalescer->udp)
        return udp_role(packet, header);
    return PASSES;
}

static bool same_flow(const struct ip_packet *a, const struct ip_packet *b)
{
    return a->protocol == b->protocol && ip_same_hosts(a, b) &&
           memcmp(a->data + a->header, b->data + b->header, 4) == 0;
}

/* Compares the fields that a joined packet has once for all its segments. */
static bool same_ip_fields(const struct run *run, const struct ip_packet *packet)
{
    const uint8_t *first = run->first.data, *next = packet->data;
    if (packet->version == 6) /* traffic class and flow label; hop limit */
        return memcmp(first, next, 4) == 0 && first[7] == next[7];
    if (first[1] != next[1] || first[8] != next[8] || first[6] != next[6])
        return false;
    /* Split increments ids. Without DF they matter for later reassembly (RFC 6864). */
    return first[6] & IP4_DF || (uint16_t)(get16(first + 4) + run->segments) == get16(next + 4);
}

static bool same_tcp_fields(const struct run *run, const struct ip_packet *packet, uint16_t header)
{
    const uint8_t *first = run->first.data + run->first.header;
    const uint8_t *next = packet->data + packet->header;
    size_t options = (size_t)header - packet->header - 20;
    return header == run->header && get32(next + TCP_SEQUENCE) == run->sequence &&
           memcmp(first + TCP_ACKNOWLEDGEMENT, next + TCP_ACKNOWLEDGEMENT, 4) == 0 &&
           first[TCP_OFFSET] == next[TCP_OFFSET] &&
           ((first[TCP_FLAGS] ^ next[TCP_FLAGS]) & ~TCP_PSH) == 0 &&
           memcmp(first + TCP_WINDOW, next + TCP_WINDOW, 2) == 0 &&
           memcmp(first + TCP_URGENT, next + TCP_URGENT, 2 + options) == 0;
}

static bool may_join(const struct run *run, const struct ip_packet *packet, uint16_t header)
{
    uint32_t payload = packet->length - header;
    if (payload > run->size || run->length + payload > IP_MAX || run->segments == RUN_SEGMENTS_MAX)
        return false;
    if (!same_ip_fields(run, packet) || (packet->link && !ip_same_link(&run->first, packet)))
        return false;
    return packet->protocol == IP_UDP || same_tcp_fields(run, packet, header);
}

static bool checksums_right(struct run *run, struct ip_packet *packet)
{
    if (!run->checked) {
        run->flow_sum = ip_flow_sum(&run->first);
        run->checked = ip_checksums_right(&run->first, run->flow_sum);
    }
    /* An unfinished checksum is rare, and fails the first test. */
    return run->checked &&
           (ip_checksums_right(packet, run->flow_sum) ||
            (ip_finish_checksum(packet) && ip_checksums_right(packet, run->flow_sum)));
}

static struct run *begin(struct coalescer *coalescer, struct ip_packet *packet, uint16_t peer)
{
    ip_finish_checksum(packet);
    struct run *run = &coalescer->runs[coalescer->count++];
    run->first = *packet;
    run->bytes = run->length = packet->length;
    run->segments = 1;
    run->peer = peer;
    run->checked = run->push = false;
    memset(run->header_bytes, 0, OFFLOAD_HEADER);
    run->pieces[0] = (struct iovec){run->header_bytes, OFFLOAD_HEADER};
    run->pieces[1] = (struct iovec){packet->data - packet->link, packet->length + packet->link};
    return run;
}

static void join(struct run *run, const struct ip_packet *packet, uint16_t header)
{
    uint32_t payload = packet->length - header;
    if (run->segments == 1)
        run->pieces[1] = (struct iovec){run->first.data + header, run->size};
    run->segments++;
    run->pieces[run->segments] = (struct iovec){packet->data + header, payload};
    run->bytes += packet->length;
    run->length += payload;
    run->sequence += payload;
}

void coalesce_add(struct coalescer *coalescer, struct ip_packet *packet, uint16_t peer)
{
    uint16_t header = 0;
    enum role role = role_of(coalescer, packet, &header);
    if (role == BARRIER)
        memset(coalescer->open, 0, sizeof coalescer->open);
    if (role == BARRIER || role == PASSES) {
        begin(coalescer, packet, peer);
        return;
    }

    uint8_t *open = &coalescer->open[ip_flow_hash(packet) % sizeof coalescer->open];
    struct run *run = *open ? &coalescer->runs[*open - 1] : NULL;
    bool same = run && same_flow(&run->first, packet);
    if (role == ENDS) {
        if (same)
            *open = 0;
        begin(coalescer, packet, peer);
        return;
    }

    uint32_t payload = packet->length - header;
    bool push = packet->protocol == IP_TCP && packet->data[packet->header + TCP_FLAGS] & TCP_PSH;
    if (same && may_join(run, packet, header) && checksums_right(run, packet)) {
        join(run, packet, header);
    } else {
        /* The run of another flow with the same hash ends early. */
        run = begin(coalescer, packet, peer);
        run->header = header;
        run->size = (uint16_t)payload;
        if (packet->protocol == IP_TCP)
            run->sequence = get32(packet->data + packet->header + TCP_SEQUENCE) + payload;
        *open = (uint8_t)coalescer->count;
    }
    run->push = push;
    if (push || payload < run->size)
        *open = 0;
}

static uint8_t gso_type(const struct ip_packet *packet)
{
    if (packet->protocol == IP_UDP)
        return GSO_UDP;
    return packet->version == 4 ? GSO_TCP4 : GSO_TCP6;
}

static void finish(struct run *run)
{
    const struct ip_packet *first = &run->first;
    bool tcp = first->protocol == IP_TCP;
    uint8_t *ip = run->header_bytes + OFFLOAD_HEADER + first->link;
    uint8_t *transport = ip + first->header;
    uint32_t behind_ip = run->length - first->header;
    struct offload offload = {
        .flags = OFFLOAD_NEEDS_CSUM,
        .gso_type = gso_type(first),
        .header_length = (uint16_t)(first->link + run->header),
        .gso_size = run->size,
        .checksum_start = (uint16_t)(first->link + first->header),
        .checksum_offset = tcp ? TCP_CHECK : UDP_CHECK,
    };
    memcpy(run->header_bytes, &offload, sizeof offload);
    memcpy(ip - first->link, first->data - first->link, (size_t)first->link + run->header);
    if (first->version == 4) {
        put16(ip + 2, (uint16_t)run->length);
        ip_finish_header(ip, first->header);
    } else {
        put16(ip + 4, (uint16_t)behind_ip);
    }
    if (run->push)
        transport[TCP_FLAGS] |= TCP_PSH;
    if (!tcp)
        put16(transport + UDP_LENGTH, (uint16_t)behind_ip);
    uint64_t pseudo = checksum_pseudo(first->source, first->destination, first->address_size,
                                      first->protocol, behind_ip);
    checksum_store(transport + offload.checksum_offset, checksum_fold(pseudo));
    run->pieces[0].iov_len = (size_t)OFFLOAD_HEADER + first->link + run->header;
}

void coalesce_finish(struct coalescer *coalescer)
{
    for (unsigned i = 0; i < coalescer->count; i++)
        if (coalescer->runs[i].segments > 1)
            finish(&coalescer->runs[i]);
}

void coalesce_reset(struct coalescer *coalescer)
{
    coalescer->count = 0;
    memset(coalescer->open, 0, sizeof coalescer->open);
}
