#!/usr/bin/env bash
# make test-slurm: start a Slurm cluster on this machine, run `pytest -m slurm`, stop the cluster by pid.
#
# pytest's summary is the last line, pytest's exit code this script's own. Where the machine cannot run a cluster
# the tests skip and say why; with SLURM_REQUIRED=1 that, and every other skip, is a failure.
#
#   PYTHON=.venv/bin/python bash tests/run_slurm.sh              pytest -m slurm
#   bash tests/run_slurm.sh COMMAND...                           any command beside a running cluster
set -uo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
python=${PYTHON:-python3}

# The daemons bind to what the host name resolves to: where that is not loopback, use a host name of our own.
ip=$( (getent ahostsv4 "$(hostname -s)" || true) | awk 'NR==1{print $1}')
if [ "${ip#127.}" = "$ip" ] && [ -z "${SLURM_TEST_HOST:-}" ] && unshare --uts true 2>/dev/null; then
    SLURM_TEST_HOST=localhost exec unshare --uts sh -c 'hostname localhost; exec bash "$@"' sh "${BASH_SOURCE[0]}" "$@"
fi

SLURM_TEST_DIR=$(mktemp -d "${TMPDIR:-/tmp}/slurm-XXXXXX")
export SLURM_TEST_DIR SLURM_TEST_PURGE=1
for _ in $(seq 20); do # a block of free ports: several checkouts may test at once
    base=$((20000 + RANDOM % 900 * 20))
    taken=0
    for port in $(seq $base $((base + 19))); do
        if (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then taken=1; fi
    done
    [ $taken = 0 ] && break
done
export SLURM_TEST_PORT_BASE=$base

down() { bash "$here/slurm_down.sh" >/dev/null 2>&1; rm -rf "$SLURM_TEST_DIR"; }
trap down EXIT
bash "$here/slurm_up.sh" 2>"$SLURM_TEST_DIR.log"
up=$?
cat "$SLURM_TEST_DIR.log" >&2
why=$(tail -n 1 "$SLURM_TEST_DIR.log")
rm -f "$SLURM_TEST_DIR.log"
if [ $up = 0 ]; then
    # shellcheck disable=SC1091
    source "$SLURM_TEST_DIR/env.sh"
    export PATH=$PATH:/usr/sbin:/sbin
elif [ $up = 77 ]; then
    export SLURM_TEST_WHY=$why
else
    exit $up
fi
[ $# -gt 0 ] || set -- "$python" -m pytest -m slurm
"$@"
