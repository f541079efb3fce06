"""A configuration file as people and editors leave it."""

from pathlib import Path

import pytest

from tunnel.cli import main
from tunnel.config import ConfigFile
from tunnel.config.merged import MergedOptions
from tunnel.errors import ConfigError


def test_a_byte_order_mark_is_skipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "tunnel.toml"
    file.write_bytes(b"\xef\xbb\xbfvni = 9\r\nmtu = 1\r\n")
    assert ConfigFile.read(file).options == {"vni": 9, "mtu": 1}
    assert main(["config", "check", str(file)]) == 2
    assert capsys.readouterr().out.startswith(f"{file}:2: mtu: ")


def test_a_file_of_a_byte_order_mark_only_is_empty(tmp_path: Path) -> None:
    file = tmp_path / "tunnel.toml"
    file.write_bytes(b"\xef\xbb\xbf")
    assert ConfigFile.read(file).options == {}


def test_the_store_is_read_without_the_other_options_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "tunnel.toml"
    file.write_text('vni = -1\netcd-endpoints = "http://192.0.2.9:2379"\netcd-prefix = "/x/"\n')
    options = MergedOptions.from_click(file, {"etcd_prefix": "/y", "etcd_cafile": None})
    store = options.read_store()
    assert (store.etcd_endpoints, store.etcd_prefix) == (("http://192.0.2.9:2379",), "/y")


def test_a_fault_of_the_store_has_its_line(tmp_path: Path) -> None:
    file = tmp_path / "tunnel.toml"
    file.write_text('etcd-endpoints = "http://192.0.2.9:2379"\netcd-prefix = "x"\n')
    with pytest.raises(ConfigError, match=r"tunnel\.toml:2: etcd-prefix: "):
        MergedOptions.from_click(file, {}).read_store()
