#include "checksum.h"

#include <string.h>

#if defined(__x86_64__) && defined(__GNUC__)
#define HAVE_AVX2_TWIN 1
#include <immintrin.h>
#endif

uint64_t checksum_add_portable(uint64_t sum, const uint8_t *data, size_t length)
{
    /* 32-bit words in 64-bit accumulators: no carry to catch before 2^32 words. */
    while (length >= 16) {
        uint32_t word[4];
        memcpy(word, data, sizeof word);
        sum += (uint64_t)word[0] + word[1];
        sum += (uint64_t)word[2] + word[3];
        data += 16;
        length -= 16;
    }
    while (length >= 2) {
        uint16_t word;
        memcpy(&word, data, sizeof word);
        sum += word;
        data += 2;
        length -= 2;
    }
    if (length) {
        uint8_t last[2] = {data[0], 0};
        uint16_t word;
        memcpy(&word, last, sizeof word);
        sum += word;
    }
    return sum;
}

#ifdef HAVE_AVX2_TWIN
__attribute__((target("avx2"))) static uint64_t checksum_add_avx2(uint64_t sum, const uint8_t *data,
                                                                  size_t length)
{
    const __m256i low = _mm256_set1_epi64x(0xffffffff);
    __m256i even[2] = {_mm256_setzero_si256(), _mm256_setzero_si256()};
    __m256i odd[2] = {_mm256_setzero_si256(), _mm256_setzero_si256()};

    while (length >= 64) {
        for (int half = 0; half < 2; half++) {
            __m256i words = _mm256_loadu_si256((const __m256i *)(data + 32 * half));
            even[half] = _mm256_add_epi64(even[half], _mm256_and_si256(words, low));
            odd[half] = _mm256_add_epi64(odd[half], _mm256_srli_epi64(words, 32));
        }
        data += 64;
        length -= 64;
    }
    uint64_t lane[4];
    __m256i total = _mm256_add_epi64(_mm256_add_epi64(even[0], even[1]),
                                     _mm256_add_epi64(odd[0], odd[1]));
    _mm256_storeu_si256((__m256i *)lane, total);
    return checksum_add_portable(sum + lane[0] + lane[1] + lane[2] + lane[3], data, length);
}
#endif

uint64_t checksum_add(uint64_t sum, const uint8_t *data, size_t length)
{
#ifdef HAVE_AVX2_TWIN
    /* A load and a test: cheaper than a pointer that would have to live somewhere. */
    if (length >= 128 && __builtin_cpu_supports("avx2"))
        return checksum_add_avx2(sum, data, length);
#endif
    return checksum_add_portable(sum, data, length);
}

const char *checksum_backend(void)
{
#ifdef HAVE_AVX2_TWIN
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
