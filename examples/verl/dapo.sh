#!/usr/bin/env bash
# DAPO (dynamic sampling, clip-higher, token-level loss) on one node of GPUs, with rolltree.
# usage: bash dapo.sh [more overrides]
set -euo pipefail
source "$(dirname "$0")/common.sh"

python -m verl.trainer.main_ppo \
  "${COMMON[@]}" \
  algorithm.adv_estimator=grpo \
  algorithm.filter_groups.enable=True algorithm.filter_groups.metric=reward \
  data.train_batch_size=256 data.max_prompt_length=2048 data.max_response_length=16384 \
  actor_rollout_ref.actor.optim.lr=1e-6 \
  actor_rollout_ref.actor.ppo_mini_batch_size=32 \
  actor_rollout_ref.actor.clip_ratio_low=0.2 actor_rollout_ref.actor.clip_ratio_high=0.28 \
  actor_rollout_ref.actor.loss_agg_mode=token-mean actor_rollout_ref.actor.use_kl_loss=False \
  actor_rollout_ref.rollout.n=16 \
  actor_rollout_ref.rollout.tensor_model_parallel_size=2 \
  trainer.experiment_name=dapo trainer.total_epochs=10 \
  "${ROLLTREE_LINES[@]}" "$@"
