"""Chat messages as text: who wrote what. Only an assistant's text was generated; all else in an answer is context.

A message is `{"role": …, "content": …}`. Content is a text, null, or a list of blocks; blocks of text are joined,
pictures and sounds are counted (the text of a log stands for any of them), other blocks are refused. An assistant's
reasoning and tool calls are generated text, too. Roles that are not known are refused: nobody guesses who wrote.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

GENERATED = frozenset({"assistant", "model", "ai"})
CONTEXT = frozenset(
    {"tool", "function", "observation", "environment", "env", "ipython", "user", "human", "system", "developer"}
)
_TEXTS = frozenset({"text", "input_text", "output_text"})
_THOUGHTS = frozenset({"thinking", "reasoning"})
_MEDIA = frozenset(
    {"image", "image_url", "input_image", "video", "video_url", "input_video", "audio", "audio_url", "input_audio"}
)


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of an answer."""

    text: str
    generated: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One message, read."""

    role: str
    text: str
    reasoning: str = ""
    calls: tuple[dict[str, Any], ...] = ()
    """Tool calls, each `{"name", "arguments"}`."""
    media: int = 0
    """Pictures and sounds in it."""

    @property
    def generated(self) -> bool:
        """Whether the policy wrote it."""
        return self.role in GENERATED

    def plain(self) -> str:
        """The text without a chat template: reasoning in `<think>`, each tool call as JSON in `<tool_call>`."""
        thought = f"<think>\n{self.reasoning}\n</think>\n\n" if self.reasoning else ""
        calls = [f"<tool_call>\n{json.dumps(call, ensure_ascii=False)}\n</tool_call>" for call in self.calls]
        return thought + "\n".join([*([self.text] if self.text else []), *calls])

    def for_template(self) -> dict[str, Any]:
        """As a chat template takes it."""
        made: dict[str, Any] = {"role": self.role, "content": self.text}
        if self.reasoning:
            made["reasoning_content"] = self.reasoning
        if self.calls:
            made["tool_calls"] = [{"type": "function", "function": dict(call)} for call in self.calls]
        return made


def read_messages(value: object, name: str) -> list[Message]:
    """Read a conversation; `name` is that of the field, for messages.

    Raises:
        ValueError: not a list of messages; a role or a block that is not known.

    """
    if isinstance(value, Mapping):
        raise ValueError(f"{name} is one message; a text or a list of messages is needed")
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise ValueError(f"{name} is {_kind(value)}; a text or a list of messages is needed")
    if value and all(isinstance(item, str) for item in value):
        raise ValueError(f"{name} is a list of texts; a line holds one rollout")
    return [_message(item, f"{name}[{place}]") for place, item in enumerate(value)]


def _message(item: object, name: str) -> Message:
    if not isinstance(item, Mapping):
        raise ValueError(f"{name} is {_kind(item)}; a message with role and content is needed")
    role = item.get("role")
    if not isinstance(role, str) or role.lower() not in GENERATED | CONTEXT:
        known = ", ".join(sorted(GENERATED | CONTEXT))
        shown = f"{role!r:.40}" if isinstance(role, str) else _kind(role)
        raise ValueError(f"{name}.role is {shown}, not one of {known}")
    text, thought, media = _content(item.get("content"), f"{name}.content")
    said = item.get("reasoning_content")
    thought = said if isinstance(said, str) and said else thought
    calls = _calls(item.get("tool_calls"), f"{name}.tool_calls")
    return Message(role=role.lower(), text=text, reasoning=thought, calls=calls, media=media)


def _content(content: object, name: str) -> tuple[str, str, int]:
    """Return (text, reasoning, media) of a message's content."""
    if content is None or isinstance(content, str):
        return content or "", "", 0
    if not isinstance(content, Sequence) or isinstance(content, bytes):
        raise ValueError(f"{name} is {_kind(content)}; a text or a list of blocks is needed")
    texts, thoughts, media = list[str](), list[str](), 0
    for place, block in enumerate(content):
        kind, text = _block(block, f"{name}[{place}]")
        texts += [text] if kind == "text" else []
        thoughts += [text] if kind == "thought" else []
        media += kind == "media"
    return "".join(texts), "".join(thoughts), media


def _block(block: object, name: str) -> tuple[str, str]:
    if isinstance(block, str):
        return "text", block
    if not isinstance(block, Mapping):
        raise ValueError(f"{name} is {_kind(block)}; a block with a type is needed")
    kind = block.get("type")
    if kind in _MEDIA:
        return "media", ""
    text = block.get("text")
    if kind in _THOUGHTS:
        text = text if isinstance(text, str) else block.get(str(kind))
    if kind not in _TEXTS | _THOUGHTS or not isinstance(text, str):
        shown = f"of type {kind!r:.40}" if isinstance(kind, str) else "whose type is not a text"
        raise ValueError(f"{name} is a block {shown}: not known, or without text")
    return "text" if kind in _TEXTS else "thought", text


def _calls(value: object, name: str) -> tuple[dict[str, Any], ...]:
    if value is None:
        return ()
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise ValueError(f"{name} is {_kind(value)}; a list of tool calls is needed")
    return tuple(_call(item, f"{name}[{place}]") for place, item in enumerate(value))


def _call(item: object, name: str) -> dict[str, Any]:
    """Read a call: an object, or the text of one (verifiers), with `function` around it or not."""
    call = _parsed(item)
    inner = _parsed(call["function"]) if isinstance(call, Mapping) and call.get("function") is not None else call
    if not isinstance(inner, Mapping) or not isinstance(inner.get("name"), str):
        raise ValueError(f"{name} is not a tool call with a name")
    return {"name": inner["name"], "arguments": _parsed(inner.get("arguments"))}


def _parsed(value: object) -> Any:
    """An object out of its JSON text; anything else as it is."""
    if not isinstance(value, str):
        return value
    try:
        found = json.loads(value)
    except (ValueError, RecursionError):
        return value
    return found if isinstance(found, dict) else value


def _kind(value: object) -> str:
    return "missing" if value is None else f"a {type(value).__name__}"
