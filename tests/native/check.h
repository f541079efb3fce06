/*
 * Each test is a function; a test program runs the one that its argument names.
 *
 *     TEST(an_empty_table_has_no_routes)
 *     {
 *         CHECK_EQ(route_lookup(table, address, 4), ROUTE_NONE);
 *     }
 *
 * Include this file once in a program: it defines main().
 */
#ifndef TUNNEL_CHECK_H
#define TUNNEL_CHECK_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CHECK(condition)                                                                           \
    do {                                                                                           \
        if (!(condition))                                                                          \
            check_failed(__FILE__, __LINE__, #condition);                                          \
    } while (0)

#define CHECK_EQ(left, right)                                                                      \
    do {                                                                                           \
        long long check_left = (long long)(left), check_right = (long long)(right);                \
        if (check_left != check_right) {                                                           \
            fprintf(stderr, "%lld is not %lld\n", check_left, check_right);                        \
            check_failed(__FILE__, __LINE__, #left " == " #right);                                 \
        }                                                                                          \
    } while (0)

#define TEST(name)                                                                                 \
    static void name(void);                                                                        \
    __attribute__((constructor)) static void check_add_##name(void)                                \
    {                                                                                              \
        static struct check_test test = {#name, name, NULL};                                       \
        test.next = check_tests;                                                                   \
        check_tests = &test;                                                                       \
    }                                                                                              \
    static void name(void)

struct check_test {
    const char *name;
    void (*run)(void);
    struct check_test *next;
};

static struct check_test *check_tests;

/* The row of a table that is being checked, printed on failure. */
static const char *check_row = "";

static inline void check_failed(const char *file, int line, const char *what)
{
    fprintf(stderr, "%s:%d: %s%s%s\n", file, line, what, *check_row ? ", in row: " : "", check_row);
    _Exit(1);
}

int main(int count, char **words)
{
    for (const struct check_test *test = check_tests; test; test = test->next) {
        if (count == 2 && strcmp(words[1], test->name) == 0) {
            test->run();
            return 0;
        }
    }
    fprintf(stderr, "usage: %s TEST\n", words[0]);
    return 2;
}

/* ---- failing allocations: the linker redirects all allocations here (--wrap) ---- */

/* How many more allocations succeed; negative for all. */
static int check_allocations = -1;

static inline bool check_allocation_fails(void)
{
    if (check_allocations > 0)
        check_allocations--;
    else if (check_allocations == 0)
        return true;
    return false;
}

void *__real_malloc(size_t size);
void *__real_calloc(size_t count, size_t size);
void *__real_realloc(void *old, size_t size);
void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t count, size_t size);
void *__wrap_realloc(void *old, size_t size);

void *__wrap_malloc(size_t size)
{
    return check_allocation_fails() ? NULL : __real_malloc(size);
}

void *__wrap_calloc(size_t count, size_t size)
{
    return check_allocation_fails() ? NULL : __real_calloc(count, size);
}

void *__wrap_realloc(void *old, size_t size)
{
    return check_allocation_fails() ? NULL : __real_realloc(old, size);
}

/* ---- numbers and memory ---- */

/* Random numbers that are the same in every run: splitmix64. */
static inline uint64_t check_random(uint64_t *state)
{
    uint64_t z = *state += 0x9e3779b97f4a7c15;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
}

static inline void check_random_fill(uint64_t *state, uint8_t *bytes, size_t length)
{
    for (size_t i = 0; i < length; i++)
        bytes[i] = (uint8_t)check_random(state);
}

/* A copy at the end of its memory, so that ASan detects reads past the end. */
static inline uint8_t *check_exact(const uint8_t *bytes, size_t length)
{
    uint8_t *copy = malloc(length ? length : 1);
    CHECK(copy);
    if (length)
        memcpy(copy, bytes, length);
    return copy;
}

#endif
