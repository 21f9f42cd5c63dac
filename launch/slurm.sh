#!/usr/bin/env bash
# Several machines under SLURM:
#   sbatch launch/slurm.sh runs/teacher --config cifar10-resnet19 --config cifar10-resnet19-teacher
# The first word is the run's folder. Change the numbers below to your cluster's.
#SBATCH --job-name=ckdlite
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=6
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%j.out
# To this shell alone, two minutes before the time is over.
#SBATCH --signal=B:USR1@120
set -euo pipefail
run=${1:?the folder of the run is wanted}
shift
# The job goes back into the queue and goes on from the last whole epoch. Pre-emption and scontrol
# requeue end every process by SIGTERM.
trap 'scontrol requeue "$SLURM_JOB_ID"' USR1
srun --kill-on-bad-exit=1 ckdlite fit "$@" --run "$run" --trainer.accelerator gpu \
  --trainer.num_nodes "$SLURM_NNODES" --trainer.devices "$SLURM_NTASKS_PER_NODE" \
  --trainer.strategy ddp &
wait $!
