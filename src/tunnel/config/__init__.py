"""
The configuration of a node: what may be set, and which values are valid together.

    options   one table of every option: name, type, default, help
    node      Config: one tunnel, checked
    cluster   ClusterConfig: a node that joins a network in a store
    rules     what no option shows by itself
    tomlfile  a configuration file, with the line of each fault

Imports errors and types only, and does no I/O but for reading the file.
"""
