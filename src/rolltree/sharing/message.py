"""What engines and the exchange say to one another: plain data, which travels pickled inside a cluster.

A running rollout is a stream of pieces, each with its place in the text, so that a piece that comes twice, or overlaps
with what is known, never doubles text. Tokens are packed as in the store.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rolltree.errors import InvalidInputError
from rolltree.store.codec import pack_tokens, unpack_tokens
from rolltree.tokens import as_key, as_version
from rolltree.traces.rollout import Span, as_spans
from rolltree.types import Int32Array

OVERHEAD = 96
"""Bytes that a piece takes besides its text, about: names, places, the pickle's own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fingerprint:
    """Engines that may share: token ids mean the same, and the policy is one."""

    model: str
    """Last part of the model's name: its path may differ from node to node."""
    vocab: int
    """Words of its vocabulary."""

    def __str__(self) -> str:
        return f"{self.model or 'a model without a name'} with a vocabulary of {self.vocab}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """What is known of a rollout from its begin."""

    prompt: bytes
    """Its tokens, packed."""
    key: str | None
    """The user's id of the prompt."""
    version: int
    """Policy version that generates it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Tokens [start, stop) of a rollout."""

    stream: str
    """The rollout; a name that no other ever has."""
    name: str
    """Its prompt, as `rolltree.tokens.prompt_key` names it."""
    start: int
    stop: int
    text: bytes
    """The tokens, packed."""
    context: tuple[Span, ...] = ()
    """Parts of the tokens, counted from `start`, that were not generated."""
    head: Head | None = None
    """With the piece that begins the rollout."""
    is_done: bool = False
    """The rollout ends here and is kept."""

    @property
    def size(self) -> int:
        """Bytes of it, about."""
        return OVERHEAD + len(self.text) + (len(self.head.prompt) if self.head else 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Want:
    """What an engine has of a prompt that it is generating for."""

    seen: int = 0
    """Number of the last finished rollout that it knows of."""
    running: Mapping[str, int]
    """Streams of others that it follows, and the tokens it has of each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What an engine brings and asks for."""

    fingerprint: Fingerprint
    sender: str
    """A name that no other engine ever has."""
    pieces: Sequence[Piece]
    """News of its own rollouts."""
    dropped: Sequence[tuple[str, str]]
    """Its streams that ended without being kept: the prompt's name, and the stream's."""
    wants: Mapping[str, Want]
    """By the prompt's name."""
    most: int
    """Bytes that the answer may have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What the exchange answers."""

    fingerprint: Fingerprint
    exchange: str
    """A name that no other exchange ever has: one that was restarted knows nothing of before."""
    refused: str = ""
    """Why nothing was taken in; empty: all is well."""
    pieces: Sequence[Piece] = ()
    """In order within a stream."""
    seen: Mapping[str, int]
    """Prompt's name -> number of the last finished rollout that is told of, now or before."""
    gone: Sequence[str] = ()
    """Streams that were asked for and are no more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """A piece before it is packed, and after it was read and checked; see `Piece`, `Head`."""

    stream: str
    name: str
    start: int
    tokens: Int32Array
    context: tuple[Span, ...] = ()
    is_done: bool = False
    prompt: Int32Array | None = None
    """Only in the piece that begins the rollout."""
    key: str | None = None
    version: int = 0

    @property
    def stop(self) -> int:
        """Where it ends in the rollout."""
        return self.start + len(self.tokens)


def write(text: Text) -> Piece:
    """Pack a text to travel."""
    prompt, stop = text.prompt, text.stop
    head = None if prompt is None else Head(prompt=pack_tokens(prompt), key=text.key, version=text.version)
    return Piece(
        stream=text.stream, name=text.name, start=text.start, stop=stop, text=pack_tokens(text.tokens),
        context=text.context, head=head, is_done=text.is_done,
    )  # fmt: skip


def read(piece: Piece, vocab: int) -> Text:
    """Check a piece that came from elsewhere.

    Raises:
        InvalidInputError: it is damaged, or has a token that the model does not.

    """
    head, prompt, key, version = piece.head, None, None, 0
    if head is not None:
        prompt, key, version = _tokens("prompt", head.prompt, vocab), as_key(head.key), as_version(head.version)
    tokens = _tokens("text", piece.text, vocab)
    if piece.start < 0 or len(tokens) != piece.stop - piece.start:
        raise InvalidInputError("piece", f"{len(tokens)} tokens", f"those from {piece.start} to {piece.stop}")
    return Text(
        stream=piece.stream, name=piece.name, start=piece.start, tokens=tokens, is_done=piece.is_done,
        context=as_spans(piece.context, len(tokens)), prompt=prompt, key=key, version=version,
    )  # fmt: skip


def _tokens(name: str, blob: bytes, vocab: int) -> Int32Array:
    try:
        tokens = unpack_tokens(blob)
    except Exception as error:  # no bytes, damaged bytes
        raise InvalidInputError(f"piece.{name}", type(blob).__name__, "packed token ids", str(error)) from error
    if len(tokens) and not 0 <= int(tokens.min()) <= int(tokens.max()) < vocab:
        raise InvalidInputError(f"piece.{name}", int(tokens.max()), f"token ids from 0 to {vocab - 1}")
    return tokens
