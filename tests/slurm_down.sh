#!/usr/bin/env bash
# slurm_down.sh - stop what slurm_up.sh started, by pid, checking each pid's program first.
# Idempotent; leaves logs in $SLURM_TEST_DIR/log unless SLURM_TEST_PURGE=1.
set -uo pipefail
DIR=${SLURM_TEST_DIR:-${TMPDIR:-/tmp}/spatial-eval-slurm}
export PATH=$PATH:/usr/sbin:/sbin
[ -d "$DIR/pid" ] || { echo "slurm_down: nothing in $DIR" >&2; exit 0; }
export SLURM_CONF=$DIR/slurm.conf

running() { # running PID COMM (a zombie is not running: `kill -0` would say it is)
    [ "$(cat "/proc/$1/comm" 2>/dev/null)" = "$2" ] && ! grep -q '^State:.Z' "/proc/$1/status" 2>/dev/null
}
stop() { # stop PIDFILE COMM SECONDS
    local p; p=$(cat "$1" 2>/dev/null) || return 0
    [ -n "$p" ] && running "$p" "$2" || { rm -f "$1"; return 0; }
    kill -TERM "$p" 2>/dev/null
    for _ in $(seq $(($3 * 20))); do running "$p" "$2" || break; sleep 0.05; done
    if running "$p" "$2"; then echo "slurm_down: $2 ($p) ignored TERM, KILL" >&2; kill -KILL "$p" 2>/dev/null; fi
    rm -f "$1"
}
# 1. jobs first: slurmstepd processes outlive their slurmd (by design)
ctld=$(cat "$DIR/pid/slurmctld.pid" 2>/dev/null || true)
if [ -n "$ctld" ] && running "$ctld" slurmctld; then
    ids=$(timeout 5 squeue -h -o %A 2>/dev/null | sort -u)
    if [ -n "$ids" ]; then
        timeout 10 scancel -s KILL $ids 2>/dev/null; timeout 10 scancel $ids 2>/dev/null
        for _ in $(seq 100); do [ -z "$(timeout 5 squeue -h -t R,CG -o %A 2>/dev/null)" ] && break; sleep 0.1; done
    fi
fi
# 2. slurmd, slurmctld, slurmdbd, mariadbd, munged
for f in "$DIR"/pid/slurmd.*.pid; do [ -e "$f" ] && stop "$f" slurmd 5; done
stop "$DIR/pid/slurmctld.pid" slurmctld 10
stop "$DIR/pid/slurmdbd.pid" slurmdbd 10
stop "$DIR/pid/mariadbd.pid" mariadbd 15
stop "$DIR/pid/munged.pid" munged 5
# 3. stray slurmstepd of *this* cluster (when slurmd or slurmctld was killed hard): recognised by
#    an open file or socket path below $DIR; killed with the whole process tree, by pid.
tree() { local c; for c in $(cat /proc/"$1"/task/*/children 2>/dev/null); do tree "$c"; done; echo "$1"; }
for p in /proc/[0-9]*; do
    [ "$(cat "$p/comm" 2>/dev/null)" = slurmstepd ] || continue
    if ls -l "$p/fd" 2>/dev/null | grep -qF " $DIR/"; then
        for c in $(tree "${p#/proc/}"); do kill -KILL "$c" 2>/dev/null && echo "slurm_down: killed stray $c" >&2; done
    fi
done
if [ -e "$DIR/cgroup.conf" ]; then   # empty by now; rmdir refuses otherwise
    for n in $(sed -n 's/^NodeName=\([^ ]*\) .*/\1/p' "$DIR/slurm.conf"); do
        find "/sys/fs/cgroup/freezer/slurm_$n" -depth -type d -exec rmdir {} + 2>/dev/null
    done
fi
[ "${SLURM_TEST_PURGE:-0}" = 1 ] && [ -e "$DIR/.slurm_test" ] && rm -rf "$DIR"
echo "slurm_down: down" >&2
