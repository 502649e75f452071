from __future__ import annotations

import json
import math
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from base64 import b64decode
from html.parser import HTMLParser
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")

from rolltree.errors import InvalidInputError
from rolltree.report import write_report
from rolltree.report.figures import draw_all
from rolltree.runlog import RunLog, read, steps

NAMES = {"tokens_per_step", "speed", "speedup", "acceptance", "drafted", "sources", "reward", "memory"}


def sums(**more: float) -> dict[str, float]:
    return {"tokens": 100, "row_steps": 50, "drafted": 40, "accepted": 30, "seconds": 2.0} | more


def write_run(folder: Path, count: int = 12) -> None:
    log = RunLog(folder, {"model": "<b>tiny & small</b>"})
    for step in range(count):
        log.write(
            step,
            sums(row_steps=50 - 2 * step, seconds_plain=3.0, accepted_history=step, accepted_own=3),
            gauges={"reward": step / 10, "tree_bytes": 2.0**20 * step},
        )


def test_lines_of_a_step_are_added_before_ratios_are_made(tmp_path: Path) -> None:
    log = RunLog(tmp_path)
    log.write(4, sums(tokens=10, row_steps=10), gauges={"reward": 1.0})
    log.write(4, sums(tokens=90, row_steps=10))
    log.write(3, {}, gauges={"reward": 0.5})
    log.write(4, sums(tokens=7), mode="eval")
    first, second = steps(tmp_path)
    assert (first["step"], first["gauges"], first["ratios"]) == (3, {"reward": 0.5}, {})
    assert second["sums"]["tokens"] == 100
    assert second["ratios"]["tokens_per_step"] == 5
    assert second["gauges"] == {"reward": 1.0}
    assert [row["sums"]["tokens"] for row in steps(tmp_path, "eval")] == [7]


def test_a_later_attempt_replaces_the_steps_that_it_repeats(tmp_path: Path) -> None:
    for tokens, span in ((1, range(0, 5)), (2, range(3, 7))):
        log = RunLog(tmp_path)
        for step in span:
            log.write(step, sums(tokens=tokens))
    assert [row["sums"]["tokens"] for row in steps(tmp_path)] == [1, 1, 1, 2, 2, 2, 2]


def test_a_torn_line_is_skipped_and_nothing_is_glued_to_it(tmp_path: Path) -> None:
    RunLog(tmp_path).write(0, sums())
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 1, "mode": "tr')
    RunLog(tmp_path).write(2, sums())
    assert [line["step"] for line in read(tmp_path)] == [0, 2]
    assert [line["attempt"] for line in read(tmp_path)] == [0, 1]


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.links: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs) -> None:
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)
        if tag == "img":
            self.images.append(dict(attrs))
        self.links += [v for k, v in attrs if k in ("href", "src") and not v.startswith("data:")]

    def handle_endtag(self, tag) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data) -> None:
        self.text += data


def test_the_page_is_whole_and_needs_nothing_else(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    document = write_report(tmp_path / "run")
    page = Page(Path(document["page"]).read_text())
    assert page.open == []
    assert page.links == []
    assert "http" not in Path(document["page"]).read_text().replace("http://www.w3.org", "")
    assert len(page.images) == len(NAMES)
    for image in page.images:
        ET.fromstring(b64decode(image["src"].removeprefix("data:image/svg+xml;base64,")))
        assert image["alt"]
    assert "<b>tiny & small</b>" in page.text  # escaped in the source, so it is text
    assert "12 training steps" in page.text
    assert "saves 33% of the time of generating, as measured" in document["in_words"]
    assert document["in_words"] in page.text


def test_the_numbers_are_quotients_of_sums(tmp_path: Path) -> None:
    write_run(tmp_path)
    document = write_report(tmp_path, tmp_path / "out")
    total = sum(50 - 2 * step for step in range(12))
    assert document["all"]["ratios"]["tokens_per_step"] == pytest.approx(1200 / total)
    assert document["all"]["ratios"]["speedup"] == 1.5
    assert document["first"]["gauges"]["reward"] == pytest.approx(0.05)
    assert document["last"]["ratios"]["tokens_per_step"] == pytest.approx(200 / (30 + 28))
    assert {Path(path).stem for path in document["figures"]} == NAMES
    assert all(Path(path).parent == tmp_path / "out" / "figures" for path in document["figures"])


def test_what_was_not_recorded_is_not_drawn(tmp_path: Path) -> None:
    RunLog(tmp_path).write(0, {"tokens": 4, "row_steps": 2})
    document = write_report(tmp_path)
    assert [Path(path).stem for path in document["figures"]] == ["tokens_per_step"]


@pytest.mark.parametrize("name", sorted(NAMES))
def test_everything_recorded_can_be_seen(tmp_path: Path, name: str) -> None:
    write_run(tmp_path)
    svg = ET.fromstring(next(figure.svg for figure in draw_all(steps(tmp_path)) if figure.name == name))
    height = float(svg.attrib["viewBox"].split()[3])
    drawn = [node for node in svg.iter() if node.attrib.get("id", "").startswith(("line2d_", "FillBetween", "Poly"))]
    paths = [p.attrib["d"] for node in drawn for p in node.iter("{http://www.w3.org/2000/svg}path") if "d" in p.attrib]
    numbers = [list(map(float, re.findall(r"-?[0-9.]+", d))) for d in paths if d.count("L") > 5]
    assert numbers  # a line or an area with a point for each step
    assert all(0 <= y <= height for d in numbers for y in d[1::2])


def test_the_same_run_makes_the_same_figures(tmp_path: Path) -> None:
    write_run(tmp_path)
    one, two = (write_report(tmp_path, tmp_path / name) for name in "ab")
    assert [Path(p).read_text() for p in one["figures"]] == [Path(p).read_text() for p in two["figures"]]


def test_a_folder_without_a_run_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"metrics\.jsonl"):
        write_report(tmp_path)
    RunLog(tmp_path).write(0, sums(), mode="eval")
    with pytest.raises(InvalidInputError, match="at least one training step"):
        write_report(tmp_path)


