"""
The operating system: devices, sockets, netlink, nftables and privileges; one noun per file.

    tun, socketpair              the device of a node, and its stand-in without one
    udp, underlay, resolver      the sockets to the peers, the paths to them, their names
    netlink, device_watch        reads and changes links, addresses, neighbours and routes; changes
                                 that others make; below them netlink_socket and rtnetlink
    nft                          firewall rules
    packet_socket, bpf           captured packets; filter programs
    epoll                        waits for packets, in the loop or in a thread
    privileges, preload, users, capabilities  what a node gives up when its device is open
    files, inotify, systemd      atomic files, notices of changed files, notifications to systemd
    interface, hostinfo          the interface to other nodes; facts about this host

Imports config, errors and types. Raises DeviceError and UnderlayError from the OSError.
"""
