"""
What a container runtime does for the network of its pods: it runs CNI plugins
(https://www.cni.dev/docs/spec/, version 1.0.0).

    subnet.env  ->  configuration  ->  bridge, portmap  ->  addresses of the pod

The configuration is the one that the flannel CNI plugin makes: a bridge with the first address of
the node's subnet, and host-local to assign the others to pods.
"""

from __future__ import annotations

import ipaddress
import json
from dataclasses import dataclass
from typing import Any

from tunnel.testing.lab import Host

PLUGINS = "/usr/lib/cni"  # where Debian's containernetworking-plugins are
VERSION = "1.0.0"


@dataclass(frozen=True)
class Pod:
    """A network namespace with an interface on its node's bridge."""

    host: Host
    ipv4: str
    ipv6: str
    ports: tuple[tuple[int, int], ...]


class Runtime:
    """Adds pods to one node and removes them; `subnet_file` is the path of its subnet.env."""

    def __init__(self, node: Host, *, subnet_file: str) -> None:
        self._node = node
        text = node.run(["cat", subnet_file]).stdout
        self.subnet_env = dict(line.split("=", 1) for line in text.splitlines())
        self._plugins = [_bridge(self.subnet_env), _portmap()]

    def add(self, host: Host, *, ports: tuple[tuple[int, int], ...] = ()) -> Pod:
        """Connects the namespace of `host`; `ports` are pairs of the node's and the pod's."""
        result: dict[str, Any] = {}
        for plugin in self._plugins:
            result = self._call("ADD", plugin, host, ports=ports, result=result)
        ipv4, ipv6 = (one["address"].partition("/")[0] for one in result["ips"])
        return Pod(host, ipv4, ipv6, ports)

    def remove(self, pod: Pod) -> None:
        """Runs the plugins in the opposite order, as the specification demands."""
        for plugin in reversed(self._plugins):
            self._call("DEL", plugin, pod.host, ports=pod.ports, result={})

    def _call(
        self,
        command: str,
        plugin: dict[str, Any],
        host: Host,
        *,
        ports: tuple[tuple[int, int], ...],
        result: dict[str, Any],
    ) -> dict[str, Any]:
        """Runs a plugin on its configuration and the result of the plugin before it, and returns
        its result."""
        config = {"cniVersion": VERSION, "name": "pods", **plugin}
        if plugin.get("capabilities"):
            mappings = [
                {"hostPort": there, "containerPort": here, "protocol": "tcp"}
                for there, here in ports
            ]
            config["runtimeConfig"] = {"portMappings": mappings}
        if result:
            config["prevResult"] = result
        environment = {
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": host.name.replace(" ", "-"),
            "CNI_NETNS": f"/proc/{host.pid}/ns/net",
            "CNI_IFNAME": "eth0",
            "CNI_PATH": PLUGINS,
        }
        words = [f"{name}={value}" for name, value in environment.items()]
        plugin_path = f"{PLUGINS}/{plugin['type']}"
        pipe = ["sh", "-c", 'printf %s "$1" | "$0"', plugin_path, json.dumps(config)]
        said = self._node.run(["env", *words, *pipe]).stdout
        return json.loads(said) if said else {}


def _bridge(env: dict[str, str]) -> dict[str, Any]:
    families = ("FLANNEL", "FLANNEL_IPV6")
    subnets = [ipaddress.ip_interface(env[f"{family}_SUBNET"]).network for family in families]
    return {
        "type": "bridge",
        "bridge": "cni0",
        "isDefaultGateway": True,
        "hairpinMode": True,
        "mtu": int(env["FLANNEL_MTU"]),
        # The node masquerades already.
        "ipMasq": env["FLANNEL_IPMASQ"] != "true",
        "ipam": {
            "type": "host-local",
            # In the lab host's own /run/tunnel, which is removed with it.
            "dataDir": "/run/tunnel/cni",
            "ranges": [[{"subnet": str(subnet)}] for subnet in subnets],
            "routes": [{"dst": env[f"{family}_NETWORK"]} for family in families],
        },
    }


def _portmap() -> dict[str, Any]:
    return {"type": "portmap", "capabilities": {"portMappings": True}}
