"""What is known of a request when it starts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rolltree.serving.request_options import DEFAULT, RequestOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedRequest:
    """What is known of a request when it starts."""

    prompt: Sequence[int] | None
    """Token ids; None for a prompt of embeddings, which no tree can hold."""
    options: RequestOptions = DEFAULT
    max_tokens: int | None = None
    """Tokens it may generate at most."""
    stop_ids: frozenset[int] = frozenset()
    """Tokens that end it."""
    min_tokens: int = 0
    """Generated tokens before which none of `stop_ids` counts."""
    session: str | None = None
    """The host's own id of the conversation, for requests whose options name none."""
    salt: int | None = None
    """A number that keeps apart what the host caches, for requests whose options name no version."""
    undrafted_at: int = 0
    """How many generated tokens no draft may reach; 0: any. For hosts that judge all tokens of a step by how many there
    were before it."""
    noise_seed: int | None = None
    """Seed of the murmur3 noise that the engine draws this request's tokens with; drafts then follow the noise."""
    end_of: Callable[[Sequence[int]], Sequence[int]] | None = None
    """Cuts what was generated where it really ended, for a request whose end no single token tells (stop strings). For
    hosts that do not keep the text themselves."""
    media: tuple[tuple[int, str], ...] = ()
    """Images and the like in the prompt: place of the first token that stands for each, and the hash of its content."""

    @property
    def has_text(self) -> bool:
        """Whether it takes part: it is drafted for, or remembered."""
        return self.prompt is not None and (self.options.draft or self.options.remembered)
