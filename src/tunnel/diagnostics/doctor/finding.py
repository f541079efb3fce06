"""What a check reports."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from tunnel.types import Endpoint


class Level(Enum):
    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"


@dataclass(frozen=True)
class Finding:
    """
    One result of a check.

    Attributes:
        advice: What to do, empty if nothing is wrong. A command stands at its end, after a
            colon, ready to be pasted.
    """

    check: str
    level: Level
    text: str
    advice: str = ""


def ok(check: str, text: str) -> Finding:
    return Finding(check, Level.OK, text)


def warning(check: str, text: str, advice: str) -> Finding:
    return Finding(check, Level.WARNING, text, advice)


def failed(check: str, text: str, advice: str) -> Finding:
    return Finding(check, Level.FAILED, text, advice)


def counted(number: int, noun: str) -> str:
    """Returns ``1 packet``, ``2 packets``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def listed(endpoints: Iterable[Endpoint]) -> str:
    """Returns the first endpoint and how many more there are."""
    first, *others = endpoints
    return f"{first} and {len(others)} more" if others else str(first)
