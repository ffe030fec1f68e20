#!/usr/bin/env bash
# Predict the genomes of a manifest on a SLURM cluster, each task of the array its share:
#
#     sbatch --array=1-8 --export=ALL,GENOMES=cultivars.tsv,MODEL=ctcf,OUT=maps,N=8 array.sh
#
# N stays the size of the whole array, also when single tasks are submitted again (SLURM's own
# SLURM_ARRAY_TASK_COUNT would then be another number, and the shares others).
#SBATCH --job-name=genomepred
#SBATCH --cpus-per-task=1
#SBATCH --mem=3G
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:TERM@60
# Sixty seconds before the time limit this script gets SIGTERM and hands it on: what is finished
# stays, and the task goes back into the queue to continue.
set -uo pipefail

: "${GENOMES:?}" "${MODEL:?}" "${OUT:?}" "${N:?}"

genomepred predict --genomes "$GENOMES" --model "$MODEL" --out "$OUT" ${OPTIONS:-} \
    --shard "$SLURM_ARRAY_TASK_ID/$N" --jobs "${SLURM_CPUS_PER_TASK:-1}" &
worker=$!
stopped=
trap 'stopped=yes; kill -TERM "$worker"' TERM

# A trapped signal ends `wait` before the process has ended.
wait "$worker"
status=$?
while kill -0 "$worker" 2>/dev/null; do
    wait "$worker"
    status=$?
done

# Signals of the time limit meet a job that runs; those of scancel and of a requeue by others one
# that is ending already, and that must not come back by itself.
task=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
if [ -n "$stopped" ] && [ "$status" -eq 143 ] \
    && scontrol show job "$SLURM_JOB_ID" -o | grep -q ' JobState=RUNNING '; then
    echo "stopped before the time limit; requeued"
    scontrol requeue "$task"
fi
exit "$status"
