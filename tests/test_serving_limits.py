"""How many drafts a step can take: cuts by hand, by exhaustive comparison, and the limits that they are cut to."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from rolltree.errors import InvalidInputError
from rolltree.serving.limits import BYTES_PER_LOGIT, StepLimits, known_only, shorten
from rolltree.verl.options import VerlOptions
from rolltree.vllm.width import MAX_DRAFT, check_width


def test_the_likeliest_drafts_stay() -> None:
    """By survival over the whole batch; of equal ones the earlier place, then the earlier row."""
    survival = np.array([[0.9, 0.8, 0.1], [0.7, 0.6, 0.5], [0.9, 0.6, 0.6]], np.float32)
    lengths = np.array([3, 3, 3], np.int32)
    cuts = [shorten(survival, lengths, total).tolist() for total in range(10)]
    assert cuts == [
        [0, 0, 0], [1, 0, 0], [1, 0, 1], [2, 0, 1], [2, 1, 1], [2, 2, 1], [2, 2, 2], [2, 2, 3], [2, 3, 3], [3, 3, 3],
    ]  # fmt: skip


@settings(max_examples=200, derandomize=True, deadline=None)
@given(
    hnp.arrays(np.float32, (5, 4), elements=st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0])),
    hnp.arrays(np.int32, 5, elements=st.integers(0, 4)),
    st.integers(0, 25),
)
def test_a_cut_is_the_best_there_is(raw: np.ndarray, lengths: np.ndarray, total: int) -> None:
    """No other cut of as many tokens has more survival, and nothing is longer than before."""
    survival = -np.sort(-raw, axis=1)
    before = lengths.copy()
    cut = shorten(survival, lengths, total)
    assert (lengths == before).all()
    assert cut.dtype == np.int32
    assert (cut <= lengths).all()
    assert cut.sum() == min(total, lengths.sum())
    taken = sum(survival[row, : cut[row]].sum() for row in range(5))
    drafted = np.sort(np.concatenate([survival[row, : lengths[row]] for row in range(5)]))[::-1]
    assert taken == pytest.approx(drafted[:total].sum())


def test_no_token_is_outside_the_vocabulary() -> None:
    """Cut before the first that is; what stands behind a draft's end does not matter."""
    tokens = np.array([[1, 2, 3], [9, 1, 1], [1, 10, 1], [1, -1, 1], [1, 2, 99]], np.int32)
    lengths = np.array([3, 3, 3, 3, 2], np.int32)
    assert known_only(tokens, lengths, 10).tolist() == [3, 3, 1, 1, 2]
    assert known_only(tokens, np.zeros(5, np.int32), 10).tolist() == [0] * 5


def test_limits_of_memory_and_tokens() -> None:
    """Both bound the drafts; requests and unread prompts go first."""
    limits = StepLimits(requests=4, positions=20, tokens=30)
    assert limits.drafts(running=4, reading=0) == 16
    assert limits.drafts(running=4, reading=20) == 6
    assert limits.drafts(running=1, reading=40) == 0
    assert StepLimits(requests=4, positions=3, tokens=30).drafts(running=1, reading=0) == 0


def test_positions_come_from_the_user_or_from_what_is_free() -> None:
    """256 requests of a vocabulary of 152,000 words: what the profile run covers, what is free, what is allowed."""
    own = 152_000 * BYTES_PER_LOGIT

    def positions(**bytes: int) -> int:
        given = {"logits_bytes": 0, "free_bytes": 0} | bytes
        return StepLimits.of(requests=256, tokens=4096, vocab=152_000, **given).positions

    assert positions() == 512
    assert positions(free_bytes=2 * 1000 * own) == 1000
    assert positions(free_bytes=100 * own) == 512
    assert positions(logits_bytes=300 * own + 1, free_bytes=10**15) == 300


@pytest.mark.parametrize("width", [0, MAX_DRAFT + 1, True, 8.0, "8", None])
def test_one_width_check_serves_all_hosts(width: object) -> None:
    """vLLM's own limit, in vLLM's and verl's options alike."""
    check_width("a.b", MAX_DRAFT)
    with pytest.raises(InvalidInputError, match=rf"a\.b = .*: must be 1 to {MAX_DRAFT}\. vLLM verifies no longer"):
        check_width("a.b", width)
    with pytest.raises(InvalidInputError, match=rf"sampler_kwargs\.max_draft = .*: must be 1 to {MAX_DRAFT}"):
        VerlOptions(max_draft=width)  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="must be 1 to 64"):
        check_width("a.b", 65, 64)
