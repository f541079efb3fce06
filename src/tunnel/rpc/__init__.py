"""
The control socket of a running node: msgpack over a Unix socket.

    server   answers for as long as the node runs
    methods  what can be asked, and how arguments and results are spelled
    client   asks
    codec    messages and dataclasses, both ways

Imports the facade and what is below.
"""
