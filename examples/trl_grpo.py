"""GRPO with TRL's own trainer, sampling through rolltree: the two lines that matter are marked."""

from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

from rolltree.demo.assets import load_model, load_tokenizer
from rolltree.demo.task import Problem, sample_problems
from rolltree.trl import RolloutFunction  # 1

problems = sample_problems(8, seed=7)


def reward(completions: list[str], numbers: list[list[int]], **_: object) -> list[float]:
    return [Problem(tuple(n)).reward(text) for n, text in zip(numbers, completions, strict=True)]


rollout = RolloutFunction(slots=32)  # 2: hand it to the trainer below
trainer = GRPOTrainer(
    model=load_model(),
    reward_funcs=reward,
    args=GRPOConfig(
        output_dir="runs/trl_grpo",
        use_cpu=True,
        bf16=False,
        per_device_train_batch_size=32,
        num_generations=8,
        max_completion_length=176,
        num_train_epochs=3,
        learning_rate=1e-4,
        save_strategy="no",
        report_to="none",
    ),
    train_dataset=Dataset.from_dict({"prompt": [p.prompt for p in problems], "numbers": [p.numbers for p in problems]}),
    processing_class=load_tokenizer(),
    rollout_func=rollout,
)
trainer.train()
for call in rollout.history:
    print(f"step {call.step}: {call.seconds:.2f} s, {call.tokens_per_step:.2f} tokens per request and step")
