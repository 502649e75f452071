"""The committed stub of the native module is what nanobind generates from the built one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import rolltree

pytest.importorskip("nanobind")


def test_committed_stub_equals_the_generated_one(tmp_path: Path) -> None:
    """When this fails after a change of the binding: `make stubs`, and read the difference."""
    generated = tmp_path / "_native.pyi"
    command = [sys.executable, "-m", "nanobind.stubgen", "-q", "-m", "rolltree._native", "-o", str(generated)]
    subprocess.run(command, check=True)
    assert Path(rolltree.__file__).with_name("_native.pyi").read_text() == generated.read_text()
