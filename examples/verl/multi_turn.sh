#!/usr/bin/env bash
# GRPO over conversations with a tool (a calculator), on one node of GPUs, with rolltree.
# usage: bash multi_turn.sh [more overrides]
#
# Later turns draft from the tree of the first turn's prompt; the tool itself is never run ahead of time.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
source "$here/common.sh"

python -m verl.trainer.main_ppo \
  "${COMMON[@]}" \
  algorithm.adv_estimator=grpo \
  data.train_batch_size=128 data.max_prompt_length=1024 data.max_response_length=8192 \
  actor_rollout_ref.actor.optim.lr=1e-6 \
  actor_rollout_ref.actor.ppo_mini_batch_size=32 \
  actor_rollout_ref.rollout.n=8 \
  actor_rollout_ref.rollout.tensor_model_parallel_size=1 \
  actor_rollout_ref.rollout.multi_turn.enable=True \
  actor_rollout_ref.rollout.multi_turn.format=hermes \
  actor_rollout_ref.rollout.multi_turn.max_assistant_turns=8 \
  actor_rollout_ref.rollout.multi_turn.function_tool_path="$here/calculator_tool.py" \
  actor_rollout_ref.rollout.agent.default_agent_loop=tool_agent \
  trainer.experiment_name=multi-turn trainer.total_epochs=10 \
  "${ROLLTREE_LINES[@]}" "$@"