def rolltree(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from rolltree.cli import main; main()", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def test_the_command(tmp_path: Path) -> None:
    write_run(tmp_path)
    done = rolltree("report", tmp_path, "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout.splitlines()[-1])
    assert document["steps"] == 12
    assert Path(document["page"]).exists()
    assert "tokens per request" in done.stderr
    missing = rolltree("report", tmp_path / "nothing")
    assert missing.returncode == 2
    assert "Traceback" not in missing.stderr
    assert "Example: rolltree report" in rolltree("report", "--help").stdout


GOOD = {"step": 1, "mode": "train", "attempt": 0, "sums": sums(), "gauges": {"reward": 0.5}}


@pytest.mark.parametrize(
    ("line", "lines", "values"),
    [
        (json.dumps(GOOD)[:30], 1, 0),  # a killed run
        (bytes(range(256)), 2, 0),
        ("[" * 200_000, 1, 0),
        ("[1]", 1, 0),
        (json.dumps(GOOD | {"step": [1]}), 1, 0),
        (json.dumps(GOOD | {"step": 1.5}), 1, 0),
        (json.dumps(GOOD | {"step": 10**400}), 1, 0),
        (json.dumps(GOOD | {"attempt": "a"}), 1, 0),
        (json.dumps(GOOD | {"sums": None}), 1, 0),
        (json.dumps(GOOD | {"mode": ["train"]}), 0, 0),
        (json.dumps(GOOD | {"gauges": {"reward": None, "tree_bytes": math.nan, "x": "y", "z": {}, "b": True}}), 0, 5),
        (json.dumps(GOOD | {"sums": {"tokens": 10**400, "row_steps": math.inf, "seconds": 1e308}}), 0, 3),
    ],
)
def test_whatever_a_run_left_behind(tmp_path: Path, line: str | bytes, lines: int, values: int) -> None:
    raw = line if isinstance(line, bytes) else line.encode()
    (tmp_path / "metrics.jsonl").write_bytes(raw + b"\n" + json.dumps(GOOD | {"step": 2}).encode())
    (tmp_path / "run.json").write_bytes(raw)
    document = write_report(tmp_path, tmp_path / "out")
    assert (document["skipped_lines"], document["skipped_values"]) == (lines, values)
    assert document["last"]["ratios"]["tokens_per_step"] == 2
    for number in document["last"]["gauges"].values():
        assert math.isfinite(number)


def test_a_run_of_nothing_but_garbage_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(b"\xff\xfe\n" * 3)
    with pytest.raises(InvalidInputError, match=r"at least one training step\. 3 lines are no metrics"):
        write_report(tmp_path)
    (tmp_path / "metrics.jsonl").unlink()
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(InvalidInputError, match=r"a folder that holds metrics\.jsonl"):
        write_report(tmp_path)


def test_names_that_look_like_markup(tmp_path: Path) -> None:
    folder = tmp_path / "run[/b]"
    RunLog(folder).write(1, sums(), gauges={"[/red]": 1.0})
    done = rolltree("report", folder)
    assert done.returncode == 0, done.stderr
    assert "[/red]" in done.stdout
