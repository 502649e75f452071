"""One line or row of a log to a rollout, or to the reason why it is none. No exception leaves `Parser.parse`.

What a record is, its keys say:

| Kind | Keys | Token ids |
|---|---|---|
| `rolltree` | `prompt_token_ids`, `token_ids`; optional `context` | exact |
| `masked` (prime-rl's token export) | `token_ids`, `loss_mask` over prompt and answer | exact |
| `verl` | `input`, `output` | text |
| `chat` (TRL, verifiers, AReaL) | `prompt`, `completion` | text or messages |
| `response` | `prompt`, `response` | text or messages |
| `skyrl` | `input_prompt`, `output_response` | text or messages |
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rolltree.replay.messages import read_messages
from rolltree.replay.records import Rollout
from rolltree.replay.steps import StepSource, Where, whole
from rolltree.replay.tokenizing import Answer, TextTokenizer
from rolltree.tokens import as_tokens, prompt_key
from rolltree.traces.lines import Broken
from rolltree.traces.rollout import Span, as_spans
from rolltree.types import Int32Array

TEXTS = {
    "verl": ("input", "output"),
    "chat": ("prompt", "completion"),
    "response": ("prompt", "response"),
    "skyrl": ("input_prompt", "output_response"),
}
"""Kind: the keys of its prompt and of its answer."""
_SAID = ("is_eval", "is_evaluation", "is_validate", "validate", "eval")
_MODES = ("mode", "phase")


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A rollout, and how it was read."""

    rollout: Rollout
    kind: str
    step_from: str
    """In words: where its step stood."""
    media: int = 0
    """Pictures and sounds in its prompt and answer."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The record says that it is a rollout of the evaluation, which the training never generates."""


@dataclass(frozen=True, slots=True)
class Bad:
    """Why a record is no rollout."""

    why: str
    needs_tokenizer: bool = False
    """It would be one with a tokenizer."""


class _NeedsTokenizer(ValueError):
    pass


