#!/usr/bin/env bash
# Run every benchmark and keep its JSON document, the last line that it prints.
#
# usage: scripts/bench.sh ROLLTREE FOLDER
set -euo pipefail
rolltree=$1
folder=$2
for name in index draft engine; do
  "$rolltree" bench "$name" --json | tee /dev/stderr | tail -n 1 > "$folder/$name.json.new"
  mv "$folder/$name.json.new" "$folder/$name.json"
done
