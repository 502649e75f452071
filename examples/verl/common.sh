# What the examples of this folder share; `source` it. Set MODEL, TRAIN, VAL and GPUS to yours.
MODEL=${MODEL:-Qwen/Qwen2.5-7B-Instruct}
TRAIN=${TRAIN:-$HOME/data/gsm8k/train.parquet}
VAL=${VAL:-$HOME/data/gsm8k/test.parquet}
GPUS=${GPUS:-8}

# rolltree, in two lines: `rolltree verl-config` prints them, docs/verl.md explains them. ROLLTREE=0 leaves them out.
ROLLTREE_LINES=(
  trainer.v1.sampler.custom_sampler.path=pkg://rolltree.verl
  trainer.v1.sampler.custom_sampler.name=sampler
)
if [ "${ROLLTREE:-1}" = 0 ]; then ROLLTREE_LINES=(); fi

COMMON=(
  data.train_files="$TRAIN"
  data.val_files="$VAL"
  data.return_raw_chat=True
  actor_rollout_ref.model.path="$MODEL"
  actor_rollout_ref.model.use_remove_padding=True
  actor_rollout_ref.model.enable_gradient_checkpointing=True
  actor_rollout_ref.actor.use_dynamic_bsz=True
  actor_rollout_ref.rollout.name=vllm
  actor_rollout_ref.rollout.gpu_memory_utilization=0.6
  actor_rollout_ref.rollout.calculate_log_probs=True
  trainer.n_gpus_per_node="$GPUS"
  trainer.nnodes=1
  trainer.logger='["console","tensorboard"]'
)
