"""
One running node: its open resources, and the tasks that keep them up to date.

    node           opens and closes the parts, in order
    config_source  where the rest of the configuration comes from
    peers          queries and changes of the peers
    driver         applies actions to the packet path, the kernel and the control channel
    monitor        feeds time and control messages to the rules: prober, vteps
    prober         decides which echoes and probes to send
    vteps          decides FDB entries, neighbour entries and kernel routes
    resolver       resolves the names of peers
    requests       echoes and samples that a caller waits for
    reconciler     compares the kernel's state with what it should be, and repairs it
    workers        all C forwarders, behind one interface
    containers     masquerade rules and subnet.env
    fdb, snapshot, probes  what a caller can read and probe

The only package that joins :mod:`tunnel.linux`, :mod:`tunnel.protocol` and ``_native``.
"""
