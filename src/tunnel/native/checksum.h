/*
 * The Internet checksum, RFC 1071.
 *
 * Sums are 64 bits wide and in the machine's byte order, so that partial sums add up with `+`.
 * Every part but the last must have an even length. Use checksum_word() to add an integer.
 */
#ifndef TUNNEL_CHECKSUM_H
#define TUNNEL_CHECKSUM_H

#include <stddef.h>
#include <stdint.h>

/* Adds `length` bytes, with vector instructions if the CPU has them. */
uint64_t checksum_add(uint64_t sum, const uint8_t *data, size_t length);

/* The same for any CPU. Folded, both results are equal. */
uint64_t checksum_add_portable(uint64_t sum, const uint8_t *data, size_t length);

/* The implementation behind checksum_add() on this CPU: "avx2" or "portable". */
const char *checksum_backend(void);

/* The value that a 16-bit integer adds to a sum. */
uint64_t checksum_word(uint16_t value);

/* The sum of an IPv4 or IPv6 pseudo-header (RFC 9293 3.1, RFC 8200 8.1). */
uint64_t checksum_pseudo(const uint8_t *source, const uint8_t *destination, size_t address_size,
                         uint8_t protocol, uint32_t length);

/* Folds to 16 bits, not complemented: 0xffff for data that includes a correct checksum. */
uint16_t checksum_fold(uint64_t sum);

/* Stores a folded sum, or its complement, in a checksum field. */
void checksum_store(uint8_t *field, uint16_t folded);

#endif
