"""`rolltree bench engine --engine vllm`: real engines in processes of their own, on prompts of every form."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path

import pytest

from rolltree.bench.prompts import read_prompts
from rolltree.bench.vllm_engines import VllmRun, run_vllm
from rolltree.bench.vllm_worker import EngineSpec, engine_arguments
from rolltree.demo.assets import model_folder
from rolltree.errors import InvalidInputError
from rolltree.replay.tokenizing import TextTokenizer

ARGUMENTS = ("--dtype", "float32", "--enforce-eager", "--max-model-len", "128", "--distributed-executor-backend", "uni")
LINES = [
    {"prompt": "12+34="},
    "56+78=",
    {"messages": [{"role": "user", "content": "11+22="}, {"role": "assistant", "content": "33"}]},
    {"prompt_token_ids": [5, 6, 7, 8]},
]


def setting(folder: Path, **changes: object) -> VllmRun:
    """A small greedy run of the demo's model."""
    file = folder / "prompts.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in LINES))
    prompts = read_prompts([file], lambda: TextTokenizer(str(model_folder())), most=8)
    settings = {
        "model": str(model_folder()), "prompts": prompts, "samples": 2, "epochs": 2, "temperature": 0.0,
        "max_tokens": 24, "batches": (8,), "arguments": ARGUMENTS,
    }  # fmt: skip
    return VllmRun(**settings | changes)  # type: ignore[arg-type]


def test_every_way_is_measured_and_what_ends_early_keeps_what_is_done(tmp_path: Path) -> None:
    """The plain engine and rolltree to their end; n-gram is killed in its second epoch, suffix never starts."""
    said, ended = list[str](), 0

    def progress(what: str, rollouts: int) -> None:
        nonlocal ended
        said.append(what)
        ended += rollouts
        if what == "ngram batch 8: epoch 2 of 2":
            (child,) = multiprocessing.active_children()
            child.kill()
        if what == "suffix batch 8: starting":
            raise KeyboardInterrupt

    document = run_vllm(setting(tmp_path, drafters=("rolltree", "ngram", "suffix")), progress)
    assert document["prompt_kinds"] == {"text": 2, "messages": 1, "token ids": 1}
    cases = {(case["drafter"], case["epoch"]): case for case in document["cases"]}
    assert list(cases) == [
        ("none", 1), ("none", 2), ("rolltree", 1), ("rolltree", 2), ("ngram", 1), ("ngram", None),
    ]  # fmt: skip
    assert ended >= 5 * 8
    plain, ours = cases["none", 2], cases["rolltree", 2]
    assert (plain["tokens_per_step"], plain["speedup"], plain["runner"], plain["device"]) == (1.0, 1.0, "V1", "cpu")
    assert ours["tokens"] == plain["tokens"] > 0
    assert ours["identical_rollouts"] == plain["identical_rollouts"] == plain["rollouts"] == 8
    assert cases["none", 1]["identical_rollouts"] is None, "there is nothing to compare with"
    assert ours["tokens_per_step"] > 2, "the second epoch repeats the first"
    assert ours["drafted_per_step"] > 0
    assert "signal 9" in cases["ngram", None]["error"]
    assert document["partial"]
    assert document["best"]["drafter"] == "rolltree"
    assert isinstance(document["worth_it"], bool)
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--max-modl-len", "9"), "max-modl-len"),
        (("--max-model-len", "many"), "ENGINE ARGUMENTS"),
        (("--speculative-config", '{"method": "ngram", "num_speculative_tokens": 2}'), "left out"),
    ],
)
def test_bad_arguments_are_refused_by_name(arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        engine_arguments(EngineSpec(drafter="none", model=str(model_folder()), arguments=arguments))


def test_arguments_are_passed_on() -> None:
    model = str(model_folder())
    found = engine_arguments(EngineSpec(drafter="rolltree", model=model, slots=4, max_draft=7, arguments=ARGUMENTS))
    assert (found.max_num_seqs, found.max_model_len, found.enforce_eager) == (4, 128, True)
    assert found.speculative_config["num_speculative_tokens"] == 7
    own = engine_arguments(EngineSpec(drafter="none", model=model))
    assert (own.speculative_config, own.async_scheduling, own.max_num_seqs) == (None, None, None), "vLLM's own choice"
