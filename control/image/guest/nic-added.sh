#!/bin/sh
# Brings an interface up by DHCP: returns with its first address, or after some seconds, and goes on in the background.
ip link set "$1" up
exec udhcpc -i "$1" -b -S -t 6 -T 1 -A 5 -O staticroutes -O mtu -O search -x "hostname:$(hostname)" -s /etc/udhcpc >/dev/null 2>&1
