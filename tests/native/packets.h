/*
 * Builds packets for tests, and verifies their checksums independently of the code under test: byte
 * by byte, as in the definition of RFC 1071.
 */
#ifndef TUNNEL_PACKETS_H
#define TUNNEL_PACKETS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "bytes.h"
#include "ip.h"

/* The fields of a packet; all zeros give a valid one. */
struct words {
    uint8_t version;  /* 0: 4 */
    uint8_t protocol; /* 0: TCP */
    uint8_t tos, ttl; /* ttl 0: 64 */
    uint8_t flags;    /* TCP; 0: ACK */
    uint8_t options;  /* TCP: bytes, a multiple of 4 */
    bool fragmentable;
    bool no_checksum; /* UDP */
    uint8_t host;     /* last byte of the source address */
    uint16_t port;    /* of the source */
    uint16_t id;
    uint16_t window;
    uint32_t sequence, acknowledgement, flow_label;
    size_t payload; /* bytes; their values follow from `sequence`, like those of a stream */
};

enum { WORDS_MAX = 65535 + 32 };

static inline uint32_t words_sum(uint32_t sum, const uint8_t *bytes, size_t length)
{
    for (size_t i = 0; i < length; i++) {
        sum += i % 2 ? bytes[i] : (uint32_t)bytes[i] << 8;
        sum = (sum & 0xffff) + (sum >> 16);
    }
    return sum;
}

static inline uint32_t words_pseudo(const uint8_t *packet, uint8_t protocol, size_t length)
{
    bool four = packet[0] >> 4 == 4;
    uint32_t sum = words_sum(0, packet + (four ? 12 : 8), four ? 8 : 32);
    uint8_t rest[6] = {0, protocol, 0, 0, 0, 0};
    put32(rest + 2, (uint32_t)length);
    return words_sum(sum, rest, 6);
}

/* Whether the checksums of a TCP or UDP packet without options or extensions are correct. */
static inline bool words_verify(const uint8_t *packet, size_t length)
{
    bool four = packet[0] >> 4 == 4;
    size_t header = four ? 20 : 40;
    if (four && words_sum(0, packet, 20) != 0xffff)
        return false;
    uint32_t sum = words_pseudo(packet, packet[four ? 9 : 6], length - header);
    return words_sum(sum, packet + header, length - header) == 0xffff;
}

static inline uint8_t words_byte(uint32_t position)
{
    return (uint8_t)(position * 2654435761u >> 24);
}

static inline size_t words_put_transport(uint8_t *out, const struct words *words)
{
    bool tcp = words->protocol != IP_UDP;
    put16(out, (uint16_t)(40000 + words->port));
    put16(out + 2, 5201);
    if (!tcp) {
        put16(out + 4, (uint16_t)(8 + words->payload));
        return 8;
    }
    put32(out + 4, words->sequence);
    put32(out + 8, words->acknowledgement);
    out[12] = (uint8_t)((20 + words->options) / 4 << 4);
    out[13] = words->flags ? words->flags : TCP_ACK;
    put16(out + 14, words->window);
    memset(out + 20, 1 /* no operation */, words->options);
    return 20u + words->options;
}

/* Writes the packet and returns its length. */
static inline size_t words_put(uint8_t *out, const struct words *words)
{
    static const uint8_t net6[8] = {0xfd, 0x10, 2, 4, 4};
    bool four = words->version != 6, tcp = words->protocol != IP_UDP;
    uint8_t protocol = words->protocol ? words->protocol : IP_TCP;
    uint8_t ttl = words->ttl ? words->ttl : 64;
    size_t header = four ? 20 : 40;

    memset(out, 0, header + 60);
    size_t transport = words_put_transport(out + header, words);
    size_t length = header + transport + words->payload;
    for (size_t i = 0; i < words->payload; i++)
        out[header + transport + i] = words_byte(words->sequence + (uint32_t)i);

    if (four) {
        out[0] = 0x45;
        out[1] = words->tos;
        put16(out + 2, (uint16_t)length);
        put16(out + 4, words->id);
        out[6] = words->fragmentable ? 0 : 0x40;
        out[8] = ttl;
        out[9] = protocol;
        put32(out + 12, 0x0af40200u | words->host);
        put32(out + 16, 0x0af40101);
        put16(out + 10, (uint16_t)~words_sum(0, out, 20));
    } else {
        put32(out, 6u << 28 | (uint32_t)words->tos << 20 | words->flow_label);
        put16(out + 4, (uint16_t)(length - 40));
        out[6] = protocol;
        out[7] = ttl;
        memcpy(out + 8, net6, 8);
        out[8 + 5] = 2;
        out[8 + 15] = words->host;
        memcpy(out + 24, net6, 8);
        out[24 + 5] = 1;
        out[24 + 15] = 1;
    }
    uint8_t *field = out + header + (tcp ? 16 : 6);
    uint32_t sum = words_pseudo(out, protocol, length - header);
    uint16_t check = (uint16_t)~words_sum(sum, out + header, length - header);
    if (!words->no_checksum)
        put16(field, tcp || check ? check : 0xffff);
    return length;
}

#endif
