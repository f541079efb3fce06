"""
What can go wrong, one class for each answer a program may want to give.

    TunnelError
    ├── ConfigError                 a value of the configuration that cannot be used
    ├── CodecError                  bytes that are no VXLAN frame, or cannot become one
    ├── PeerNotFoundError           no peer has that endpoint, name or address
    ├── NoAnswerError               a peer did not answer in time, and at which stage
    ├── StateError                  a call that does not fit the state of the tunnel
    │   └── ClosedError             the tunnel is closed
    ├── DeviceError                 device, addresses, kernel routes, nftables
    ├── UnderlayError               UDP socket, local address, name resolution
    └── StoreError                  the store in which nodes of a cluster find each other
        ├── StoreUnavailableError   does not answer: go on, and try again later
        ├── StoreRefusedError       says no (certificate, user, permission, space): tell someone
        ├── ConflictError           a guarded write came too late: read again, decide again
        ├── WatchGapError           the watch cannot continue: read again, and compare
        └── LeaseExpiredError       a lease has ended, and its keys are gone

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


class PeerNotFoundError(TunnelError, LookupError):
    """No peer has that endpoint, name or address."""


class StateError(TunnelError):
    """A call that does not fit the state of the tunnel: not entered yet, or entered twice."""


class ClosedError(StateError):
    """The tunnel is closed."""


class NoAnswerError(TunnelError, TimeoutError):
    """
    A peer that was asked did not answer in time.

    Attributes:
        stage: Where it ended, as far as this node can tell: ``unresolved`` and ``no_route``, so
            nothing was sent; ``too_big``, for less does arrive; ``no_answer``.
    """

    def __init__(self, message: str, *, stage: str = "no_answer") -> None:
        super().__init__(message)
        self.stage = stage


class StoreError(TunnelError):
    """The store in which members find each other."""


class StoreUnavailableError(StoreError):
    """It cannot be reached or does not answer, and why, for each address. Of a write nobody knows
    whether it was done."""


class StoreRefusedError(StoreError):
    """It says no, or we do not believe that it is it: certificate, user, permission, space."""


class ConflictError(StoreError):
    """
    A key is not as the writer expected it; nothing was written.

    Attributes:
        revision: What it is at now; 0 when it is not there.
    """

    def __init__(self, key: str, *, expect: int, revision: int) -> None:
        super().__init__(
            f"{key} is {_at(revision)}, expected {_at(expect)}: somebody was faster (read again)"
        )
        self.key, self.expect, self.revision = key, expect, revision


def _at(revision: int) -> str:
    return f"at revision {revision}" if revision else "not there"


class WatchGapError(StoreError):
    """A watch cannot go on from where it was: the changes since then are gone."""


class LeaseExpiredError(StoreError):
    """A lease that has ended, or never was."""

    def __init__(self, lease: int) -> None:
        super().__init__(f"lease {lease:x} has ended (acquire again)")
        self.lease = lease
