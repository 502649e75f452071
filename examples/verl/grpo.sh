#!/usr/bin/env bash
# GRPO on one node of GPUs, with rolltree. usage: bash grpo.sh [more overrides]
set -euo pipefail
source "$(dirname "$0")/common.sh"

python -m verl.trainer.main_ppo \
  "${COMMON[@]}" \
  algorithm.adv_estimator=grpo \
  data.train_batch_size=256 data.max_prompt_length=1024 data.max_response_length=4096 \
  actor_rollout_ref.actor.optim.lr=1e-6 \
  actor_rollout_ref.actor.ppo_mini_batch_size=64 \
  actor_rollout_ref.actor.use_kl_loss=True actor_rollout_ref.actor.kl_loss_coef=0.001 \
  actor_rollout_ref.rollout.n=8 \
  actor_rollout_ref.rollout.tensor_model_parallel_size=1 \
  trainer.experiment_name=grpo trainer.total_epochs=10 \
  "${ROLLTREE_LINES[@]}" "$@"
