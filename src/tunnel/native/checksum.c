#include "checksum.h"

#include <string.h>

#if defined(__x86_64__) && defined(__GNUC__)
#define HAVE_AVX2 1
#include <immintrin.h>
enum {
    AVX2_MAX = 64 << 13
}; /* bytes: 2^13 pairs in each of two lanes, which are added at the end */
#endif

uint64_t checksum_add_portable(uint64_t sum, const uint8_t *data, size_t length)
{
    /* 32-bit words in a 64-bit sum: no carry is lost before 2^32 words. */
    while (length >= 16) {
        uint32_t word[4];
        memcpy(word, data, sizeof word);
        sum += (uint64_t)word[0] + word[1];
        sum += (uint64_t)word[2] + word[3];
        data += 16;
        length -= 16;
    }
    if (length & 8) {
        uint32_t word[2];
        memcpy(word, data, sizeof word);
        sum += (uint64_t)word[0] + word[1];
        data += 8;
    }
    if (length & 4) {
        uint32_t word;
        memcpy(&word, data, sizeof word);
        sum += word;
        data += 4;
    }
    if (length & 2) {
        uint16_t word;
        memcpy(&word, data, sizeof word);
        sum += word;
        data += 2;
    }
    if (length & 1) {
        uint8_t last[2] = {data[0], 0};
        uint16_t word;
        memcpy(&word, last, sizeof word);
        sum += word;
    }
    return sum;
}

#ifdef HAVE_AVX2
/*
 * Adds 16 words to 8 lanes. Flipping the highest bit turns an unsigned word into a signed one, less
 * 32768, which one instruction adds in pairs. A lane holds 2^15 pairs.
 */
__attribute__((target("avx2"), always_inline)) static inline __m256i
add_words(__m256i lanes, const uint8_t *data, __m256i flip, __m256i ones)
{
    __m256i words = _mm256_loadu_si256((const __m256i *)data);
    return _mm256_add_epi32(lanes, _mm256_madd_epi16(_mm256_xor_si256(words, flip), ones));
}

__attribute__((target("avx2"))) static uint64_t checksum_add_avx2(uint64_t sum, const uint8_t *data,
                                                                  size_t length)
{
    const __m256i flip = _mm256_set1_epi16((short)0x8000), ones = _mm256_set1_epi16(1);
    __m256i total[2] = {_mm256_setzero_si256(), _mm256_setzero_si256()};
    uint64_t flipped = (uint64_t)(length / 32) * 16 * 32768;

    for (size_t blocks = length / 64; blocks; blocks--, data += 64) {
        total[0] = add_words(total[0], data, flip, ones);
        total[1] = add_words(total[1], data + 32, flip, ones);
    }
    if (length & 32) {
        total[0] = add_words(total[0], data, flip, ones);
        data += 32;
    }
    __m256i lanes = _mm256_add_epi32(total[0], total[1]);
    __m256i wide = _mm256_add_epi64(_mm256_cvtepi32_epi64(_mm256_castsi256_si128(lanes)),
                                    _mm256_cvtepi32_epi64(_mm256_extracti128_si256(lanes, 1)));
    int64_t lane[4];
    _mm256_storeu_si256((__m256i *)lane, wide);
    sum += flipped + (uint64_t)(lane[0] + lane[1] + lane[2] + lane[3]);
    return checksum_add_portable(sum, data, length % 32);
}
#endif

uint64_t checksum_add(uint64_t sum, const uint8_t *data, size_t length)
{
#ifdef HAVE_AVX2
    /* A load and a test, which is cheaper than a call through a pointer. */
    if (length >= 128 && length <= AVX2_MAX && __builtin_cpu_supports("avx2"))
        return checksum_add_avx2(sum, data, length);
#endif
    return checksum_add_portable(sum, data, length);
}

const char *checksum_backend(void)
{
#ifdef HAVE_AVX2
    if (__builtin_cpu_supports("avx2"))
        return "avx2";
#endif
    return "portable";
}

uint64_t checksum_word(uint16_t value)
{
    uint8_t bytes[2] = {(uint8_t)(value >> 8), (uint8_t)value};
    uint16_t word;
    memcpy(&word, bytes, sizeof word);
    return word;
}

uint64_t checksum_pseudo(const uint8_t *source, const uint8_t *destination, size_t address_size,
                         uint8_t protocol, uint32_t length)
{
    uint64_t sum = checksum_word(protocol);
    sum += checksum_word((uint16_t)length) + checksum_word((uint16_t)(length >> 16));
    sum = checksum_add_portable(sum, source, address_size);
    return checksum_add_portable(sum, destination, address_size);
}

uint16_t checksum_fold(uint64_t sum)
{
    sum = (sum & 0xffffffff) + (sum >> 32);
    sum = (sum & 0xffffffff) + (sum >> 32);
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    return (uint16_t)sum;
}

void checksum_store(uint8_t *field, uint16_t folded)
{
    memcpy(field, &folded, sizeof folded);
}
