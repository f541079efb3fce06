"""The options of who finds others in a store: ``tunnel up`` and ``tunnel network``."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import click

Verb = TypeVar("Verb", bound=Callable[..., Any])


def _option(name: str, **words: Any) -> Callable[[Verb], Verb]:
    """One that can be given in the environment as flannel's is, too."""
    variable = name.removeprefix("--").upper().replace("-", "_")
    return click.option(
        name, envvar=[f"TUNNEL_{variable}", f"FLANNELD_{variable}"], show_envvar=False, **words
    )


_STORE = (
    partial(
        _option,
        "--etcd-endpoints",
        multiple=True,
        metavar="URL[,URL...]",
        help="Find peers, subnet, VNI and port in this etcd, as flannel does.",
    ),
    partial(
        _option,
        "--store",
        metavar="DIRECTORY",
        help="The same in a directory that all nodes share, for some tens of them.",
    ),
    partial(
        _option,
        "--etcd-prefix",
        metavar="PREFIX",
        help="Of all keys.  [default: /coreos.com/network]",
    ),
    partial(_option, "--etcd-cafile", metavar="FILE", help="Whom to trust as etcd; PEM."),
    partial(_option, "--etcd-certfile", metavar="FILE", help="Our certificate for etcd; PEM."),
    partial(_option, "--etcd-keyfile", metavar="FILE", help="Its key; PEM."),
    partial(_option, "--etcd-username", metavar="NAME", help="A user of etcd's."),
    partial(
        _option,
        "--etcd-password",
        metavar="TEXT",
        help="Its password; better in the environment or in a file, where others do not see it.",
    ),
)

_NODE = (
    partial(
        _option,
        "--public-ip",
        metavar="ADDR",
        help="IPv4 address by which others reach this node.  [default: the interface's]",
    ),
    partial(
        _option,
        "--public-ipv6",
        metavar="ADDR",
        help="IPv6 address by which others reach this node.  [default: the interface's]",
    ),
    partial(
        _option,
        "--iface",
        multiple=True,
        metavar="NAME|ADDR",
        help="Interface that leads to others; of many the first that is there.  [default: the "
        "default route's]",
    ),
    partial(
        _option,
        "--iface-regex",
        multiple=True,
        metavar="REGEX",
        help="The same by what its name or address matches.",
    ),
    partial(
        _option,
        "--iface-can-reach",
        metavar="ADDR",
        help="The same by the route to an address.",
    ),
    partial(
        _option,
        "--subnet-lease-renew-margin",
        type=int,
        metavar="MINUTES",
        help="Renew the lease so long before its end, 1 to 1440.  [default: 60]",
    ),
    partial(
        _option,
        "--subnet-lease-ttl",
        type=int,
        metavar="SECONDS",
        help="How long a lease lasts that is not renewed.  [default: 86400]",
    ),
    partial(
        _option,
        "--state-dir",
        metavar="DIRECTORY",
        help="Where it keeps who it is and what it knows of others.  [default: /var/lib/tunnel]",
    ),
)


STORE_WORDS = (
    "etcd-endpoints",
    "store",
    "etcd-prefix",
    "etcd-cafile",
    "etcd-certfile",
    "etcd-keyfile",
    "etcd-username",
    "etcd-password",
)


def store_options(verb: Verb) -> Verb:
    """Which store, and how to get in."""
    for option in reversed(_STORE):
        verb = option()(verb)
    return verb


def cluster_options(verb: Verb) -> Verb:
    """The same, and what a node says of itself."""
    for option in reversed(_NODE):
        verb = option()(verb)
    return store_options(verb)
