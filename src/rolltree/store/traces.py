"""Stores to and from the trace format: JSON lines, one rollout each, gzipped when the name ends in .gz."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from os import PathLike
from pathlib import Path
from typing import IO, Any, cast

from rolltree.errors import InvalidInputError
from rolltree.store.naming import digest_of
from rolltree.store.record import StoredRollout
from rolltree.store.store import RolloutStore

Progress = Callable[[int], None]


def import_traces(store: RolloutStore, path: str | PathLike[str], progress: Progress = lambda rollouts: None) -> int:
    """Add every rollout of a trace file, in its order; returns how many.

    Prompts are their own keys, `step` is the version.

    Raises:
        InvalidInputError: a line is not a rollout; the message names it. The lines before it were added.

    """
    count = 0
    for count, rollout in enumerate(_read(Path(path)), 1):
        store.put(rollout)
        if count % 4096 == 0:  # a bound on what waits in memory
            store.flush()
            progress(count)
    store.flush()
    return count


def export_traces(
    rollouts: Iterable[StoredRollout], path: str | PathLike[str], progress: Progress = lambda rollouts: None
) -> int:
    """Write rollouts as a trace file; returns how many.

    Where the sample is not known, the rollouts of a prompt and step are counted.
    """
    count, samples = 0, Counter[tuple[str, int]]()
    with _opened(Path(path), "wt") as lines:
        for count, rollout in enumerate(rollouts, 1):
            lines.write(json.dumps(_line(rollout, samples), separators=(",", ":")) + "\n")
            if count % 4096 == 0:
                progress(count)
    return count


def _line(rollout: StoredRollout, samples: Counter[tuple[str, int]]) -> dict[str, Any]:
    prompt_id = rollout.key if rollout.key is not None else digest_of(rollout.prompt_token_ids).hex()
    sample = rollout.sample
    if sample is None:
        sample = samples[prompt_id, rollout.version]
        samples[prompt_id, rollout.version] += 1
    line: dict[str, Any] = {
        "prompt_id": prompt_id,
        "step": rollout.version,
        "sample": sample,
        "prompt_token_ids": rollout.prompt_token_ids.tolist(),
        "token_ids": rollout.token_ids.tolist(),
    }
    if rollout.reward is not None:
        line["reward"] = rollout.reward
    if rollout.logprobs is not None:
        line["logprobs"] = [round(float(p), 6) for p in rollout.logprobs]
    return line


def _read(path: Path) -> Iterator[StoredRollout]:
    with _opened(path, "rt") as lines:
        for number, text in enumerate(lines, 1):
            if not text.strip():
                continue
            try:
                line = json.loads(text)
                rollout = StoredRollout.of(
                    line["prompt_token_ids"], line["token_ids"], version=line.get("step", 0),
                    sample=line.get("sample"), logprobs=line.get("logprobs"), reward=line.get("reward"),
                )  # fmt: skip
            except (KeyError, TypeError, ValueError) as error:
                fix = "See the trace format in docs/cli.md."
                raise InvalidInputError(
                    f"{path}, line {number}", text[:60], "a rollout", f"{error!r}. {fix}"
                ) from error
            yield rollout


def _opened(path: Path, mode: str) -> IO[str]:
    if path.suffix == ".gz":
        return cast("IO[str]", gzip.open(path, mode))
    return path.open(mode)
