#!/usr/bin/env bash
# Try array.sh and ray.sh under a real SLURM on this machine: two nodes of one CPU, in a network of
# their own that has loopback and no more.
#
#     try_locally.sh [array|ray ...]
#
# An array of 8 over 40 small genomes, of which one task is canceled, one requeued while it runs
# and one stopped by its time limit; then one job of two nodes through Ray. The files must be those
# of one plain run, byte for byte. It takes about six minutes on two quiet cores. Needs root,
# Debian's slurm-wlm and munge, and genomepred (for ray.sh with its extra `cluster`) on the PATH.
set -euo pipefail

if [ -z "${ALONE:-}" ]; then # Ray listens on every interface that it finds
    export ALONE=yes
    exec unshare --net --pid --fork --mount-proc --kill-child bash "$0" "$@"
fi
ip link set lo up
ip address add 192.0.2.1/32 dev lo # names are not looked up where 127.0.0.1 is the only address

parts=${*:-array ray}
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
host=$(hostname -s)
daemons=()
clean() {
    kill "${daemons[@]}" 2>/dev/null || true
    wait 2>/dev/null || true
    [ -n "${KEEP:-}" ] || rm -rf "$work"
}
trap clean EXIT

printf '127.0.0.1 localhost %s n1 n2\n' "$host" >"$work/hosts"
mount --bind "$work/hosts" /etc/hosts # for us alone

# -- a cluster -------------------------------------------------------------------------------------
mkdir -p "$work"/{ctld,n1,n2,log,munge}
chmod 711 "$work"
chown munge: "$work/munge"
[ -e /etc/munge/munge.key ] || create-munge-key
runuser -u munge -- munged --foreground --force --socket="$work/munge/socket" \
    --pid-file="$work/munge/pid" 2>"$work/log/munged" &
daemons+=($!)
cat >"$work/slurm.conf" <<END
ClusterName=try
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=17000
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
AuthInfo=socket=$work/munge/socket
SlurmUser=root
SlurmdUser=root
StateSaveLocation=$work/ctld
SlurmdSpoolDir=$work/%n
SlurmctldPidFile=$work/ctld.pid
SlurmdPidFile=$work/%n.pid
SlurmctldLogFile=$work/log/ctld
SlurmdLogFile=$work/log/%n
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
KillWait=10
SlurmdTimeout=20
NodeName=n[1-2] NodeHostname=$host NodeAddr=127.0.0.1 Port=[17001-17002] CPUs=1 RealMemory=4000
PartitionName=main Nodes=ALL Default=YES State=UP
END
export SLURM_CONF=$work/slurm.conf
sleep 1
slurmctld -D -f "$SLURM_CONF" 2>/dev/null &
daemons+=($!)
for node in n1 n2; do
    slurmd -D -N "$node" -f "$SLURM_CONF" 2>/dev/null &
    daemons+=($!)
done
until sinfo --noheader --states=idle --format=%D 2>/dev/null | grep -qx 2; do sleep 0.5; done
sinfo

# -- 40 genomes, and what one plain run makes of them --------------------------------------------
python3 - "$work/genomes" <<'END'
import pathlib, random, sys
folder = pathlib.Path(sys.argv[1])
folder.mkdir()
for i in range(40):
    random.seed(i)
    sequence = "".join(random.choices("ACGT", k=100_000))
    (folder / f"g{i:02}.fa").write_text(f">chr1\n{sequence}\n")
END
export GENOMES=$work/genomes MODEL=ctcf N=8 OPTIONS="${OPTIONS:---stride 1 --strand mean}"
genomepred predict --genomes "$GENOMES" --model ctcf --out "$work/plain" $OPTIONS --jobs 2 >/dev/null
sums() { (cd "$1" && sha256sum ./*.h5); }
same() { # folder
    genomepred verify "$1" | cut -f2 | sort | uniq -c
    diff <(sums "$work/plain") <(sums "$1")
    echo "$(ls "$1"/*.h5 | wc -l) genomes: the same bytes as of one plain run"
}
state() { scontrol show job "$1" -o 2>/dev/null | sed -n 's/.*JobState=\([A-Z_]*\).*/\1/p' | head -1; }
running() { until [ "$(state "$1")" = RUNNING ]; do sleep 0.2; done; }
ended() { while squeue --noheader --job="$1" 2>/dev/null | grep -q .; do sleep 1; done; }

# -- the array -------------------------------------------------------------------------------------
submit() { # further options of sbatch
    sbatch --parsable --chdir="$work" --output="$work/log/task-%a" --export=ALL,OUT="$work/maps" \
        "$@" --mem=1500M "$here/array.sh"
}
works() { until find "$work/maps/.parts" -name '*.tmp' 2>/dev/null | grep -q .; do sleep 0.1; done; }

try_array() {
    job=$(submit --array=1-8 --time=10 --signal=B:TERM@45)
    running "${job}_1"
    works
    scancel "${job}_1" && echo "task 1 canceled while it worked"
    running "${job}_2"
    sleep 8
    scontrol requeue "${job}_2" && echo "task 2 requeued while it worked"
    running "${job}_3"
    # Limits are whole minutes: of one, 15 s are left before the signal.
    scontrol update jobid="${job}_3" TimeLimit=1 && echo "task 3 has a limit of one minute"
    while squeue --noheader --job="$job" 2>/dev/null | grep -q .; do
        for task in 2 3; do
            [ "$(state "${job}_$task")" = PENDING ] || continue
            scontrol update jobid="${job}_$task" TimeLimit=10 StartTime=now 2>/dev/null || true
        done
        sleep 1
    done
    again=$(submit --array=1 --time=10 --signal=B:TERM@45)
    echo "task 1 submitted again"
    ended "$again"
    genomepred merge "$work/maps" >/dev/null 2>&1 || true

    grep -h -E "terminated|requeued|CANCELLED|DUE TO" "$work"/log/task-* || true
    same "$work/maps"
}

# -- one job through Ray ---------------------------------------------------------------------------
try_ray() {
    local job
    job=$(sbatch --parsable --chdir="$work" --output="$work/log/ray" --nodes=2 --cpus-per-task=1 \
        --mem-per-cpu=1500M --time=20 --export=ALL,OUT="$work/ray" "$here/ray.sh")
    running "$job"
    echo "job $job runs on $(scontrol show job "$job" -o | sed -n 's/.* NodeList=\([^ ]*\).*/\1/p')"
    ended "$job"
    tail -n 3 "$work/log/ray"
    same "$work/ray"
}

for part in $parts; do
    "try_$part"
done
