#include "inbox.h"

#include <string.h>

static size_t without_padding(const uint8_t *body, size_t length)
{
    while (length && !body[length - 1])
        length--;
    return length;
}

static const struct letter *newest_from(const struct inbox *inbox, const struct address *from)
{
    for (unsigned i = inbox->count; i--;)
        if (address_equal(&inbox->letters[i].from, from))
            return &inbox->letters[i];
    return NULL;
}

bool inbox_put(struct inbox *inbox, const struct letter *about, const uint8_t *body, size_t length)
{
    size_t kept = without_padding(body, length);
    bool control = about->ethertype == ETHERTYPE_CONTROL;
    const struct letter *before = newest_from(inbox, &about->from);
    uint32_t letters = before ? before->letters + 1 : 1;
    size_t bytes = before ? before->bytes + kept : kept;
    unsigned most = control ? INBOX_LETTERS : INBOX_COPIES;
    size_t room = INBOX_ROOM;
    if (control && letters <= INBOX_RESERVE && bytes <= INBOX_RESERVE_ROOM) {
        most += INBOX_RESERVE;
        room += INBOX_RESERVE_ROOM;
    }
    if (inbox->count >= most || inbox->used + kept > room)
        return false;
    struct letter *letter = &inbox->letters[inbox->count++];
    *letter = *about;
    letter->offset = (uint32_t)inbox->used;
    letter->kept = (uint32_t)kept;
    letter->length = (uint32_t)length;
    letter->letters = letters;
    letter->bytes = (uint32_t)bytes;
    memcpy(inbox->room + inbox->used, body, kept);
    inbox->used += kept;
    return true;
}

void inbox_copy(const struct inbox *inbox, unsigned index, uint8_t *out)
{
    const struct letter *letter = &inbox->letters[index];
    memcpy(out, inbox->room + letter->offset, letter->kept);
    memset(out + letter->kept, 0, letter->length - letter->kept);
}

void inbox_clear(struct inbox *inbox)
{
    inbox->count = 0;
    inbox->used = 0;
}
