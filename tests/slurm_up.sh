#!/usr/bin/env bash
# slurm_up.sh - a private, throw-away, REAL Slurm cluster on this one machine, for `pytest -m slurm`.
#
#   munged + slurmctld + N slurmd (virtual nodes node1..nodeN, each with fake GPUs)
#   + mariadbd + slurmdbd, so that `sacct` works (SLURM_TEST_ACCT=none: without)
#
# Everything lives under $SLURM_TEST_DIR (config, state, logs, pids, sockets) and
# listens on loopback only. Nothing in /etc is touched. Idempotent: a second
# call with a healthy cluster is a no-op (0.1 s). Stop it with slurm_down.sh.
#
# `make test-slurm` does it all: run_slurm.sh.
#
# exit 0: up.  exit 77: this machine cannot do it (Slurm not installed and no root/apt to
# install it, not Linux, odd hostname) -> the caller skips its Slurm tests, loudly.
# anything else: a real failure (everything started so far is taken down again).
# SLURM_REQUIRED=1 turns 77 into 1 (for the one CI machine where skipping would hide a fault).
# Root is needed for `apt-get install` only; the cluster itself runs as any user.
#
# Tested: Debian 12, slurm-wlm 22.05.8, mariadb 10.11, munge 0.5.15, Firecracker VM, no systemd.
set -euo pipefail

DIR=${SLURM_TEST_DIR:-${TMPDIR:-/tmp}/spatial-eval-slurm}   # short path! AF_UNIX sockets live here (108 chars max)
NODES=${SLURM_TEST_NODES:-3}              # virtual nodes = slurmd processes
CPUS=${SLURM_TEST_CPUS:-4}                # CPUs *advertised* per node (may exceed the real ones)
GPUS=${SLURM_TEST_GPUS:-4}                # fake gpus per node
MEM=${SLURM_TEST_MEM_MB:-4096}            # RealMemory advertised per node (never enforced)
PORT=${SLURM_TEST_PORT_BASE:-16800}       # slurmctld +1, slurmdbd +2, nodes +11..
ACCT=${SLURM_TEST_ACCT:-dbd}              # dbd | none (none: no mariadb/slurmdbd, `sacct` fails)
PROCTRACK=${SLURM_TEST_PROCTRACK:-linuxproc}  # linuxproc: any machine, but a daemonised grandchild escapes and can
                                        # hold its job in CG ~60-85 s; cgroup: root + cgroup v1 freezer mounted
MAXARRAY=${SLURM_TEST_MAX_ARRAY:-1001}    # Slurm's own default; lower it to test chunking

say()  { echo "slurm_up: $*" >&2; }
skip() {
    [ "${SLURM_REQUIRED:-0}" = 1 ] && { say "FAIL (SLURM_REQUIRED=1): $*"; exit 1; }
    say "SKIP: $*"; exit 77
}
for v in $(compgen -e); do    # a surrounding Slurm job (or another cluster's SLURM_CONF) must not leak in
    case "$v" in SLURM_TEST_*|SLURM_REQUIRED) ;; SLURM_*|SBATCH_*|SLURMD_*) unset "$v" ;; esac
done

