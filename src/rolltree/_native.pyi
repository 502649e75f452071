"""Native core: per-prompt trees, drafts, budget and the sampler's noise."""

from typing import Annotated

import numpy
from numpy.typing import NDArray


def murmur3_exponential(seed: int, position: int, token: int) -> float:
    """
    The exponential noise of one token as vLLM's sampler has it: -log of it is Gumbel noise.
    """

def murmur3_argmax(logits: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], seeds: Annotated[NDArray[numpy.int64], dict(shape=(None,), order='C', device='cpu', writable=False)], positions: Annotated[NDArray[numpy.int64], dict(shape=(None,), order='C', device='cpu', writable=False)], out: Annotated[NDArray[numpy.int64], dict(shape=(None,), order='C', device='cpu')]) -> None:
    """
    What vLLM's sampler draws from logits by the noise of (seed, position, token): float32[N, V], int64[N], int64[N] -> int64[N].
    """

def gumbel_noise(keys: Annotated[NDArray[numpy.uint64], dict(shape=(None,), order='C', device='cpu', writable=False)], vocab: int) -> Annotated[NDArray[numpy.float32], dict(shape=(None, None))]:
    """
    Gumbel noise for each (seed, position) key and token: uint64[N] -> float32[N, vocab].
    """

def allocate(survival: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], lengths: Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu', writable=False)], *, base: float, row: float, token: float, cell: float, ragged: float, floor: float, verified: Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu')]) -> None:
    """
    Cut drafts to the lengths of most goodput: float32[B, K], int32[B] -> int32[B].
    """

class Drafts:
    """
    Memory of a batch of drafts; the arrays are views that every draft overwrites.
    """

    def __init__(self, rows: int, width: int) -> None: ...

    @property
    def tokens(self) -> Annotated[NDArray[numpy.int32], dict(shape=(None, None))]:
        """int32[rows, width]"""

    @property
    def parents(self) -> Annotated[NDArray[numpy.int32], dict(shape=(None, None))]:
        """int32[rows, width]"""

    @property
    def survival(self) -> Annotated[NDArray[numpy.float32], dict(shape=(None, None))]:
        """float32[rows, width]"""

    @property
    def source(self) -> Annotated[NDArray[numpy.uint8], dict(shape=(None, None))]:
        """uint8[rows, width]"""

    @property
    def lengths(self) -> Annotated[NDArray[numpy.int32], dict(shape=(None,))]:
        """int32[rows]"""

