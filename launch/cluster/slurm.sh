#!/usr/bin/env bash
# Prompt pre-training on several Slurm nodes:
#
#     sbatch launch/cluster/slurm.sh pretrain.yaml steps=20000
#
# Submit it where the virtual environment's commands are on the path. Nodes need a shared file system and no ssh.
# A job that is stopped (time limit, preemption) saves, ends with exit code 75 and is queued again; it goes on from its
# checkpoint with the same result. Wrong input (2) is never queued again, another failure only after the signal to stop: it
# may be the stop's own doing, such as a node that was killed before it had saved.
#SBATCH --job-name=ppt-pretrain
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:TERM@300

set -uo pipefail

hosts="$PWD/hosts.$SLURM_JOB_ID"
scontrol show hostnames "$SLURM_JOB_NODELIST" | sed "s/\$/ slots=$SLURM_GPUS_ON_NODE/" >"$hosts"
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
port=$((20000 + SLURM_JOB_ID % 20000))

# One task a node; each starts the processes of its own node, which meet on the first one. No task is killed while others
# still save (--kill-on-bad-exit=0), and one that hangs holds nobody up when the others have ended (--wait, in seconds).
# shellcheck disable=SC2016 # SLURM_NODEID is known on the node only
srun --kill-on-bad-exit=0 --wait=120 bash -c \
    'exec ppt pretrain "${@:4}" --hostfile "$1" --no_ssh --node_rank "$SLURM_NODEID" --master_addr "$2" --master_port "$3"' \
    task "$hosts" "$first" "$port" "$@" &
step=$!

stopped=0
trap 'stopped=1; kill -TERM "$step"' TERM # 300 s before the time limit, and at preemption
wait "$step"
code=$?
while kill -0 "$step" 2>/dev/null; do # the signal ended the first wait, not the job
    wait "$step"
    code=$?
done
rm -f "$hosts"

if [[ $code -eq 75 || ($stopped -eq 1 && $code -ne 0 && $code -ne 2) ]]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
