"""
Rules between nodes, without a clock, a socket or a loop: ``(event, now)`` in, actions out.

    peer_table      who is a peer, at which address, under which index
    liveness        whether a peer answers
    path_mtu        how large a packet reaches it
    neighbours      which MAC its VTEP has
    control_frames  the messages that nodes exchange about that
    arp             ARP and NDP messages

Imports config, errors and types. :mod:`tunnel.node` feeds the events and applies the actions.
"""
