"""
Hosts made of network namespaces on this machine.

    with Lab() as lab:
        a, b = lab.host("a"), lab.host("b")
        lab.link(a, b)
        a.ping(b.ipv4)

Demo, benchmarks, tests and examples use this. A namespace has no name: a process holds it, and
ends when a pipe from this process closes. So nothing remains however this process ends, ``kill
-9`` included. Needs util-linux and iproute2, and ethtool for a link without offloads.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from contextlib import ExitStack

from tunnel.errors import TunnelError

Command = str | Sequence[str]
"""A command line, split as a shell does, or a list of arguments."""

_PATH = os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin"
# An ordinary user's PATH lacks the directories of ethtool and ip.

_PACKAGES = {"ip": "iproute2", "ping": "iputils-ping"}
# Debian packages of commands, if their names differ.

_STOP_TIMEOUT = 10.0  # seconds from SIGTERM to SIGKILL

_OWN_SOCKETS = "(mkdir -p /run/tunnel && mount -t tmpfs -o mode=755 tunnel /run/tunnel) 2>/dev/null"
# Each host has its own directory of control sockets: nodes on several hosts have one name.


class LabError(TunnelError):
    """No host can be created on this machine, or a command on a host failed."""


class Host:
    """
    A network namespace with one interface, ``eth0``, once it is linked, and its own
    ``/run/tunnel``.

    Attributes:
        name: For messages only.
        pid: The process that holds the namespaces, for ``nsenter -t PID --net --mount``.
        ipv4, ipv6: Addresses of ``eth0``, from the documentation prefixes
            192.0.2.0/24 and 2001:db8::/64.
    """

    def __init__(self, name: str, *, number: int) -> None:
        self.name = name
        self.ipv4 = f"192.0.2.{number}"
        self.ipv6 = f"2001:db8::{number:x}"
        self._running: list[subprocess.Popen[str]] = []
        self._holder = _hold()
        self.pid = self._holder.pid
        # Duplicate address detection takes seconds, and there are no duplicates.
        self.run(["sh", "-c", "echo 0 >/proc/sys/net/ipv6/conf/default/accept_dad"])
        self.run("ip link set lo up")

    def run(self, command: Command, *, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        """
        Runs a command until it ends, at most `timeout` seconds.

        Raises:
            LabError: It is not installed, failed, or did not end; with its output.
        """
        arguments = _split(command)
        process = self.popen(arguments)
        try:
            with process:
                try:
                    stdout, stderr = process.communicate(timeout=timeout)
                finally:
                    process.kill()
        except subprocess.TimeoutExpired as error:
            raise LabError(
                f"{self.name}: {shlex.join(arguments)}: did not end within {timeout:g} s"
            ) from error
        finally:
            self._running.remove(process)
        if process.returncode:
            output = stderr.strip() or stdout.strip() or f"exit code {process.returncode}"
            raise LabError(f"{self.name}: {shlex.join(arguments)}: {output}")
        return subprocess.CompletedProcess(arguments, process.returncode, stdout, stderr)

    def popen(self, command: Command) -> subprocess.Popen[str]:
        """
        Starts a command with pipes for its output; it is stopped when the host is closed.

        The pid is that of the command. It is killed when the thread that calls this ends.
        """
        arguments = _split(command)
        if shutil.which(arguments[0], path=_PATH) is None:
            package = _PACKAGES.get(arguments[0], arguments[0])
            raise LabError(f"cannot run {arguments[0]}: not found (install the package {package})")
        enter = ["nsenter", f"--target={self.pid}", "--net", "--mount", "--wd", "--"]
        process = _start(["setpriv", "--pdeathsig=KILL", "--", *enter, *arguments])
        self._running.append(process)
        return process

    def ping(self, address: str, *, count: int = 1, interval: float = 0.1) -> list[float]:
        """
        Returns the round trips in milliseconds, one for each of `count` echo requests.

        Raises:
            LabError: A request was not answered: the first within a second, later ones within
                `interval` or twice the longest round trip before (ping(8)).
        """
        result = self.run(f"ping -n -c {count} -i {interval} -W 1 {address}")
        rtts = [
            float(line.partition("time=")[2].split()[0])
            for line in result.stdout.splitlines()
            if "time=" in line
        ]
        if len(rtts) < count:
            raise LabError(f"{self.name}: ping {address}: {len(rtts)} of {count} answered")
        return rtts

    def close(self) -> None:
        """Stops all commands, by SIGTERM and then SIGKILL, and removes the namespace."""
        for process in self._running:
            process.terminate()
        for process in self._running:
            _end(process)
        self._running.clear()
        _end(self._holder)


class Lab:
    """
    Hosts and the links between them, removed at the end of the ``with`` block.

    Raises:
        LabError: A privilege or a tool is missing; the message says which.
    """

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._hosts = 0

    def __enter__(self) -> Lab:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def host(self, name: str) -> Host:
        """Creates a host without links."""
        self._hosts += 1
        host = Host(name, number=self._hosts)
        self._stack.callback(host.close)
        return host

    def link(self, a: Host, b: Host, *, mtu: int = 1500, offloads: bool = True) -> None:
        """Links two hosts by a veth pair; without `offloads`, its ends neither segment nor coalesce
        nor leave out checksums."""
        _veth(a, "eth0", b, "eth0", mtu=mtu)
        for host in (a, b):
            _configure(host, offloads=offloads)

    def switch(self, *hosts: Host, mtu: int = 1500, offloads: bool = True) -> Host:
        """Links hosts by a bridge, which is in a host of its own; returns that host."""
        switch = self.host("switch")
        switch.run("ip link add br0 type bridge")
        switch.run("ip link set br0 up")
        for number, host in enumerate(hosts):
            port = f"port{number}"
            _veth(switch, port, host, "eth0", mtu=mtu)
            switch.run(f"ip link set {port} master br0 up")
            _configure(host, offloads=offloads)
        return switch


def need_privilege(argv: Sequence[str]) -> None:
    """
    Returns if this process may create namespaces and TUN devices.

    If it may in a user namespace only, it executes `argv` in one, and does not return.

    Raises:
        LabError: It may not in either way.
    """
    _need_device()
    if _refusal("unshare --net true") is None:
        return
    refusal = _refusal("unshare --user --map-root-user --net true")
    if refusal is not None:
        raise LabError(
            f"cannot make a network namespace: {refusal} "
            "(run as root, or where user namespaces are allowed)"
        )
    os.execvp("unshare", ["unshare", "--user", "--map-root-user", "--net", "--", *argv])


def _need_device() -> None:
    try:
        os.close(os.open("/dev/net/tun", os.O_RDWR))
    except FileNotFoundError as error:
        raise LabError("cannot open /dev/net/tun: it does not exist (modprobe tun)") from error
    except OSError as error:
        raise LabError(
            f"cannot open /dev/net/tun: {(error.strerror or '').lower()} for this user "
            '(run as root, or let all users open it: "chmod 666 /dev/net/tun")'
        ) from error


def _refusal(command: str) -> str | None:
    """Returns a command's error output if it fails, else None."""
    process = _start(_split(command))
    _, stderr = process.communicate()
    return stderr.strip() if process.returncode else None


