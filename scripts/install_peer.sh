#!/usr/bin/env bash
# Install the peer of `rolltree bench` (arctic-inference's suffix decoding) into an environment that has torch.
#
# usage: scripts/install_peer.sh VENV REQUIREMENT
#
# It is built in an environment of its own, because its build needs an older nanobind and cmake than ours. Its build
# script imports torch, which is lent from VENV by a .pth file. Nothing else comes along: no vLLM, no dependencies.
set -euo pipefail
venv=$(realpath "$1")
requirement=$2

installed='import importlib.metadata, sys; sys.exit(importlib.metadata.version(sys.argv[1]) != sys.argv[2])'
if "$venv/bin/python" -c "$installed" "${requirement%%==*}" "${requirement##*==}" 2> /dev/null; then
  echo "$requirement is installed"
  exit 0
fi
echo "building $requirement (usually 1 minute)"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
site='import sysconfig; print(sysconfig.get_path("platlib"))'
"$venv/bin/python" -m venv "$work/build"
build=$work/build/bin
"$build/python" -m pip install -qq cmake==3.31.6 ninja nanobind==2.9.2 wheel grpcio-tools setuptools
"$venv/bin/python" -c "$site" > "$("$build/python" -c "$site")/lent.pth"
PATH="$build:$PATH" "$build/python" -m pip wheel -qq --no-build-isolation --no-deps -w "$work" "$requirement"
"$venv/bin/python" -m pip install -qq --no-deps "$work"/*.whl
"$venv/bin/python" -c 'from arctic_inference.suffix_decoding import SuffixDecodingCache'
echo "$requirement is installed"
