#include "inbox.h"

#include <string.h>

bool inbox_put(struct inbox *inbox, uint16_t sender, const struct address *from,
               const uint8_t *body, size_t length)
{
    if (inbox->count == INBOX_LETTERS || length > INBOX_ROOM - inbox->used)
        return false;
    inbox->letters[inbox->count++] = (struct letter){
        .from = *from,
        .sender = sender,
        .offset = (uint32_t)inbox->used,
        .length = (uint32_t)length,
    };
    memcpy(inbox->room + inbox->used, body, length);
    inbox->used += length;
    return true;
}

void inbox_clear(struct inbox *inbox)
{
    inbox->count = 0;
    inbox->used = 0;
}
