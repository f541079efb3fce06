"""The files of a node, and what happens if they are not as it wrote them."""

import ipaddress
import json
import logging
import os
from dataclasses import replace
from pathlib import Path

import pytest

from tunnel.cluster.state import Identity, State
from tunnel.cluster.stores.base import Entry, Snapshot
from tunnel.errors import ConfigError
from tunnel.types import Mac


def test_an_identity_is_made_once(tmp_path: Path) -> None:
    first = State(tmp_path, name="tunnel1").identity()
    assert State(tmp_path, name="tunnel1").identity() == first
    assert State(tmp_path, name="tunnel2").identity() != first
    assert first.subnets == ()


def test_a_generated_mac_is_locally_administered() -> None:
    macs = {Identity.make().mac.packed for _ in range(200)}
    assert len(macs) == 200
    assert {mac[0] & 3 for mac in macs} == {2}


def test_subnets_are_kept(tmp_path: Path) -> None:
    state = State(tmp_path, name="tunnel1")
    subnets = (ipaddress.ip_network("10.42.7.0/24"), ipaddress.ip_network("fd00:42:7::/64"))
    wanted = replace(state.identity(), subnets=subnets)
    state.save_identity(wanted)
    assert State(tmp_path, name="tunnel1").identity() == wanted
    assert (tmp_path / "tunnel1.json").stat().st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path) == ["tunnel1.json"]


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"version": 2}', '{"version": 1, "node": "x"}'])
def test_an_unreadable_identity_is_not_replaced(tmp_path: Path, text: str) -> None:
    (tmp_path / "tunnel1.json").write_text(text)
    with pytest.raises(ConfigError, match=r"is not the identity of a node.*remove it"):
        State(tmp_path, name="tunnel1").identity()
    assert (tmp_path / "tunnel1.json").read_text() == text


def test_a_file_of_another_version_is_reported(tmp_path: Path) -> None:
    words = {"version": 9, "node": "a", "mac": str(Mac(b"\2aaaaa")), "subnets": []}
    (tmp_path / "tunnel1.json").write_text(json.dumps(words))
    with pytest.raises(ConfigError, match="version 9"):
        State(tmp_path, name="tunnel1").identity()


def test_members_are_kept(tmp_path: Path) -> None:
    state = State(tmp_path, name="tunnel1")
    assert state.members() is None
    snapshot = Snapshot(7, {"/a": Entry(b"\xff", 5, 3, 2)})
    state.save_members(snapshot)
    assert state.members() == snapshot


def test_unreadable_members_are_ignored(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "tunnel1.members").write_bytes(b"\0\0")
    with caplog.at_level(logging.WARNING):
        assert State(tmp_path, name="tunnel1").members() is None
    assert "tunnel1.members" in caplog.text


def test_an_unusable_directory_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    state = State(tmp_path / "file" / "sub", name="tunnel1")
    with pytest.raises(ConfigError, match="choose another --state-dir"):
        state.prepare(user=None)
    with pytest.raises(ConfigError, match="cannot read"):
        state.identity()
    with pytest.raises(ConfigError, match="cannot write"):
        state.save_members(Snapshot(1, {}))


def test_the_user_of_the_node_can_write_the_directory(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root gives things away")
    State(tmp_path, name="tunnel1").identity()
    state = State(tmp_path, name="tunnel1")
    state.prepare(user="nobody")
    assert {path.stat().st_uid for path in (tmp_path, tmp_path / "tunnel1.json")} == {65534}
