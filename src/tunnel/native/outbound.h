/* Outbound: moves packets from the device to peers. */
#ifndef TUNNEL_OUTBOUND_H
#define TUNNEL_OUTBOUND_H

#include "forwarder.h"

/* Moves up to one budget of packets. Returns how many were read, or -errno. */
int forwarder_outbound(struct forwarder *forwarder);

/* Adds what one packet from the device becomes to the trains, without sending them. */
void outbound_forward(struct forwarder *forwarder, struct device_packet *read);

#endif
