#include "inbox.h"

#include "check.h"

static const struct address from = {.bytes = {127, 0, 0, 2}, .size = 4};

static bool put(struct inbox *inbox, uint16_t sender, const struct address *address,
                const uint8_t *body, size_t length)
{
    struct letter about = {.from = *address, .sender = sender, .ethertype = ETHERTYPE_CONTROL};
    return inbox_put(inbox, &about, body, length);
}

static struct inbox *inbox_new(void)
{
    struct inbox *inbox = calloc(1, sizeof *inbox);
    CHECK(inbox);
    return inbox;
}

/* The letter's body is that, and nothing was written behind it. */
static void check_letter(const struct inbox *inbox, unsigned index, const uint8_t *body,
                         size_t length)
{
    CHECK_EQ(inbox->letters[index].length, length);
    uint8_t *copy = check_exact(body, length);
    memset(copy, 0xee, length);
    inbox_copy(inbox, index, copy);
    CHECK(memcmp(copy, body, length) == 0);
    free(copy);
}

TEST(letters_are_kept_as_they_came)
{
    struct inbox *inbox = inbox_new();
    static const uint8_t bodies[3][5] = {"one", "two!", "three"};
    static const size_t lengths[3] = {3, 4, 5};
    for (unsigned i = 0; i < 3; i++)
        CHECK(put(inbox, (uint16_t)(7 + i), &from, bodies[i], lengths[i]));
    CHECK_EQ(inbox->count, 3);
    for (unsigned i = 0; i < 3; i++) {
        CHECK_EQ(inbox->letters[i].sender, 7 + i);
        CHECK(address_equal(&inbox->letters[i].from, &from));
        check_letter(inbox, i, bodies[i], lengths[i]);
    }
    inbox_clear(inbox);
    CHECK(put(inbox, 0, &from, bodies[2], 5));
    CHECK_EQ(inbox->count, 1);
    check_letter(inbox, 0, bodies[2], 5);
    free(inbox);
}

TEST(padding_takes_no_room)
{
    struct inbox *inbox = inbox_new();
    static uint8_t body[65485] = {1, 2, 0, 3};
    for (unsigned i = 0; i < INBOX_LETTERS; i++)
        CHECK(put(inbox, 0, &from, body, sizeof body));
    CHECK_EQ(inbox->used, 4 * INBOX_LETTERS);
    check_letter(inbox, INBOX_LETTERS - 1, body, sizeof body);
    free(inbox);
}

TEST(a_letter_of_zeros_and_an_empty_one)
{
    struct inbox *inbox = inbox_new();
    static const uint8_t zeros[100];
    CHECK(put(inbox, 0, &from, zeros, sizeof zeros));
    CHECK(put(inbox, 0, &from, zeros, 0));
    check_letter(inbox, 0, zeros, sizeof zeros);
    check_letter(inbox, 1, zeros, 0);
    free(inbox);
}

TEST(so_many_letters_and_no_more)
{
    struct inbox *inbox = inbox_new();
    const uint8_t body[1] = {1};
    for (unsigned i = 0; i < INBOX_LETTERS; i++)
        CHECK(put(inbox, 0, &from, body, 1));
    CHECK(!put(inbox, 0, &from, body, 1));
    CHECK_EQ(inbox->count, INBOX_LETTERS);
    CHECK_EQ(inbox->used, INBOX_LETTERS);
    free(inbox);
}

TEST(so_many_bytes_and_no_more)
{
    struct inbox *inbox = inbox_new();
    static uint8_t body[INBOX_ROOM + 1];
    memset(body, 1, sizeof body);
    CHECK(!put(inbox, 0, &from, body, sizeof body));
    CHECK(put(inbox, 0, &from, body, INBOX_ROOM - 10));
    CHECK(!put(inbox, 0, &from, body, 11));
    CHECK(put(inbox, 0, &from, body, 10));
    CHECK(!put(inbox, 0, &from, body, 1));
    CHECK_EQ(inbox->count, 2);
    check_letter(inbox, 1, body, 10);
    free(inbox);
}

TEST(who_fills_it_leaves_a_reserve_to_others)
{
    static uint8_t body[INBOX_RESERVE_ROOM];
    memset(body, 1, sizeof body);
    for (unsigned large = 0; large < 2; large++) {
        struct inbox *inbox = inbox_new();
        struct address others = {.bytes = {127, 0, 0, 3}, .size = 4};
        size_t flood = large ? sizeof body : 1, length = sizeof body / INBOX_RESERVE;
        while (put(inbox, 0, &from, body, flood))
            ;
        CHECK_EQ(inbox->count, large ? INBOX_ROOM / sizeof body : INBOX_LETTERS);
        for (unsigned i = 0; i < INBOX_RESERVE; i++) {
            CHECK(put(inbox, 1, &others, body, length));
            CHECK(!put(inbox, 0, &from, body, flood));
        }
        CHECK(!put(inbox, 1, &others, body, length));
        check_letter(inbox, inbox->count - 1, body, length);
        inbox_clear(inbox);
        CHECK(put(inbox, 0, &from, body, 1));
        free(inbox);
    }
}
