/*
 * The underlay: all socket calls there are.
 *
 * Sends trains with UDP_SEGMENT over sendmmsg, receives trains with UDP_GRO over recvmmsg
 * (udp(7), linux/udp.h).
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
    /* An odd number of cache lines more, so that packets do not all fall into the same sets. */
    RECEIVE_STRIDE = RECEIVE_MAX + 13 * 64,
    RECEIVE_CONTROL = 128,
};

/* One message from a socket: a datagram, or a train of them. */
struct arrival {
    uint8_t *data;
    size_t length;
    size_t size; /* of each datagram but the last; never 0 */
    struct address from;
    uint8_t ecn;
    bool cut; /* longer than the buffer: not to be trusted */
};

struct receiver {
    struct mmsghdr messages[RECEIVE_BATCH];
    struct iovec pieces[RECEIVE_BATCH];
    struct sockaddr_in6 names[RECEIVE_BATCH];
    _Alignas(struct cmsghdr) uint8_t control[RECEIVE_BATCH][RECEIVE_CONTROL];
    uint8_t room[RECEIVE_BATCH * RECEIVE_STRIDE];
};

/* A UDP socket and how many datagrams its full buffer has lost (SO_RXQ_OVFL). */
struct underlay_socket {
    int fd;
    uint32_t overflows;
};

/*
 * Sends trains through one socket, in order, each at most once. A train that the kernel refuses
 * has its `error` set. Returns how many were dealt with: it stops behind one that was refused for
 * what it is, so that the caller can send its datagrams before those that follow.
 */
unsigned underlay_send(int fd, struct train *const *trains, unsigned count,
                       const struct peers *peers, struct work *work);

/* Receives up to `most` messages. Returns how many, 0 if there are none now, or -errno. */
int underlay_receive(struct underlay_socket *socket, struct receiver *receiver, unsigned most,
                     struct work *work);

/* Reads what message `index` of the last batch is. */
struct arrival underlay_arrival(struct receiver *receiver, unsigned index);

/* The MTU of the path to a peer, IP header included, as the kernel knows it; 0 if it does not. */
uint32_t underlay_path_mtu(const struct peer *peer);

#endif
