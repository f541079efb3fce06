/*
 * Counters: why packets were dropped, and how packets were moved.
 *
 * Each packet is counted once, for its peer, or for the unknown peer if it has none.
 */
#ifndef TUNNEL_STATS_H
#define TUNNEL_STATS_H

#include <stdint.h>

/* name, direction, what it means and what to do about it */
#define DROPS(X)                                                                                   \
    X(not_ip, "outbound", "the device delivered no complete IPv4 or IPv6 packet")                  \
    X(bad_offload, "outbound", "the packet contradicts its offload header")                        \
    X(bad_frame, "outbound", "the device delivered no complete Ethernet frame")                    \
    X(link_local, "outbound", "link-local group, such as spanning tree; no bridge forwards it")    \
    X(no_fdb, "outbound", "no peer is known for this MAC, and flooding is off")                    \
    X(no_flood, "outbound", "broadcast or multicast, and flooding is off")                         \
    X(storm, "outbound", "more flooded frames per second than the storm limit allows")             \
    X(multicast, "outbound", "a routed overlay has no route for multicast and broadcast")          \
    X(no_route, "outbound", "no peer has the destination; the sender got an ICMP error")           \
    X(unresolved, "outbound", "the peer's name has no address yet: check DNS")                     \
    X(too_big, "outbound", "larger than the path MTU of the peer; the sender got an ICMP error")   \
    X(blocked, "outbound", "the kernel refused with EPERM: check this host's firewall")            \
    X(unreachable, "outbound", "this host has no route to the peer's address")                     \
    X(send_full, "outbound", "the socket's send buffer stayed full")                               \
    X(send_failed, "outbound", "the kernel refused to send it for another reason")                 \
    X(unknown_source, "inbound", "the outer source address belongs to no peer")                    \
    X(short_frame, "inbound", "too short for VXLAN and Ethernet headers, or truncated")            \
    X(no_vni, "inbound", "not VXLAN: the I flag is not set")                                       \
    X(other_vni, "inbound", "the VNI of another overlay: compare --vni on both nodes")             \
    X(other_mac, "inbound", "for the MAC of another VTEP: compare --mac here with mac= there")     \
    X(loop, "inbound", "the source is this node's MAC: a duplicate MAC, or a bridge loop")         \
    X(peer_link_local, "inbound",                                                                  \
      "link-local group, such as spanning tree; no bridge forwards it")                            \
    X(peer_storm, "inbound", "more group frames per second than the storm limit allows")           \
    X(bad_neighbour, "inbound", "an invalid ARP or NDP message")                                   \
    X(group_mac, "inbound", "a routed overlay does not forward broadcast and multicast")           \
    X(ethertype, "inbound", "neither IP nor ARP: a routed overlay does not forward it")            \
    X(bad_control, "inbound", "a control frame that cannot be parsed: compare versions")           \
    X(control_full, "inbound", "control frames arrived faster than they could be read")            \
    X(bad_inner, "inbound", "the version or a length of the inner packet is wrong")                \
    X(spoofed, "inbound", "the inner source is not in a prefix of the sending peer")               \
    X(bad_ecn, "inbound", "marked as congested, but its sender does not use ECN (RFC 6040)")       \
    X(device_full, "inbound", "the device's queue is full: its reader is too slow")                \
    X(device_refused, "inbound", "the device refused the packet: check that it is up")

enum drop {
#define X(name, direction, meaning) DROP_##name,
    DROPS(X)
#undef X
        DROP_REASONS,
    DROP_NONE = DROP_REASONS,
};

#define WORK(X)                                                                                    \
    X(device_reads)          /* system calls that returned a packet */                             \
    X(device_writes)         /* system calls that wrote a packet */                                \
    X(super_packets_read)    /* super-packets from the device, split here */                       \
    X(super_packets_written) /* super-packets coalesced here */                                    \
    X(sends)                 /* sendmmsg calls */                                                  \
    X(receives)              /* recvmmsg calls that returned a datagram */                         \
    X(datagrams_sent)                                                                              \
    X(datagrams_received)                                                                          \
    X(trains_sent) /* messages of more than one datagram */                                        \
    X(trains_received)                                                                             \
    X(icmp_sent)                                                                                   \
    X(frames_flooded)    /* from the device, to every peer */                                      \
    X(neighbours_heard)  /* ARP and NDP messages from peers that announce a MAC */                 \
    X(neighbour_answers) /* ARP and NDP requests answered here */                                  \
    X(neighbour_floods)  /* ARP and NDP requests from the device that were flooded */              \
    X(socket_overflows)  /* datagrams lost because the socket's buffer was full */

struct work {
#define X(name) uint64_t name;
    WORK(X)
#undef X
};

struct traffic {
    uint64_t packets;
    uint64_t bytes; /* of inner packets, with their IP headers */
};

struct counters {
    struct traffic outbound;
    struct traffic inbound;
    uint64_t drops[DROP_REASONS];
    uint32_t last_drop; /* 1 + reason, 0 for none */
};

/* name for Python, member of struct counters */
#define TRAFFIC(X)                                                                                 \
    X(outbound_packets, outbound.packets)                                                          \
    X(outbound_bytes, outbound.bytes)                                                              \
    X(inbound_packets, inbound.packets)                                                            \
    X(inbound_bytes, inbound.bytes)

static inline void count_traffic(struct traffic *traffic, uint64_t packets, uint64_t bytes)
{
    traffic->packets += packets;
    traffic->bytes += bytes;
}

static inline void count_drops(struct counters *counters, enum drop reason, uint64_t packets)
{
    counters->drops[reason] += packets;
    counters->last_drop = 1 + (uint32_t)reason;
}

/* Adds `from` to `to`, but for the last drop. */
static inline void counters_add(struct counters *to, const struct counters *from)
{
    count_traffic(&to->outbound, from->outbound.packets, from->outbound.bytes);
    count_traffic(&to->inbound, from->inbound.packets, from->inbound.bytes);
    for (int reason = 0; reason < DROP_REASONS; reason++)
        to->drops[reason] += from->drops[reason];
}

#endif
