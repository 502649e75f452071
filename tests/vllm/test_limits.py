"""A batch is driven past each limit of a step in real vLLM: what is scheduled stays within it, and nobody waits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from rolltree.serving.limits import BYTES_PER_LOGIT
from tests.vllm.engines import OPTIONS, accepted, engine, generate, logged, prompts, proposer

ROWS = 8


def watched(llm: Any, look: Callable[[list[str], Any], None]) -> None:
    """Show `look` who is running before each schedule, and the schedule."""
    scheduler = llm.llm_engine.engine_core.engine_core.scheduler
    schedule = scheduler.schedule

    def watching(*args: Any, **kwargs: Any) -> Any:
        running = [request.request_id for request in scheduler.running]
        output = schedule(*args, **kwargs)
        look(running, output)
        return output

    scheduler.schedule = watching


def test_no_request_waits_because_of_drafts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A token budget of 24 for 8 requests with up to 8 drafts each: all are in every step; without our limit not."""
    waited: list[str] = []

    def look(running: list[str], output: Any) -> None:
        waited.extend(id for id in running if id not in output.num_scheduled_tokens)

    with engine(max_num_seqs=ROWS, max_num_batched_tokens=24) as llm:
        watched(llm, look)
        right = generate(llm, prompts(ROWS), max_tokens=60)
        assert generate(llm, prompts(ROWS), max_tokens=60) == right
        assert not waited
        assert accepted(llm) > 100
        monkeypatch.setattr(proposer(llm), "_room", lambda *_: 10**6)
        assert generate(llm, prompts(ROWS), max_tokens=60) == right
        assert waited


def test_the_logits_of_a_step_stay_within_what_was_given() -> None:
    """`logits_bytes` for 20 positions bounds rows and drafts together; the start names the limits."""
    verified: list[int] = []

    def look(_: list[str], output: Any) -> None:
        drafts = output.scheduled_spec_decode_tokens.values()
        verified.append(len(output.num_scheduled_tokens) + sum(map(len, drafts)))

    vocab = 0
    with logged() as lines:
        for given in (0, 20):
            options = OPTIONS | {"logits_bytes": given * vocab * BYTES_PER_LOGIT}
            with engine(max_num_seqs=ROWS, additional_config={"rolltree": options}) as llm:
                vocab = proposer(llm).engine.vocab
                verified.clear()
                watched(llm, look)
                for _ in range(2):
                    generate(llm, prompts(ROWS), max_tokens=60)
                assert accepted(llm) > 100
                assert (max(verified) <= 20) == bool(given)
    text = "\n".join(lines)
    assert text.count("is ON") == 2
    assert f"{20 * vocab * BYTES_PER_LOGIT / 2**20:.4g} MiB for logits" in text
    assert f"logits of 20 positions for {ROWS} requests" in text
