#include "control_queue.h"

#include <string.h>

static size_t without_padding(const uint8_t *body, size_t length)
{
    while (length && !body[length - 1])
        length--;
    return length;
}

static const struct control_message *newest_from(const struct control_queue *queue,
                                                 const struct address *from)
{
    for (unsigned i = queue->count; i--;)
        if (address_equal(&queue->messages[i].from, from))
            return &queue->messages[i];
    return NULL;
}

bool control_queue_put(struct control_queue *queue, const struct control_message *about,
                       const uint8_t *body, size_t length)
{
    size_t stored = without_padding(body, length);
    bool control = about->ethertype == ETHERTYPE_CONTROL;
    const struct control_message *before = newest_from(queue, &about->from);
    uint32_t count = before ? before->count_from + 1 : 1;
    size_t bytes = before ? before->bytes_from + stored : stored;
    unsigned most = control ? CONTROL_QUEUE_MAX : CONTROL_QUEUE_NEIGHBOURS_MAX;
    size_t room = CONTROL_QUEUE_BYTES;
    if (control && count <= CONTROL_QUEUE_RESERVE && bytes <= CONTROL_QUEUE_RESERVE_BYTES) {
        most += CONTROL_QUEUE_RESERVE;
        room += CONTROL_QUEUE_RESERVE_BYTES;
    }
    if (queue->count >= most || queue->used + stored > room)
        return false;
    struct control_message *message = &queue->messages[queue->count++];
    *message = *about;
    message->offset = (uint32_t)queue->used;
    message->stored = (uint32_t)stored;
    message->length = (uint32_t)length;
    message->count_from = count;
    message->bytes_from = (uint32_t)bytes;
    memcpy(queue->bytes + queue->used, body, stored);
    queue->used += stored;
    return true;
}

void control_queue_copy(const struct control_queue *queue, unsigned index, uint8_t *out)
{
    const struct control_message *message = &queue->messages[index];
    memcpy(out, queue->bytes + message->offset, message->stored);
    memset(out + message->stored, 0, message->length - message->stored);
}

void control_queue_clear(struct control_queue *queue)
{
    queue->count = 0;
    queue->used = 0;
}
