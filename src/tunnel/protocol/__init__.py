"""
The rules between nodes, without a clock, a socket or a loop: ``(event, now)`` in, actions out.

    peer_table      the peers, each with its address and index
    liveness        whether a peer answers
    path_mtu        the path MTU of a peer
    neighbours      the MAC of a peer's VTEP
    control_frames  the messages that nodes send each other through the data path
    arp             ARP and NDP messages

Imports config, status, errors and types. :mod:`tunnel.node` feeds the events and applies the
actions.
"""
