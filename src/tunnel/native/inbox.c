#include "inbox.h"

#include <string.h>

static size_t without_padding(const uint8_t *body, size_t length)
{
    while (length && !body[length - 1])
        length--;
    return length;
}

bool inbox_put(struct inbox *inbox, const struct letter *about, const uint8_t *body, size_t length)
{
    size_t kept = without_padding(body, length);
    unsigned most = about->ethertype == ETHERTYPE_CONTROL ? INBOX_LETTERS : INBOX_COPIES;
    if (inbox->count >= most || kept > INBOX_ROOM - inbox->used)
        return false;
    struct letter *letter = &inbox->letters[inbox->count++];
    *letter = *about;
    letter->offset = (uint32_t)inbox->used;
    letter->kept = (uint32_t)kept;
    letter->length = (uint32_t)length;
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
