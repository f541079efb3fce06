"""
The configuration of a node: which options there are, and which values are valid together.

    options   the table of all options: name, parser, default, help, environment
    option    one option of it, and how given options are parsed
    values    how a value is parsed
    rules     which values are valid together
    node      Config: one tunnel
    cluster   ClusterConfig: a node that finds its peers in a store
    tomlfile  a configuration file, with the line of each fault
    merged    a file's options under those of flags and environment
    reference docs/reference/options.md, generated from the table

Imports errors, types and prefixes. Its only I/O is to read the file.
"""

from tunnel.config.cluster import ClusterConfig, faults, read_config
from tunnel.config.node import Config
from tunnel.config.tomlfile import ConfigFile

__all__ = ["ClusterConfig", "Config", "ConfigFile", "faults", "read_config"]
