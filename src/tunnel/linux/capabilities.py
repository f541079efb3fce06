"""
Capabilities of a thread and of the programs it starts (capabilities(7)).

They are set through ctypes, because that is four system calls: python-prctl needs libcap's headers
to build, and pyprctl has seen no release since 2021.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

SETGID, SETUID, NET_BIND_SERVICE, NET_ADMIN = 6, 7, 10, 12
"""Numbers of capabilities (linux/capability.h)."""

_NUMBERS = range(64)  # those that a kernel can have
_VERSION = 0x20080522
_PR_SET_PDEATHSIG, _PR_GET_PDEATHSIG = 1, 2
_PR_SET_KEEPCAPS, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT = 8, 24, 38, 47
_PR_CAP_AMBIENT_RAISE, _PR_CAP_AMBIENT_CLEAR_ALL = 2, 4

_libc = ctypes.CDLL(None, use_errno=True)


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Sets(ctypes.Structure):
    """The sets of 32 capabilities; the system calls take two of these."""

    _fields_ = (
        ("effective", ctypes.c_uint32),
        ("permitted", ctypes.c_uint32),
        ("inheritable", ctypes.c_uint32),
    )


def permitted() -> set[int]:
    """The capabilities that this thread may use."""
    low, high = _read_sets()
    mask = low.permitted | high.permitted << 32
    return {number for number in _NUMBERS if mask >> number & 1}


def restrict(keep: Iterable[int]) -> None:
    """Drops all capabilities of this thread except `keep`, which must be permitted and below 32.
    The programs that it starts get none."""
    mask = sum(1 << number for number in keep)
    _write_sets((_Sets * 2)(_Sets(effective=mask, permitted=mask)))
    _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)


def limit_programs(keep: set[int]) -> None:
    """
    Removes every capability but `keep` from the bounding set: no program that this thread starts
    can have more.

    Without CAP_SETPCAP nothing changes. Such a process has little to lose, and
    :func:`forbid_new_privileges` covers that.
    """
    for number in set(_NUMBERS) - keep:
        try:
            _prctl(_PR_CAPBSET_DROP, number)
        except OSError:  # EINVAL: this kernel has no such capability; EPERM: no CAP_SETPCAP
            continue


def forbid_new_privileges() -> None:
    """Makes the kernel ignore set-user-ID bits and file capabilities (PR_SET_NO_NEW_PRIVS)."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def keep_across_setuid() -> None:
    """Keeps the permitted capabilities when this thread changes from root to another user."""
    _prctl(_PR_SET_KEEPCAPS, 1)


@contextmanager
def parent_death_signal_kept() -> Iterator[None]:
    """Restores the parent-death signal, which the kernel clears when the user changes: the process
    that started this one may rely on it."""
    number = ctypes.c_int()
    _check(_libc.prctl(_PR_GET_PDEATHSIG, ctypes.byref(number)))
    yield
    _prctl(_PR_SET_PDEATHSIG, number.value)


@contextmanager
def ambient_capability(capability: int) -> Iterator[None]:
    """
    Programs that this thread starts within the block have `capability`, if this thread has it.

    Without it a program started by a process that is not root has none (ambient capabilities).
    Programs started by other threads are not affected.
    """
    before, raised = _read_sets(), _read_sets()
    if not raised[0].permitted >> capability & 1:
        yield
        return
    raised[0].inheritable |= 1 << capability
    _write_sets(raised)
    try:
        _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, capability)
        yield
    finally:
        # A capability that is not inheritable is not ambient either.
        _write_sets(before)


def _read_sets() -> ctypes.Array[_Sets]:
    header, sets = _Header(_VERSION, 0), (_Sets * 2)()
    _check(_libc.capget(ctypes.byref(header), sets))
    return sets


def _write_sets(sets: ctypes.Array[_Sets]) -> None:
    header = _Header(_VERSION, 0)
    _check(_libc.capset(ctypes.byref(header), sets))


def _prctl(operation: int, value: int, argument: int = 0) -> None:
    """Its arguments are longs, and those that are not used have to be 0."""
    _check(_libc.prctl(operation, *(ctypes.c_ulong(one) for one in (value, argument, 0, 0))))


def _check(result: int) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
