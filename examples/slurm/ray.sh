#!/usr/bin/env bash
# Predict the genomes of a manifest on the nodes of one SLURM job, through Ray:
#
#     sbatch --nodes=4 --export=ALL,GENOMES=cultivars.tsv,MODEL=ctcf,OUT=maps ray.sh
#
# One head and one daemon a node are started by srun, each with the processors of the allocation,
# not of the host, and end with the job. OUT, the genomes and genomepred itself must be seen by all
# nodes under the same paths. On GPUs add --gpus-per-node=4 to sbatch.
#SBATCH --job-name=genomepred
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --mem-per-cpu=1G
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:TERM@60
set -uo pipefail

: "${GENOMES:?}" "${MODEL:?}" "${OUT:?}"

nodes=($(scontrol show hostnames "$SLURM_JOB_NODELIST"))
cpus=${SLURM_CPUS_PER_TASK:-1}
# Jobs may share nodes: their ports follow from their numbers, 100 each, outside 10002-19999, where
# Ray's workers listen.
port=$((20000 + SLURM_JOB_ID % 400 * 100))
# On the node's own disk, and short: paths of sockets end at 107 characters.
temporary=${RAY_TMP:-/tmp}/r$SLURM_JOB_ID
export RAY_USAGE_STATS_ENABLED=0 RAY_AUTH_MODE=token
RAY_AUTH_TOKEN=$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')
export RAY_AUTH_TOKEN

# What every node runs; options of its own come first.
node() { # number of the node, its address, options of ray start
    local number=$1 address=$2
    shift 2
    srun --nodes=1 --ntasks=1 --nodelist="${nodes[$number]}" --cpus-per-task="$cpus" --overlap \
        ray start --block --node-ip-address="$address" --num-cpus="$cpus" \
        --object-store-memory=100000000 --temp-dir="$temporary-$number" \
        --node-manager-port=$((port + 3 * number + 1)) \
        --object-manager-port=$((port + 3 * number + 2)) ${RAY_OPTIONS:-} "$@" \
        >"ray-$SLURM_JOB_ID-$number.log" 2>&1 &
    daemons+=($!)
}
address_of() { getent ahostsv4 "$1" | awk 'NR == 1 { print $1 }'; }

daemons=()
worker=
stopped=
end() {
    [ "${#daemons[@]}" -eq 0 ] || kill "${daemons[@]}" 2>/dev/null
    wait
    rm -rf "$temporary"-*
}
trap end EXIT
trap 'stopped=yes; [ -z "$worker" ] || kill -TERM "$worker"' TERM

head=$(address_of "${nodes[0]}")
node 0 "$head" --head --port="$port" --include-dashboard=false --disable-usage-stats
until (exec 3<>"/dev/tcp/$head/$port") 2>/dev/null; do sleep 1; done
for number in $(seq 1 $((${#nodes[@]} - 1))); do
    node "$number" "$(address_of "${nodes[$number]}")" --address="$head:$port"
done

# The driver runs beside the head; workers of nodes that come later join it.
genomepred predict --genomes "$GENOMES" --model "$MODEL" --out "$OUT" ${OPTIONS:-} \
    --cluster "$head:$port" &
worker=$!
wait "$worker"
status=$?
while kill -0 "$worker" 2>/dev/null; do
    wait "$worker"
    status=$?
done

# As in array.sh: only the signal of the time limit meets a job that still runs.
if [ -n "$stopped" ] && [ "$status" -eq 143 ] \
    && scontrol show job "$SLURM_JOB_ID" -o | grep -q ' JobState=RUNNING '; then
    echo "stopped before the time limit; requeued"
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
