"""
The stores in which the nodes of a cluster find each other.

    base            the interface: keys with revisions, leases, a watch
    directory       a shared directory; keys is the content of its file
    etcd            etcd's API; etcd_gateway is the HTTP client below it

Imports ``tunnel.linux.files`` and ``tunnel.linux.inotify`` at most, and what is below them.
"""
