"""Chat messages: only what the assistant wrote was generated."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("tokenizers")

import rolltree
from rolltree.replay.messages import read_messages
from rolltree.replay.tokenizing import Answer, TextTokenizer

CALL = {"id": "1", "type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
ANSWER = [
    {"role": "assistant", "content": "so 1+2 is ", "tool_calls": [CALL]},
    {"role": "tool", "content": [{"type": "text", "text": "tool says "}, {"type": "text", "text": "3"}]},
    {"role": "assistant", "content": "so 3"},
]
CHATML = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}"
    "{% for c in m.tool_calls or [] %}[{{ c.function.name }} {{ c.function.arguments | tojson }}]{% endfor %}</>\n"
    "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
FORGETFUL = "{% for m in messages %}{% if loop.last %}{{ m.content }}{% endif %}{% endfor %}"


@pytest.fixture(scope="module")
def plain() -> TextTokenizer:
    return TextTokenizer(str(Path(rolltree.__file__).parent / "demo" / "model" / "tokenizer.json"))


def templated(folder: Path, template: str) -> TextTokenizer:
    pytest.importorskip("transformers")
    from rolltree.demo.assets import load_tokenizer

    full = load_tokenizer()
    full.chat_template = template
    full.save_pretrained(folder / "tokenizer")
    return TextTokenizer(str(folder / "tokenizer"))


def parts(tokenizer: TextTokenizer, answer: Answer) -> tuple[list[str], list[str]]:
    """Texts that were generated, and those that were not."""
    decode = (tokenizer._fast or tokenizer._full).decode
    written, context, at = [], [], 0
    for start, stop in (*answer.context, (len(answer.tokens),) * 2):
        written += [decode(answer.tokens[at:start].tolist())] if start > at else []
        context += [decode(answer.tokens[start:stop].tolist())] if stop > start else []
        at = stop
    return written, context


def test_tool_output_is_context_and_tool_calls_are_generated(plain: TextTokenizer) -> None:
    written, context = parts(plain, plain.answer(ANSWER, "sum 1 2"))
    assert len(written) == 2
    assert len(context) == 1  # line breaks and the tool's text, in one part
    text = "".join(read_messages(ANSWER, "completion")[0].plain())
    assert (
        plain.answer(text).tokens.tolist() == plain.answer(ANSWER).tokens[: plain.answer(ANSWER).context[0][0]].tolist()
    )
    assert '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>' in text


def test_the_chat_template_writes_several_turns(tmp_path: Path) -> None:
    tokenizer = templated(tmp_path, CHATML)
    user = [{"role": "user", "content": "sum 1 2"}]
    prompt, answer = tokenizer.prompt(user), tokenizer.answer(ANSWER, user)
    whole = tokenizer._full.encode(
        '<user>sum 1 2</>\n<assistant>so 1+2 is [add {"a": 1}]</>\n<tool>tool says 3</>\n<assistant>so 3</>',
        add_special_tokens=False,
    )
    decode = tokenizer._full.decode
    assert decode([*prompt.tolist(), *answer.tokens.tolist()]) == decode(whole)
    ((start, stop),) = answer.context
    assert decode(answer.tokens[start:stop].tolist()) == decode(
        tokenizer._full.encode("\n<tool>tool says 3</>\n<assistant>", add_special_tokens=False)
    )


def test_a_template_that_changes_what_it_wrote_is_not_used(tmp_path: Path, plain: TextTokenizer) -> None:
    user = [{"role": "user", "content": "sum 1 2"}]
    found = templated(tmp_path, FORGETFUL).answer(ANSWER, user)
    assert found.tokens.tolist() == plain.answer(ANSWER).tokens.tolist()
    assert found.context == plain.answer(ANSWER).context


def test_blocks_are_joined_and_pictures_counted(plain: TextTokenizer) -> None:
    blocks = [
        {"type": "image"},
        {"type": "text", "text": "sum "},
        {"type": "text", "text": "1 2"},
        {"type": "image_url"},
    ]
    found = plain.answer([{"role": "assistant", "content": blocks}])
    assert found.tokens.tolist() == plain.answer("sum 1 2").tokens.tolist()
    assert (found.media, found.context) == (2, ())


def test_reasoning_is_generated(plain: TextTokenizer) -> None:
    expected = plain.answer("<think>\nso\n</think>\n\n3").tokens.tolist()
    for message in (
        {"role": "assistant", "content": "3", "reasoning_content": "so"},
        {"role": "assistant", "content": [{"type": "thinking", "thinking": "so"}, {"type": "text", "text": "3"}]},
    ):
        assert plain.answer([message]).tokens.tolist() == expected


@pytest.mark.parametrize("call", [CALL, CALL["function"], '{"name": "add", "arguments": "{\\"a\\": 1}"}'])
def test_tool_calls_of_all_loggers(call: object) -> None:
    (message,) = read_messages([{"role": "assistant", "content": None, "tool_calls": [call]}], "completion")
    assert message.calls == ({"name": "add", "arguments": {"a": 1}},)


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (["one", "two"], "a list of texts"),
        ({"role": "user", "content": "x"}, "is one message"),
        (3, "is a int"),
        (None, "is missing"),
        ([{"content": "x"}], r"completion\[0\].role is missing"),
        ([{"role": "critic", "content": "x"}], "role is 'critic', not one of ai, assistant"),
        ([{"role": "user", "content": {"text": "x"}}], r"completion\[0\].content is a dict"),
        ([{"role": "user", "content": [{"type": "tool_result"}]}], "'tool_result': not known"),
        ([{"role": "user", "content": [{"type": "text"}]}], "of type 'text': not known, or without text"),
        ([{"role": "assistant", "content": "", "tool_calls": [{"function": {}}]}], "not a tool call with a name"),
        ([{"role": "assistant", "content": "", "tool_calls": "add"}], "a list of tool calls"),
    ],
)
def test_what_is_no_conversation(value: object, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        read_messages(value, "completion")
