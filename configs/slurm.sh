#!/bin/bash
# A run on two machines of four GPUs under Slurm: `sbatch configs/slurm.sh --dataset ava --path_to_images ...`, with the options of main_nni.py.
# Two minutes before its time is over the run is saved and the job queued again; the next job resumes it, to the same result.
#SBATCH --job-name=eat
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=eat-%j.log

folder=runs/slurm-$SLURM_JOB_ID
if compgen -G "$folder/checkpoints/*.pt" > /dev/null; then
    set -- --resume --experiment_dir_name "$folder"
else # --overwrite: an earlier start may have left files, but no checkpoint
    set -- "$@" --experiment_dir_name "$folder" --overwrite
fi
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MASTER_ADDR MASTER_PORT=$((10000 + SLURM_JOB_ID % 20000))
# export GLOO_SOCKET_IFNAME=ib0 NCCL_SOCKET_IFNAME=ib0  # if the names of the machines resolve to another network

trap 'requeue=yes; kill -TERM $(jobs -p)' USR1
# Slurm starts the processes itself, one for each GPU: torchrun would pass the signal on a second time, which ends a process unsaved.
# --wait: Slurm ends all processes a minute after the first one has ended.
srun --wait=60 --cpus-per-task="$SLURM_CPUS_PER_TASK" bash -c 'RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS exec python main_nni.py "$@"' - "$@" &
step=$!
wait $step
status=$?
while kill -0 $step 2> /dev/null; do # the signal ends `wait`, not the step
    wait $step
    status=$?
done
if [ "$requeue" ] && [ $status != 0 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit $status
