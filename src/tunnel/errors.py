"""
What can go wrong, one class for each answer a program may want to give.

    TunnelError
    ├── ConfigError      our words: a value that cannot be, before anything was made
    ├── CodecError       their bytes: not a VXLAN frame, or a packet that cannot be one
    ├── DeviceError      the world inside: device, addresses, kernel routes, nftables
    └── UnderlayError    the world outside: UDP socket, local address, name resolution

A packet that cannot be forwarded raises nothing: it is counted under its reason.
"""


class TunnelError(Exception):
    """Base of everything this package raises on purpose. The text names the
    thing, the value and the next step."""


class ConfigError(TunnelError, ValueError):
    """
    A value that cannot be used.

    Attributes:
        key: Where it stands, as path of words: ``("peer", 1, "mac")``; empty when the
            fault is not in one place.
    """

    def __init__(self, message: str, *, key: tuple[str | int, ...] = ()) -> None:
        super().__init__(message)
        self.key = key


class CodecError(TunnelError, ValueError):
    """
    Bytes that are no VXLAN frame, or a packet too short or too long to become one.

    Attributes:
        index: Which datagram of a batch, counted from 0; 0 for a single one.
    """

    def __init__(self, message: str, index: int = 0) -> None:
        super().__init__(message)
        self.index = index


class DeviceError(TunnelError):
    """The device, its addresses, its kernel routes or nftables rules; raised ``from`` the OSError,
    where there is one."""


class UnderlayError(TunnelError):
    """The UDP socket, the local address or a name; raised ``from`` the OSError."""
