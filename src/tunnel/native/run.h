/* Run: moves packets both ways, once or in a thread. */
#ifndef TUNNEL_RUN_H
#define TUNNEL_RUN_H

#include "forwarder.h"

/*
 * Moves up to one budget of packets each way. Returns 1 if the control plane has work: an
 * offload was turned off, or control messages arrived, since this last returned 1. Otherwise
 * returns 0, or -errno with the descriptor at fault in `failed`.
 */
int forwarder_move(struct forwarder *forwarder, int *failed);

/*
 * Calls forwarder_move() whenever `epoll` is ready. Takes the lock at low priority for each call,
 * so that other threads can use the forwarder between two. Returns 0 when `stop`, a member of
 * `epoll`, is readable; otherwise what forwarder_move() returned other than 0.
 */
int forwarder_run(struct forwarder *forwarder, int epoll, int stop, int *failed);

#endif
