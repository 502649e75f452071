"""Whatever a log holds, a record is a rollout or a reason. `make fuzz-readers` runs this for longer."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import rolltree
from rolltree.errors import RolltreeError
from rolltree.replay.files import records
from rolltree.replay.parsing import Bad, Evaluation, Found, Parser
from rolltree.replay.reading import TraceReader
from rolltree.replay.steps import Where
from rolltree.replay.tokenizing import TextTokenizer
from rolltree.replay.trl_log import classify
from rolltree.traces.lines import decode

EXAMPLES = int(os.environ.get("ROLLTREE_FUZZ_EXAMPLES", "0"))
fuzz = settings(
    max_examples=EXAMPLES or 60, derandomize=not EXAMPLES, deadline=None, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
MESSAGES = [
    {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "add", "arguments": '{"a": 1}'}}]},
    {"role": "tool", "content": [{"type": "text", "text": "2"}, {"type": "image"}]},
    {"role": "assistant", "content": "so 2"},
]
GOOD = [
    {"prompt_id": "a", "step": 1, "sample": 0, "prompt_token_ids": [1], "token_ids": [2, 3, 4], "context": [[1, 2]]},
    {"step": 1, "token_ids": [1, 2, 3, 4], "loss_mask": [False, True, False, True]},
    {"input": "sum 1 2 = ", "output": "so 3", "step": 1},
    {"prompt": [{"role": "user", "content": "sum 1 2"}], "completion": MESSAGES, "step": 1},
    {"prompt": "sum", "response": MESSAGES, "global_step": 3.0},
    {"input_prompt": "sum", "output_response": "so", "step": "7"},
]
numbers = st.integers() | st.floats() | st.sampled_from([2**63, -(2**63), 10**400, 1e308])
scalars = st.none() | st.booleans() | numbers | st.text() | st.sampled_from(["\ud800", "assistant", "tool", "text"])
keys = st.sampled_from(sorted({key for record in GOOD for key in record} | {"role", "content", "type"})) | st.text()
values = st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(keys, inner), max_leaves=20)


def parser() -> Parser:
    pytest.importorskip("tokenizers")
    return Parser(TextTokenizer(str(Path(rolltree.__file__).parent / "demo" / "model" / "tokenizer.json")))


@pytest.fixture(scope="module")
def reading() -> Parser:
    return parser()


def check(found: object) -> None:
    """A typed result, and a rollout that a drafter can take."""
    assert isinstance(found, Found | Evaluation | Bad)
    if isinstance(found, Bad):
        assert found.why
    if isinstance(found, Found):
        rollout = found.rollout
        assert rollout.tokens.dtype == rollout.prompt.dtype == np.int32
        assert isinstance(rollout.step, int)
        assert isinstance(rollout.sample, int)
        edges = [0, *(edge for span in rollout.context for edge in span)]
        assert edges == sorted(edges)
        assert edges[-1] < max(1, len(rollout.tokens))
        assert sum(len(tokens) for tokens, _ in rollout.segments()) == len(rollout.tokens)
        assert sum(len(tokens) for tokens, context in rollout.segments() if not context) == rollout.generated


@fuzz
@given(value=values)
def test_any_value(reading: Parser, value: object) -> None:
    check(reading.parse(value, Where(Path("r.jsonl"))))


@fuzz
@given(line=st.binary(max_size=200))
def test_any_bytes(reading: Parser, line: bytes) -> None:
    check(reading.parse(decode(line), Where(Path("r.jsonl"))))


@pytest.mark.parametrize("good", GOOD)
def test_the_good_ones_are_good(reading: Parser, good: dict[str, object]) -> None:
    found = reading.parse(good, Where(Path("r.jsonl")))
    assert isinstance(found, Found)
    assert found.rollout.generated
    check(found)


@fuzz
@given(good=st.sampled_from(GOOD), key=keys, value=values, drop=st.booleans())
def test_a_good_record_with_a_field_that_is_not(
    reading: Parser, good: dict[str, object], key: str, value: object, drop: bool
) -> None:
    record = {**good, key: value}
    if drop:
        del record[key]
    check(reading.parse(record, Where(Path("global_step_3/5.jsonl"))))


@fuzz
@given(
    place=st.integers(0, 2), key=st.sampled_from(["role", "content", "tool_calls", "reasoning_content"]), value=values
)
def test_a_conversation_with_a_message_that_is_none(reading: Parser, place: int, key: str, value: object) -> None:
    messages = [dict(message) for message in MESSAGES]
    messages[place][key] = value
    for prompt, answer in ((messages, "so"), ("sum", messages), (messages, messages), (messages[0], messages)):
        check(reading.parse({"prompt": prompt, "completion": answer, "step": 1}, Where(Path("r.jsonl"))))


@fuzz
@given(good=st.sampled_from(GOOD), cut=st.integers(0, 80), junk=st.binary(max_size=8))
def test_a_good_line_with_damage(reading: Parser, good: dict[str, object], cut: int, junk: bytes) -> None:
    line = json.dumps(good).encode()
    check(reading.parse(decode(line[:cut] + junk + line[cut + len(junk) :]), Where(Path("r.jsonl"))))


def test_a_line_nested_beyond_any_stack(reading: Parser) -> None:
    for line in (b"[" * 300_000, b'{"a":' * 300_000, b'{"prompt":' + b"[" * 500 + b"]" * 500 + b',"completion":"a"}'):
        check(reading.parse(decode(line), Where(Path("r.jsonl"))))


@fuzz
@given(lines=st.lists(st.binary(max_size=60) | st.sampled_from([json.dumps(good).encode() for good in GOOD])),
       name=st.sampled_from(["r.jsonl", "r.jsonl.gz", "r.jsonl.zst", "r.parquet"]), cut=st.integers(0, 20))  # fmt: skip
def test_any_file(tmp_path: Path, lines: list[bytes], name: str, cut: int) -> None:
    path = tmp_path / name
    data = b"\n".join(lines)
    data = gzip.compress(data) if name.endswith(".gz") else data
    path.write_bytes(data[: len(data) - cut])
    reader = TraceReader(parser().tokenizer, skip_bad_lines=True)
    try:
        rollouts = reader.read([path])
    except RolltreeError:
        return  # nothing to read, or a package that is not installed
    assert len(rollouts) + reader.account.skipped + reader.account.empty + reader.account.evaluation == len(
        list(records(path))
    )


rows = st.fixed_dictionaries({"prompt": st.sampled_from("abcd"), "completion": st.sampled_from("xy"), "step": numbers})


@fuzz
@given(files=st.lists(st.lists(rows | values, max_size=6), max_size=6))
def test_any_rows_of_a_trl_log_are_labelled(files: list[list[object]]) -> None:
    assert [len(labels) for labels in classify(files)] == [len(rows) for rows in files]
