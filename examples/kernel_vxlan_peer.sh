#!/bin/sh
# A kernel vxlan device on one host, configured as flannel does, and a node on the other. As root:
#
#     on 192.0.2.1    kernel_vxlan_peer.sh tunnel 192.0.2.1 192.0.2.2
#     on 192.0.2.2    kernel_vxlan_peer.sh kernel 192.0.2.2 192.0.2.1 eth0
#
# Then on either: ping 10.244.1.0, or ping 10.244.2.0.
set -eu

# The kernel accepts frames for its own MAC only, and its FDB finds peers by their MACs. So both
# are set here; "ip link show flannel.1" shows the MAC of an existing device.
tunnel_mac=02:00:5e:00:53:01
kernel_mac=02:00:5e:00:53:02

case ${1-} in
tunnel)
    exec tunnel up --local "$2" --subnet 10.244.1.0/24 --mac $tunnel_mac \
        --peer "$3=10.244.2.0/24,mac=$kernel_mac"
    ;;
kernel)
    ip link add flannel.1 address $kernel_mac type vxlan \
        id 1 local "$2" dev "$4" dstport 8472 nolearning
    ip address add 10.244.2.0/32 dev flannel.1
    ip link set flannel.1 up
    # The MAC of the next hop, its underlay address, and the subnet behind it.
    ip neigh replace 10.244.1.0 lladdr $tunnel_mac dev flannel.1 nud permanent
    bridge fdb replace $tunnel_mac dev flannel.1 dst "$3" self permanent
    ip route replace 10.244.1.0/24 via 10.244.1.0 dev flannel.1 onlink
    ;;
*)
    echo "usage: $0 tunnel|kernel OWN-ADDRESS OTHER-ADDRESS [NIC]" >&2
    exit 2
    ;;
esac
