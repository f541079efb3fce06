"""
Why packets do not arrive: checks, traces and captures. Nothing here changes a node.

    doctor, host_report    what usually goes wrong on this host; the observations it judges
    path_trace             the path of one packet, step by step
    path_inputs            gathers what the trace needs
    firewall, flow         which rule drops a packet; a packet as five values
    capture, pcapng, decode  packets as they pass, as a file, in words

Imports :mod:`tunnel.node`, linux, config and what is below.
"""
