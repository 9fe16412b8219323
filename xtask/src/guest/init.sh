#!/bin/busybox sh
# The guest's first process: file systems, then /run.sh on the second serial line, then its verdict there.
export PATH=/bin HOME=/tmp
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t debugfs debugfs /sys/kernel/debug
mount -t tracefs tracefs /sys/kernel/tracing
mount -t tmpfs tmpfs /tmp
ip link set lo up
# Held open, so that the settings stay.
exec 3>/dev/ttyS1
stty -F /dev/ttyS1 -opost -echo
echo "kdetour-guest: started on $(uname -rv)" >&3
cd /tmp
sh /run.sh </dev/null >&3 2>&3
code=$?
echo "kdetour-guest: exit=$code tainted=$(cat /proc/sys/kernel/tainted)" >&3
# The last close waits until the line has sent everything.
exec 3>&-
poweroff -f
