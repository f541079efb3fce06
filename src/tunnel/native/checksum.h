/*
 * The Internet checksum, RFC 1071.
 *
 * A sum is kept wide and in the byte order of the machine, so that parts add up with plain
 * `+`; every part but the last must have an even length. Numbers go in by checksum_word().
 */
#ifndef TUNNEL_CHECKSUM_H
#define TUNNEL_CHECKSUM_H

#include <stddef.h>
#include <stdint.h>

/* Adds `length` bytes, by the CPU's vector unit where it has one. */
uint64_t checksum_add(uint64_t sum, const uint8_t *data, size_t length);

/* The same for any CPU; its twin must agree with it to the bit after folding. */
uint64_t checksum_add_portable(uint64_t sum, const uint8_t *data, size_t length);

/* What checksum_add() uses here: "avx2" or "portable". */
const char *checksum_backend(void);

/* A 16-bit number as it counts towards a sum. */
uint64_t checksum_word(uint16_t value);

/* The sum of an IPv4 or IPv6 pseudo-header (RFC 9293 3.1, RFC 8200 8.1). */
uint64_t checksum_pseudo(const uint8_t *source, const uint8_t *destination, size_t address_size,
                         uint8_t protocol, uint32_t length);

/* Folds to 16 bits, not complemented: 0xffff for data whose own checksum is right. */
uint16_t checksum_fold(uint64_t sum);

/* Stores a folded sum, or its complement, where a header keeps its checksum. */
void checksum_store(uint8_t *field, uint16_t folded);

#endif
