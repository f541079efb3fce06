/*
 * Why a packet was not forwarded, and what was done for those that were.
 *
 * Each packet counts once: for its peer where that is known, else for nobody.
 */
#ifndef TUNNEL_STATS_H
#define TUNNEL_STATS_H

#include <stdint.h>

/* name, direction, what it means and what to do */
#define DROPS(X)                                                                                   \
    X(not_ip, "outbound", "the device gave no whole IPv4 or IPv6 packet")                          \
    X(bad_offload, "outbound", "a packet that contradicts its own offload header")                 \
    X(bad_frame, "outbound", "the device gave no whole Ethernet frame")                            \
    X(link_local, "outbound", "spanning tree and the like, which no bridge forwards")              \
    X(no_fdb, "outbound", "no peer is known for this MAC, and flooding is off")                    \
    X(no_flood, "outbound", "broadcast and multicast, and flooding is off")                        \
    X(storm, "outbound", "more flooded frames a second than a peer is sent")                       \
    X(multicast, "outbound", "multicast and broadcast have no owner in a routed overlay")          \
    X(no_route, "outbound", "no peer owns the destination; the sender was told by ICMP")           \
    X(unresolved, "outbound", "the peer's name has no address yet: check DNS")                     \
    X(too_big, "outbound", "more than the path to the peer takes; the sender was told by ICMP")    \
    X(blocked, "outbound", "the underlay refused with EPERM: look at this host's firewall")        \
    X(unreachable, "outbound", "this host has no route to the peer's address")                     \
    X(send_full, "outbound", "the socket's send buffer stayed full")                               \
    X(send_failed, "outbound", "the underlay refused for another reason")                          \
    X(unknown_source, "inbound", "the outer source address is no peer's")                          \
    X(short_frame, "inbound", "too short for VXLAN and Ethernet headers, or cut off")              \
    X(no_vni, "inbound", "not VXLAN: its I flag is not set")                                       \
    X(other_vni, "inbound", "another overlay's VNI: compare --vni on both nodes")                  \
    X(other_mac, "inbound", "for another VTEP's MAC: compare --mac here and mac= there")           \
    X(loop, "inbound", "our own MAC is the source: another node has it, or a bridge loops")        \
    X(peer_link_local, "inbound", "spanning tree and the like, which no bridge forwards")          \
    X(peer_storm, "inbound", "more broadcast and multicast a second than is taken from a peer")    \
    X(bad_neighbour, "inbound", "an ARP or NDP message that contradicts itself")                   \
    X(group_mac, "inbound", "broadcast and multicast mean nothing to a routed overlay")            \
    X(ethertype, "inbound", "neither IP nor ARP inside: it means nothing to a routed overlay")     \
    X(bad_control, "inbound", "a control frame that cannot be read: compare versions")             \
    X(control_full, "inbound", "control frames came faster than they could be read")               \
    X(bad_inner, "inbound", "the inner packet's version or lengths are wrong")                     \
    X(spoofed, "inbound", "the inner source is not in a prefix of the peer that sent it")          \
    X(bad_ecn, "inbound", "congestion marked on a packet whose sender cannot know (RFC 6040)")     \
    X(device_full, "inbound", "the device's reader does not keep up")                              \
    X(device_refused, "inbound", "the device took no packet: is it up?")

enum drop {
#define X(name, direction, meaning) DROP_##name,
    DROPS(X)
#undef X
        DROP_REASONS,
    DROP_NONE = DROP_REASONS,
};

#define WORK(X)                                                                                    \
    X(device_reads)          /* system calls that gave a packet */                                 \
    X(device_writes)         /* system calls that took one */                                      \
    X(super_packets_read)    /* packets larger than the MTU, cut here */                           \
    X(super_packets_written) /* packets joined here */                                             \
    X(sends)                 /* sendmmsg calls */                                                  \
    X(receives)              /* recvmmsg calls that gave a datagram */                             \
    X(datagrams_sent)                                                                              \
    X(datagrams_received)                                                                          \
    X(trains_sent) /* messages of more than one datagram */                                        \
    X(trains_received)                                                                             \
    X(icmp_sent)                                                                                   \
    X(frames_flooded)    /* from the device, to every peer */                                      \
    X(neighbours_heard)  /* ARP and NDP messages from peers that say who has which MAC */          \
    X(neighbour_answers) /* ARP and NDP requests answered here */                                  \
    X(neighbour_floods)  /* those of the device that were flooded */                               \
    X(socket_overflows)  /* datagrams the socket's full buffer lost before we saw them */

struct work {
#define X(name) uint64_t name;
    WORK(X)
#undef X
};

struct traffic {
    uint64_t packets;
    uint64_t bytes; /* of inner packets, IP header and all */
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

/* Adds `from` to `to`, as when a peer goes and the sums must not go back. */
static inline void counters_fold(struct counters *to, const struct counters *from)
{
    count_traffic(&to->outbound, from->outbound.packets, from->outbound.bytes);
    count_traffic(&to->inbound, from->inbound.packets, from->inbound.bytes);
    for (int reason = 0; reason < DROP_REASONS; reason++)
        to->drops[reason] += from->drops[reason];
}

#endif
