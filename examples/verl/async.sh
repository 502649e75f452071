#!/usr/bin/env bash
# GRPO with partial rollouts (verl's colocate_async trainer), with rolltree. usage: bash async.sh [more overrides]
#
# A rollout that is interrupted by a weight update goes on as a new request; it keeps its prompt's key and tree.
set -euo pipefail
exec bash "$(dirname "$0")/grpo.sh" trainer.v1.trainer_mode=colocate_async trainer.experiment_name=grpo-async "$@"