class History:
    """
    A prompt's earlier rollouts as a tree beside any forest, for one thread; calls release the GIL.
    """

    def open(self, version: int, from_prompt: bool) -> None:
        """Begin a rollout after the prompt, or at the root."""

    def append(self, tokens: Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu', writable=False)], context: bool = False) -> None:
        """Append int32[n] tokens to the rollout that was begun last."""

class Forest:
    """
    Trees and sessions behind integer handles. Thread-safe; batch calls release the GIL.
    """

    def __init__(self, *, depth: int = 64, window: int = 64, decay: float = 1.0, context_weight: int = 16, shared_window: int = 0, own_bytes: int = 0, shared_bytes: int = 0) -> None: ...

    def add_tree(self, prompt: Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu', writable=False)], version: int = 0) -> int:
        """Index a prompt (int32[n]); returns the tree's handle."""

    def history(self, prompt: Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu', writable=False)], version: int) -> History:
        """
        Begin a history of a prompt (int32[n]), whose oldest rollout has this version.
        """

    def adopt(self, tree: int, history: History) -> None:
        """
        Put a history of the tree's prompt before what the tree holds; the history is empty afterwards.
        """

    def most_adopted(self) -> int:
        """Rollouts that a history may have."""

    def remove_tree(self, tree: int) -> None:
        """Forget a tree that has no live sessions."""

    def clear(self) -> None:
        """
        Forget all trees; no session may be live. Handles are never given out again, sums go on.
        """

    def finish(self) -> None:
        """Do all work that waits in trees now, however long it takes."""

    def relieve(self) -> None:
        """
        Start to make a tree with live sessions smaller by its oldest rollouts.
        """

    def own_bytes(self) -> int:
        """Bytes of the prompts' own trees. O(1)."""

    def bytes(self) -> int:
        """
        Bytes of all trees, the shared one and pages that are being given back included. O(1).
        """

    def open(self, tree: int, version: int = 0, reader: bool = False, from_prompt: bool = True, seed: int = 0, coupled: bool = False, run_ahead: bool = False, murmur3_offset: int | None = None) -> int:
        """
        Open a session after the tree's prompt (or at the root); returns its handle. Coupled: drafts follow rolltree's noise, or
        murmur3 of (seed, murmur3_offset + generated tokens, token), as vLLM draws.
        """

    def close(self, session: int, keep: bool = True) -> None:
        """End a session; keep or forget its text."""

    def append(self, session: int, tokens: Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu', writable=False)], context: bool = False) -> None:
        """Append int32[n] tokens to one session."""

    def append_token(self, session: int, token: int) -> None:
        """Append one token to one session."""

    def append_batch(self, sessions: Annotated[NDArray[numpy.int64], dict(shape=(None,), order='C', device='cpu', writable=False)], tokens: Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu', writable=False)], offsets: Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu', writable=False)]) -> None:
        """
        Append tokens[offsets[b]:offsets[b + 1]] to session b: int64[B], int32[n], int32[B + 1].
        """

    def draft_batch(self, sessions: Annotated[NDArray[numpy.int64], dict(shape=(None,), order='C', device='cpu', writable=False)], limits: Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu', writable=False)], min_survival: float, min_match: int, tree: bool, out: Drafts, raw: bool = False) -> None:
        """
        Draft for each session (int64[B], int32[B]) into the first B rows of `out`. raw: the paper's rule, shares after
        the longest suffix in the own tree, as they are.
        """

    def matches(self, sessions: Annotated[NDArray[numpy.int64], dict(shape=(None,), order='C', device='cpu', writable=False)], out: Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu')]) -> None:
        """
        Tokens of the longest suffix with a continuation in each session's own tree: int64[B] -> int32[B].
        """

    def draft_one(self, session: int, limit: int, min_survival: float, min_match: int, tree: bool, out: Drafts) -> None:
        """
        Draft for one session into the first row of `out`: a batch of one without the arrays.
        """

    def settle(self, sessions: Annotated[NDArray[numpy.int64], dict(shape=(None,), order='C', device='cpu', writable=False)], drafts: Drafts, rows: Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu', writable=False)], verified: Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu', writable=False)], emitted: Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu', writable=False)], offsets: Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu', writable=False)], accepted: Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu')]) -> None:
        """
        Judge drafts by the emitted tokens, learn from the verdicts, append the tokens. rows[b]: where the draft of
        session b is, or -1; verified[row]: how many of its nodes were verified.
        """

    def shared_prefix(self, tree: int, text: Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu', writable=False)]) -> tuple[int, int]:
        """
        (common prefix of text and the tree's prompt, length of that prompt), in tokens.
        """

    def check(self, tree: int) -> str:
        """Integrity walk; '' when sound, else the first fault."""

    def check_shared(self) -> str:
        """Integrity walk of the shared tree."""

    def stats(self, tree: int) -> dict[str, int]:
        """Bytes, live and kept sequences, states, tokens, whether work waits."""

    def shared_stats(self) -> dict[str, int]:
        """The same of the shared tree; zeros when there is none."""

    def count(self, tree: int, text: Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu', writable=False)]) -> int:
        """Weighted occurrences of a substring, in 1/64 rollouts."""

    def longest_continuation(self, session: int, text: Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu', writable=False)], shared: bool = False) -> int:
        """
        How many first tokens of int32[n] follow some suffix of the session's text in its tree: an oracle's draft.
        """

    def generated(self, session: int) -> int:
        """Tokens generated so far in a session."""

    def source_sums(self) -> list[tuple[int, int]]:
        """
        (drafted, accepted) sums for prompt, own, sibling, history, shared, run-ahead.
        """

    def learned(self) -> int:
        """Tokens that the ranker has learned from."""

    def set_threads(self, threads: int) -> None:
        """Threads that draft large batches; drafts do not depend on it."""

class Turn:
    """
    What one step gets and gives; see native/step.h for whose it is when. Arrays are views.
    """

    @property
    def number(self) -> int:
        """Number of the step, from 1."""

    @property
    def sessions(self) -> Annotated[NDArray[numpy.int64], dict(shape=(None,))]:
        """int64[rows]: session, or -1"""

    @property
    def slots(self) -> Annotated[NDArray[numpy.int32], dict(shape=(None,))]:
        """int32[rows]: row of the text"""

    @property
    def prompts(self) -> Annotated[NDArray[numpy.int32], dict(shape=(None,))]:
        """int32[rows]: length of the prompt"""

    @property
    def ends(self) -> Annotated[NDArray[numpy.int32], dict(shape=(None,))]:
        """int32[rows]: length at which the request ends"""

    @property
    def limits(self) -> Annotated[NDArray[numpy.int32], dict(shape=(None,))]:
        """int32[rows]: draft tokens at most"""

    @property
    def least(self) -> Annotated[NDArray[numpy.int32], dict(shape=(None,))]:
        """int32[rows]: length from which on stop tokens end it"""

    def set_stops(self, ends: Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu', writable=False)], stops: Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu', writable=False)]) -> None:
        """
        Set the stop tokens: those of row b, rising, are stops[ends[b - 1]:ends[b]]; int32[rows or fewer], int32[n].
        """

    @property
    def taken(self) -> Annotated[NDArray[numpy.int32], dict(shape=(None,))]:
        """int32[rows]: tokens that the row's session took in"""

    @property
    def tokens(self) -> Annotated[NDArray[numpy.int32], dict(shape=(None,))]:
        """int32[n]: these tokens, row after row"""

    @property
    def marks(self) -> Annotated[NDArray[numpy.uint8], dict(shape=(None,))]:
        """uint8[rows]: 1 a stop token ended it, 2 its text was taken back"""

    @property
    def gain(self) -> Annotated[NDArray[numpy.float64], dict(shape=(None,))]:
        """
        float64[width]: expected tokens of each column of the drafts, before any cut
        """

    @property
    def drafted(self) -> int:
        """Draft tokens that were judged."""

    @property
    def accepted(self) -> int:
        """Of these, accepted."""

    @property
    def outcome(self) -> int:
        """0 whole; 1 failed, nothing changed; 2 failed in the midst."""

    @property
    def error(self) -> str:
        """What failed."""

class Step:
    """
    Steps of an engine, each one call on plain buffers: judge, learn, append, draft, cut. Host and stream take turns: fill in
    `next`, `hand_over`, launch `entry`; read `result` when `done` has reached its number.
    """

    def __init__(self, forest: Forest, rows: int, width: int, buffers: Annotated[NDArray[numpy.int32], dict(shape=(None, None), order='C', device='cpu')]) -> None:
        """
        `buffers` int32[turns, rows (3 + width)] stays the caller's: for each turn tokens sampled [rows] and length behind them [rows], by
        the device, and for it number of drafts and drafts [rows, 1 + width].
        """

    def next(self) -> Turn | None:
        """The turn to fill in; None while all are in flight."""

    def hand_over(self, rows: int, text: Annotated[NDArray[numpy.int32], dict(shape=(None, None), order='C', device='cpu', writable=False)], *, vocabulary: int, room: int, min_survival: float, min_match: int, verified: int | None = None, budget: bool = False, base: float = 0.0, row: float = 0.0, token: float = 0.0, cell: float = 0.0, ragged: float = 0.0, floor: float = 0.0) -> int:
        """
        Give the filled turn to the stream: its first rows, the text int32[slots, length], the same array for all turns in flight,
        and what drafts are cut to. Returns its number.
        """

    def take_back(self) -> None:
        """The turn handed over last was not launched: it is the host's again."""

    def entry(self, turn: Turn) -> tuple[int, int]:
        """
        Addresses of a function void(void*) that does a turn, and of its argument: for a thread or stream without Python.
        """

    def run(self, turn: Turn) -> None:
        """Do a turn on this thread."""

    def result(self, number: int) -> Turn:
        """
        The turn of this number, done; its arrays are good until it is handed over again.
        """

    @property
    def done(self) -> int:
        """Number of the last turn that is done."""

    @property
    def handed(self) -> int:
        """Number of the last turn that was handed over."""

    @property
    def sums(self) -> tuple[int, int, int, int]:
        """
        Tokens, drafted, accepted and failed turns so far; read them while none is in flight.
        """
