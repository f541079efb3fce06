/*
 * The underlay: all system calls on sockets.
 *
 * Sends trains with UDP_SEGMENT and sendmmsg, receives trains with UDP_GRO and recvmmsg (udp(7),
 * linux/udp.h).
 */
#ifndef TUNNEL_UNDERLAY_H
#define TUNNEL_UNDERLAY_H

#include <netinet/in.h>
#include <stdint.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include "peers.h"
#include "stats.h"
#include "trains.h"

enum {
    RECEIVE_BATCH = 64,
    RECEIVE_MAX = 65536,
    /* An odd number of cache lines more, so that packets do not share the same cache sets. */
    RECEIVE_STRIDE = RECEIVE_MAX + 13 * 64,
    RECEIVE_CONTROL = 128,
};

/* One received message: a datagram, or a train of them. */
struct arrival {
    uint8_t *data;
    size_t length;
    size_t size; /* of each datagram but the last; never 0 */
    struct address from;
    uint8_t ecn;
    bool cut; /* truncated: longer than the buffer */
};

struct receiver {
    struct mmsghdr messages[RECEIVE_BATCH];
    struct iovec pieces[RECEIVE_BATCH];
    struct sockaddr_in6 names[RECEIVE_BATCH];
    _Alignas(struct cmsghdr) uint8_t control[RECEIVE_BATCH][RECEIVE_CONTROL];
    uint8_t room[RECEIVE_BATCH * RECEIVE_STRIDE];
};

/* A UDP socket, and how many datagrams were lost because its buffer was full (SO_RXQ_OVFL). */
struct underlay_socket {
    int fd;
    uint32_t overflows;
};

/*
 * Sends trains through one socket, in order, each at most once. Sets `error` of a train that the
 * kernel refused. Returns how many were handled: it stops after a train that was refused for its
 * form, so that the caller can send the datagrams of that one before the next train.
 */
unsigned underlay_send(int fd, struct train *const *trains, unsigned count,
                       const struct peers *peers, struct work *work);

/* Receives up to `most` messages. Returns how many, 0 if none is ready, or -errno. */
int underlay_receive(struct underlay_socket *socket, struct receiver *receiver, unsigned most,
                     struct work *work);

/* Message `index` of the last batch. */
struct arrival underlay_arrival(struct receiver *receiver, unsigned index);

/* The kernel's path MTU to a peer, with the IP header; 0 if unknown. */
uint32_t underlay_path_mtu(const struct peer *peer);

#endif
