"""Reads recorded rollouts: our trace format, verl's rollout dumps, TRL's completion logs; plain, .gz or .zst.

What a line is, is told by its keys:

- ours: `prompt_token_ids`, `token_ids`, `prompt_id`, `step`, `sample`;
- verl (`trainer.rollout_data_dir`, a file `{step}.jsonl` for each step): `input`, `output`, `step`; text;
- TRL (`log_completions`, a Parquet file for each step): `prompt`, `completion`, `step`; text or messages.

Text needs a tokenizer. A line that cannot be read is named by file and number.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from rolltree.errors import InvalidInputError
from rolltree.replay.files import Broken, list_files, number_of, records
from rolltree.replay.records import Rollout
from rolltree.replay.tokenizing import TextTokenizer
from rolltree.tokens import as_tokens
from rolltree.types import Int32Array

_SHOWN = 80  # characters of a bad line that a message repeats


@dataclass(slots=True)
class Reader:
    """Reads files into rollouts; counts what it left out."""

    tokenizer: TextTokenizer | None = None
    skip_bad_lines: bool = False
    skipped: int = 0
    """Lines that could not be read, with `skip_bad_lines`."""
    empty: int = 0
    """Rollouts without a token: nothing to generate."""
    repeated: int = 0
    """Rollouts of a TRL log that is the one before once more: a batch of several optimizer steps, generated once."""
    _previous: list[tuple[object, object]] = field(default_factory=list)  # the TRL log before
    _prompts: dict[str, Int32Array] = field(default_factory=dict)  # one array for all samples of a prompt
    _samples: dict[tuple[str, int], int] = field(default_factory=dict)

    def read(self, paths: Sequence[Path]) -> list[Rollout]:
        """Read all files, in order.

        Raises:
            FileNotFoundError: a file does not exist.
            InvalidInputError: a line cannot be read, or there is nothing to read.
            MissingDependencyError: the format needs a package that is not installed.

        """
        self._samples.clear()
        self._previous = []
        found = [rollout for path in list_files(paths) for rollout in self._read_file(path)]
        if not found:
            names = ", ".join(map(str, paths))
            raise InvalidInputError("FILE", names, "files with at least one rollout", "Nothing could be read.")
        return found

    def _read_file(self, path: Path) -> Iterator[Rollout]:
        for number, record in self._unrepeated(records(path)) if path.suffix == ".parquet" else records(path):
            try:
                rollout = self._rollout(record, path)
            except (KeyError, TypeError, ValueError) as error:
                self._bad(path, number, record, error)
                continue
            if len(rollout.tokens):
                yield rollout
            else:
                self.empty += 1

    def _unrepeated(self, numbered: Iterator[tuple[int, object]]) -> Iterator[tuple[int, object]]:
        """TRL logs after each optimizer step; replaying one generation twice would make its own text its history."""
        rows = list(numbered)
        texts = [(r.get("prompt"), r.get("completion")) for _, r in rows if isinstance(r, dict)]
        again, self._previous = texts == self._previous and any(c for _, c in texts), texts
        self.repeated += len(rows) if again else 0
        return iter([] if again else rows)

    def _rollout(self, record: object, path: Path) -> Rollout:
        if isinstance(record, Broken):
            raise ValueError(record.why)
        if not isinstance(record, dict):
            raise TypeError("not an object")
        if "token_ids" in record:
            return self._ours(record, path)
        if "output" in record:
            return self._text(str(record["input"]), record["input"], record["output"], record, path)
        if "completion" in record:
            key = json.dumps(record["prompt"], default=list)
            return self._text(key, record["prompt"], record["completion"], record, path)
        raise KeyError("token_ids (or input and output, or prompt and completion)")

    def _ours(self, record: dict[str, Any], path: Path) -> Rollout:
        tokens, name, step = as_tokens(record["token_ids"], "token_ids"), str(record["prompt_id"]), int(record["step"])
        prompt = self._prompts.get(name)
        given = as_tokens(record["prompt_token_ids"], "prompt_token_ids")
        if prompt is None or not np.array_equal(prompt, given):
            self._prompts[name] = prompt = given
        return Rollout(
            prompt_id=name, prompt=prompt, tokens=tokens, step=step, sample=int(record["sample"]), file=path.name
        )

    def _text(self, name: str, prompt: object, answer: object, record: dict[str, Any], path: Path) -> Rollout:
        if self.tokenizer is None:
            fix = "Name the policy's tokenizer: --tokenizer FOLDER, a tokenizer.json, or a model's name."
            raise InvalidInputError("--tokenizer", None, "set for files that hold text", fix)
        if name not in self._prompts:
            self._prompts[name] = self.tokenizer.prompt(prompt)
        tokens = self.tokenizer.answer(answer)
        step = int(record["step"]) if "step" in record else number_of(path)
        sample = self._samples[name, step] = self._samples.get((name, step), -1) + 1
        return Rollout(
            prompt_id=name, prompt=self._prompts[name], tokens=tokens, step=step, sample=sample, file=path.name
        )

    def _bad(self, path: Path, number: int, record: object, error: Exception) -> None:
        if isinstance(error, InvalidInputError) and error.name == "--tokenizer":
            raise error
        if self.skip_bad_lines:
            self.skipped += 1
            return
        missing = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        shown = record.line if isinstance(record, Broken) else json.dumps(record, default=str)
        fix = f"{missing}; --skip-bad-lines leaves such lines out."
        raise InvalidInputError(f"{path}:{number}", shown[:_SHOWN], "a recorded rollout", fix) from error
