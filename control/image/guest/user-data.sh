#!/bin/sh
# Runs the user data, from the config drive or the metadata service, if it is a script: once per boot.
[ -f /run/user_data ] ||
    timeout 10 wget -q -O /run/user_data http://169.254.169.254/openstack/latest/user_data 2>/dev/null
[ "$(head -c 2 /run/user_data 2>/dev/null)" = "#!" ] || exit 0
chmod 700 /run/user_data
exec /run/user_data
