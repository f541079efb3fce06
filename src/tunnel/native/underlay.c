#include "underlay.h"

#include <errno.h>
#include <netinet/ip.h>
#include <netinet/udp.h>
#include <poll.h>
#include <string.h>
#include <unistd.h>

/* Missing in older C libraries: linux/udp.h. */
#ifndef UDP_SEGMENT
#define UDP_SEGMENT 103
#endif
#ifndef UDP_GRO
#define UDP_GRO 104
#endif

enum { FULL_RETRIES = 4, FULL_WAIT_MS = 1 };

union send_control {
    struct cmsghdr align;
    uint8_t bytes[CMSG_SPACE(sizeof(uint16_t)) + CMSG_SPACE(sizeof(int))];
};

static struct cmsghdr *put_control(struct msghdr *message, struct cmsghdr *at, int level, int type,
                                   const void *value, size_t size)
{
    at->cmsg_level = level;
    at->cmsg_type = type;
    at->cmsg_len = CMSG_LEN(size);
    memcpy(CMSG_DATA(at), value, size);
    message->msg_controllen += CMSG_SPACE(size);
    return (struct cmsghdr *)((uint8_t *)at + CMSG_SPACE(size));
}

static void put_message(struct msghdr *message, union send_control *control, struct train *train,
                        struct peer *peer)
{
    *message = (struct msghdr){
        .msg_name = &peer->to,
        .msg_namelen = peer->to_size,
        .msg_iov = train->pieces,
        .msg_iovlen = train->piece_count,
    };
    struct cmsghdr *next = &control->align;
    if (train->segments > 1)
        next = put_control(message, next, IPPROTO_UDP, UDP_SEGMENT, &train->size,
                           sizeof train->size);
    if (train->ecn) {
        bool four = peer->address.size == 4;
        int ecn = train->ecn;
        put_control(message, next, four ? IPPROTO_IP : IPPROTO_IPV6, four ? IP_TOS : IPV6_TCLASS,
                    &ecn, sizeof ecn);
    }
    if (message->msg_controllen)
        message->msg_control = control;
}

static bool is_full(int error)
{
    return error == EAGAIN || error == ENOBUFS;
}

/* Whether to try again; waits a short time for space. The number of waits is limited. */
static bool worth_waiting(int fd, int error, int *retries)
{
    if (error == EINTR)
        return true;
    if (!is_full(error) || *retries == 0)
        return false;
    --*retries;
    struct pollfd ready = {.fd = fd, .events = POLLOUT};
    poll(&ready, 1, FULL_WAIT_MS);
    return true;
}

unsigned underlay_send(int fd, struct train *const *trains, unsigned count,
                       const struct peers *peers, struct work *work)
{
    struct mmsghdr messages[TRAINS_MAX];
    union send_control control[TRAINS_MAX];
    for (unsigned i = 0; i < count; i++)
        put_message(&messages[i].msg_hdr, &control[i], trains[i], &peers->at[trains[i]->peer]);

    int retries = FULL_RETRIES;
    unsigned next = 0;
    while (next < count) {
        int sent = sendmmsg(fd, messages + next, count - next, 0);
        work->sends++;
        if (sent < 0) {
            if (worth_waiting(fd, errno, &retries))
                continue;
            struct train *refused = trains[next++];
            refused->error = errno;
            if (is_full(refused->error))
                continue; /* the limit on waits is shared by all trains of this call */
            break;
        }
        for (int i = 0; i < sent; i++, next++) {
            work->datagrams_sent += trains[next]->segments;
            work->trains_sent += trains[next]->segments > 1;
        }
    }
    return next;
}

static void prepare(struct receiver *receiver, unsigned count)
{
    for (unsigned i = 0; i < count; i++) {
        receiver->pieces[i] = (struct iovec){receiver->room + (size_t)i * RECEIVE_STRIDE,
                                             RECEIVE_MAX};
        receiver->messages[i].msg_hdr = (struct msghdr){
            .msg_name = &receiver->names[i],
            .msg_namelen = sizeof receiver->names[i],
            .msg_iov = &receiver->pieces[i],
            .msg_iovlen = 1,
            .msg_control = receiver->control[i],
            .msg_controllen = RECEIVE_CONTROL,
        };
    }
}

