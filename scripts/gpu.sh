#!/usr/bin/env bash
# What wants a GPU, in one command: the tests, the benchmark tables, and the full MT10 run for as
# long as HOURS says. Called again, it measures anew and the run goes on from its checkpoint.
#
#   ./scripts/gpu.sh results                          # tests.txt, *.md, runs/, report/ in results/
#   DEVICE=cpu HOURS=0.02 MINUTES=0.2 ./scripts/gpu.sh /tmp/rehearsal   # does every step start?
#
# HOURS (1) of training, MINUTES (4) for each benchmark, SEED (1), METHOD (unitary), DEVICE (cuda).
set -euo pipefail
out=$(realpath -m "${1:-results}")
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if ! python -c 'import mtrl, pytest' 2>/dev/null; then # an environment that is active goes first
  source scripts/setup.sh dev
  source .venv/bin/activate
fi
device=${DEVICE:-cuda} minutes=${MINUTES:-4} method=${METHOD:-unitary} seed=${SEED:-1}
seconds=$(python -c "print(5 * $minutes)") # for each row of bench_train
mkdir -p "$out"

step() { # NAME COMMAND...: what it prints goes to OUT/NAME; what fails does not end the rest
  local name=$1
  shift
  echo "+ $*" >&2
  "$@" 2>&1 | tee "$out/$name" || echo "FAILED: $*" | tee -a "$out/failed.txt"
}

rm -f "$out/failed.txt"
step tests.txt python -m pytest -m gpu -n 0
step learner.md python scripts/bench_learner.py --device "$device" --minutes "$minutes"
step profile.md python scripts/profile_update.py --device "$device" --trace "$out/traces"
step smto.md python scripts/bench_smto.py --device "$device" --minutes "$minutes"
step train.md python scripts/bench_train.py --device "$device" --seconds "$seconds"
step supervised.md python scripts/bench_supervised.py --device "$device" --minutes "$minutes"

run=$out/runs/mt10/$method/seed_$seed
end=0
timeout --signal TERM --kill-after 600 "${HOURS:-1}h" \
  mtrl train configs/mt10.yaml --agent.smto.name "$method" --seed "$seed" \
  --learner.device "$device" --run-dir "$run" --resume-if-exists || end=$?
[ "$end" = 0 ] || [ "$end" = 124 ] || exit "$end" # 124: the time is over, the run was saved
step report.txt mtrl report "$out/runs" --out "$out/report"
[ ! -e "$out/failed.txt" ] || { cat "$out/failed.txt" && exit 1; }
