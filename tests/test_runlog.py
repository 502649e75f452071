"""A run's metrics are a side channel: whatever happens to them, who trains never notices, and who reads gets JSON."""

from __future__ import annotations

import errno
import json
import logging
import shutil
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rolltree.errors import InvalidInputError
from rolltree.metrics import ratios_of
from rolltree.runlog import ABOUT, FILE, RunLog, SideChannel, read, steps


def lines(folder: Path) -> list[dict[str, Any]]:
    """The file as a strict reader of JSON sees it."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return [json.loads(text, parse_constant=refuse) for text in (folder / FILE).read_text().splitlines()]


@pytest.mark.parametrize("value", [None, float("nan"), float("inf"), -float("inf"), "none", [1.0], 10**400, object()])
def test_what_is_no_number_is_null_in_the_file_and_absent_when_read(value: object, tmp_path: Path) -> None:
    log = RunLog(tmp_path)
    log.write(0, {"tokens": 4, "row_steps": 2, "bad": value}, gauges={"reward": value, "loss": 0.5})  # type: ignore[dict-item]
    assert lines(tmp_path)[0]["gauges"] == {"reward": None, "loss": 0.5}
    assert lines(tmp_path)[0]["sums"] == {"tokens": 4, "row_steps": 2, "bad": None}
    (row,) = steps(tmp_path)
    assert (row["gauges"], row["sums"]) == ({"loss": 0.5}, {"tokens": 4, "row_steps": 2})
    assert row["ratios"] == {"tokens_per_step": 2.0}


@pytest.mark.parametrize("value", [np.float32(0.5), np.float64(0.5), Fraction(1, 2)])
def test_numbers_of_other_libraries_are_numbers(value: Any, tmp_path: Path) -> None:
    RunLog(tmp_path).write(int(np.int64(3)), {"tokens": np.int64(7)}, gauges={"reward": value})
    assert [(r["step"], r["sums"], r["gauges"]) for r in steps(tmp_path)] == [(3, {"tokens": 7}, {"reward": 0.5})]


def test_a_ratio_beyond_floats_is_null(tmp_path: Path) -> None:
    RunLog(tmp_path).write(0, {"tokens": 1e308, "row_steps": 1e-308})
    assert lines(tmp_path)[0]["ratios"] == {"tokens_per_step": None}


def test_old_files_with_nan_are_read_without(tmp_path: Path) -> None:
    whole = {"step": 1, "mode": "train", "attempt": 0, "sums": {"tokens": 3}, "gauges": {"reward": 1.0}}
    odd = [whole | change for change in ({"step": None}, {"attempt": "1"}, {"sums": 3}, {"gauges": "x"}, {"mode": 1})]
    text = [*map(json.dumps, odd), json.dumps(whole | {"gauges": {"reward": float("nan"), "loss": None}}), "[" * 99999]
    text += ["null", "3", json.dumps(whole), '{"step": 1, "mo']
    (tmp_path / FILE).write_text("\n".join(text))
    assert [line["gauges"] for line in read(tmp_path)] == [{}, {"reward": 1.0}]


class Full:
    """A file on a disk that is full."""

    def __enter__(self) -> Full:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def tell(self) -> int:
        return 0

    def write(self, text: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")


def gone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(folder)


def replaced(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / FILE).unlink(missing_ok=True)
    (folder / FILE).mkdir()


def full(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "open", lambda *_, **__: Full())


@pytest.mark.parametrize("fault", [gone, replaced, full])
def test_a_folder_that_fails_is_gone_without(
    fault: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "run"
    log = RunLog(folder)
    log.write(0, {"tokens": 1})
    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING, "rolltree"):
        fault(folder, patch)
        for step in (1, 2, 3):
            log.write(step, {"tokens": 1})
    assert [str(folder) in record.getMessage() for record in caplog.records] == [True]
    assert "Going on without" in caplog.text


def test_it_goes_on_when_the_disk_has_room_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = RunLog(tmp_path)
    with monkeypatch.context() as patch:
        full(tmp_path, patch)
        log.write(0, {"tokens": 1})
    log.write(1, {"tokens": 2})
    assert [(row["step"], row["sums"]) for row in steps(tmp_path)] == [(1, {"tokens": 2})]


def test_a_bad_step_is_skipped(tmp_path: Path) -> None:
    log = RunLog(tmp_path)
    for step in (None, float("nan"), "x"):
        log.write(step)  # type: ignore[arg-type]
    assert not (tmp_path / FILE).exists()


def test_a_folder_that_cannot_be_made_is_said_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidInputError, match=r"run_dir.*a folder that can be made and written"):
        RunLog(tmp_path / "file" / "run")
    (tmp_path / ABOUT).mkdir()
    with pytest.raises(InvalidInputError, match="run_dir"):
        RunLog(tmp_path)


def test_the_message_names_the_arguments_that_exist(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"RolloutFunction or attach \(run_dir=…\)"):
        list(read(tmp_path))


def test_a_side_channel_says_it_once_and_lets_interrupts_pass(caplog: pytest.LogCaptureFixture) -> None:
    channel = SideChannel("the test's figures")
    with caplog.at_level(logging.WARNING, "rolltree"):
        for _ in range(3):
            with channel:
                raise ZeroDivisionError("planted")
        with channel:
            pass
    assert channel.failures == 3
    (record,) = caplog.records
    assert "the test's figures: ZeroDivisionError: planted" in record.getMessage()
    with pytest.raises(KeyboardInterrupt), channel:
        raise KeyboardInterrupt


VALUES = st.recursive(st.none() | st.booleans() | st.floats() | st.integers() | st.text(), st.lists, max_leaves=4)


def test_anything_may_be_written_and_is_read_back_as_numbers(tmp_path: Path) -> None:
    log = RunLog(tmp_path)

    @settings(deadline=None)
    @given(st.dictionaries(st.text(max_size=5), VALUES), st.dictionaries(st.text(max_size=5), VALUES))
    def check(sums: dict[str, Any], gauges: dict[str, Any]) -> None:
        (tmp_path / FILE).unlink(missing_ok=True)
        log.write(1, sums, gauges=gauges)
        lines(tmp_path)
        (row,) = steps(tmp_path)
        for kind, given_ in (("sums", sums), ("gauges", gauges)):
            assert row[kind].keys() <= given_.keys()
            assert all(isinstance(value, int | float) and np.isfinite(float(value)) for value in row[kind].values())

    check()


def test_the_ratios_are_of_sums() -> None:
    assert ratios_of({"tokens": 6, "row_steps": 0}) == {"tokens_per_step": 0.0}
