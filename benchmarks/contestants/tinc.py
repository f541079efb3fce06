"""tinc 1.0 as a router over UDP: no cipher, no digest, no compression."""

from benchmarks.contestant import Contestant, End, Running, Site


def start(site: Site) -> Running:
    for end in site.ends:
        _write_keys(site, end)
    for end, other in zip(site.ends, "ba", strict=True):
        mine = site.directory / end.letter / "hosts" / end.letter
        site.file(f"{other}/hosts/{end.letter}", mine.read_text())
    return Running(
        site.far,
        [
            end.host.popen(
                f"tincd --no-detach --config={site.directory}/{end.letter} "
                f"--pidfile={site.directory}/{end.letter}.pid"
            )
            for end in site.ends
        ],
    )


def _write_keys(site: Site, end: End) -> None:
    here, other = end.letter, {"a": "b", "b": "a"}[end.letter]
    site.file(
        f"{here}/tinc.conf",
        f"Name = {here}\nConnectTo = {other}\nInterface = tinc\nMode = router\n"
        f"AddressFamily = ipv4\nBindToAddress = {end.host.ipv4}\n",
    )
    # Path MTU discovery would send everything over TCP until it has a result.
    site.file(
        f"{here}/hosts/{here}",
        f"Address = {end.host.ipv4}\nSubnet = {end.address}/32\nCipher = none\nDigest = none\n"
        f"Compression = 0\nPMTUDiscovery = no\n",
    )
    site.file(
        f"{here}/tinc-up",
        f'#!/bin/sh\nip address add {end.address}/24 dev "$INTERFACE"\n'
        f'ip link set "$INTERFACE" mtu {site.mtu} up\n',
        mode=0o700,
    )
    end.host.run(
        ["sh", "-c", f"tincd --config={site.directory}/{here} --generate-keys=2048 </dev/null"]
    )


TINC = Contestant("tinc", start, ["tinc"], "no cipher, no digest", max_mtu=1500)
