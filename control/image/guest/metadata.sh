#!/bin/sh
# Takes keys and host name from the config drive ("drive") or the metadata service ("service TRIES"); fails where there is none.
case $1 in
drive)
    for disk in /dev/vd? /dev/sr?; do
        # the volume's name in an ISO 9660 file system, at byte 32808
        [ -b "$disk" ] && [ "$(dd if="$disk" bs=8 skip=4101 count=1 2>/dev/null)" = config-2 ] && break
        disk=
    done
    [ -n "$disk" ] || exit 1
    while read -r module; do insmod "/lib/modules/$module.ko"; done </lib/modules/drive
    mkdir -p /run/config && mount -t iso9660 -r "$disk" /run/config || exit 1
    cp /run/config/openstack/latest/meta_data.json /run/meta_data.json
    cp /run/config/openstack/latest/user_data /run/user_data 2>/dev/null
    umount /run/config
    ;;
service)
    tries=$2
    # `timeout` and not -T, with which this busybox's wget crashes
    until timeout 3 wget -q -O /run/meta_data.json http://169.254.169.254/openstack/latest/meta_data.json 2>/dev/null; do
        tries=$((tries - 1))
        [ "$tries" -gt 0 ] || exit 1
        sleep 1
    done
    ;;
esac
# {"public_keys": {"name": "ssh-ed25519 ...\n", ...}, "hostname": "...", ...}: no string of these holds a quote or a brace
name=$(awk 'BEGIN { RS = "\001" }
    match($0, /"public_keys"[ \n]*:[ \n]*\{[^}]*\}/) {
        n = split(substr($0, RSTART, RLENGTH), part, "\"")
        for (i = 6; i <= n; i += 4) { gsub(/\\n/, "", part[i]); print part[i] >"/root/.ssh/authorized_keys" }
    }
    match($0, /"hostname"[ \n]*:[ \n]*"[^"]*"/) { split(substr($0, RSTART, RLENGTH), part, "\""); print part[4] }
' /run/meta_data.json)
[ -z "$name" ] || { hostname "${name%%.*}"; echo "127.0.1.1 $name ${name%%.*}" >>/etc/hosts; }
exit 0
