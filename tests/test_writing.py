"""Files appear whole or not at all; JSON has no NaN."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest

from rolltree.writing import beside, plain, to_json, write_text


def test_what_json_has_no_number_for_is_null() -> None:
    value = {
        "a": [math.nan, (math.inf, -math.inf, 1.5)],
        2: np.float32("nan"),
        "n": np.arange(2),
        "p": Path("x"),
        "i": 10**30,
    }
    strict = json.loads(to_json(value), parse_constant=lambda name: pytest.fail(name))
    assert strict == {"a": [None, [None, None, 1.5]], "2": None, "n": [0, 1], "p": "x", "i": 10**30}
    assert plain(True) is True


def test_a_file_that_was_not_finished_leaves_the_old_one(tmp_path: Path) -> None:
    target = tmp_path / "a.json"
    target.write_text("old")
    target.chmod(0o640)

    def half() -> None:
        with beside(target) as draft:
            draft.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        half()
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    assert target.read_text() == "old"
    write_text(target, "new\ud800")
    assert target.read_text() == "new\\ud800"
    assert target.stat().st_mode & 0o777 == 0o640
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_a_link_stays_and_a_device_is_written_to(tmp_path: Path) -> None:
    (tmp_path / "real.json").write_text("old")
    (tmp_path / "link.json").symlink_to("real.json")
    write_text(tmp_path / "link.json", "new")
    assert (tmp_path / "link.json").is_symlink()
    assert (tmp_path / "real.json").read_text() == "new"
    write_text(os.devnull, "x")
    assert not Path(os.devnull).is_file()
    with pytest.raises(IsADirectoryError):
        write_text(tmp_path, "x")
