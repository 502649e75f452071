"""Reads recorded rollouts: our trace format, verl's rollout dumps, TRL's completion logs; plain, .gz or .zst.

What a line is, is told by its keys:

- ours: `prompt_token_ids`, `token_ids`, `prompt_id`, `step`, `sample`;
- verl (`trainer.rollout_data_dir`, a file `{step}.jsonl` for each step): `input`, `output`, `step`; text;
- TRL (`log_completions`, a Parquet file for each step): `prompt`, `completion`, `step`; text or messages.

Text needs a tokenizer. A folder stands for the files in it. A line that cannot be read is named by file and number.
"""

from __future__ import annotations

import gzip
import io
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from rolltree.errors import InvalidInputError, MissingDependencyError
from rolltree.replay.records import Rollout
from rolltree.replay.tokenizing import TextTokenizer
from rolltree.tokens import as_tokens
from rolltree.types import Int32Array

SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")
_SHOWN = 80  # characters of a bad line that a message repeats


@dataclass(slots=True)
class Reader:
    """Reads files into rollouts; counts what it left out."""

    tokenizer: TextTokenizer | None = None
    skip_bad_lines: bool = False
    skipped: int = 0
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
        found = [rollout for path in _files(paths) for rollout in self._read_file(path)]
        if not found:
            names = ", ".join(map(str, paths))
            raise InvalidInputError("FILE", names, "files with at least one rollout", "Nothing could be read.")
        return found

    def _read_file(self, path: Path) -> Iterator[Rollout]:
        for number, record in _records(path):
            try:
                rollout = self._rollout(record, path)
            except (KeyError, TypeError, ValueError) as error:
                self._bad(path, number, record, error)
            else:
                yield rollout

    def _rollout(self, record: object, path: Path) -> Rollout:
        if isinstance(record, _Broken):
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
        if not len(tokens):
            raise ValueError("token_ids is empty")
        prompt = self._prompts.get(name)
        given = as_tokens(record["prompt_token_ids"], "prompt_token_ids")
        if prompt is None or not np.array_equal(prompt, given):
            self._prompts[name] = prompt = given
        return Rollout(
            prompt_id=name, prompt=prompt, tokens=tokens, step=step, sample=int(record["sample"]), file=str(path)
        )

    def _text(self, name: str, prompt: object, answer: object, record: dict[str, Any], path: Path) -> Rollout:
        if self.tokenizer is None:
            fix = "Name the policy's tokenizer: --tokenizer FOLDER, a tokenizer.json, or a model's name."
            raise InvalidInputError("--tokenizer", None, "set for files that hold text", fix)
        if name not in self._prompts:
            self._prompts[name] = self.tokenizer.prompt(prompt)
        tokens = self.tokenizer.answer(answer)
        if not len(tokens):
            raise ValueError("the answer is empty")
        step = int(record["step"]) if "step" in record else _number(path)
        sample = self._samples[name, step] = self._samples.get((name, step), -1) + 1
        return Rollout(
            prompt_id=name, prompt=self._prompts[name], tokens=tokens, step=step, sample=sample, file=str(path)
        )

    def _bad(self, path: Path, number: int, record: object, error: Exception) -> None:
        if isinstance(error, InvalidInputError) and error.name == "--tokenizer":
            raise error
        if self.skip_bad_lines:
            self.skipped += 1
            return
        missing = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        shown = record.line if isinstance(record, _Broken) else json.dumps(record, default=str)
        fix = f"{missing}; --skip-bad-lines leaves such lines out."
        raise InvalidInputError(f"{path}:{number}", shown[:_SHOWN], "a recorded rollout", fix) from error


@dataclass(frozen=True, slots=True)
class _Broken:
    """A line that is not JSON."""

    line: str
    why: str


def _files(paths: Iterable[Path]) -> Iterator[Path]:
    for path in paths:
        if path.is_dir():
            yield from sorted((p for p in path.iterdir() if p.name.endswith(SUFFIXES)), key=_in_order)
        else:
            yield path


def _in_order(path: Path) -> tuple[int, str]:
    return _number(path), path.name


def _number(path: Path) -> int:
    """The last number in a file's name: verl writes 12.jsonl, TRL completions_00012.parquet."""
    numbers = re.findall(r"\d+", path.name)
    return int(numbers[-1]) if numbers else 0


def _records(path: Path) -> Iterator[tuple[int, object]]:
    """Yield each record with its line (or row) number, from 1."""
    if path.suffix == ".parquet":
        yield from enumerate(_parquet(path), 1)
        return
    with _opened(path) as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                yield number, json.loads(line)
            except ValueError as error:  # JSON and UTF-8 errors alike
                yield number, _Broken(line.decode("utf-8", "replace").strip(), str(error))


@contextmanager
def _opened(path: Path) -> Iterator[Iterable[bytes]]:
    with ExitStack() as stack:
        if path.suffix == ".gz":
            yield stack.enter_context(gzip.open(path))
        elif path.suffix == ".zst":
            raw = stack.enter_context(path.open("rb"))
            yield io.BufferedReader(stack.enter_context(_zstandard().ZstdDecompressor().stream_reader(raw)))
        else:
            yield stack.enter_context(path.open("rb"))


def _zstandard() -> Any:
    try:
        import zstandard
    except ImportError as error:
        raise MissingDependencyError("reading .zst needs zstandard: pip install zstandard") from error
    return zstandard


def _parquet(path: Path) -> list[dict[str, Any]]:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise MissingDependencyError("reading .parquet needs pyarrow: pip install pyarrow") from error
    wanted = ("step", "prompt", "completion", "prompt_id", "sample", "prompt_token_ids", "token_ids")
    file = parquet.ParquetFile(path)
    rows: list[dict[str, Any]] = file.read([name for name in wanted if name in file.schema_arrow.names]).to_pylist()
    return rows
