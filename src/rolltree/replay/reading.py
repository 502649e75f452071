"""Reads recorded rollouts: finds the files, has each record parsed, leaves out what was not generated, counts it.

What a record is, `parsing` says; where its step stands, `steps`; which rows of TRL's files were generated, `trl_log`.
A record that cannot be read is named by file and number: an error, or counted with `skip_bad_lines`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rolltree.errors import InvalidInputError
from rolltree.replay.files import in_order, list_files, records
from rolltree.replay.inventory import Inventory
from rolltree.replay.parsing import Bad, Evaluation, Found, Parser, kind_of
from rolltree.replay.records import Rollout
from rolltree.replay.steps import StepSource, Where, whole
from rolltree.replay.tokenizing import TextTokenizer
from rolltree.replay.trl_log import all_alike, classify
from rolltree.traces.lines import Broken

_SHOWN = 80  # characters of a bad line that a message repeats
_Numbered = tuple[int, object]


@dataclass(slots=True)
class TraceReader:
    """Reads files into rollouts; `account` says what was found and left out."""

    tokenizer: TextTokenizer | None = None
    skip_bad_lines: bool = False
    step_from: str | None = None
    """FIELD, file, folder or order; None looks at the known places (see `steps`)."""
    keep_evaluation: bool = False
    """Replay evaluation rollouts, too."""
    account: Inventory = field(default_factory=Inventory)
    _parser: Parser = field(init=False)
    _trl: dict[Path, list[list[object]]] = field(default_factory=dict)  # rows by folder, over calls of `read`
    _files: int = 0

    def __post_init__(self) -> None:
        self._parser = Parser(self.tokenizer, StepSource(self.step_from))

    def read(self, paths: Sequence[Path]) -> list[Rollout]:
        """Read all files, in order.

        Raises:
            OSError: a file does not exist, or may not be read.
            InvalidInputError: a line cannot be read, or there is nothing to read.
            MissingDependencyError: the format needs a package that is not installed.

        """
        listed = list_files(paths)
        if self.keep_evaluation:
            listed.files.extend(listed.evaluation)
        else:
            self.account.evaluation_files += len(listed.evaluation)
        found = [rollout for group in _groups(listed.files) for rollout in self._read_group(group)]
        if not found:
            said = " ".join(self.account.sentences()[1:])
            names = ", ".join(map(str, paths))
            raise InvalidInputError(
                "FILE", names, "files with at least one rollout", f"Nothing could be read. {said}".strip()
            )
        return found

    def _read_group(self, files: Sequence[Path]) -> Iterator[Rollout]:
        """Read one file, or all Parquet files of one folder: TRL's rows can only be classified together."""
        if files[0].suffix != ".parquet":
            yield from self._rollouts(files[0], records(files[0]))
            return
        read = sorted(((file, list(records(file))) for file in files), key=_by_step)
        kept = self._trained([rows for _, rows in read], files[0].parent.absolute())
        for (file, _), rows in zip(read, kept, strict=True):
            yield from self._rollouts(file, rows)

    def _rollouts(self, path: Path, numbered: Iterable[_Numbered]) -> Iterator[Rollout]:
        where = Where(path, self._files)
        self._files += 1
        for number, record in numbered:
            found = self._parser.parse(record, where)
            if isinstance(found, Found):
                if len(found.rollout.tokens):
                    self.account.add(found)
                    yield found.rollout
                else:
                    self.account.empty += 1
            elif isinstance(found, Evaluation):
                self.account.evaluation += 1
            else:
                self._bad(path, number, record, found)

    def _trained(self, files: Sequence[list[_Numbered]], folder: Path) -> list[list[_Numbered]]:
        """The rows of TRL's files that a training step generated; other Parquet files as they are."""
        if not all(_is_trl(record) for rows in files for _, record in rows):
            return list(files)
        earlier = self._trl.setdefault(folder, [])
        earlier += [[record for _, record in rows] for rows in files]
        labels = classify(earlier)[-len(files) :]
        self.account.repeated += sum(row == "repeat" for file in labels for row in file)
        self.account.evaluation += sum(row == "evaluation" for file in labels for row in file)
        wanted = ("new", "evaluation") if self.keep_evaluation else ("new",)
        kept = [_chosen(rows, file, wanted) for rows, file in zip(files, labels, strict=True)]
        if all_alike([[record for _, record in rows] for rows in kept]):
            self.account.notes.append(_ALIKE.format(folder))
        return kept

    def _bad(self, path: Path, number: int, record: object, bad: Bad) -> None:
        if bad.needs_tokenizer:
            fix = "Name the policy's tokenizer: --tokenizer FOLDER, a tokenizer.json, or a model's name."
            raise InvalidInputError("--tokenizer", None, "set for files that hold text", fix)
        ends_file = isinstance(record, Broken) and record.ends_file
        if self.skip_bad_lines:
            self.account.skip(str(path), number, bad.why, ends_file=ends_file)
            return
        allowed = "a readable, complete file" if ends_file else "a recorded rollout"
        what = "what was read before the damage is used with --skip-bad-lines" if ends_file else _LEAVE_OUT
        raise InvalidInputError(f"{path}:{number}", shown(record), allowed, f"{bad.why}; {what}.")


_ALIKE = (
    "{}: every file asks the same prompts in the same order. TRL writes evaluation rows over training rows of the same "
    "step: if these are evaluations, this says nothing about the training."
)
_LEAVE_OUT = "--skip-bad-lines leaves such lines out"


def _groups(files: Sequence[Path]) -> list[list[Path]]:
    """Each file alone, but Parquet files of a folder together, at the place of the first."""
    groups: dict[Path, list[Path]] = {}
    for place, file in enumerate(files):
        key = file.absolute().parent if file.suffix == ".parquet" else Path(str(place))
        groups.setdefault(key, []).append(file)
    return list(groups.values())


def _chosen(rows: list[_Numbered], labels: Sequence[str], wanted: Sequence[str]) -> list[_Numbered]:
    return [row for row, label in zip(rows, labels, strict=True) if label in wanted]


def _is_trl(record: object) -> bool:
    return isinstance(record, Broken) or (isinstance(record, dict) and kind_of(record) == "chat")


def _by_step(read: tuple[Path, list[_Numbered]]) -> tuple[Any, ...]:
    """By the step that the rows name, then by name."""
    steps = [record.get("step") for _, record in read[1] if isinstance(record, dict)]
    try:
        return whole(steps[0], "step"), in_order(Path(read[0].name))
    except (ValueError, IndexError):
        return 0, in_order(Path(read[0].name))


def shown(record: object) -> str:
    """Return the beginning of a record, for an error."""
    if isinstance(record, Broken):
        return record.line[:_SHOWN]
    try:
        return json.dumps(record, default=str)[:_SHOWN]
    except (ValueError, RecursionError):
        return str(type(record).__name__)
