"""What is imported before a node drops its privileges."""

import subprocess
import sys

PROGRAM = """
import pkgutil, sys
import tunnel
from tunnel.linux import preload
preload.import_all()
loaded = set(sys.modules)  # packages are imported to be walked
names = [one.name for one in pkgutil.walk_packages(tunnel.__path__, "tunnel.", onerror=print)]
print(*(name for name in names if name not in loaded))
print(*(name for name in ("aiohttp", "prometheus_client", "rich", "scapy") if name in loaded))
"""


def test_every_module_that_a_node_may_reach_and_no_library_of_a_command() -> None:
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True
    )
    missing, libraries = run.stdout.splitlines()
    optional = ("tunnel.cli", "tunnel.testing", "tunnel.cluster.stores.etcd", "tunnel.metrics")
    others = [name for name in missing.split() if not name.startswith(optional)]
    assert [one for one in others if "decode" not in one] == ["tunnel.__main__"]
    assert libraries == ""
