"""Reads what must be known of a request from vLLM's own state of it (`CachedRequestState`), and where it really ended.

Plain attribute reads, so that a fake of them is enough for tests. Which text belongs to a request is decided in
`serving.requests`; here it is only found out what the request asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from rolltree.serving.request import ServedRequest
from rolltree.serving.request_options import RequestOptions
from rolltree.vllm.compat_marks import marks_of

if TYPE_CHECKING:  # most requests have none
    from rolltree.serving.stops import StopStrings


def request_of(state: Any, options: RequestOptions) -> ServedRequest:
    """Return what is known of a request when it starts; one that no tree can hold has no prompt."""
    sampling, media = state.sampling_params, media_of(state)
    marks = marks_of(sampling)
    is_text = state.prompt_embeds is None and media is not None
    # None is the eos of a request that ignores it.
    stops = {*(getattr(sampling, "stop_token_ids", None) or ()), getattr(sampling, "eos_token_id", None)} - {None}
    return ServedRequest(
        prompt=state.prompt_token_ids if is_text else None,
        options=options,
        max_tokens=getattr(sampling, "max_tokens", None),
        stop_ids=frozenset(stops),
        min_tokens=getattr(sampling, "min_tokens", 0),
        media=media or (),
        session=marks.get("session"),
        salt=marks.get("salt"),
    )


def media_of(state: Any) -> tuple[tuple[int, str], ...] | None:
    """Return place and content hash of each image (or sound, or video) in a request's prompt.

    None when one of them has no hash, or no place: such a prompt is not told from others by its tokens.
    """
    found = []
    for feature in getattr(state, "mm_features", None) or ():
        content = getattr(feature, "identifier", None) or getattr(feature, "mm_hash", None)
        place = getattr(getattr(feature, "mm_position", None), "offset", None)
        if not isinstance(content, str) or not isinstance(place, int):
            return None
        found.append((place, content))
    return tuple(sorted(found))


def true_output(state: Any, stops: Callable[[], StopStrings]) -> Sequence[int] | None:
    """Return the tokens that a request generated, up to a stop string; None where vLLM has forgotten it."""
    output: Sequence[int] | None = getattr(state, "output_token_ids", None)
    sampling = getattr(state, "sampling_params", None)
    strings = getattr(sampling, "stop", None)
    if output is None or not strings:
        return output
    end = stops().end(
        output,
        [strings] if isinstance(strings, str) else strings,
        min_tokens=getattr(sampling, "min_tokens", 0),
        skip_special=getattr(sampling, "skip_special_tokens", True),
    )
    return output if end is None else output[:end]
