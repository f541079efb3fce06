"""An etcd of one or more members, as processes, and certificates for it."""

import json
import os
import signal
import socket
import ssl
import subprocess
import time
import urllib.request
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.error import URLError

_PATIENCE = 40.0  # seconds for what takes one

Popen = Callable[[Sequence[str]], subprocess.Popen[str]]


def start(command: Sequence[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True
    )


@dataclass
class Etcd:
    """
    Members 0, 1 ... on one address, within the ``with`` block.

    Args:
        directory: Empty; for data and logs.
        scheme: With ``https``, `words` name the certificates.
        words: Arguments for every member.
        popen: Starts a process: :meth:`tunnel.testing.lab.Host.popen` starts it on a host.

    Attributes:
        endpoints: The URL for clients of each member.
    """

    directory: Path
    members: int = 1
    address: str = "127.0.0.1"
    scheme: str = "http"
    words: Sequence[str] = ()
    popen: Popen = start
    endpoints: list[str] = field(init=False)
    _processes: dict[int, subprocess.Popen[str]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self._ports = _free_ports(3 * self.members)
        self.endpoints = [
            f"{self.scheme}://{self.address}:{self._port('client', number)}"
            for number in range(self.members)
        ]

    def __enter__(self) -> Self:
        for number in range(self.members):
            self.start(number)
        for number in range(self.members):
            self.wait(number)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number in list(self._processes):
            self.kill(number)

    def start(self, number: int) -> None:
        """Starts a member, with the data of its last run."""
        peers = [self._url("peer", one) for one in range(self.members)]
        named = ",".join(f"m{one}={url}" for one, url in enumerate(peers))
        client = self.endpoints[number]
        self._processes[number] = self.popen(
            [
                "etcd",
                f"--name=m{number}",
                f"--data-dir={self.directory}/m{number}",
                f"--listen-client-urls={client}",
                f"--advertise-client-urls={client}",
                f"--listen-peer-urls={peers[number]}",
                f"--initial-advertise-peer-urls={peers[number]}",
                f"--initial-cluster={named}",
                f"--listen-metrics-urls={self._url('health', number)}",
                "--heartbeat-interval=50",
                "--election-timeout=500",
                "--logger=zap",
                f"--log-outputs={self.directory}/m{number}.log",
                *self.words,
            ]
        )

    def wait(self, number: int) -> None:
        """Waits until a member answers."""
        deadline = time.monotonic() + _PATIENCE
        while time.monotonic() < deadline:
            try:
                with urllib.request.urlopen(self._url("health", number) + "/health") as answer:
                    if json.load(answer)["health"] == "true":
                        return
            except (URLError, OSError):
                assert self._processes[number].poll() is None, self._log(number)
            time.sleep(0.02)
        raise AssertionError(f"etcd is not ready: {self._log(number)}")

    def kill(self, number: int) -> None:
        process = self._processes.pop(number)
        process.kill()
        process.wait()

    def freeze(self, number: int) -> None:
        """Makes a member accept connections and never answer."""
        pid = self._processes[number].pid
        os.kill(pid, signal.SIGSTOP)
        # Its threads run until one of them has seen the signal.
        os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOWAIT)

    def thaw(self, number: int) -> None:
        os.kill(self._processes[number].pid, signal.SIGCONT)

    def heal(self) -> None:
        """Waits until all members are healthy, and restarts those that are not."""
        for number in range(self.members):
            if number in self._processes:
                self.thaw(number)
            else:
                self.start(number)
        for number in range(self.members):
            self.wait(number)

    def leader(self) -> int:
        """Waits for a leader. Returns its number."""
        deadline = time.monotonic() + _PATIENCE
        while time.monotonic() < deadline:
            for number in self._processes:
                status = self.call("maintenance/status", {}, number=number)
                if status["header"]["member_id"] == status.get("leader"):
                    return number
        raise AssertionError("etcd has no leader")

    def compact(self) -> None:
        """Removes the history of all keys."""
        revision = self.call("kv/range", {"key": _base64("any")})["header"]["revision"]
        self.call("kv/compaction", {"revision": revision, "physical": True})

    def enable_auth(self, *, user: str, password: str, prefix: str) -> None:
        """Restricts reading and writing: to one user under a prefix, and to root."""
        end = prefix[:-1] + chr(ord(prefix[-1]) + 1)
        allowed = {"permType": "READWRITE", "key": _base64(prefix), "range_end": _base64(end)}
        self.call("auth/user/add", {"name": "root", "password": "root"})
        self.call("auth/role/add", {"name": "root"})
        self.call("auth/user/grant", {"user": "root", "role": "root"})
        self.call("auth/user/add", {"name": user, "password": password})
        self.call("auth/role/add", {"name": "member"})
        self.call("auth/role/grant", {"name": "member", "perm": allowed})
        self.call("auth/user/grant", {"user": user, "role": "member"})
        self.call("auth/enable", {})

    def call(self, method: str, request: Mapping[str, object], *, number: int = 0) -> Any:
        """Sends a request to the gateway without the client under test."""
        context = ssl._create_unverified_context()
        url = f"{self.endpoints[number]}/v3/{method}"
        with urllib.request.urlopen(
            url, json.dumps(request).encode(), 5, context=context
        ) as answer:
            return json.load(answer)

    def _port(self, kind: str, number: int) -> int:
        return self._ports[3 * number + ("client", "peer", "health").index(kind)]

    def _url(self, kind: str, number: int) -> str:
        return f"http://{self.address}:{self._port(kind, number)}"

    def _log(self, number: int) -> str:
        return (self.directory / f"m{number}.log").read_text()[-2000:]


class Authority:
    """Signs certificates; `ca` is the file of its own."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(exist_ok=True)
        self._directory = directory
        self.ca, self._key = str(directory / "ca.pem"), str(directory / "ca.key")
        _openssl(*_NEW_KEY, "-x509", "-subj", "/CN=ca", "-keyout", self._key, "-out", self.ca)

    def certificate(self, name: str, *, address: str = "127.0.0.1") -> tuple[str, str]:
        """The files of a certificate and its key, for a server or a client."""
        certificate, key = (str(self._directory / f"{name}.{end}") for end in ("pem", "key"))
        subject = ("-subj", f"/CN={name}", "-addext", f"subjectAltName=IP:{address}")
        issuer = ("-CA", self.ca, "-CAkey", self._key)
        _openssl(*_NEW_KEY, "-x509", *subject, *issuer, "-keyout", key, "-out", certificate)
        return certificate, key


_NEW_KEY = ("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


def _openssl(*words: str) -> None:
    subprocess.run(["openssl", *words], check=True, capture_output=True)


def _base64(text: str) -> str:
    return b64encode(text.encode()).decode()


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [sock.getsockname()[1] for sock in sockets]
    for sock in sockets:
        sock.close()
    return ports
