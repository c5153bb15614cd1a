#!/usr/bin/env bash
# The tests once in each mode of arithmetic, and the counts of each: they must hold on any processor.
# What pytest printed is kept in .cache/modes. MODES names some of the modes; arguments go to pytest:
#   ./scripts/test_modes.sh tests/test_smto.py
#   MODES="OMP_NUM_THREADS=2 MKL_CBWR=COMPATIBLE" ./scripts/test_modes.sh
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh" dev

all="ATEN_CPU_CAPABILITY=default ATEN_CPU_CAPABILITY=avx2 MKL_CBWR=COMPATIBLE
  ONEDNN_MAX_CPU_ISA=AVX2 OMP_NUM_THREADS=1 OMP_NUM_THREADS=2"
failed=0
mkdir -p .cache/modes
for mode in ${MODES:-$all}; do
  log=.cache/modes/$mode.log
  env "$mode" .venv/bin/python -m pytest "$@" >"$log" 2>&1 || failed=1
  printf '%-28s %s\n' "$mode" "$(tail -n 1 "$log")"
  grep -E '^(FAILED|ERROR)' "$log" || true
done
exit $failed
