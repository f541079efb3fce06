/* Shared by the fuzz targets: a reader of the fuzzer's bytes, and RULE(), which aborts. */
#ifndef TUNNEL_FUZZ_H
#define TUNNEL_FUZZ_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define RULE(condition)                                                                            \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fprintf(stderr, "%s:%d: broken: %s\n", __FILE__, __LINE__, #condition);                \
            abort();                                                                               \
        }                                                                                          \
    } while (0)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct input {
    const uint8_t *data;
    size_t left;
};

static inline uint8_t take8(struct input *input)
{
    if (!input->left)
        return 0;
    input->left--;
    return *input->data++;
}

static inline uint16_t take16(struct input *input)
{
    uint8_t high = take8(input);
    return (uint16_t)(high << 8 | take8(input));
}

/* Up to `size` bytes, copied to memory of exactly that size, which the caller frees. */
static inline uint8_t *take_exact(struct input *input, size_t size, size_t *taken)
{
    *taken = size < input->left ? size : input->left;
    uint8_t *copy = malloc(*taken ? *taken : 1);
    RULE(copy);
    if (*taken)
        memcpy(copy, input->data, *taken);
    input->data += *taken;
    input->left -= *taken;
    return copy;
}

#endif
