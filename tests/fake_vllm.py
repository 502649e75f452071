"""A fake of vLLM's scheduler, model runner and front end, for the proposer's tests where vLLM is not installed.

Test support, not vLLM: it does with requests what vLLM's V1 runner and scheduler do as far as the proposer can see
it (schedules, rows, worker-side texts that run past the end), with a model whose next token is a sum. What holds in
real vLLM is tested in `tests/vllm`.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from rolltree.vllm import compat, compat_ranks, hooks
from rolltree.vllm.proposer import Proposer

VOCAB = 50
LENGTH = 96
WIDTH = 4


class FakeTokenizer:
    """One letter a token."""

    def decode(self, tokens: list[int], *, skip_special_tokens: bool = True) -> str:
        return "".join(chr(65 + token) for token in tokens)


def fake_config(*, tokens: int = 512, rows: int = 8, width: int = WIDTH, **options: object) -> Any:
    """What the proposer reads of a `VllmConfig`."""
    return SimpleNamespace(
        additional_config={"rolltree": {"cost": "off", "metrics": False} | options},
        speculative_config=SimpleNamespace(num_speculative_tokens=width),
        model_config=SimpleNamespace(model="a/letters", get_vocab_size=lambda: VOCAB, max_model_len=LENGTH),
        scheduler_config=SimpleNamespace(max_num_seqs=rows, max_num_batched_tokens=tokens),
        parallel_config=SimpleNamespace(pipeline_parallel_size=1, world_size=1),
        cache_config=SimpleNamespace(gpu_memory_utilization=0.9),
    )


def fake_proposer(monkeypatch: pytest.MonkeyPatch, **settings: Any) -> Proposer:
    """The real proposer, told that vLLM offers what it needs and that this process drafts alone."""
    monkeypatch.setattr(hooks, "FOR_ALL", ())
    monkeypatch.setattr(hooks, "FOR_DRAFTING", ())
    monkeypatch.setattr(compat_ranks, "is_output_rank", lambda: True)
    monkeypatch.setattr(compat_ranks, "schedules_alone", lambda config: False)
    monkeypatch.setattr(compat, "tokenizer", lambda config: FakeTokenizer())
    monkeypatch.setattr(compat, "free_bytes", lambda share: 0)
    return Proposer(fake_config(**settings))


def next_token(text: list[int]) -> int:
    """The model: greedy, and decided by the text alone."""
    return (3 * text[-1] + 5 * text[-2] + len(text) // 7) % VOCAB


class FakeEngine:
    """Scheduler, runner and front end in one."""

    def __init__(self, proposer: Proposer, *, tokens: int = 512, rows: int = 8) -> None:
        self.proposer, self.budget, self.seqs = proposer, tokens, rows
        self.requests: dict[str, Any] = {}
        """The worker's own states, as the proposer sees them."""
        self.input_batch = SimpleNamespace(req_ids=list[str]())
        self.texts: dict[str, list[int]] = {}
        """What each request truly generated."""
        self.prompts: dict[str, list[int]] = {}
        self.waited = 0
        """Running requests that a schedule left out, summed over the steps."""
        self.positions: list[int] = []
        """Positions that each step verified."""
        self._matrix = np.full((rows, LENGTH + 8), 49, np.int32)
        self._states: dict[str, Any] = {}
        self._waiting: list[str] = []
        self._running: list[str] = []
        self._finished: set[str] = set()
        self._late: set[str] = set()
        self._sealed: set[str] = set()

    def add(self, id: str, prompt: list[int], *, max_tokens: int = 20, **sampling: Any) -> None:
        """Submit a request."""
        defaults = {"stop": [], "stop_token_ids": [], "eos_token_id": None, "min_tokens": 0, "extra_args": None}
        parameters = SimpleNamespace(**(defaults | {"max_tokens": max_tokens} | sampling))
        self._states[id] = SimpleNamespace(
            req_id=id, prompt_token_ids=prompt, output_token_ids=[], sampling_params=parameters, prompt_embeds=None,
            mm_features=[], num_computed_tokens=0, drafts=[],
        )  # fmt: skip
        self.texts[id], self.prompts[id] = [], prompt
        self._waiting.append(id)

    def abort(self, id: str) -> None:
        """The client goes away."""
        self._end(id)

    def preempt(self, id: str) -> None:
        """Take a running request's memory: it waits, and is computed anew."""
        self._running.remove(id)
        self._waiting.insert(0, id)
        self._states[id].num_computed_tokens, self._states[id].drafts = 0, []

    @property
    def busy(self) -> bool:
        """Whether requests are left."""
        return bool(self._running or self._waiting)

    def run(self) -> None:
        """Run all requests to their end, and tell the proposer of the last ones."""
        while self.busy:
            self.step()
        self.step()

    def step(self, *, ask: bool = True) -> list[list[int]]:
        """One step of the engine; `ask=False`: vLLM asks for no drafts, as near `max_model_len`."""
        schedule = self._schedule()
        self.proposer.rolltree_begin_step(self, schedule)
        for id in schedule.finished_req_ids:
            self.requests.pop(id, None)
        for id in schedule.num_scheduled_tokens:
            self.requests[id] = self._states[id]
        ids = list(schedule.num_scheduled_tokens)
        sampled = [self._compute(id, schedule) for id in ids]
        self.positions.append(len(ids) + sum(map(len, schedule.scheduled_spec_decode_tokens.values())))
        self.input_batch.req_ids = ids
        late, self._late = self._late, set()
        drafts = self._propose(ids, sampled) if ask else [[] for _ in ids]
        for id, new in zip(ids, sampled, strict=True):
            self._receive(id, new)
        for id in late:  # the front end saw a stop string one step ago
            self._end(id)
        for id, draft in zip(ids, drafts, strict=True):
            self._states[id].drafts = draft if id in self._running else []
        return drafts

    def _schedule(self) -> Any:
        budget, counts, drafts = self.budget, dict[str, int](), dict[str, list[int]]()
        before, new = dict[str, int](), []
        for id in self._running:
            state = self._states[id]
            length = len(state.prompt_token_ids) + len(state.output_token_ids)
            wanted = length + len(state.drafts) - state.num_computed_tokens
            count = min(wanted, budget, LENGTH - state.num_computed_tokens)
            if not count:
                self.waited += 1
                continue
            if draft := state.drafts[: max(0, count + state.num_computed_tokens - length)]:
                drafts[id] = draft
            before[id], counts[id], budget = state.num_computed_tokens, count, budget - count
        while self._waiting and budget and len(self._running) < self.seqs:
            id = self._waiting.pop(0)
            state = self._states[id]
            counts[id] = count = min(len(state.prompt_token_ids) + len(state.output_token_ids), budget)
            budget -= count
            self._running.append(id)
            if id in self.requests:
                before[id] = 0
            else:
                told = ("prompt_token_ids", "prompt_embeds", "mm_features", "sampling_params")
                shown = {name: getattr(state, name) for name in told}
                new.append(SimpleNamespace(req_id=id, num_computed_tokens=0, **shown))
        finished, self._finished = self._finished, set()
        return SimpleNamespace(
            scheduled_new_reqs=new,
            scheduled_cached_reqs=SimpleNamespace(
                req_ids=list(before), num_computed_tokens=list(before.values())
            ),
            num_scheduled_tokens=counts,
            total_num_scheduled_tokens=sum(counts.values()),
            scheduled_spec_decode_tokens=drafts,
            finished_req_ids=finished,
        )  # fmt: skip

    def _compute(self, id: str, schedule: Any) -> list[int]:
        """Verify the drafts and sample; nothing where the prompt is not read yet."""
        state, count = self._states[id], schedule.num_scheduled_tokens[id]
        text = [*state.prompt_token_ids, *state.output_token_ids]
        if state.num_computed_tokens + count < len(text):
            state.num_computed_tokens += count
            return []
        state.num_computed_tokens = len(text)
        new = list[int]()
        for token in [*schedule.scheduled_spec_decode_tokens.get(id, []), None]:
            new.append(next_token([*text, *new]))
            if token != new[-1]:
                break
        state.num_computed_tokens += len(new) - 1
        state.output_token_ids.extend(new)
        return new

    def _propose(self, ids: list[str], sampled: list[list[int]]) -> list[list[int]]:
        lengths = np.zeros(self.seqs, np.int32)
        for row, id in enumerate(ids):
            text = [*self._states[id].prompt_token_ids, *self._states[id].output_token_ids]
            lengths[row] = len(text)
            self._matrix[row, : len(text)] = text
        drafts = self.proposer.propose(sampled, lengths, self._matrix, slot_mappings=None)
        assert len(drafts) == len(ids)
        return drafts

    def _receive(self, id: str, new: list[int]) -> None:
        """The scheduler's and the front end's side: where does the text end?"""
        if id not in self._running or id in self._sealed:
            return
        sampling, text = self._states[id].sampling_params, self.texts[id]
        for token in new:
            text.append(token)
            spelt, old = FakeTokenizer().decode(text), sampling.min_tokens
            counts = len(text) >= old
            if len(text) > old and any(spelt.find(s, max(0, old - len(s) + 1)) >= 0 for s in sampling.stop):
                self._late.add(id)  # until the front end says so, the engine runs on
                self._sealed.add(id)
                return
            whole = len(text) + len(self.prompts[id])
            if len(text) >= sampling.max_tokens or whole >= LENGTH or (counts and token in sampling.stop_token_ids):
                self._end(id)
                return

    def _end(self, id: str) -> None:
        for queue in (self._running, self._waiting):
            if id in queue:
                queue.remove(id)
        self._finished.add(id)
