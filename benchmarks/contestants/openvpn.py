"""OpenVPN point to point without TLS, which it allows up to 2.6: no cipher, no digest."""

from benchmarks.contestant import Contestant, Running, Site


def start(site: Site) -> Running:
    return Running(
        site.far,
        [
            end.host.popen(
                f"openvpn --dev openvpn --dev-type tun "
                f"--ifconfig {end.address} {end.peer_address} --local {end.host.ipv4} "
                f"--remote {end.peer.ipv4} --tun-mtu {site.mtu} --mssfix 0 "
                "--cipher none --auth none --verb 1"
            )
            for end in site.ends
        ],
    )


OPENVPN = Contestant("openvpn", start, ["openvpn"], "no cipher, no digest")
