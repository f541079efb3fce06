/* Inbound: moves packets from peers to the device. */
#ifndef TUNNEL_INBOUND_H
#define TUNNEL_INBOUND_H

#include "forwarder.h"

/* Moves up to one budget of messages from a socket. Returns how many arrived, or -errno. */
int forwarder_inbound(struct forwarder *forwarder, struct underlay *underlay);

#endif
