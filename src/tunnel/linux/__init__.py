"""
The operating system: devices, sockets, netlink, nftables and privileges, one noun a file.

    tun, socketpair       the device of a node, and its stand-in without one
    udp, underlay         the sockets to the peers
    netlink, route_batch  the kernel's addresses, routes and neighbours
    nft, packet_socket    firewall rules; captured packets
    epoll                 waits for packets, in the loop or in a thread
    capabilities, interface, hostinfo  what this process may do; what this host is like

Imports config, errors and types. Raises DeviceError and UnderlayError from the OSError.
"""
