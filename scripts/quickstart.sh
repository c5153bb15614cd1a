#!/usr/bin/env bash
# From nothing to a trained agent: sets up .venv, then trains MT10 on this machine's CPU or GPU
# (10 to 20 minutes on two CPU cores). Arguments go to `mtrl train`, e.g. --seed 2.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh" ""

# A folder of its own each time: nothing is overwritten, and TensorBoard can compare.
run="runs/quickstart/$(date +%Y%m%d-%H%M%S)"
exec .venv/bin/mtrl train configs/quickstart.yaml --run-dir "$run" "$@"
