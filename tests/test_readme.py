"""README.md is a front door: short, true, and its table is that of the committed measurements."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.doc_blocks import ROOT, blocks

README = Path(ROOT) / "README.md"
pytestmark = pytest.mark.skipif(not README.exists(), reason="the tests of the wheel run without the checkout")


def test_a_rollouts_life_does_what_its_comments_say(capsys: pytest.CaptureFixture[str]) -> None:
    (life,) = [block.text for block in blocks("README.md") if "a session: one request" in block.text]
    assert life.count("\n") <= 13
    names: dict[str, object] = {}
    before, rest = life.split("drafter.advance([rollout], [8, 9, 5]")
    exec(before, names)
    draft = names["draft"]
    assert draft.tokens[0, : draft.lengths[0]].tolist() == [8, 9, 7, 8]
    exec("drafter.advance([rollout], [8, 9, 5]" + rest, names)
    assert capsys.readouterr().out == "0.5\n"


def test_the_trl_example_names_what_exists() -> None:
    assert "from rolltree.trl import RolloutFunction, attach" in README.read_text()
    pytest.importorskip("trl")
    from rolltree.trl import RolloutFunction

    assert callable(RolloutFunction())


def test_it_is_short() -> None:
    text = README.read_text()
    assert text.count("\n") <= 120
    (table,) = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    assert table.count("\n") - 2 <= 10


def test_the_tables_are_those_of_the_measurements() -> None:
    script = ROOT / "scripts" / "measured.py"
    assert subprocess.run([sys.executable, script, "--check"]).returncode == 0
