"""What README.md shows runs, and its tables are those of the committed measurements."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rolltree.demo.assets import load_model, load_tokenizer

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
pytestmark = pytest.mark.skipif(not README.exists(), reason="the tests of the wheel run without the checkout")


def test_the_engine_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    torch.set_num_threads(1)
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    (example,) = [block for block in blocks if "Engine(" in block]
    tokenizer = load_tokenizer()
    prompts = [tokenizer("sum 12 34 56\n")["input_ids"]] * 2
    exec(example, {"model": load_model(), "tokenizer": tokenizer, "prompts": prompts})
    assert "tokens per request and forward pass" in capsys.readouterr().out


def test_the_trl_example_names_what_exists() -> None:
    assert "from rolltree.trl import RolloutFunction" in README.read_text()
    pytest.importorskip("trl")
    from rolltree.trl import RolloutFunction

    assert callable(RolloutFunction())


def test_the_tables_are_those_of_the_measurements() -> None:
    script = ROOT / "scripts" / "readme_tables.py"
    assert subprocess.run([sys.executable, script, "--check"]).returncode == 0