@dataclass(slots=True)
class Parser:
    """Turns records into rollouts; remembers prompts, so that all samples of one share an array."""

    tokenizer: TextTokenizer | None = None
    steps: StepSource = field(default_factory=StepSource)
    _prompts: dict[tuple[str, str], tuple[Int32Array, int]] = field(default_factory=dict)
    _samples: dict[tuple[str, int], int] = field(default_factory=dict)

    def parse(self, record: object, where: Where) -> Found | Evaluation | Bad:
        """Read one record; any value is allowed."""
        try:
            return self._read(record, where)
        except _NeedsTokenizer as error:
            return Bad(str(error), needs_tokenizer=True)
        except KeyError as error:
            return Bad(f"{error} is missing")
        except RecursionError:
            return Bad("nested too deeply")
        except Exception as error:  # numpy, tokenizers and chat templates have their own kinds
            return Bad(str(error) or type(error).__name__)

    def _read(self, record: object, where: Where) -> Found | Evaluation | Bad:
        if isinstance(record, Broken):
            return Bad(record.why)
        if not isinstance(record, Mapping):
            return Bad("not an object")
        if _is_evaluation(record):
            return Evaluation()
        kind = kind_of(record)
        if kind is None:
            return Bad(_unknown(record))
        step, step_from = self.steps.find(record, where, kind)
        name, prompt, answer = self._tokens(record, kind)
        sample = self._sample(record, kind, name, step)
        rollout = Rollout(
            prompt_id=name, prompt=prompt, tokens=answer.tokens, step=step, sample=sample, file=where.path.name,
            context=answer.context,
        )  # fmt: skip
        return Found(rollout=rollout.cut(len(rollout.tokens)), kind=kind, step_from=step_from, media=answer.media)

    def _tokens(self, record: Mapping[str, Any], kind: str) -> tuple[str, Int32Array, Answer]:
        if kind == "rolltree":
            return self._ours(record)
        if kind == "masked":
            return self._masked(record)
        question, reply = TEXTS[kind]
        return self._text(record[question], record[reply], (question, reply))

    def _ours(self, record: Mapping[str, Any]) -> tuple[str, Int32Array, Answer]:
        tokens, given = (as_tokens(record[name], name) for name in ("token_ids", "prompt_token_ids"))
        name = record["prompt_id"]
        if isinstance(name, bool) or not isinstance(name, str | int):
            raise ValueError(f"prompt_id is a {type(name).__name__}, not a text or a whole number")
        spans = _spans(record.get("context"), len(tokens))
        return str(name), self._shared(("", str(name)), given), Answer(tokens, spans)

    def _masked(self, record: Mapping[str, Any]) -> tuple[str, Int32Array, Answer]:
        """A whole sequence with a mask of what was generated: the prompt ends where it first was."""
        ids, mask = as_tokens(record["token_ids"], "token_ids"), record["loss_mask"]
        if not isinstance(mask, Sequence) or len(mask) != len(ids) or any(flag not in (0, 1) for flag in mask):
            raise ValueError(f"loss_mask is not a list of {len(ids)} truth values, one for each token")
        written = np.flatnonzero(np.array(mask, bool))
        begin, end = (int(written[0]), int(written[-1]) + 1) if len(written) else (len(ids), len(ids))
        name = prompt_key(ids[:begin])
        edges = np.flatnonzero(np.diff(np.array(mask[begin:end], np.int8))) + 1
        spans = tuple((int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=True))
        return name, self._shared(("", name), ids[:begin]), Answer(ids[begin:end], spans)

    def _text(self, prompt: object, reply: object, names: tuple[str, str]) -> tuple[str, Int32Array, Answer]:
        for value, name in zip((prompt, reply), names, strict=True):
            if not isinstance(value, str):
                read_messages(value, name)  # refuses what is no conversation by its own name
        if self.tokenizer is None:
            raise _NeedsTokenizer("text needs a tokenizer")
        name = prompt if isinstance(prompt, str) else json.dumps(prompt, sort_keys=True, default=str)
        known = self._prompts.get(("text", name))
        if known is None:
            media = 0 if isinstance(prompt, str) else sum(m.media for m in read_messages(prompt, names[0]))
            known = self._prompts["text", name] = self.tokenizer.prompt(prompt), media
        answer = self.tokenizer.answer(reply, prompt)
        return name, known[0], Answer(answer.tokens, answer.context, answer.media + known[1])

    def _shared(self, key: tuple[str, str], given: Int32Array) -> Int32Array:
        known = self._prompts.get(key)
        if known is None or not np.array_equal(known[0], given):
            known = self._prompts[key] = given, 0
        return known[0]

    def _sample(self, record: Mapping[str, Any], kind: str, name: str, step: int) -> int:
        if kind == "rolltree" and record.get("sample") is not None:
            return whole(record["sample"], "sample")
        self._samples[name, step] = self._samples.get((name, step), -1) + 1
        return self._samples[name, step]


def kind_of(record: Mapping[Any, Any]) -> str | None:
    """The kind of a record by its keys; None for one that is not known."""
    if "token_ids" in record:
        return "masked" if "loss_mask" in record and "prompt_token_ids" not in record else "rolltree"
    return next((kind for kind, keys in TEXTS.items() if all(key in record for key in keys)), None)


def _unknown(record: Mapping[Any, Any]) -> str:
    if "traces" in record or "nodes" in record:
        return "an episode of verifiers' message graph is not read; prime-rl's token export (token_exports/) is"
    pairs = ", ".join(" and ".join(keys) for keys in TEXTS.values())
    return f"'token_ids (or input and output, or prompt and completion)' is missing; known pairs: {pairs}"


def _is_evaluation(record: Mapping[Any, Any]) -> bool:
    named = (record.get(name) for name in _MODES)
    return any(record.get(name) is True for name in _SAID) or any(
        isinstance(mode, str) and mode.lower() in ("eval", "evaluation", "val", "validation") for mode in named
    )


def _spans(value: object, length: int) -> tuple[Span, ...]:
    """Parts that were not generated, put together where they touch."""
    spans: list[Span] = []
    for start, stop in as_spans(() if value is None else value, length):
        if spans and spans[-1][1] == start:
            spans[-1] = (spans[-1][0], stop)
        elif stop > start:
            spans.append((start, stop))
    return tuple(spans)