def _hold() -> subprocess.Popen[str]:
    """Starts a process in new namespaces; it ends when its input is closed."""
    holder = _start(
        ["unshare", "--net", "--mount", "sh", "-c", f"{_OWN_SOCKETS}; echo && exec cat"],
        stdin=subprocess.PIPE,
    )
    assert holder.stdout is not None
    # Its first line says that the namespaces exist.
    if not holder.stdout.readline():
        _, stderr = holder.communicate()
        raise LabError(
            f"cannot make a network namespace: {stderr.strip()} "
            '(run as root, or inside "unshare -Urn")'
        )
    return holder


def _veth(a: Host, a_end: str, b: Host, b_end: str, *, mtu: int) -> None:
    a.run(f"ip link add {a_end} mtu {mtu} type veth peer name {b_end} mtu {mtu} netns {b.pid}")


def _configure(host: Host, *, offloads: bool) -> None:
    if not offloads:
        host.run("ethtool -K eth0 tx off rx off sg off tso off gso off gro off")
    host.run(f"ip address add {host.ipv4}/24 dev eth0")
    host.run(f"ip address add {host.ipv6}/64 dev eth0 nodad")
    host.run("ip link set eth0 up")


def _split(command: Command) -> list[str]:
    return shlex.split(command) if isinstance(command, str) else list(command)


def _start(arguments: list[str], *, stdin: int = subprocess.DEVNULL) -> subprocess.Popen[str]:
    try:
        return subprocess.Popen(
            arguments,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PATH": _PATH},
            # Ctrl-C goes to this process, which stops the others in order.
            process_group=0,
        )
    except FileNotFoundError as error:
        raise LabError(f"cannot run {arguments[0]}: not found (install util-linux)") from error


def _end(process: subprocess.Popen[str]) -> None:
    try:
        process.communicate(timeout=_STOP_TIMEOUT)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        # Closed without reading to the end: a child of it may hold them open.
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()
