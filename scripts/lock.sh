#!/usr/bin/env bash
# Pin requirements/*.in into requirements/*.txt, with hashes, for every platform and every Python from 3.10 on (those of
# vLLM from 3.11 on, as its CPU build).
#
# usage: scripts/lock.sh UV [--upgrade]     (pins that still fit are kept unless --upgrade is given)
set -euo pipefail
uv=$(realpath "$(command -v "$1")")
shift
cd "$(dirname "$0")/../requirements"

excludes=$(mktemp)
trap 'rm -f "$excludes"' EXIT

# pin NAME EXCLUDED-PACKAGES OPTION...: an excluded package is left out together with what only it needs
pin() {
  local name=$1 excluded=$2
  shift 2
  printf '%s\n' $excluded > "$excludes"
  "$uv" pip compile --quiet --universal --python-version "${python:-3.10}" --generate-hashes --no-header --no-annotate \
    --no-emit-index-url --no-emit-find-links --excludes "$excludes" "$@" --output-file "$name.txt" "$name.in" > /dev/null
  echo "requirements/$name.txt: $(grep -c '==' "$name.txt") pins"
}

pin lock "torch" "$@"
pin slim "" --constraints lock.txt
pin smollm2 "llm llama-cpp-python" --constraints lock.txt
# What vLLM names but the text path does without, see requirements/vllm.in.
unused="torchvision torchaudio torchcodec triton opencv-python-headless"
python=3.11 pin vllm "torch $unused" "$@"
for version in 0.24 0.26 0.29; do
  python=3.11 pin "vllm-$version" "torch $unused" "$@"
done
python=3.11 pin verl "torch $unused" "$@"
