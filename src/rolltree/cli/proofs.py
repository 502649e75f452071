"""What `rolltree doctor` runs to see that a part works. Importing this loads no framework."""

from __future__ import annotations

from collections.abc import Iterable

from rolltree.findings import Finding


def core() -> Iterable[Finding]:
    """Draft once for real: a repeated text must be drafted from."""
    try:
        import numpy as np

        from rolltree import TreeDrafter

        drafter = TreeDrafter()
        for _ in range(4):
            drafter.cache.add([1, 2, 3], [4, 5, 6])
        batch = drafter.draft(np.array([drafter.open([1, 2, 3])]), np.array([2], np.int32))
        drafts = batch.tokens[0, : batch.lengths[0]].tolist()
    except Exception as error:  # report any failure: this is what the command is for
        fix = "pip install --force-reinstall rolltree"
        return [Finding("native core", "broken", f"{type(error).__name__}: {error}", fix)]
    if drafts != [4, 5]:
        return [Finding("native core", "broken", f"drafted {drafts} instead of [4, 5]", "report a bug")]
    return [Finding("native core", "ok", "drafts flow")]


def store() -> Iterable[Finding]:
    """Write a rollout, read it back."""
    import sqlite3
    import tempfile
    from pathlib import Path

    from rolltree import RolloutStore

    folder = tempfile.TemporaryDirectory(prefix="rolltree-doctor-")
    with folder, RolloutStore(Path(folder.name) / "rollouts.db") as made:
        made.add([1], [2, 3])
        found = [rollout.token_ids.tolist() for rollout in made]
    state = "ok" if found == [[2, 3]] else "broken"
    return [Finding("durable store", state, f"wrote and read; SQLite {sqlite3.sqlite_version}")]


def engine() -> Iterable[Finding]:
    """Generate twice on a random tiny model: the same tokens with drafts, in fewer forward passes."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from rolltree import Engine, EngineConfig, Request, SamplingParams, TreeDrafter

    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=23, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=128, initializer_range=0.2,
        )
    )  # fmt: skip
    requests = [Request([1, 2, prompt], SamplingParams(seed=prompt, max_tokens=40)) for prompt in range(4)]
    plain = Engine(model, EngineConfig(slots=4)).generate(requests)
    fast = Engine(model, EngineConfig(slots=4), TreeDrafter())
    fast.generate(requests)
    fast.stats.reset()
    same = [r.token_ids for r in fast.generate(requests)] == [r.token_ids for r in plain]
    rate = fast.stats.tokens / fast.stats.row_steps
    device = "CUDA" if torch.cuda.is_available() else "no CUDA device; the CPU works"
    found = f"{rate:.1f} tokens per request and pass on a repeated batch, rollouts {'identical' if same else 'DIFFER'}"
    return [
        Finding("built-in engine", "ok" if same and rate > 2 else "broken", found),
        Finding("torch sees", "ok", device),
    ]


def trl() -> Iterable[Finding]:
    """See that the trainer takes a rollout function."""
    import inspect

    from trl import GRPOTrainer

    import rolltree.trl  # noqa: F401  # its own imports must work

    if "rollout_func" in inspect.signature(GRPOTrainer.__init__).parameters:
        return [Finding("TRL adapter", "ok", "GRPOTrainer takes rollout_func")]
    return [Finding("TRL adapter", "broken", "GRPOTrainer has no rollout_func", "pip install 'trl>=1.10'")]
