#!/usr/bin/env bash
# What needs a GPU, in one command and within a budget of seconds: the GPU tests, the benchmark
# tables and a training run.
#
#   ./scripts/gpu.sh gpu_results              # an hour
#   BUDGET_S=480 ./scripts/gpu.sh gpu_results # eight minutes
#   DEVICE=cpu BUDGET_S=300 TRAIN=toy ./scripts/gpu.sh /tmp/rehearsal   # does every step start?
#
# It writes, as the results come: results.md (all tables), tests.txt, log.txt (what the steps said
# beside their tables) and failed.txt (steps that failed, if any); at the end success.png (curves of
# the run) and records.tar.gz (the run without its checkpoints). A step that its limit cuts leaves
# what it had measured; what a step leaves of its time goes to those after it. Called again, it
# measures again, and the run continues from its checkpoint.
#
# BUDGET_S  seconds for everything once the environment is there (3600)
# STEPS     which, in which order (tests learner loop host simulation sharing train); there are also
#           profile (operations of an update), smto (every method's cost) and supervised
# DEVICE    of the learner (cuda)
# METHODS   of the learner's table, the first one is the baseline (unitary pcgrad mgda famo ...)
# TRAIN     configuration and options of the run (best_mt10.yaml)
# METHOD    of the run (unitary); SEED (1)
# RUNS      where runs and their checkpoints are kept (runs/gpu)
# PYTHON    the interpreter (python or python3); where it lacks what mtrl needs, .venv is set up
set -euo pipefail
out=$(realpath -m "${1:-gpu_results}")
runs=$(realpath -m "${RUNS:-$(dirname "${BASH_SOURCE[0]}")/../runs/gpu}")
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
# Nothing is drawn here, and MuJoCo cannot be imported where this names a renderer that is missing.
export MUJOCO_GL=disable
python=${PYTHON:-$(command -v python || command -v python3 || true)}
if ! missing=$("$python" -c 'import mtrl.trainer, metaworld, pytest' 2>&1); then
  echo "gpu.sh: $python lacks something, so .venv is set up: ${missing##*$'\n'}" >&2
  source scripts/setup.sh dev
  python=$PWD/.venv/bin/python
  SECONDS=0
fi

budget=${BUDGET_S:-3600}
steps=${STEPS:-tests learner loop host simulation sharing train}
device=${DEVICE:-cuda}
cores=$(env -u OMP_NUM_THREADS nproc) # it would say that number instead
method=${METHOD:-unitary} seed=${SEED:-1}
read -ra methods <<<"${METHODS:-unitary pcgrad mgda famo nash_mtl fairgrad aligned_mtl graddrop}"
read -ra train <<<"${TRAIN:-configs/best_mt10.yaml}"
# Shares of what is left when a step's turn comes, among it and those after it.
declare -A share=([tests]=20 [learner]=30 [profile]=10 [smto]=15 [loop]=13 [host]=3 [simulation]=4
  [sharing]=11 [supervised]=10 [train]=48)
shares=0
for step in $steps; do
  if [ -z "${share[$step]:-}" ]; then
    echo "gpu.sh: unknown step '$step' in STEPS: allowed are ${!share[*]}" >&2
    exit 2
  fi
  shares=$((shares + share[$step]))
done

mkdir -p "$out" "$runs"
rm -f "$out"/{results.md,tests.txt,log.txt,failed.txt,success.png,records.tar.gz}
TMPDIR=$(mktemp -d) # what a step that is killed leaves there goes at the end
export TMPDIR
trap 'rm -rf "$TMPDIR"' EXIT
trap 'kill "$child" 2>/dev/null && wait "$child"; exit 143' TERM INT
pack_s=$((8 + budget / 40)) # for the curve and the archive
child=

bounded() { # FILE COMMAND...: at most $limit seconds; what it prints goes to OUT/FILE at once
  local file=$1 code=0
  shift
  echo "+ [$limit s] $*" | tee -a "$out/log.txt" >&2
  timeout --signal TERM --kill-after "$grace" $((limit - grace)) "$@" \
    >>"$out/$file" 2>>"$out/log.txt" &
  child=$!
  wait "$child" || code=$?
  case $code in
    0) ;;
    124 | 137) echo "cut after $((limit - grace)) s: $*" >>"$out/log.txt" ;;
    *) echo "exit code $code: $*" >>"$out/failed.txt" ;;
  esac
}

table() { # TITLE SCRIPT OPTIONS...
  printf '\n## %s\n\n`%s`\n\n' "$1" "${*:2}" >>"$out/results.md"
  bounded results.md "$python" "${@:2}"
}

run_step() {
  local minutes
  minutes=$(awk "BEGIN { print ($limit - $grace) * 0.95 / 60 }")
  case $1 in
    tests)
      # Only these: other files may import what a GPU machine lacks.
      mapfile -t files < <(grep -lE 'mark\.gpu' tests/test_*.py)
      bounded tests.txt "$python" -m pytest -m gpu -n 4 --dist load -vv -p no:cacheprovider "${files[@]}"
      ;;
    learner)
      table "Learner" bench/learner.py --device "$device" --minutes "$minutes" \
        --methods "${methods[@]}" --widths 400 1024 4096
      ;;
    profile) table "Operations of an update" bench/profile_update.py --device "$device" ;;
    smto)
      table "Methods" bench/smto.py --device "$device" --minutes "$minutes"
      ;;
    loop)
      table "Whole loop" bench/train.py --device "$device" --methods unitary \
        --envs-per-task 8 32 --seconds $((limit / 16 + 1))
      ;;
    host)
      table "Host, without simulation and updates" bench/host.py --device "$device" \
        --steps 600 --envs-per-task 32 8 1 160
      ;;
    simulation)
      table "Simulation" bench/env.py --steps 0 --vector-steps 500 \
        --envs-per-task 32 8 --workers "$cores"
      ;;
    sharing)
      table "Several learners" bench/sharing.py --device "$device" \
        --seconds $((limit / 30 + 1))
      ;;
    supervised)
      table "Supervised" bench/supervised.py --device "$device" --minutes "$minutes"
      ;;
    train)
      bounded log.txt "$python" -m mtrl train "${train[@]}" --agent.smto.name "$method" \
        --seed "$seed" --learner.device "$device" --resume-if-exists \
        --run-dir "$runs/$(basename "${train[0]}" .yaml)/$method/seed_$seed"
      ;;
  esac
}

{
  echo "# GPU results"
  echo
  nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader 2>/dev/null || true
  echo "$cores cores, budget $budget s"
} >"$out/results.md"
for step in $steps; do
  limit=$(((budget - pack_s - SECONDS) * share[$step] / shares))
  shares=$((shares - share[$step]))
  grace=$((limit / 5 < 20 ? limit / 5 + 1 : 20)) # of a step to end by itself when it is asked to
  if ((limit < 5)); then
    echo "no time left for: $step" | tee -a "$out/failed.txt" >&2
    continue
  fi
  run_step "$step"
done

grace=1
mapfile -t done_runs < <(find "$runs" -name metrics.jsonl -exec dirname {} \; | sort)
if ((${#done_runs[@]})); then
  limit=$((budget - SECONDS > 4 ? budget - SECONDS - 2 : 2))
  bounded log.txt "$python" scripts/plot_success.py "${done_runs[@]}" --out "$out/success.png"
  tar -czf "$out/records.tar.gz" --exclude checkpoints --exclude videos -C "$runs" .
fi
cat "$out/results.md"
echo "$SECONDS s of $budget; results are in $out" >&2
[ ! -e "$out/failed.txt" ] || { cat "$out/failed.txt" >&2 && exit 1; }
