#!/usr/bin/env bash
# One machine with eight GPUs:
#   bash launch/one-node.sh runs/teacher --config cifar10-resnet19 --config cifar10-resnet19-teacher
# The first word is the run's folder; the same command again goes on with the run.
set -euo pipefail
run=${1:?the folder of the run is wanted}
shift
# Without the -- torchrun would read --run as one of its own options.
exec torchrun --standalone --nproc_per_node=8 -m -- ckdlite.cli fit "$@" --run "$run" \
  --trainer.accelerator gpu --trainer.devices 8 --trainer.strategy ddp
