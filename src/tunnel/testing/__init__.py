"""
What tests of an overlay need: this project's tests, and those of programs that embed a tunnel.

    lab    hosts made of network namespaces on this machine, and links between them
    bench  measures what a path between two hosts carries
    fakes  a clock that a test advances, a cluster's store in memory

``lab`` and ``bench`` import :mod:`tunnel.errors` alone; ``fakes`` imports :mod:`tunnel.cluster`.
No other package imports this one, except for ``tunnel demo`` and ``tunnel bench``.
"""
