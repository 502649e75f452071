#!/bin/sh
# The replays behind the README's tables: scripts/bench_replay.sh ROLLTREE TRACES OUT
#
# ROLLTREE: the command. TRACES: a folder with aime24-step{400,800}.jsonl.gz and cognition-step{0,500}.jsonl.gz. OUT: where
# the JSON documents go. Reports every second prompt ("odd"); settings were chosen on the others. About 10 minutes, one
# thread, 2 GiB. Needs the peer (make bench-peer).
set -eu
rolltree=$1 traces=$2 out=$3

replay() {  # replay NAME NOW EARLIER SAMPLES: with history, and from nothing
    name=$1 now=$traces/$2.jsonl.gz earlier=$traces/$3.jsonl.gz samples=$4
    shift 4
    $rolltree replay "$now" --history "$earlier" --samples "$samples" --split odd "$@" --out "$out/replay_$name.json"
    $rolltree replay "$now" --samples "$samples" --split odd "$@" --out "$out/replay_${name}_cold.json"
}

drafters="rolltree,suffix,suffix:factor=4,srt,history,ngram"
slots="--batch 8 --batch 32 --batch 128 --batch 512 --batch 1024"
replay aime24 aime24-step800 aime24-step400 8 --drafter $drafters --batch 8 --batch 32 --batch 128
replay aime24_50 aime24-step800 aime24-step400 50 --drafter $drafters $slots
replay cognition cognition-step500 cognition-step0 3 --drafter $drafters $slots

# Draft quality alone: all that is drafted is verified, all requests in lock step.
quality() {  # quality NAME OPTIONS...
    name=$1
    shift
    $rolltree replay "$traces/aime24-step800.jsonl.gz" --history "$traces/aime24-step400.jsonl.gz" --samples 8 --split odd \
        --batch 0 --no-budget "$@" --out "$out/replay_quality_$name.json"
}
quality chain --drafter $drafters
quality tree16 --drafter rolltree,suffix,srt --shape tree --max-draft 16
quality tree64 --drafter rolltree,suffix,srt --shape tree --max-draft 64