alive() {  # alive PIDFILE COMM: that pid runs, is not a zombie, and is really that program
    local p; p=$(cat "$1" 2>/dev/null) || return 1
    [ -n "$p" ] && [ "$(cat "/proc/$p/comm" 2>/dev/null)" = "$2" ] \
        && ! grep -q '^State:.Z' "/proc/$p/status" 2>/dev/null
}
wait_for() {  # wait_for SECONDS WHAT COMMAND...   (wall clock; each try is bounded too)
    local end=$((SECONDS + $1)) what=$2; shift 2
    while :; do
        timeout 5 "$@" >/dev/null 2>&1 && return 0
        [ $SECONDS -ge $end ] && break
        sleep 0.05
    done
    say "gave up waiting for $what; logs in $DIR/log:"
    for f in "$DIR"/log/*.log; do echo "== $f"; tail -n 4 "$f"; done >&2
    return 1
}

# ---- can this machine do it? ------------------------------------------------------------
[ "$(uname -s)" = Linux ] || skip "not Linux"
USR=$(id -un) || skip "uid $(id -u) has no user name"
need=(munged slurmctld slurmd sbatch sacct)
[ "$ACCT" = dbd ] && need+=(slurmdbd mariadbd mariadb-install-db mariadb)
missing=(); for c in "${need[@]}"; do PATH=$PATH:/usr/sbin command -v "$c" >/dev/null || missing+=("$c"); done
export PATH=$PATH:/usr/sbin:/sbin
if [ ${#missing[@]} -gt 0 ]; then
    command -v apt-get >/dev/null || skip "missing ${missing[*]}, and no apt-get to install them"
    [ "$(id -u)" = 0 ] || skip "missing ${missing[*]}, and not root: ask for 'apt-get install slurmctld slurmd slurm-client munge slurmdbd mariadb-server-core mariadb-client-core'"
    pkgs=(munge slurm-client slurmctld slurmd)
    # *-core packages: binaries only, no service, no /etc/mysql instance. 9 debs, 63 MB on disk.
    [ "$ACCT" = dbd ] && pkgs+=(slurmdbd mariadb-server-core mariadb-client-core)
    # Keep maintainer scripts from starting daemons (they'd bind 0.0.0.0 with stock configs).
    made_policy=0
    if [ ! -e /usr/sbin/policy-rc.d ]; then
        printf '#!/bin/sh\nexit 101\n' > /usr/sbin/policy-rc.d; chmod 755 /usr/sbin/policy-rc.d; made_policy=1
    fi
    log=$(mktemp); rc=0
    { apt-get update -q || true   # a stale index is fine if the install below works
      DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "${pkgs[@]}"
    } >"$log" 2>&1 || rc=$?
    [ $made_policy = 1 ] && rm -f /usr/sbin/policy-rc.d
    [ $rc = 0 ] || { tail -n 5 "$log" >&2; skip "apt-get install ${pkgs[*]} failed (rc=$rc), full log $log"; }
    rm -f "$log"
fi
# slurmctld, slurmd, srun bind to what gethostname() resolves to when *InAddrAny is off:
# that must be loopback, else the cluster would be reachable from outside.
HOST=$(hostname -s)
ip=$( (getent ahostsv4 "$HOST" || getent hosts "$HOST" || true) | awk 'NR==1{print $1}')
case "$ip" in 127.*|::1) ;; *) skip "hostname '$HOST' resolves to '${ip:-nothing}', need 127.x (add '127.0.0.1 $HOST' to /etc/hosts, or run under: unshare --uts sh -c 'hostname localhost; exec bash $0')";; esac

# ---- already up? --------------------------------------------------------------------------
nodelist() { seq -f 'node%g' 1 "$NODES"; }
export SLURM_CONF=$DIR/slurm.conf
up=1
alive "$DIR/pid/munged.pid" munged && alive "$DIR/pid/slurmctld.pid" slurmctld || up=0
[ "$ACCT" = dbd ] && { alive "$DIR/pid/slurmdbd.pid" slurmdbd && alive "$DIR/pid/mariadbd.pid" mariadbd || up=0; }
for n in $(nodelist); do alive "$DIR/pid/slurmd.$n.pid" slurmd || up=0; done
if [ $up = 1 ]; then say "already up in $DIR"; exit 0; fi
# Half up (something was killed): clean start is simpler and safer than repair.
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
if [ -n "$(ls -A "$DIR/pid" 2>/dev/null)" ]; then SLURM_TEST_DIR=$DIR bash "$here/slurm_down.sh"; fi
# only ever delete what an earlier run of this script made
if [ -e "$DIR" ] && [ ! -e "$DIR/.slurm_test" ] && [ -n "$(ls -A "$DIR")" ]; then
    say "$DIR exists, is not empty and is not ours; choose another SLURM_TEST_DIR"; exit 1
fi
rm -rf "$DIR"
for p in $((PORT + 1)) $((PORT + 2)) $(seq $((PORT + 11)) $((PORT + 10 + NODES))); do
    if (exec 3<>"/dev/tcp/127.0.0.1/$p") 2>/dev/null; then say "port $p is taken; choose SLURM_TEST_PORT_BASE"; exit 1; fi
done
umask 022
trap 'rc=$?; if [ $rc != 0 ]; then say "failed (rc=$rc), taking it down"; SLURM_TEST_DIR=$DIR bash "$here/slurm_down.sh"; fi' EXIT
mkdir -p "$DIR"/{state,spool,log,pid,db}; mkdir -m 700 "$DIR/munge"
touch "$DIR/.slurm_test"
chmod 755 "$DIR"   # munged refuses a socket below a group/world-writable dir (sticky /tmp is fine)

# ---- munge (authentication) -------------------------------------------------------------
dd if=/dev/urandom of="$DIR/munge/munge.key" bs=256 count=1 status=none; chmod 400 "$DIR/munge/munge.key"
chmod 711 "$DIR/munge"     # other uids must reach the socket
munged --socket="$DIR/munge/sock" --key-file="$DIR/munge/munge.key" --seed-file="$DIR/munge/seed" \
       --pid-file="$DIR/pid/munged.pid" --log-file="$DIR/log/munged.log" --num-threads=4
wait_for 10 munged munge -S "$DIR/munge/sock" -n

# ---- accounting: mariadb (unix socket only) + slurmdbd ------------------------------------
ACCT_LINES="AccountingStorageType=accounting_storage/none"
if [ "$ACCT" = dbd ]; then
    mariadb-install-db --no-defaults --user="$USR" --datadir="$DIR/db/data" \
        --auth-root-authentication-method=normal --skip-test-db >"$DIR/log/mariadb-install.log" 2>&1
    # durability off: it is a throw-away database
    setsid nohup mariadbd --no-defaults --user="$USR" --datadir="$DIR/db/data" --socket="$DIR/db/sock" \
        --pid-file="$DIR/pid/mariadbd.pid" --skip-networking --skip-log-bin --performance-schema=OFF \
        --innodb-buffer-pool-size=32M --innodb-log-file-size=16M --innodb-lock-wait-timeout=900 \
        --innodb-flush-log-at-trx-commit=0 --innodb-doublewrite=0 \
        >"$DIR/log/mariadb.log" 2>&1 </dev/null &
    sql=(mariadb --no-defaults -S "$DIR/db/sock" -u root)
    wait_for 30 mariadbd "${sql[@]}" -e 'select 1'
    "${sql[@]}" -e "create database slurm_acct_db; create user slurm@localhost identified by 'slurm';
            grant all on slurm_acct_db.* to slurm@localhost;"
    cat > "$DIR/slurmdbd.conf" <<CONF
DbdHost=$HOST
DbdAddr=127.0.0.1
DbdPort=$((PORT + 2))
# without this slurmdbd listens on 0.0.0.0
CommunicationParameters=NoInAddrAny
SlurmUser=$USR
AuthType=auth/munge
AuthInfo=socket=$DIR/munge/sock
StorageType=accounting_storage/mysql
# localhost = unix socket; which one comes from MYSQL_UNIX_PORT below
StorageHost=localhost
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm_acct_db
LogFile=$DIR/log/slurmdbd.log
PidFile=$DIR/pid/slurmdbd.pid
DebugLevel=info
CONF
    chmod 600 "$DIR/slurmdbd.conf"    # slurmdbd refuses to start otherwise
    # AccountingStoragePass is the munge socket of *dbd* connections; AuthInfo does not cover them
    ACCT_LINES="AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort=$((PORT + 2))
AccountingStorageUser=$USR
AccountingStoragePass=$DIR/munge/sock
AccountingStorageEnforce=limits"
fi

# ---- slurm.conf, gres.conf ------------------------------------------------------------------
# Fake gpus: `File` must name a character device, else CUDA_VISIBLE_DEVICES is not set at all (a
# plain file: only an error line in slurmd.log). Any will do: nothing opens it without ConstrainDevices.
devs=(/dev/null /dev/zero /dev/full /dev/random /dev/urandom /dev/tty /dev/ptmx)
[ "$GPUS" -le ${#devs[@]} ] || { say "at most ${#devs[@]} fake gpus per node"; exit 1; }
: > "$DIR/gres.conf"
for i in $(seq 0 $((GPUS - 1))); do
    echo "NodeName=node[1-$NODES] Name=gpu File=${devs[$i]}" >> "$DIR/gres.conf"
done
cat > "$DIR/slurm.conf" <<CONF
ClusterName=ci
SlurmctldHost=$HOST(127.0.0.1)
SlurmctldPort=$((PORT + 1))
SlurmUser=$USR
SlurmdUser=$USR
# listen on loopback only: daemons, srun and slurmstepd too
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
AuthType=auth/munge
CredType=cred/munge
# cred_expire is also how long a requeued job waits (reason BeginTime): default 120 s, minimum 5 (less = error + 120)
AuthInfo=socket=$DIR/munge/sock,cred_expire=${SLURM_TEST_REQUEUE_DELAY:-5}
StateSaveLocation=$DIR/state
SlurmdSpoolDir=$DIR/spool/%n
SlurmctldPidFile=$DIR/pid/slurmctld.pid
SlurmdPidFile=$DIR/pid/slurmd.%n.pid
SlurmctldLogFile=$DIR/log/slurmctld.log
SlurmdLogFile=$DIR/log/slurmd.%n.log
SlurmctldDebug=info
SlurmdDebug=info
# no cgroup limits, no cpu binding: works in any VM or container
ProctrackType=proctrack/$PROCTRACK
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
# several slurmd on one host, each claiming resources the host does not have
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=64
GresTypes=gpu
MaxArraySize=$MAXARRAY
# finished jobs stay visible to squeue -t all / scontrol this long (sacct keeps them for good)
MinJobAge=300
# quick failure handling: a dead slurmd is noticed in ~SlurmdTimeout, its jobs are requeued
SlurmdTimeout=${SLURM_TEST_SLURMD_TIMEOUT:-10}
SlurmctldTimeout=10
# 1: a node that was set down by hand stays down
ReturnToService=1
InactiveLimit=0
KillWait=${SLURM_TEST_KILL_WAIT:-2}
WaitTime=0
JobRequeue=1
# preemption: a job in 'high' requeues jobs of 'main'; submitit needs preempt_send_user_signal
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
SchedulerType=sched/backfill
# defaults (batch_sched_delay=3, sched_interval=60) cost seconds per job
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0,bf_interval=1
$ACCT_LINES
CONF
for i in $(seq 1 "$NODES"); do
    g=""; [ "$GPUS" -gt 0 ] && g="Gres=gpu:$GPUS"
    echo "NodeName=node$i NodeHostname=$HOST NodeAddr=127.0.0.1 Port=$((PORT + 10 + i)) CPUs=$CPUS RealMemory=$MEM $g State=UNKNOWN" >> "$DIR/slurm.conf"
done
cat >> "$DIR/slurm.conf" <<CONF
PartitionName=main Nodes=node[1-$NODES] Default=YES MaxTime=INFINITE DefaultTime=10 PriorityTier=1 PreemptMode=REQUEUE GraceTime=${SLURM_TEST_GRACE:-10}
PartitionName=high Nodes=node[1-$NODES] MaxTime=INFINITE DefaultTime=10 PriorityTier=10 PreemptMode=OFF
CONF
if [ "$PROCTRACK" = cgroup ]; then
    printf '%s\n' CgroupPlugin=cgroup/v1 CgroupMountpoint=/sys/fs/cgroup CgroupAutomount=no > "$DIR/cgroup.conf"
fi
# what a shell (or a test's subprocess) has to source to use the cluster
cat > "$DIR/env.sh" <<CONF
export SLURM_CONF=$DIR/slurm.conf SLURM_TEST_DIR=$DIR
CONF

# ---- start the daemons (they daemonise and write pid files themselves) ------------------------
if [ "$ACCT" = dbd ]; then
    MYSQL_UNIX_PORT=$DIR/db/sock slurmdbd
    wait_for 30 slurmdbd sacctmgr -n list cluster
    {
        sacctmgr -i add cluster ci   # or no job is ever recorded
        # limits are enforced per association: `open` has none and is the default, `crowded` takes six jobs at once
        sacctmgr -i add account open,crowded
        sacctmgr -i add user "$USR" account=open,crowded defaultaccount=open
        sacctmgr -i modify user "$USR" where account=crowded set MaxSubmitJobs=6
    } >"$DIR/log/sacctmgr.log" 2>&1
fi
slurmctld
wait_for 10 slurmctld sh -c 'scontrol ping | grep -q "is UP"'
for n in $(nodelist); do slurmd -N "$n"; done
wait_for 30 "all $NODES nodes idle" \
    sh -c "[ \$(sinfo -h -N -p main -t idle -o %N | sort -u | wc -l) = $NODES ]"
# anything of ours that listens beyond loopback is a bug
if command -v ss >/dev/null; then
    ours=$(cat "$DIR"/pid/*.pid | sed 's/.*/pid=&,/' | paste -sd'|')
    bad=$(ss -Hltnp | grep -E "$ours" | awk '$4 !~ /^(127\.|\[::1\])/' || true)
    [ -z "$bad" ] || { say "listening beyond loopback: $bad"; exit 1; }
fi
say "up: $NODES nodes x $CPUS cpus x $GPUS gpus, accounting=$ACCT; source $DIR/env.sh"
