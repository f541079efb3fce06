"""
One running node: everything that it has open, and what keeps it true.

    node           opens and closes the parts, in order
    config_source  where the rest of the configuration comes from
    peers          the peers, as they are asked for and changed
    driver         applies actions to the packet path, the kernel and the control channel
    monitor        feeds time and control messages to the rules: prober, vteps
    prober         decides which echoes and probes to send
    vteps          decides FDB entries, neighbour entries and kernel routes
    resolver       resolves the names of peers
    requests       echoes and samples that somebody waits for
    reconciler     compares the kernel's state with what it should be, and repairs it
    workers        the C forwarders as one
    containers     masquerade rules and subnet.env
    fdb, snapshot, probes  what can be asked of a node

The only package that joins :mod:`tunnel.linux`, :mod:`tunnel.protocol` and ``_native``.
"""
