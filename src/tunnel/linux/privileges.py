"""
Drops, for good, the privileges that a running node does not need.

    imports modules needed later  ->  changes the user  ->  drops all capabilities but CAP_NET_ADMIN
"""

from __future__ import annotations

import logging
import os
import pwd

from tunnel.errors import ConfigError
from tunnel.linux import capabilities, preload
from tunnel.linux.capabilities import NET_ADMIN, NET_BIND_SERVICE
from tunnel.linux.users import NOBODY, choose_user

log = logging.getLogger(__name__)

_UNPRIVILEGED_PORT = 1024


def drop_privileges(*, user: str | None, port: int) -> None:
    """
    Changes the user, and keeps of all capabilities CAP_NET_ADMIN, with which kernel routes follow
    the peers, and CAP_NET_BIND_SERVICE where a socket may still be bound to a `port` below 1024.

    Everything that may be imported later is imported first, because the new user may not be able to
    read the installation.

    Capabilities belong to a thread, and a new thread inherits them: call this before any thread is
    started.

    Args:
        user: The user to run as, with its groups; None for what :func:`choose_user` chooses.

    Raises:
        ConfigError: There is no such user, or this process may not change to it.
    """
    preload.import_all()
    keep = {NET_ADMIN} | ({NET_BIND_SERVICE} if port < _UNPRIVILEGED_PORT else set())
    with capabilities.parent_death_signal_kept():
        capabilities.limit_programs(keep)
        if (chosen := choose_user(user)) is not None:
            _change_user(chosen)
        elif os.geteuid() == 0:
            log.info("continues as root: cannot change to user %s here", NOBODY)
        capabilities.restrict(keep & capabilities.permitted())
        capabilities.forbid_new_privileges()


def _change_user(user: pwd.struct_passwd) -> None:
    if user.pw_uid == os.geteuid():
        return
    try:
        capabilities.keep_across_setuid()
        os.initgroups(user.pw_name, user.pw_gid)
        os.setresgid(user.pw_gid, user.pw_gid, user.pw_gid)
        os.setresuid(user.pw_uid, user.pw_uid, user.pw_uid)
    except OSError as error:
        raise ConfigError(
            f"cannot change to user {user.pw_name}: {(error.strerror or str(error)).lower()} "
            "(start it as root, or without --user)",
            key=("user",),
        ) from error
