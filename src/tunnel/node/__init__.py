"""
One running node: everything that it has open, and what keeps it true.

    node        opens and closes the parts, in order
    peers       applies changes of peers to the packet path and the kernel
    prober      sends echoes and probes, and reads the answers
    vteps       keeps neighbour entries, FDB entries and kernel routes of the peers
    reconciler  compares the kernel's state with what it should be, and repairs it
    workers     the C forwarders as one
    containers  masquerade rules and subnet.env
    fdb, snapshot, probes  what can be asked of it

The only package that joins :mod:`tunnel.linux`, :mod:`tunnel.protocol` and ``_native``.
"""
