#include "control_queue.h"

#include "check.h"

static const struct address from = {.bytes = {127, 0, 0, 2}, .size = 4};

static bool put(struct control_queue *queue, uint16_t sender, const struct address *address,
                const uint8_t *body, size_t length)
{
    struct control_message about = {
        .from = *address, .sender = sender, .ethertype = ETHERTYPE_CONTROL};
    return control_queue_put(queue, &about, body, length);
}

static struct control_queue *queue_new(void)
{
    struct control_queue *queue = calloc(1, sizeof *queue);
    CHECK(queue);
    return queue;
}

/* Checks that the body is exactly this, and that nothing is written beyond it. */
static void check_message(const struct control_queue *queue, unsigned index, const uint8_t *body,
                          size_t length)
{
    CHECK_EQ(queue->messages[index].length, length);
    uint8_t *copy = check_exact(body, length);
    memset(copy, 0xee, length);
    control_queue_copy(queue, index, copy);
    CHECK(memcmp(copy, body, length) == 0);
    free(copy);
}

TEST(messages_stay_in_order)
{
    struct control_queue *queue = queue_new();
    static const uint8_t bodies[3][5] = {"one", "two!", "three"};
    static const size_t lengths[3] = {3, 4, 5};
    for (unsigned i = 0; i < 3; i++)
        CHECK(put(queue, (uint16_t)(7 + i), &from, bodies[i], lengths[i]));
    CHECK_EQ(queue->count, 3);
    for (unsigned i = 0; i < 3; i++) {
        CHECK_EQ(queue->messages[i].sender, 7 + i);
        CHECK(address_equal(&queue->messages[i].from, &from));
        check_message(queue, i, bodies[i], lengths[i]);
    }
    control_queue_clear(queue);
    CHECK(put(queue, 0, &from, bodies[2], 5));
    CHECK_EQ(queue->count, 1);
    check_message(queue, 0, bodies[2], 5);
    free(queue);
}

TEST(padding_takes_no_space)
{
    struct control_queue *queue = queue_new();
    static uint8_t body[65485] = {1, 2, 0, 3};
    for (unsigned i = 0; i < CONTROL_QUEUE_MAX; i++)
        CHECK(put(queue, 0, &from, body, sizeof body));
    CHECK_EQ(queue->used, 4 * CONTROL_QUEUE_MAX);
    check_message(queue, CONTROL_QUEUE_MAX - 1, body, sizeof body);
    free(queue);
}

TEST(a_message_of_zeros_and_an_empty_message)
{
    struct control_queue *queue = queue_new();
    static const uint8_t zeros[100];
    CHECK(put(queue, 0, &from, zeros, sizeof zeros));
    CHECK(put(queue, 0, &from, zeros, 0));
    check_message(queue, 0, zeros, sizeof zeros);
    check_message(queue, 1, zeros, 0);
    free(queue);
}

TEST(the_number_of_messages_is_limited)
{
    struct control_queue *queue = queue_new();
    const uint8_t body[1] = {1};
    for (unsigned i = 0; i < CONTROL_QUEUE_MAX; i++)
        CHECK(put(queue, 0, &from, body, 1));
    CHECK(!put(queue, 0, &from, body, 1));
    CHECK_EQ(queue->count, CONTROL_QUEUE_MAX);
    CHECK_EQ(queue->used, CONTROL_QUEUE_MAX);
    free(queue);
}

TEST(the_number_of_bytes_is_limited)
{
    struct control_queue *queue = queue_new();
    static uint8_t body[CONTROL_QUEUE_BYTES + 1];
    memset(body, 1, sizeof body);
    CHECK(!put(queue, 0, &from, body, sizeof body));
    CHECK(put(queue, 0, &from, body, CONTROL_QUEUE_BYTES - 10));
    CHECK(!put(queue, 0, &from, body, 11));
    CHECK(put(queue, 0, &from, body, 10));
    CHECK(!put(queue, 0, &from, body, 1));
    CHECK_EQ(queue->count, 2);
    check_message(queue, 1, body, 10);
    free(queue);
}

TEST(a_flood_leaves_the_reserve_to_other_addresses)
{
    static uint8_t body[CONTROL_QUEUE_RESERVE_BYTES];
    memset(body, 1, sizeof body);
    for (unsigned large = 0; large < 2; large++) {
        struct control_queue *queue = queue_new();
        struct address others = {.bytes = {127, 0, 0, 3}, .size = 4};
        size_t flood = large ? sizeof body : 1, length = sizeof body / CONTROL_QUEUE_RESERVE;
        while (put(queue, 0, &from, body, flood))
            ;
        CHECK_EQ(queue->count, large ? CONTROL_QUEUE_BYTES / sizeof body : CONTROL_QUEUE_MAX);
        for (unsigned i = 0; i < CONTROL_QUEUE_RESERVE; i++) {
            CHECK(put(queue, 1, &others, body, length));
            CHECK(!put(queue, 0, &from, body, flood));
        }
        CHECK(!put(queue, 1, &others, body, length));
        check_message(queue, queue->count - 1, body, length);
        control_queue_clear(queue);
        CHECK(put(queue, 0, &from, body, 1));
        free(queue);
    }
}
