"""At the first use of a model: do packed forwards over the slot cache say what the model's own forward says?

A short text goes through the engine's paths (prefill in pieces, rows of different lengths side by side, single tokens,
a tree), and the greedy token and the logits at every position are compared with one plain forward. So a family whose
attention slot attention does not know cannot be silently wrong. Once for each model; draws no random numbers; the
cache rows that were used are zeroed. Rounding does not count: a token differs only where the gap between both choices
is clear, measured in standard deviations of the position's logits.
"""

from __future__ import annotations

import weakref

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from rolltree.engine.families import NEEDS, ModelShape
from rolltree.engine.layout import Layout, Trees
from rolltree.engine.runner import Runner, is_out_of_memory
from rolltree.errors import InvalidInputError
from rolltree.types import Int32Array, Int64Array

TOKENS = 48
ROWS = 3
EXACT = 0.005
"""Standard deviations that float32 logits may part: a thousand times the rounding of another batch shape."""
ROUGH = 0.5
"""The same for half precision (and float32 that is computed as such), of the gap between the two greedy tokens; their
root mean square may part by half of it."""
ROUGH_SHARE = 1 / 8
"""Positions that may part further in half precision: a router of experts that tips over changes some altogether."""

_checked: weakref.WeakSet[PreTrainedModel] = weakref.WeakSet()


def check_model(runner: Runner, shape: ModelShape, max_length: int) -> None:
    """Compare, unless this model was compared before; not under NaN weights, which the requests will report.

    Raises:
        InvalidInputError: the model computes something else than the engine; it is named.

    """
    if runner.model in _checked:
        return
    text = _text(shape.vocab, min(TOKENS, max_length))
    with runner.active():
        expected = runner.reference_logits(text)
        try:
            got = _engine_logits(runner, text)
        except Exception as error:
            if is_out_of_memory(error):
                raise
            raise _refusal(shape, f"packed forward fails ({type(error).__name__}: {error})") from error
        finally:
            _clear(runner, len(text))
        parted = [int(at) for at, logits in got if _parts(expected[at], logits)]
    exact = _is_exact(expected)
    if len(parted) > (0 if exact else ROUGH_SHARE * len(got)):
        raise _refusal(shape, f"packed forward differs from the model's own after token {parted[0]} of a test text")
    _checked.add(runner.model)


def _refusal(shape: ModelShape, what: str) -> InvalidInputError:
    return InvalidInputError("model", f"{shape.name}, whose {what}", NEEDS, "Use another engine for this family.")


def _clear(runner: Runner, length: int) -> None:
    cache = runner.cache
    rows, columns = torch.arange(min(ROWS, cache.slots)), torch.arange(length + 1)
    cache.clear((rows[:, None] * cache.length + columns).ravel().to(cache.data.device))


def _text(vocab: int, length: int) -> Int32Array:
    return np.random.default_rng(0).integers(0, vocab, length).astype(np.int32)


def _engine_logits(runner: Runner, text: Int32Array) -> list[tuple[int, Tensor]]:
    """(position, logits [V]) along every path of the engine; rows hold the same text, to different lengths."""
    last = len(text) - 1
    start = np.array([last // 2, last // 4, last // 8][: min(ROWS, runner.cache.slots)])
    _prefill(runner, text, start)
    more = np.minimum([max(last - last // 2, 1), 1, 3][: len(start)], last + 1 - start)
    found = _verify(runner, text, start, more)
    found += _verify(runner, text, np.minimum(start + more, last), np.ones_like(start))
    if last // 2 + 2 <= last:
        found += _verify_tree(runner, text, last // 2)
    return found


def _prefill(runner: Runner, text: Int32Array, start: Int64Array) -> None:
    """Put the first `start[b]` tokens into row b, the longest row in two pieces."""
    half = int(start[0]) // 2
    for begin, end in ((np.zeros_like(start), np.minimum(start, half)), (np.minimum(start, half), start)):
        rows = np.flatnonzero(end > begin)
        if len(rows):
            runner.prefill(rows, [text[begin[r] : end[r]] for r in rows], begin[rows])


def _verify(runner: Runner, text: Int32Array, start: Int64Array, counts: Int64Array) -> list[tuple[int, Tensor]]:
    layout = Layout.of(counts)
    place = start[layout.row_of] + layout.node
    logits = runner.logits(layout, text[place].astype(np.int64), start, None)
    return list(zip(place.tolist(), logits, strict=True))


def _verify_tree(runner: Runner, text: Int32Array, start: int) -> list[tuple[int, Tensor]]:
    """Three tokens of the text in a row, with a wrong sibling (which takes no part) before the second."""
    tokens = np.array([text[start], text[start], text[start + 1], text[start + 2]], np.int64)
    trees = Trees.of(np.array([[0, 0, 0, 2]]))
    logits = runner.logits(Layout.of(np.array([4])), tokens, np.array([start]), trees)
    return [(start, logits[0]), (start + 1, logits[2]), (start + 2, logits[3])]


def _parts(expected: Tensor, got: Tensor) -> bool:
    """Whether logits [V] part beyond rounding."""
    exact = _is_exact(expected)
    expected, got = expected.double(), got.double()
    if bool(torch.isnan(expected).any() | torch.isposinf(expected).any()):
        return False
    kept = torch.isfinite(expected)  # -inf: ids that the model pads its vocabulary with
    if not bool(kept.any()):
        return False
    spread = float(expected[kept].std(correction=0))
    gap = expected.max() - expected[got.argmax()]
    error = (got - expected)[kept]
    apart = error.abs().amax() if exact else 2 * error.square().mean().sqrt()
    allowed = (EXACT if exact else ROUGH) * spread + 1e-6 * float(expected[kept].abs().amax())
    return not bool((gap <= allowed) & (apart <= allowed))  # NaN parts


def _is_exact(logits: Tensor) -> bool:
    precise = logits.dtype in (torch.float32, torch.float64)
    return precise and torch.get_float32_matmul_precision() == "highest"