static int int_from(const struct cmsghdr *control)
{
    int value = 0;
    size_t size = control->cmsg_len - CMSG_LEN(0);
    if (size == 1) /* IP_TOS arrives as one byte */
        return *CMSG_DATA(control);
    memcpy(&value, CMSG_DATA(control), size < sizeof value ? size : sizeof value);
    return value;
}

static void count_overflows(struct underlay_socket *socket, struct msghdr *message,
                            struct work *work)
{
    struct cmsghdr *control = CMSG_FIRSTHDR(message);
    for (; control; control = CMSG_NXTHDR(message, control)) {
        if (control->cmsg_level != SOL_SOCKET || control->cmsg_type != SO_RXQ_OVFL)
            continue;
        uint32_t overflows = (uint32_t)int_from(control);
        work->socket_overflows += (uint32_t)(overflows - socket->overflows);
        socket->overflows = overflows;
    }
}

int underlay_receive(struct underlay_socket *socket, struct receiver *receiver, unsigned most,
                     struct work *work)
{
    int got;
    prepare(receiver, most);
    do {
        got = recvmmsg(socket->fd, receiver->messages, most, MSG_DONTWAIT, NULL);
    } while (got < 0 && errno == EINTR);
    if (got < 0)
        return errno == EAGAIN ? 0 : -errno;
    work->receives++;
    if (got > 0) /* the counter only grows: the last message has its newest value */
        count_overflows(socket, &receiver->messages[got - 1].msg_hdr, work);
    return got;
}

static struct address address_from(const struct sockaddr_in6 *name)
{
    struct address address = {0};
    if (name->sin6_family == AF_INET) {
        const struct sockaddr_in *in4 = (const struct sockaddr_in *)(const void *)name;
        memcpy(address.bytes, &in4->sin_addr, 4);
        address.size = 4;
    } else if (name->sin6_family == AF_INET6) {
        memcpy(address.bytes, &name->sin6_addr, 16);
        address.size = 16;
    }
    return address;
}

struct arrival underlay_arrival(struct receiver *receiver, unsigned index)
{
    struct mmsghdr *received = &receiver->messages[index];
    struct msghdr *message = &received->msg_hdr;
    struct arrival arrival = {
        .data = receiver->room + (size_t)index * RECEIVE_STRIDE,
        .length = received->msg_len,
        .size = received->msg_len,
        .from = address_from(&receiver->names[index]),
        .cut = message->msg_flags & (MSG_TRUNC | MSG_CTRUNC),
    };
    struct cmsghdr *control = CMSG_FIRSTHDR(message);
    for (; control; control = CMSG_NXTHDR(message, control)) {
        int level = control->cmsg_level, type = control->cmsg_type;
        if (level == IPPROTO_UDP && type == UDP_GRO && int_from(control) > 0)
            arrival.size = (size_t)int_from(control);
        else if ((level == IPPROTO_IP && type == IP_TOS) ||
                 (level == IPPROTO_IPV6 && type == IPV6_TCLASS))
            arrival.ecn = int_from(control) & 3;
    }
    if (!arrival.size)
        arrival.size = 1; /* an empty datagram; avoids a division by zero */
    return arrival;
}

uint32_t underlay_path_mtu(const struct peer *peer)
{
    bool four = peer->address.size == 4;
    int fd = socket(peer->to.any.sa_family, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return 0;
    int mtu = 0;
    socklen_t size = sizeof mtu;
    if (connect(fd, &peer->to.any, peer->to_size) < 0 ||
        getsockopt(fd, four ? IPPROTO_IP : IPPROTO_IPV6, four ? IP_MTU : IPV6_MTU, &mtu, &size) < 0)
        mtu = 0;
    close(fd);
    return mtu > 0 ? (uint32_t)mtu : 0;
}
