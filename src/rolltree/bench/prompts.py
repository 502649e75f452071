"""A user's own prompts as token ids: texts, chat messages or ids, in JSON lines or Parquet, a line or row each.

Logs of rollouts are read as well: their prompts, each once. Whatever cannot be read is an error that names file and
line; nothing is skipped in silence. Answers are left out, and so is what an assistant says last in a conversation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rolltree.errors import InvalidInputError, RolltreeError
from rolltree.replay.files import list_files, records
from rolltree.replay.messages import read_messages
from rolltree.replay.parsing import Found, Parser, kind_of
from rolltree.replay.reading import shown
from rolltree.replay.steps import StepSource, Where
from rolltree.replay.tokenizing import TextTokenizer
from rolltree.tokens import as_tokens
from rolltree.traces.lines import Broken

KEYS = (
    "prompt_token_ids", "input_ids", "messages", "prompt", "input_prompt", "input", "question", "problem", "query",
    "instruction", "text",
)  # fmt: skip
"""Where a record's prompt may stand; the first that is there counts."""
ALLOWED = f"a prompt: a text, a list of messages or of token ids, as it is or under {', '.join(KEYS)}"


@dataclass(slots=True)
class Prompts:
    """Distinct prompts, in the order of the files."""

    tokens: list[list[int]] = field(default_factory=list)
    places: list[str] = field(default_factory=list)
    """File and line of each."""
    kinds: dict[str, int] = field(default_factory=dict)
    """How many were texts, messages, token ids."""
    repeated: int = 0
    """Records whose prompt had been read before."""
    more: bool = False
    """The files hold more than were asked for."""

    def document(self) -> dict[str, object]:
        """What was read, for JSON."""
        return {
            "prompts": len(self.tokens),
            "prompt_tokens": sum(map(len, self.tokens)),
            "prompt_kinds": self.kinds,
            "repeated_prompts": self.repeated,
            "more_prompts": self.more,
        }


def read_prompts(paths: Sequence[Path], tokenizer: Callable[[], TextTokenizer], *, most: int) -> Prompts:
    """Read the first `most` distinct prompts.

    Args:
        paths: JSON lines (also .gz, .zst) or Parquet; of a folder, all in it.
        tokenizer: loads the model's tokenizer, where a prompt is not token ids.
        most: prompts to read.

    Raises:
        InvalidInputError: a line or row holds no prompt, or an empty one; there is none at all.
        OSError: a file does not exist, or may not be read.
        MissingDependencyError: a format or the tokenizer needs a package that is not installed.

    """
    found, reader, known = Prompts(), _Reader(tokenizer), set[tuple[int, ...]]()
    for place, record in _numbered(paths):
        kind, tokens = reader.read(record, place)
        if tuple(tokens) in known:
            found.repeated += 1
            continue
        if len(found.tokens) == most:
            found.more = True
            break
        known.add(tuple(tokens))
        found.tokens.append(tokens)
        found.places.append(place)
        found.kinds[kind] = found.kinds.get(kind, 0) + 1
    if not found.tokens:
        raise InvalidInputError("--prompts", ", ".join(map(str, paths)), "files with at least one prompt")
    return found


def _numbered(paths: Sequence[Path]) -> Iterator[tuple[str, object]]:
    for path in list_files(paths).files:
        for number, record in records(path):
            yield f"{path}:{number}", record


class _Reader:
    """Turns records into token ids; loads the tokenizer when it is first needed."""

    def __init__(self, load: Callable[[], TextTokenizer]) -> None:
        self._load = load
        self._tokenizer: TextTokenizer | None = None

    def read(self, record: object, place: str) -> tuple[str, list[int]]:
        """Return the kind and the tokens of a prompt."""
        try:
            kind, tokens = self._read(record)
        except RolltreeError as error:
            if isinstance(error, InvalidInputError) and not error.name.startswith("--"):
                raise InvalidInputError(place, shown(record), ALLOWED, str(error)) from error
            raise
        except (ValueError, RecursionError) as error:
            raise InvalidInputError(place, shown(record), ALLOWED, f"{error or type(error).__name__}.") from error
        if not tokens:
            raise InvalidInputError(place, shown(record), "a prompt of at least one token", "This one is empty.")
        return kind, tokens

    def _read(self, record: object) -> tuple[str, list[int]]:
        if isinstance(record, Broken):
            raise ValueError(f"it is not JSON: {record.why}")
        if isinstance(record, Mapping) and kind_of(record) == "masked":
            parsed = Parser(steps=StepSource("order")).parse(record, Where(Path(), 0))
            if not isinstance(parsed, Found):
                raise ValueError(getattr(parsed, "why", "an evaluation"))
            return "token ids", parsed.rollout.prompt.tolist()
        return self._value(*_prompt_of(record))

    def _value(self, name: str, value: object) -> tuple[str, list[int]]:
        if isinstance(value, str):
            return "text", self._text(value) if value.strip() else []
        if isinstance(value, Sequence) and value and isinstance(value[0], int):
            return "token ids", as_tokens(value, name).tolist()
        messages = _before_the_answer(value, name)
        return "messages", self._text(messages) if messages else []

    def _text(self, value: object) -> list[int]:
        if self._tokenizer is None:
            self._tokenizer = self._load()
        tokens: list[int] = self._tokenizer.prompt(value, special=True).tolist()
        return tokens


def _prompt_of(record: object) -> tuple[str, Any]:
    if not isinstance(record, Mapping):
        return "prompt", record
    name = next((key for key in KEYS if record.get(key) is not None), None)
    if name is None:
        raise ValueError(f"none of these keys is there; it has {', '.join(map(str, record)) or 'none'}")
    return name, record[name]


def _before_the_answer(value: object, name: str) -> list[Any]:
    """Messages up to what is to be generated."""
    messages = read_messages(value, name)
    if any(message.media for message in messages):
        raise ValueError(f"{name} holds pictures or sounds, which are not read here")
    end = max((at + 1 for at, message in enumerate(messages) if not message.generated), default=0)
    said = any(message.text.strip() for message in messages[:end])
    return list(value)[:end] if said else []  # type: ignore[call-overload]
