"""
The control socket of a running node: msgpack over a Unix socket.

    server         answers while the node opens, runs and closes
    methods        what can be requested: arguments and results
    client         sends requests, and returns what the methods of Tunnel return
    codec          dataclasses to plain values, and back
    socket_paths   where the socket of a node is

Imports the facade and everything below; the client imports neither the facade nor the node.
"""
