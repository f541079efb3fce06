"""What a node needs of its host: privileges, device, port, buffers, offloads, a clock."""

from __future__ import annotations

import errno
from collections.abc import Iterator

from tunnel.config.options import OFFLOADS
from tunnel.diagnostics.doctor.finding import Finding, counted, failed, ok, warning
from tunnel.diagnostics.host_report import HostReport


def node(report: HostReport) -> Iterator[Finding]:
    status = report.status
    if status is None:
        yield ok("node", f"{report.config.name} is not running: checked what it would need")
    elif status.device is not None and report.device_mtu is None:
        yield failed(
            "node",
            f"device {status.device} of the running node is not in this network namespace",
            "run this command in the node's namespace: "
            'nsenter --net --target="$(pgrep -o -f "tunnel up")" tunnel doctor',
        )
    elif not report.device_up:
        yield failed(
            "node",
            f"device {status.device} is down, so the kernel has removed its routes",
            f"set it up, and the node restores them: ip link set {status.device} up",
        )
    else:
        yield ok("node", f"{status.name} is running, for {status.uptime:.0f} s")


def privileges(report: HostReport) -> Iterator[Finding]:
    if report.net_admin:
        yield ok("privileges", "CAP_NET_ADMIN is available")
    else:
        text = "CAP_NET_ADMIN is missing, so no device can be created"
        yield failed("privileges", text, "run as root, or to try it out: unshare -Urn")


def tun(report: HostReport) -> Iterator[Finding]:
    if not report.tun_error:
        yield ok("tun", "/dev/net/tun can be opened")
    elif report.tun_error in (errno.EPERM, errno.EACCES):
        advice = "run as root, or as root allow all users to open it: chmod 666 /dev/net/tun"
        yield failed("tun", "/dev/net/tun cannot be opened: permission denied", advice)
    else:
        advice = "start a container with --device=/dev/net/tun; on a host: modprobe tun"
        yield failed("tun", "/dev/net/tun does not exist or has no driver", advice)


def port(report: HostReport) -> Iterator[Finding]:
    number = report.config.port
    if not report.port_error:
        yield ok("port", f"UDP port {number} is free")
    elif report.vxlan_device is not None:
        device = report.vxlan_device
        yield failed(
            "port",
            f"UDP port {number} is in use by the kernel vxlan device {device}",
            f"choose another --port, or delete the device: ip link delete {device}",
        )
    elif report.port_owners:
        owners = ", ".join(f"{name} (pid {pid})" for pid, name in report.port_owners.items())
        pids = " ".join(str(pid) for pid in report.port_owners)
        advice = f"choose another --port, or stop it: kill {pids}"
        yield failed("port", f"UDP port {number} is in use by {owners}", advice)
    else:
        text, _, advice = report.port_error.rstrip(")").partition(" (")
        yield failed("port", text, advice)


def buffers(report: HostReport) -> Iterator[Finding]:
    wanted = report.wanted_buffer
    too_small = False
    for name, sysctl, size in zip(("send", "receive"), "wr", report.buffers, strict=True):
        if size < wanted:
            too_small = True
            yield warning(
                "buffers",
                f"a socket gets a {name} buffer of {size >> 10} instead of {wanted >> 10} KiB: "
                "bursts of packets are lost",
                f"as root of the host: sysctl -w net.core.{sysctl}mem_max={wanted}",
            )
    if not too_small:
        yield ok("buffers", f"sockets get {wanted >> 10} KiB in each direction")


def overflows(report: HostReport) -> Iterator[Finding]:
    if report.device_drops:
        yield warning(
            "overflows",
            f"{report.config.name} has dropped {counted(report.device_drops, 'packet')} because "
            "its queue was full",
            "the node does not keep up: give it more CPU time, or more --workers",
        )
    if report.socket_drops:
        yield warning(
            "overflows",
            f"sockets have dropped {counted(report.socket_drops, 'datagram')} because their "
            "buffers were full",
            "give the node more CPU time or more --workers, or allow larger buffers: "
            f"sysctl -w net.core.rmem_max={report.wanted_buffer}",
        )
    if not report.device_drops and not report.socket_drops:
        yield ok("overflows", "no queue was full")


def offloads(report: HostReport) -> Iterator[Finding]:
    for line in report.missing_offloads:
        yield warning("offloads", line, "update the kernel; without it, packets cost more CPU time")
    status = report.status
    enabled = status.offloads if status else report.config.offload
    unused = [name for name in OFFLOADS if name not in enabled]
    if status and status.device and unused:
        yield warning(
            "offloads",
            f"not in use: {', '.join(unused)}",
            "--offload or this kernel disables it, or it has failed; if systemd runs the node, "
            f"see: journalctl -u tunnel@{status.name}",
        )
    elif not report.missing_offloads:
        used = ", ".join(name for name in OFFLOADS if name in enabled)
        yield ok("offloads", used or "none requested")


def clock(report: HostReport) -> Iterator[Finding]:
    if report.clock_synchronised is False:
        text = "the clock is not synchronised: logs of two hosts cannot be compared"
        yield warning("clock", text, "synchronise it: apt-get install systemd-timesyncd")
    elif report.clock_synchronised:
        yield ok("clock", "is synchronised")
