#!/usr/bin/env bash
# PPO with a critic on one node of GPUs, with rolltree. usage: bash ppo.sh [more overrides]
#
# One sample a prompt: there are no siblings to draft from, so the gain comes from earlier epochs.
set -euo pipefail
source "$(dirname "$0")/common.sh"

python -m verl.trainer.main_ppo \
  "${COMMON[@]}" \
  algorithm.adv_estimator=gae \
  data.train_batch_size=512 data.max_prompt_length=1024 data.max_response_length=2048 \
  actor_rollout_ref.actor.optim.lr=1e-6 \
  actor_rollout_ref.actor.ppo_mini_batch_size=128 \
  actor_rollout_ref.rollout.n=1 \
  actor_rollout_ref.rollout.tensor_model_parallel_size=1 \
  critic.model.path="$MODEL" critic.optim.lr=1e-5 \
  critic.use_dynamic_bsz=True critic.model.enable_gradient_checkpointing=True \
  trainer.experiment_name=ppo trainer.total_epochs=10 \
  "${ROLLTREE_LINES[@]}" "$@"
