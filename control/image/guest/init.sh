#!/bin/busybox sh
# The first process of the small guest: devices, network, the key from the metadata, SSH, and an orderly end.
# Fast before all: under software emulation each process costs 10 ms.
/bin/busybox --install -s /bin
export PATH=/bin:/sbin:/usr/bin:/usr/sbin HOME=/root TERM=linux
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
[ -c /dev/ttyS0 ] && exec </dev/ttyS0 >/dev/ttyS0 2>&1

# busybox's poweroff, halt and reboot tell the first process by these signals
trap 'down poweroff' USR1 USR2
trap 'down reboot' TERM
trap 'down reboot' INT
down() {
    echo "guest going down: $1"
    killall -q dropbear udhcpc
    sync
    $1 -f
}

load() { while read -r module; do insmod "/lib/modules/$module.ko"; done <"/lib/modules/$1"; }

load first
echo 0 >/proc/sys/kernel/printk
hostname guest
ip link set lo up
for nic in /sys/class/net/eth*; do [ -e "$nic" ] && /etc/nic-added "${nic##*/}" & pids="$pids $!"; done
load then
dropbear -R -E 2>/dev/null
found=
/etc/metadata drive && found=drive      # at hand while the network is not yet
wait $pids
[ -n "$found" ] || { /etc/metadata service 3 && found=service; }
read -r uptime idle </proc/uptime
echo "guest ready $uptime"
{ [ -n "$found" ] || /etc/metadata service 100; /etc/user-data; } &
acpid -f -d >/dev/null 2>&1 &           # the power button: libvirt's shutdown and reboot
uevent /etc/uevent >/dev/null 2>&1 &    # interfaces that are plugged in later

while :; do setsid cttyhack sh -l; sleep 1; done &
while :; do wait; sleep 1; done
