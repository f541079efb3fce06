"""
Stores of keys with revisions, leases and a watch: the interface in ``base``, a directory, and etcd
over its JSON gateway. Imports errors and :mod:`tunnel.linux.inotify` at most.
"""
