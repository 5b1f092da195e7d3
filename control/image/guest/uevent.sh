#!/bin/sh
[ "$ACTION $SUBSYSTEM" = "add net" ] && exec /etc/nic-added "$INTERFACE"
exit 0
