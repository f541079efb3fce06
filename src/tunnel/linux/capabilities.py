"""
What a running node may do: as another user, with CAP_NET_ADMIN and no more (capabilities(7)).

By ctypes, because it is four system calls: python-prctl needs libcap's headers to build, and
pyprctl has seen no release since 2021.
"""

from __future__ import annotations

# Python loads these when they are first used, from where another user may not be able to read.
import concurrent.futures.thread  # noqa: F401
import ctypes
import encodings.ascii
import encodings.idna  # noqa: F401
import logging
import os
import pwd
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tunnel.errors import ConfigError

log = logging.getLogger(__name__)

NOBODY = "nobody"

SETGID, SETUID, NET_BIND_SERVICE, NET_ADMIN = 6, 7, 10, 12  # linux/capability.h
_UNPRIVILEGED_PORT = 1024
_CAPABILITIES = 64  # numbers that there can be

_PR_SET_PDEATHSIG, _PR_GET_PDEATHSIG = 1, 2
_PR_SET_KEEPCAPS, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT = 8, 24, 38, 47
_PR_CAP_AMBIENT_RAISE, _PR_CAP_AMBIENT_CLEAR_ALL = 2, 4
_CAPABILITY_VERSION = 0x20080522


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Sets(ctypes.Structure):
    """Of 32 capabilities; the system call takes two."""

    _fields_ = (
        ("effective", ctypes.c_uint32),
        ("permitted", ctypes.c_uint32),
        ("inheritable", ctypes.c_uint32),
    )


def choose_user(name: str | None) -> pwd.struct_passwd | None:
    """
    Whom a node runs on as: `name`; without one nobody, where root has started it and may become
    him, which containers and user namespaces often forbid. None to stay who we are.

    Raises:
        ConfigError: There is no user `name`.
    """
    if name is None and os.geteuid() != 0:
        return None
    try:
        user = pwd.getpwnam(name or NOBODY)
    except KeyError as error:
        if name is None:
            return None
        raise ConfigError(
            f'user {name} is not there (make it with "useradd --system {name}")', key=("user",)
        ) from error
    return user if name or _may_become(user) else None


def _may_become(user: pwd.struct_passwd) -> bool:
    mapped = _is_mapped("uid", user.pw_uid) and _is_mapped("gid", user.pw_gid)
    return mapped and _permitted(ctypes.CDLL(None, use_errno=True)) >= {SETGID, SETUID}


def _is_mapped(kind: str, number: int) -> bool:
    """Whether our user namespace has that uid or gid (user_namespaces(7))."""
    try:
        lines = Path(f"/proc/self/{kind}_map").read_text().splitlines()
    except FileNotFoundError:  # this kernel has no such namespaces
        return True
    ranges = (map(int, line.split()) for line in lines)
    return any(first <= number < first + count for first, _, count in ranges)


def drop_privileges(*, user: str | None, port: int) -> None:
    """
    Gives up, for good, what is not needed to run a tunnel whose device is open: everything but
    CAP_NET_ADMIN, with which kernel routes follow the peers, and CAP_NET_BIND_SERVICE where a
    socket may still have to be bound to a `port` below 1024.

    Threads have capabilities of their own: call it before any is started, for they inherit.

    Args:
        user: Whom to become, with that user's groups; None for whom :func:`choose_user` takes.

    Raises:
        ConfigError: There is no such user, or we may not become it.
    """
    keep = {NET_ADMIN} | ({NET_BIND_SERVICE} if port < _UNPRIVILEGED_PORT else set())
    libc = ctypes.CDLL(None, use_errno=True)
    parent_death = ctypes.c_int()
    _check(libc.prctl(_PR_GET_PDEATHSIG, ctypes.byref(parent_death)))
    _bound(libc, keep)
    if (chosen := choose_user(user)) is not None:
        _become(libc, chosen)
    elif os.geteuid() == 0:
        log.info("runs on as root: here it cannot become user %s", NOBODY)
    _set_capabilities(libc, keep & _permitted(libc))
    _prctl(libc, _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    _prctl(libc, _PR_SET_NO_NEW_PRIVS, 1)
    # The kernel has forgotten it with the old user: who started us may rely on it.
    _prctl(libc, _PR_SET_PDEATHSIG, parent_death.value)


@contextmanager
def lend(capability: int) -> Iterator[None]:
    """
    Programs that this thread starts within the block have a capability as we have it. Others have
    not: what is not root keeps none when it becomes another program (ambient capabilities).
    """
    libc = ctypes.CDLL(None, use_errno=True)
    header, before, lent = _Header(_CAPABILITY_VERSION, 0), (_Sets * 2)(), (_Sets * 2)()
    for sets in (before, lent):
        _check(libc.capget(ctypes.byref(header), sets))
    if not lent[0].permitted >> capability & 1:
        yield
        return
    lent[0].inheritable |= 1 << capability
    _check(libc.capset(ctypes.byref(header), lent))
    try:
        _prctl(libc, _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, capability)
        yield
    finally:
        # What is not inheritable is not ambient either.
        _check(libc.capset(ctypes.byref(header), before))


def _bound(libc: ctypes.CDLL, keep: set[int]) -> None:
    """No program that we start can have more. Who may not say so has little to lose: "no new
    privileges" says as much of him."""
    for number in set(range(_CAPABILITIES)) - keep:
        try:
            _prctl(libc, _PR_CAPBSET_DROP, number)
        except OSError:  # EINVAL: this kernel has no such capability; EPERM: no CAP_SETPCAP
            continue


def _become(libc: ctypes.CDLL, user: pwd.struct_passwd) -> None:
    if user.pw_uid == os.geteuid():
        return
    try:
        _prctl(libc, _PR_SET_KEEPCAPS, 1)
        os.initgroups(user.pw_name, user.pw_gid)
        os.setresgid(user.pw_gid, user.pw_gid, user.pw_gid)
        os.setresuid(user.pw_uid, user.pw_uid, user.pw_uid)
    except OSError as error:
        raise ConfigError(
            f"cannot become user {user.pw_name}: {(error.strerror or str(error)).lower()} "
            "(start it as root, or without --user)",
            key=("user",),
        ) from error


def _permitted(libc: ctypes.CDLL) -> set[int]:
    header, sets = _Header(_CAPABILITY_VERSION, 0), (_Sets * 2)()
    _check(libc.capget(ctypes.byref(header), sets))
    mask = sets[0].permitted | sets[1].permitted << 32
    return {number for number in range(_CAPABILITIES) if mask >> number & 1}


def _set_capabilities(libc: ctypes.CDLL, keep: Iterable[int]) -> None:
    mask = sum(1 << number for number in keep)
    low = _Sets(effective=mask, permitted=mask)  # those that we know are among the first 32
    header, sets = _Header(_CAPABILITY_VERSION, 0), (_Sets * 2)(low)
    _check(libc.capset(ctypes.byref(header), sets))


def _prctl(libc: ctypes.CDLL, what: int, value: int, more: int = 0) -> None:
    """Its arguments are longs, and those that are not used have to be 0."""
    _check(libc.prctl(what, *(ctypes.c_ulong(one) for one in (value, more, 0, 0))))


def _check(result: int) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
