"""Train the demo's model from scratch and write it to src/rolltree/demo/model/.

    python scripts/train_demo_model.py [--steps N] [--out DIR]

Supervised training of a 1M-parameter Qwen2 on worked solutions of `rolltree.demo.task`, on one CPU thread.
The teacher slips (see `work_out`) and the training stops early, both on purpose: the demo needs a policy
that solves the task *partly*. Same seed, same torch, same machine: same weights. The problems of the demo's
own run are held out.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from pathlib import Path

import torch
from demo_teacher import work_out
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from rolltree.demo.task import ALPHABET, Problem, sample_problem, sample_problems

SEED = 0
PROMPT_SEED = 7  # of the demo's own prompts: measured on, never trained on
BATCH = 32
PEAK_RATE = 3e-3
WARM_UP = 30
SLIP = 0.01
MAX_NEW_TOKENS = 176
OUT = Path(__file__).parent.parent / "src" / "rolltree" / "demo" / "model"


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token per character of the task's alphabet, after <pad>, <eos>, <unk>."""
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<eos>", "<unk>", *ALPHABET])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    core.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", padding_side="left",
        model_input_names=["input_ids", "attention_mask"], model_max_length=512,
    )  # fmt: skip


def make_model(tokenizer: PreTrainedTokenizerFast) -> Qwen2ForCausalLM:
    """A freshly initialised Qwen2: width 128, 4 layers, 4 heads over 2 key-value heads, 0.99M parameters."""
    config = Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=128, intermediate_size=512, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512, tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id, bos_token_id=None,
    )  # fmt: skip
    return Qwen2ForCausalLM(config)


def make_batch(
    tokenizer: PreTrainedTokenizerFast, rng: random.Random, held_out: set[Problem]
) -> dict[str, torch.Tensor]:
    """[BATCH, T] input_ids and labels; right-padded, so causal attention needs no mask."""
    rows: list[tuple[list[int], list[int]]] = []
    while len(rows) < BATCH:
        problem = sample_problem(rng)
        if problem not in held_out:
            solution = tokenizer(work_out(problem, rng, SLIP))["input_ids"] + [tokenizer.eos_token_id]
            rows.append((tokenizer(problem.prompt)["input_ids"], solution))
    width = max(len(prompt) + len(solution) for prompt, solution in rows)
    ids = torch.full((BATCH, width), tokenizer.pad_token_id)
    labels = torch.full((BATCH, width), -100)
    for i, (prompt, solution) in enumerate(rows):
        end = len(prompt) + len(solution)
        ids[i, :end] = torch.tensor(prompt + solution)
        labels[i, len(prompt) : end] = ids[i, len(prompt) : end]
    return {"input_ids": ids, "labels": labels}


@torch.no_grad()
def accuracy(model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast, problems: list[Problem]) -> float:
    """Share of the problems that one sample each at temperature 1 solves."""
    model.eval()
    inputs = tokenizer([p.prompt for p in problems], return_tensors="pt", padding=True)
    ids = model.generate(**inputs, do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=MAX_NEW_TOKENS)
    texts = tokenizer.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    model.train()
    return sum(p.reward(text) for p, text in zip(problems, texts, strict=True)) / len(problems)


def rate(step: int, steps: int) -> float:
    """Share of the peak learning rate: linear warm-up, then linear down to 5 %."""
    return min(1.0, (step + 1) / WARM_UP) * max(0.05, 1 - step / steps)


def train(model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast, steps: int) -> None:
    """Train in place; prints one JSON record every 100 steps."""
    rng, start = random.Random(SEED), time.process_time()
    problems = sample_problems(64, PROMPT_SEED)
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_RATE, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step, steps))
    for step in range(1, steps + 1):
        batch = make_batch(tokenizer, rng, set(problems))
        loss = model(**batch, use_cache=False).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0 or step == steps:
            seconds = round(time.process_time() - start)
            solved = accuracy(model, tokenizer, problems * 2)
            record = {"step": step, "loss": round(loss.item(), 4), "cpu_seconds": seconds, "accuracy": solved}
            print(json.dumps(record), flush=True)


def main() -> None:
    """Train, store in bf16, reload as the demo will and say how good it is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1400)
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    tokenizer = make_tokenizer()
    model = make_model(tokenizer)
    print(f"{model.num_parameters() / 1e6:.2f}M parameters, vocabulary {len(tokenizer)}", flush=True)
    train(model, tokenizer, args.steps)
    model.to(torch.bfloat16).save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)
    stored = Qwen2ForCausalLM.from_pretrained(args.out, dtype=torch.float32)
    print(json.dumps({"stored_accuracy": accuracy(stored, tokenizer, sample_problems(64, PROMPT_SEED) * 8)}))


if __name__ == "__main__":
    main()
