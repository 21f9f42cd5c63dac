#!/usr/bin/env bash
# One GPU:
#   bash launch/one-gpu.sh runs/teacher --config cifar10-resnet19 --config cifar10-resnet19-teacher
# The first word is the run's folder; the same command again goes on with the run.
set -euo pipefail
run=${1:?the folder of the run is wanted}
shift
exec ckdlite fit "$@" --run "$run" --trainer.accelerator gpu --trainer.devices 1
