"""Where control sockets are, and which one a name means, in and out of network namespaces."""

import asyncio
import os
import socket
from pathlib import Path

import pytest

from tests.unit.rpc.test_server import served, two_tunnels
from tunnel import Service, TunnelError
from tunnel.linux import namespaces
from tunnel.rpc import socket_paths
from tunnel.rpc.socket_paths import ControlSocket, default_path, find, nodes


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    directory = tmp_path / "d"
    directory.mkdir()
    monkeypatch.setattr(socket_paths, "directories", lambda: [directory])
    return directory


class Here:
    """The network namespace that a test pretends to be in: the host's until it moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch
        self.move(None)

    def move(self, inode: int | None) -> None:
        self._monkeypatch.setattr(socket_paths, "is_initial", lambda: inode is None)
        self._monkeypatch.setattr(socket_paths, "network_namespace", lambda: inode or 1)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Here:
    return Here(monkeypatch)


def leave(path: Path) -> Path:
    """A socket that no process listens to."""
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    return path


def test_the_default_path_tells_namespaces_apart(directory: Path, here: Here) -> None:
    assert default_path("tunnel1") == directory / "tunnel1.sock"
    here.move(4026532249)
    assert default_path("tunnel1") == directory / "tunnel1@4026532249.sock"


def test_the_name_of_a_node_may_have_an_at_sign() -> None:
    assert ControlSocket.from_path(Path("/run/tunnel/a@b@7.sock")).name == "a@b"
    assert ControlSocket.from_path(Path("/run/tunnel/a@b.sock")).name == "a@b"


async def test_the_first_writable_directory_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, here: Here
) -> None:
    places = [tmp_path / "not" / "there", tmp_path / "here" / "tunnel"]
    places[1].parent.mkdir()
    monkeypatch.setattr(socket_paths, "directories", lambda: places)
    async with asyncio.timeout(20), two_tunnels() as (one, _), Service(one) as service:
        assert service.path == places[1] / "tunnel1.sock"
        assert find() == find("tunnel1") == service.path


def test_no_writable_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket_paths, "directories", lambda: [tmp_path / "not" / "there"])
    with pytest.raises(TunnelError, match="no directory for a control socket"):
        default_path("tunnel1")


def test_no_node(directory: Path, here: Here) -> None:
    (directory / "notes.sock").write_text("no socket")
    with pytest.raises(TunnelError, match=r'no node has a .* \(start one with "tunnel up"'):
        find()
    with pytest.raises(TunnelError, match="no node tunnel1 has a"):
        find("tunnel1")
    leave(directory / "tunnel2.sock")
    with pytest.raises(TunnelError, match="others: tunnel2"):
        find("tunnel1")
    assert find() == directory / "tunnel2.sock"


async def test_of_several_nodes_the_only_living_one(directory: Path, here: Here) -> None:
    leave(directory / "a.sock")
    leave(directory / "b.sock")
    with pytest.raises(TunnelError, match=r"2 nodes .*choose by --name: a, b"):
        find()
    async with served(directory / "c.sock"):
        assert find() == directory / "c.sock"
        assert find("a") == directory / "a.sock"


def test_a_node_of_this_namespace_comes_first(directory: Path, here: Here) -> None:
    host, other = leave(directory / "tunnel1.sock"), leave(directory / "tunnel1@7.sock")
    assert find() == find("tunnel1") == host
    here.move(7)
    assert find() == find("tunnel1") == other
    assert nodes() == {"tunnel1": other}


def test_a_node_of_another_namespace_is_found_by_its_name_only(directory: Path, here: Here) -> None:
    other = leave(directory / "tunnel1@7.sock")
    with pytest.raises(TunnelError, match=r"in this network .*others: tunnel1 in netns 7"):
        find()
    assert find("tunnel1") == other
    assert nodes() == {}
    leave(directory / "tunnel1@8.sock")
    with pytest.raises(TunnelError, match=r"2 nodes are called tunnel1 \(choose by --control: "):
        find("tunnel1")


def test_the_namespace_of_this_process() -> None:
    assert namespaces.network_namespace() == os.stat("/proc/self/ns/net").st_ino
    assert namespaces.network_namespace(os.getpid()) == namespaces.network_namespace()
    assert namespaces.network_namespace(2**30) == 0


def test_the_initial_namespace_without_a_view_of_process_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(namespaces, "network_namespace", lambda pid=None: 0 if pid else 7)
    monkeypatch.setattr(namespaces, "_INITIAL_ONLY", tmp_path)
    assert namespaces.is_initial()
    monkeypatch.setattr(namespaces, "_INITIAL_ONLY", tmp_path / "not there")
    assert not namespaces.is_initial()
