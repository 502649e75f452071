"""`rolltree demo`: a real GRPO run with and without speculation, side by side, on this computer.

`run(DemoConfig())` returns the document, `render(document)` shows it, `passed(document)` judges it.
"""

from rolltree.demo.config import DemoConfig
from rolltree.demo.report import passed, render
from rolltree.demo.runner import run

__all__ = ["DemoConfig", "passed", "render", "run"]
