#!/bin/sh
# boot_overlay.sh FOLDER GROUP COMMAND...: lays FOLDER/seed over a throw-away copy of this machine's disk, at
# FOLDER/root, and becomes COMMAND. Runs in a mount namespace of its own, so that all of it ends with COMMAND.
set -eu
folder=$1
group=$2
shift 2

# Without a systemd outside, nspawn puts its container below the control group that it finds itself in.
if [ -n "$group" ]; then
    for tree in /sys/fs/cgroup/systemd /sys/fs/cgroup/unified /sys/fs/cgroup; do
        [ -e "$tree/cgroup.procs" ] || continue
        mkdir -p "$tree/$group"
        echo $$ >"$tree/$group/cgroup.procs"
    done
fi

mkdir -p /run/systemd/nspawn
mount -t tmpfs tmpfs /run/systemd/nspawn
# The kernel refuses an upper layer that lies within the lower one, and / is the lower one.
mount -t tmpfs -o mode=755 tmpfs "$folder/layer"
mkdir "$folder/layer/upper" "$folder/layer/work"
mount -t overlay -o "lowerdir=/,upperdir=$folder/layer/upper,workdir=$folder/layer/work" overlay "$folder/root"
# What this machine has enabled is not what is tested.
rm -rf "$folder/root/etc/systemd/system"
cp -a "$folder/seed/." "$folder/root/"
exec "$@"
