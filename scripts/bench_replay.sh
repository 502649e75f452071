#!/bin/sh
# The replays of docs/measured.md: scripts/bench_replay.sh ROLLTREE TRACES OUT
#
# ROLLTREE: the command. TRACES: a folder with aime24-step{400,800}.jsonl.gz and cognition-step{0,500}.jsonl.gz. OUT: where
# the JSON documents go. Reports every second prompt ("odd"); settings were chosen on the others. About 6 minutes, one
# thread, 2 GiB. Needs the peer (make bench-peer).
set -eu
rolltree=$1 traces=$2 out=$3

replay() {  # replay NAME NOW EARLIER SAMPLES: with history, and from nothing
    name=$1 now=$traces/$2.jsonl.gz earlier=$traces/$3.jsonl.gz samples=$4
    shift 4
    $rolltree replay "$now" --history "$earlier" --samples "$samples" --split odd "$@" --out "$out/replay_$name.json"
    $rolltree replay "$now" --samples "$samples" --split odd "$@" --out "$out/replay_${name}_cold.json"
}

# SuffixDecoding with vLLM's defaults, and with what was best on the other half.
drafters="rolltree,rolltree:shape=tree,rolltree:shape=tree:max_draft=64:min_survival=0.01,suffix,suffix:depth=64:factor=4,srt"
replay aime24 aime24-step800 aime24-step400 8 --drafter $drafters --batch 8 --batch 32 --batch 128
replay aime24_50 aime24-step800 aime24-step400 50 --drafter $drafters --batch 128 --batch 512
replay cognition cognition-step500 cognition-step0 3 --drafter $drafters --batch 32 --batch 512 --batch 1024

# Draft quality alone: all that is drafted is verified, all requests in lock step.
quality() {  # quality NAME NOW EARLIER SAMPLES
    tree64=rolltree:shape=tree:max_draft=64:min_survival=0.005
    $rolltree replay "$traces/$2.jsonl.gz" --history "$traces/$3.jsonl.gz" --samples "$4" --split odd --batch 0 --no-budget \
        --drafter "rolltree,rolltree:shape=tree:min_survival=0.01,$tree64,suffix,srt,history,ngram" \
        --out "$out/replay_quality_$1.json"
}
quality aime24 aime24-step800 aime24-step400 8
quality cognition cognition-step500 cognition-step0 3

# Nothing is lost while the batch is full and bound by compute: no history, no long tail.
$rolltree replay "$traces/aime24-step800.jsonl.gz" --max-tokens 128 --no-ceiling --drafter rolltree,suffix,srt,ngram \
    --batch 32 --batch 128 --batch 256 --batch 512 --batch 1024 --out "$out/replay_full.json"
