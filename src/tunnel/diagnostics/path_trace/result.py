"""A trace and its steps, as ``tunnel explain`` prints them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum


class Outcome(Enum):
    GOES_ON = "goes on"
    ENDS = "ends"


@dataclass(frozen=True)
class TraceStep:
    """
    One step of the path.

    Attributes:
        entry: What decides the step: a kernel route, an FDB entry, a peer ...
        next: What to do if the path ends here, else empty. A command stands at its end, after
            a colon.
    """

    step: str
    entry: str
    verdict: Outcome
    why: str
    next: str = ""


@dataclass(frozen=True)
class TraceLayer:
    """One header of the datagram; `bytes` is its length."""

    name: str
    bytes: int
    fields: Mapping[str, str]


@dataclass(frozen=True)
class PathTrace:
    """
    The path of one packet.

    Attributes:
        direction: ``outbound`` or ``inbound``.
        headers: The headers of the datagram, outermost first; empty if the path ends before the
            datagram is built.
        ends: The step at which the path ends, None if it does not.
    """

    packet: str
    direction: str
    steps: tuple[TraceStep, ...]
    headers: tuple[TraceLayer, ...] = ()
    ends: str | None = None


def goes_on(step: str, entry: str, why: str) -> TraceStep:
    """Returns a step after which the path continues."""
    return TraceStep(step, entry, Outcome.GOES_ON, why)


def ends(step: str, entry: str, why: str, advice: str = "") -> TraceStep:
    """Returns a step at which the path ends."""
    return TraceStep(step, entry, Outcome.ENDS, why, advice)
