"""All contestants, by their names on the command line."""

from collections.abc import Mapping

from benchmarks.contestant import Contestant
from benchmarks.contestants.fastd import FASTD
from benchmarks.contestants.kernel import KERNEL
from benchmarks.contestants.n2n import N2N
from benchmarks.contestants.nebula import NEBULA
from benchmarks.contestants.openvpn import OPENVPN
from benchmarks.contestants.socat import SOCAT
from benchmarks.contestants.tinc import TINC
from benchmarks.contestants.tunnel import (
    TUNNEL,
    TUNNEL_DEVICE,
    TUNNEL_LOOP,
    TUNNEL_NONE,
    TUNNEL_TAP,
    TUNNEL_TRAINS,
)
from benchmarks.contestants.veth import VETH
from benchmarks.contestants.vtun import VTUN
from benchmarks.contestants.wireguard_go import WIREGUARD_GO

CONTESTANTS: Mapping[str, Contestant] = {
    "veth": VETH,
    "kernel": KERNEL,
    "tunnel": TUNNEL,
    "tap": TUNNEL_TAP,
    "loop": TUNNEL_LOOP,
    "device": TUNNEL_DEVICE,
    "trains": TUNNEL_TRAINS,
    "none": TUNNEL_NONE,
    "socat": SOCAT,
    "fastd": FASTD,
    "openvpn": OPENVPN,
    "tinc": TINC,
    "vtun": VTUN,
    "n2n": N2N,
    "nebula": NEBULA,
    "wireguard-go": WIREGUARD_GO,
}
