#!/bin/sh
# Installs the units beside this file. Runs on the GPU host as the workers' user, with sudo if needed. Exit
# codes: 45 systemd does not run here, 46 no right to become root, 47 systemd rejects the units.
set -eu
umask 022
units='batchscribe-box.service batchscribe-deadman.service batchscribe-deadman.timer batchscribe-deadman.path'

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi
}

case $(systemctl is-system-running 2>/dev/null || :) in
    initializing | starting | running | degraded | maintenance) ;;
    *) exit 45 ;;
esac
as_root true 2>/dev/null || exit 46

paths=
for unit in $units; do paths="$paths ./$unit"; done
# shellcheck disable=SC2086  one word for each unit
complaints=$(as_root systemd-analyze verify $paths 2>&1) || { echo "$complaints" >&2; exit 47; }
# An older systemd ignores unknown settings with a warning.
case $complaints in *batchscribe-*) echo "$complaints" >&2; exit 47 ;; esac

as_root install -d -o root -g root -m 0755 /usr/local/lib/batchscribe
as_root install -o root -g root -m 0755 deadman /usr/local/lib/batchscribe/deadman
for unit in $units; do
    as_root install -o root -g root -m 0644 "$unit" "/etc/systemd/system/$unit"
done
as_root systemctl daemon-reload
# The agent's unit is not needed before the next boot.
as_root systemctl enable batchscribe-box.service
as_root systemctl enable batchscribe-deadman.timer batchscribe-deadman.path
as_root systemctl restart batchscribe-deadman.timer batchscribe-deadman.path
