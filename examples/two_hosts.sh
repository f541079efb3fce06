#!/bin/sh
# Two hosts, one overlay. As root:
#
#     on 192.0.2.1    two_hosts.sh first 192.0.2.2
#     on 192.0.2.2    two_hosts.sh second 192.0.2.1
#
# Then on the first: ping 10.244.2.0, or ping fd00:244:2::. Ctrl-C removes everything.
set -eu

case ${1-} in
first)
    exec tunnel up --subnet 10.244.1.0/24 --subnet fd00:244:1::/64 \
        --peer "$2=10.244.2.0/24,fd00:244:2::/64"
    ;;
second)
    exec tunnel up --subnet 10.244.2.0/24 --subnet fd00:244:2::/64 \
        --peer "$2=10.244.1.0/24,fd00:244:1::/64"
    ;;
*)
    echo "usage: $0 first|second ADDRESS-OF-THE-OTHER" >&2
    exit 2
    ;;
esac
