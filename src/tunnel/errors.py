"""
All errors of this package, a class for each reaction that a program may have.

    TunnelError
    ├── ConfigError                 an invalid value in the configuration
    ├── CodecError                  bytes that are not a VXLAN frame, or do not fit into one
    ├── PeerNotFoundError           no peer has that endpoint, name or address
    ├── NoAnswerError               a peer did not answer in time, and at which stage
    ├── StateError                  a call that does not fit the state of the tunnel
    │   └── ClosedError             the tunnel is closed
    ├── DeviceError                 device, addresses, kernel routes, nftables
    ├── UnderlayError               UDP socket, local address, name resolution
    └── StoreError                  the store in which nodes of a cluster find each other
        ├── StoreUnavailableError   does not answer: try again later
        ├── StoreRefusedError       refuses (certificate, user, permission, space): ask an operator
        ├── ConflictError           a guarded write came too late: read again, decide again
        ├── WatchGapError           the watch cannot continue: read again, and compare
        └── LeaseExpiredError       a lease has expired, and its keys are deleted

A packet that cannot be forwarded raises nothing: it is counted under its reason.
"""


class TunnelError(Exception):
    """Base of all errors that this package raises. The text names the thing, the value and the next
    step."""


class ConfigError(TunnelError, ValueError):
    """
    An invalid value in the configuration.

    Attributes:
        key: Path to the value, ``("peer", 1, "mac")``; empty if the fault is not in one place.
    """

    def __init__(self, message: str, *, key: tuple[str | int, ...] = ()) -> None:
        super().__init__(message)
        self.key = key


class CodecError(TunnelError, ValueError):
    """
    Bytes that are not a VXLAN frame, or a packet too short or too long for one.

    Attributes:
        index: Position of the datagram in a batch, from 0.
    """

    def __init__(self, message: str, index: int = 0) -> None:
        super().__init__(message)
        self.index = index


class DeviceError(TunnelError):
    """The device, its addresses, its kernel routes or nftables rules; raised ``from`` the OSError
    if there is one."""


class UnderlayError(TunnelError):
    """The UDP socket, the local address or a name; raised ``from`` the OSError."""


class PeerNotFoundError(TunnelError, LookupError):
    """No peer has that endpoint, name or address."""


class StateError(TunnelError):
    """A call that does not fit the state of the tunnel: not entered yet, or entered twice."""


class ClosedError(StateError):
    """The tunnel is closed."""


class NoAnswerError(TunnelError, TimeoutError):
    """
    A peer did not answer in time.

    Attributes:
        stage: Where it failed, as far as this node knows: ``unresolved`` or ``no_route``, so that
            nothing was sent; ``too_big``, as smaller packets arrive; ``no_answer``.
    """

    def __init__(self, message: str, *, stage: str = "no_answer") -> None:
        super().__init__(message)
        self.stage = stage


class StoreError(TunnelError):
    """The store in which the nodes of a cluster find each other."""


class StoreUnavailableError(StoreError):
    """The store cannot be reached or does not answer; the text says why, for each address. A write
    may or may not have been done."""


class StoreRefusedError(StoreError):
    """The store refuses, or its certificate is not valid: certificate, user, permission, space."""


class ConflictError(StoreError):
    """
    A key is not at the revision that the writer expected; nothing was written.

    Attributes:
        revision: The current one; 0 if the key does not exist.
    """

    def __init__(self, key: str, *, expect: int, revision: int) -> None:
        super().__init__(
            f"{key} is {_at(revision)}, expected {_at(expect)}: written since (read again)"
        )
        self.key, self.expect, self.revision = key, expect, revision


def _at(revision: int) -> str:
    return f"at revision {revision}" if revision else "absent"


class WatchGapError(StoreError):
    """A watch cannot continue: the store no longer has the changes since its last event."""


class LeaseExpiredError(StoreError):
    """A lease has expired, or never existed."""

    def __init__(self, lease: int) -> None:
        super().__init__(f"lease {lease:x} has expired (acquire again)")
        self.lease = lease
