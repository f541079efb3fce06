"""
Nodes that find each other in a store: etcd, in flannel's format, or a directory.

    member            a node that joins: keeps its lease, follows the store, updates its peers
    lease, roster     the rules: how a subnet is acquired and kept; which peers follow from records
    record, network   what stands in the store
    state, cache      what a node keeps on disk
    registry          the network as administrators see it
    stores/           the stores themselves

The rules know no clock, socket or loop. Imports the facade, linux, config and what is below.
"""
