#!/usr/bin/env bash
# A build of task corpora by the tasks of a Slurm array, which share a file system:
#
#     jobs=$(sbatch --parsable --array=0-15 launch/cluster/slurm_array.sh --text '/data/*.jsonl' --tokenizer T --out /data/corpora)
#     sbatch --dependency=afterok:"$jobs" --cpus-per-task=16 --wrap 'ppt corpora merge /data/corpora --workers 16'
#
# Submit it where the virtual environment's commands are on the path. A task that is stopped is queued again and goes on
# from its last finished part.
#SBATCH --job-name=ppt-corpora
#SBATCH --cpus-per-task=16
#SBATCH --time=24:00:00
#SBATCH --requeue

set -uo pipefail

shard=$((SLURM_ARRAY_TASK_ID - SLURM_ARRAY_TASK_MIN))/$SLURM_ARRAY_TASK_COUNT
ppt corpora build "$@" --shard "$shard" --workers "${SLURM_CPUS_PER_TASK:-1}"
code=$?
if [[ $code -eq 75 ]]; then
    scontrol requeue "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"
fi
exit "$code"
