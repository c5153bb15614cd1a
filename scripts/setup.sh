# Sourced by quickstart.sh and test.sh: makes .venv in the repository and installs mtrl into it,
# with the versions pinned in constraints.txt. Does nothing when all is in place.
# Usage: source scripts/setup.sh [extra]      e.g. dev

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
extra=${1:-}
export PIP_DISABLE_PIP_VERSION_CHECK=1
export MTRL_CACHE="$root/.cache"
export TORCHINDUCTOR_CACHE_DIR="$root/.cache/inductor"
export MPLCONFIGDIR="$root/.cache/matplotlib"
unset PYTHONDONTWRITEBYTECODE # some images set it: every process would compile PyTorch's modules again

fail() {
  echo "mtrl set-up: $*" >&2
  exit 1
}

supported() { # Meta-World 3.1 needs Python < 3.14
  "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null
}

find_python() {
  local candidate
  for candidate in ${PYTHON:+"$PYTHON"} python3 python3.13 python3.12 python3.11; do
    if command -v "$candidate" >/dev/null && supported "$candidate"; then
      echo "$candidate"
      return
    fi
  done
  fail "needs Python 3.11, 3.12 or 3.13; found: $(python3 --version 2>&1 || true)." \
    "Install one (Debian/Ubuntu: apt install python3 python3-venv) or set PYTHON=/path/to/python3.12"
}

make_venv() {
  local python
  python=$(find_python) || exit 1
  "$python" -c 'import venv, ensurepip' 2>/dev/null ||
    fail "$python has no venv module. Debian/Ubuntu: apt install python3-venv"
  rm -rf "$root/.venv"
  echo "making $root/.venv with $("$python" --version)"
  "$python" -m venv "$root/.venv" || fail "cannot make $root/.venv"
}

install() {
  local free_kib
  free_kib=$(df -Pk "$root" | awk 'NR == 2 { print $4 }')
  [ "$free_kib" -ge $((3 * 1024 * 1024)) ] ||
    fail "only $((free_kib / 1024)) MiB of disk are free at $root; at least 3 GiB are needed"
  echo "installing mtrl${extra:+ with the $extra extra} (a few minutes the first time)"
  # A new pip first: an old one takes three times as long to resolve so many packages.
  # Python compiles what it imports, which is a small part of all these files.
  local pip=("$root/.venv/bin/python" -m pip install --quiet --no-compile
    --constraint "$root/constraints.txt")
  "${pip[@]}" --upgrade pip && "${pip[@]}" --editable "$root${extra:+[$extra]}" ||
    fail "pip could not install the packages; see above"
}

if ! supported "$root/.venv/bin/python"; then
  make_venv
fi
wanted=$(cat "$root/pyproject.toml" "$root/constraints.txt" | sha256sum | cut -d ' ' -f 1)
stamp="$root/.venv/.installed${extra:+-$extra}"
if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
  install
  echo "$wanted" >"$stamp"
fi
cd "$root" || exit 1
