#!/bin/sh
# A Slurm cluster of this one machine, for tests: `slurm_cluster.sh start FOLDER [CPUS]`, `slurm_cluster.sh stop FOLDER`.
# Needs root and Debian's packages slurmctld, slurmd, slurm-client and munge. All state lies in FOLDER; jobs see
# the cluster through links in /etc/slurm, which must not be there before; those of a dead cluster are replaced.
# Without cgroups, which containers lack. It has two counterfeit GPUs: device files that Slurm counts and hands out.
set -eu
action=$1
folder=$2
cpus=${3:-2}

conf=/etc/slurm/slurm.conf
gres=/etc/slurm/gres.conf

# Whether what holds the configuration is a test's cluster that was killed.
is_dead() {
    [ -L "$conf" ] || return 1
    pid=$(cat "$(dirname "$(readlink "$conf")")/slurmctld.pid" 2>/dev/null) || return 0
    ! kill -0 "$pid" 2>/dev/null
}

start() {
    if is_dead; then
        rm -f "$conf" "$gres"
    fi
    if [ -e "$conf" ]; then
        echo "$conf: there is a cluster already" >&2
        exit 1
    fi
    mkdir -p "$folder/munge" "$folder/state" "$folder/spool"
    chmod 755 "$folder"
    chmod 700 "$folder/munge"
    dd if=/dev/urandom of="$folder/munge/key" bs=1024 count=1 2>/dev/null
    chmod 400 "$folder/munge/key"
    munged --force --key-file="$folder/munge/key" --socket="$folder/munge.socket" \
        --pid-file="$folder/munge/pid" --log-file="$folder/munge/log" --seed-file="$folder/munge/seed"
    host=$(hostname -s)
    cat > "$folder/slurm.conf" <<END
ClusterName=precfm-test
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=16817
SlurmdPort=16818
AuthType=auth/munge
AuthInfo=socket=$folder/munge.socket
CryptoType=crypto/munge
SlurmUser=root
SlurmdUser=root
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=1,defer=0
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
ReturnToService=2
MinJobAge=3600
KillWait=5
GresTypes=gpu
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
SlurmdParameters=config_overrides
NodeName=$host NodeAddr=127.0.0.1 CPUs=$cpus RealMemory=16000 Gres=gpu:2 State=UNKNOWN
PartitionName=test Nodes=$host Default=YES MaxTime=INFINITE State=UP
END
    for index in 0 1; do
        mknod "$folder/gpu$index" c 1 3 # as /dev/null
    done
    echo "NodeName=$host Name=gpu File=$folder/gpu[0-1]" > "$folder/gres.conf"
    mkdir -p /etc/slurm
    ln -s "$folder/slurm.conf" "$conf"
    ln -s "$folder/gres.conf" "$gres"
    slurmctld
    slurmd
    for _ in $(seq 120); do
        if sinfo --noheader --format=%T 2>/dev/null | grep -q idle; then
            return
        fi
        sleep 0.5
    done
    echo "the cluster did not come up; see $folder/slurmctld.log and $folder/slurmd.log" >&2
    exit 1
}

stop() {
    for pid in "$folder/slurmd.pid" "$folder/slurmctld.pid" "$folder/munge/pid"; do
        if [ -f "$pid" ]; then
            kill "$(cat "$pid")" 2>/dev/null || true
        fi
    done
    if [ "$(readlink "$conf")" = "$folder/slurm.conf" ]; then
        rm -f "$conf" "$gres"
    fi
}

case $action in
start) start ;;
stop) stop ;;
*)
    echo "start or stop, not '$action'" >&2
    exit 2
    ;;
esac
