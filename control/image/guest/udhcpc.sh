#!/bin/sh
# What udhcpc learned, applied to the interface. Classless static routes (option 121) replace the router option.
case $1 in
deconfig)
    ip addr flush dev "$interface"
    ;;
bound | renew)
    ip addr replace "$ip/$mask" dev "$interface"
    [ -z "$mtu" ] || ip link set "$interface" mtu "$mtu"
    metric=$((100 + $(cat "/sys/class/net/$interface/ifindex")))
    [ -n "$staticroutes" ] || staticroutes=${router:+0.0.0.0/0 ${router%% *}}
    set -- $staticroutes
    while [ -n "$2" ]; do
        if [ "$2" = 0.0.0.0 ]; then via=; else via="via $2"; fi
        if [ "$1" = 0.0.0.0/0 ]; then to=default; else to=$1; fi
        ip route replace "$to" $via dev "$interface" metric $metric
        shift 2
    done
    { [ -z "$search$domain" ] || echo "search ${search:-$domain}"; for server in $dns; do echo "nameserver $server"; done; } \
        >"/run/resolv.$interface"
    # interfaces come up side by side: the one that is last sees what all have learned
    until mkdir /run/resolving 2>/dev/null; do :; done
    cat /run/resolv.* >/etc/resolv.conf
    rmdir /run/resolving
    ;;
esac
exit 0
