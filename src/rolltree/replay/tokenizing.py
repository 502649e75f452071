"""Recorded text to token ids, with the policy's own tokenizer.

The text of a log has lost its special tokens and its exact token boundaries, so a replay of text is an estimate; a log
of token ids is exact.

An answer of several messages, or with tool calls, is written by the tokenizer's chat template where it has one and
the template only ever appends (some drop the reasoning of earlier turns); else plainly, message by message, with
`<think>` around reasoning and `<tool_call>` around the JSON of each tool call.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rolltree.errors import InvalidInputError, MissingDependencyError
from rolltree.replay.messages import Message, Piece, read_messages
from rolltree.tokens import as_tokens
from rolltree.traces.rollout import Span
from rolltree.types import Int32Array


@dataclass(frozen=True, slots=True)
class Answer:
    """A tokenised answer."""

    tokens: Int32Array
    """Shape [n]."""
    context: tuple[Span, ...]
    """Parts [start, stop) that were not generated."""
    media: int = 0
    """Pictures and sounds in its messages."""


class TextTokenizer:
    """A tokenizer.json, or anything that transformers' AutoTokenizer loads (a folder, a model's name).

    Raises:
        InvalidInputError: there is no such tokenizer.
        MissingDependencyError: the package that reads it is not installed.

    """

    def __init__(self, name: str) -> None:
        self._fast: Any = None
        self._full: Any = None
        try:
            if name.endswith(".json"):
                from tokenizers import Tokenizer

                self._fast = Tokenizer.from_file(str(Path(name)))
            else:
                from transformers import AutoTokenizer

                self._full = AutoTokenizer.from_pretrained(name)
        except ImportError as error:
            raise MissingDependencyError("--tokenizer needs transformers: pip install transformers") from error
        except Exception as error:  # both libraries raise bare exceptions of many kinds
            raise InvalidInputError(
                "--tokenizer", name, "a tokenizer.json, a folder or a model's name", str(error)
            ) from error

    def prompt(self, text: object, *, special: bool = False) -> Int32Array:
        """Tokens of a prompt: text as it is, messages through the chat template where there is one.

        `special`: with the tokens that the tokenizer puts around a text, as engines do; templates write their own.

        Raises:
            ValueError: neither text nor messages.

        """
        if isinstance(text, str):
            return self._encode(text, special=special)
        messages = read_messages(text, "prompt")
        rendered = self._rendered(messages, open_turn=True)
        if rendered is not None:
            return self._encode(rendered)
        return self._encode("\n".join(m.plain() for m in messages), special=special)

    def answer(self, text: object, prompt: object = "") -> Answer:
        """Tokens of an answer, and which of them are context: text as it is, messages by who wrote them.

        Raises:
            ValueError: neither text nor messages.

        """
        if isinstance(text, str):
            return Answer(self._encode(text), ())
        messages = read_messages(text, "completion")
        media = sum(m.media for m in messages)
        if len(messages) == 1 and messages[0].generated and not messages[0].calls:
            return Answer(self._encode(messages[0].plain()), (), media)
        earlier = [] if isinstance(prompt, str) else read_messages(prompt, "prompt")
        pieces = self._templated(earlier, messages) if earlier else None
        return self._joined(pieces or _plain(messages), media)

    def _templated(self, earlier: Sequence[Message], answer: Sequence[Message]) -> list[Piece] | None:
        """The answer as the chat template writes it; None where the template changes what it wrote before."""
        before, said = [*earlier], self._rendered(earlier, open_turn=True)
        pieces: list[Piece] = []
        for message in answer:
            if message.generated:
                start, end = self._rendered(before, open_turn=True), self._rendered([*before, message], open_turn=False)
                if said is None or start is None or end is None or not start.startswith(said):
                    return None
                if not end.startswith(start):
                    return None
                written = end[len(start) :].rstrip("\n")  # a line break after the turn's end is the template's
                pieces += [Piece(start[len(said) :], False), Piece(written, True)]
                said = start + written
            before.append(message)
        return pieces

    def _rendered(self, messages: Sequence[Message], *, open_turn: bool) -> str | None:
        if self._full is None or not self._full.chat_template:
            return None
        given = [message.for_template() for message in messages]
        try:
            text = self._full.apply_chat_template(given, add_generation_prompt=open_turn, tokenize=False)
        except Exception:  # templates refuse conversations with exceptions of their own (an order of roles, a role)
            return None
        return text if isinstance(text, str) else None

    def _joined(self, pieces: Sequence[Piece], media: int) -> Answer:
        parts, context, length = list[Int32Array](), list[Span](), 0
        for piece in pieces:
            tokens = self._encode(piece.text)
            if not piece.generated and len(tokens):
                touches = bool(context) and context[-1][1] == length
                start = context.pop()[0] if touches else length
                context.append((start, length + len(tokens)))
            parts.append(tokens)
            length += len(tokens)
        return Answer(np.concatenate(parts) if parts else as_tokens([]), tuple(context), media)

    def _encode(self, text: str, *, special: bool = False) -> Int32Array:
        if self._fast is not None:
            return as_tokens(self._fast.encode(text, add_special_tokens=special).ids)
        return as_tokens(self._full.encode(text, add_special_tokens=special))


def _plain(messages: Sequence[Message]) -> list[Piece]:
    """Message by message; line breaks between them are context."""
    pieces: list[Piece] = []
    for place, message in enumerate(messages):
        pieces += [Piece("\n", False)] if place else []
        pieces.append(Piece(message.plain(), message.generated))
    return pieces
