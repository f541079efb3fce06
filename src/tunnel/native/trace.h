/* Trace: what the packet path would do with one packet. */
#ifndef TUNNEL_TRACE_H
#define TUNNEL_TRACE_H

#include "forwarder.h"

struct trace {
    uint16_t peer; /* that gets the packet; PEER_NONE if no peer does, or every peer */
    bool flooded;  /* every peer gets it */
    enum drop reason;
    int fd;                 /* of the socket that would send it, -1 if it is not sent */
    const uint8_t *headers; /* VXLAN and Ethernet headers as sent, in the packet's memory */
    size_t headers_size;    /* 0 if it is not sent */
};

/*
 * Runs a packet through the outbound path up to the point where it would be sent. It must lie alone
 * in its memory, with DEVICE_GAP bytes before it. Nothing is sent or counted, and no ICMP error is
 * written.
 */
void forwarder_trace(struct forwarder *forwarder, struct device_packet *read, struct trace *trace);

#endif
