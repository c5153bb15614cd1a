#!/usr/bin/env bash
# Builds the image with docker or buildah and uses it: a training run, an evaluation with videos,
# a SIGTERM and the resume after it. Prints every command. Minutes; not part of scripts/test.sh.
#
# BASE_IMAGE, TORCH (default cpu), APT_MIRROR, PIP_INDEX_URL, TORCH_INDEX_URL: build arguments.
# CA: file of the certificates that a mirror is signed with. WHEELS: folder of wheels to build from.
# ENGINE: docker or buildah; default: the one that works here. KEEP=1: leave image and runs.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { echo "+ $*" >&2; }
show() {
  say "$@"
  "$@"
}
fail() {
  echo "check_docker: $*" >&2
  exit 1
}

if [ -z "${ENGINE:-}" ]; then
  if command -v docker >/dev/null && docker info >/dev/null 2>&1; then
    ENGINE=docker
  elif command -v buildah >/dev/null; then
    ENGINE=buildah
  else
    fail "needs docker with a running engine, or buildah (Debian: apt install buildah)"
  fi
fi

arguments=(--build-arg "TORCH=${TORCH:-cpu}")
for name in BASE_IMAGE APT_MIRROR PIP_INDEX_URL TORCH_INDEX_URL; do
  if [ -n "${!name:-}" ]; then arguments+=(--build-arg "$name=${!name}"); fi
done
if [ -n "${CA:-}" ]; then arguments+=(--secret "id=ca,src=$CA"); fi
if [ -n "${WHEELS:-}" ]; then cp -v "$WHEELS"/*.whl docker/wheels/; fi

image=mtrl-check container=mtrl-check-$$
runs=$(mktemp -d)
chmod 777 "$runs" # the container's user is another
clean() {
  if [ -n "${WHEELS:-}" ]; then # these alone: others may lie there too
    for wheel in "$WHEELS"/*.whl; do rm -f "docker/wheels/${wheel##*/}"; done
  fi
  if [ -n "${KEEP:-}" ]; then
    say "kept: image $image, runs $runs"
    return
  fi
  if [ "$ENGINE" = docker ]; then
    docker rm -f "$container" >/dev/null 2>&1 || true
    docker rmi "$image" >/dev/null || true
  else
    buildah rm "$container" >/dev/null 2>&1 || true
    buildah rmi "$image" >/dev/null || true
  fi
  rm -rf "$runs"
}
trap clean EXIT

if [ "$ENGINE" = docker ]; then
  export DOCKER_BUILDKIT=1
  show docker build -f docker/Dockerfile -t "$image" "${arguments[@]}" .
  mtrl() { show docker run --rm --init -v "$runs:/runs" "$image" "$@"; }
  start() {
    show docker run --detach --init --name "$container" -v "$runs:/runs" "$image" "$@" >/dev/null
  }
  stop() {
    show docker stop --time 120 "$container" >/dev/null
    code=$(docker wait "$container")
    docker logs "$container"
  }
  show docker image ls "$image"
else
  # Works without an engine and without privileges over cgroups.
  export BUILDAH_ISOLATION=${BUILDAH_ISOLATION:-chroot}
  show buildah bud --layers --format docker -f docker/Dockerfile -t "$image" "${arguments[@]}" .
  show buildah images "$image"
  buildah from --name "$container" "$image" >/dev/null
  buildah config --volume /runs- "$container" # buildah prefers a declared volume to one given to it
  mtrl() { show buildah run -v "$runs:/runs" "$container" -- mtrl "$@"; }
  start() {
    mtrl "$@" &
    job=$!
  }
  stop() { # no process namespace of its own: the run's status names its process
    local pid
    pid=$(sed -n 's/.*"pid": \([0-9]*\).*/\1/p' "$status")
    show kill -TERM "$pid"
    code=0
    wait "$job" || code=$?
  }
fi

mtrl --version
mtrl list benchmarks | cut -c 1-80
mtrl train configs/smoke.yaml
mtrl evaluate runs/smoke/unitary/seed_1 --episodes-per-task 2 --video
ls -l "$runs"/smoke/unitary/seed_1/videos/*
[ -s "$runs"/smoke/unitary/seed_1/videos/*/grid.mp4 ] || fail "no video was written"

again=(train configs/toy.yaml --resume-if-exists --train.total-steps 8000)
status=$runs/toy/unitary/seed_1/status.json
start "${again[@]}"
for _ in $(seq 600); do
  if grep -Eq '"step": [1-9]' "$status" 2>/dev/null; then break; fi
  sleep 0.5
done
stop
cat "$status" && echo
[ "$code" = 143 ] || fail "after SIGTERM the exit code is $code, not 143"
grep -q '"status": "stopped"' "$status" || fail "the run was not stopped cleanly"
mtrl "${again[@]}" 2>&1 | tee "$runs/resume.log"
grep -q 'resumed at step [1-9]' "$runs/resume.log" || fail "the run did not continue"
grep -q '"status": "finished"' "$status" || fail "the resumed run did not finish"
echo "check_docker: all of it worked with $ENGINE"
