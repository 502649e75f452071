"""Recorded text to token ids, with the policy's own tokenizer.

The text of a log has lost its special tokens and its exact token boundaries, so a replay of text is an estimate; a log
of token ids is exact.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rolltree.errors import InvalidInputError, MissingDependencyError
from rolltree.tokens import as_tokens
from rolltree.types import Int32Array


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

    def prompt(self, text: object) -> Int32Array:
        """Tokens of a prompt: text as it is, messages through the chat template where there is one."""
        if isinstance(text, str):
            return self._encode(text)
        messages = list(text)  # type: ignore[call-overload]
        if self._full is None or not self._full.chat_template:
            return self._encode(_joined(messages))
        rendered = self._full.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        return self._encode(rendered)

    def answer(self, text: object) -> Int32Array:
        """Tokens of an answer: text as it is, the contents of its messages one after the other."""
        return self._encode(text if isinstance(text, str) else _joined(list(text)))  # type: ignore[call-overload]

    def _encode(self, text: str) -> Int32Array:
        if self._fast is not None:
            return as_tokens(self._fast.encode(text, add_special_tokens=False).ids)
        return as_tokens(self._full.encode(text, add_special_tokens=False))


def _joined(messages: list[Any]) -> str:
    return "\n".join(str(message.get("content") or "") for message in messages)
