"""Which rows of TRL's files count: told apart by rows, and evaluations by how TRL's queue of rows works."""

from __future__ import annotations

from itertools import count

import pytest

from rolltree.replay.trl_log import all_alike, classify, overlap

_fresh = count()


def rows(prompts: str, *, text: str | None = None, advantage: float = 0.0) -> list[dict[str, object]]:
    """Two rows for each prompt, as GRPO has them; texts that never came before, unless given."""
    return [
        {
            "prompt": p,
            "completion": text if text is not None else f"{p}{next(_fresh)}",
            "advantage": advantage,
            "step": 1,
        }
        for p in prompts
        for _ in range(2)
    ]


def log(*generated: list[dict[str, object]], queue: int) -> list[list[dict[str, object]]]:
    """The files that TRL writes: after each generation (or evaluation) the last `queue` rows."""
    files, said = [], list[dict[str, object]]()
    for step, new in enumerate(generated):
        said = (said + new)[-queue:]
        files.append([row | {"step": step} for row in said])
    return files


def kept(files: list[list[dict[str, object]]]) -> list[str]:
    """Prompts of the rows that count, file by file."""
    labels = classify(files)
    return [
        "".join(str(row["prompt"]) for row, label in zip(file, marks, strict=True) if label == "new")
        for file, marks in zip(files, labels, strict=True)
    ]


def test_a_batch_of_several_optimizer_steps_counts_once() -> None:
    files = log(rows("ab"), [], rows("cd"), [], queue=4)
    assert kept(files) == ["aabb", "", "ccdd", ""]


def test_equal_rows_of_one_generation_are_rollouts_each() -> None:
    files = log(rows("ab", text="42"), rows("cd", text="42"), rows("cd", text="42", advantage=0.5), queue=4)
    assert kept(files) == ["aabb", "ccdd", "ccdd"]  # the last differs by its advantage alone


def test_an_evaluation_that_pushes_a_part_out() -> None:
    files = log(rows("abcd"), rows("xy"), rows("efgh"), rows("xy"), [], queue=8)
    assert kept(files) == ["aabbccdd", "", "eeffgghh", "", ""]
    assert list(classify(files)[1]) == ["repeat"] * 4 + ["evaluation"] * 4


def test_an_evaluation_that_happens_once() -> None:
    files = log(rows("abcd"), rows("efgh"), rows("xy"), queue=8)
    assert kept(files) == ["aabbccdd", "eeffgghh", ""]


def test_an_evaluation_over_the_training_rows_of_its_step() -> None:
    files = log(rows("abcd"), rows("efgh") + rows("xy"), rows("ijkl"), rows("mnop") + rows("xy"), queue=8)
    assert kept(files) == ["aabbccdd", "gghh", "iijjkkll", "oopp"]


def test_evaluations_that_fill_the_queue() -> None:
    files = log(rows("ab"), rows("xy"), rows("cd"), rows("xy"), rows("ef"), rows("xy"), queue=4)
    assert kept(files) == ["aabb", "", "ccdd", "", "eeff", ""]


def test_evaluation_prompts_that_come_back_with_nothing_between() -> None:
    files = log(rows("abcd"), rows("xy", text="v"), rows("xy", text="w"), queue=8)
    assert kept(files) == ["aabbccdd", "", ""]


@pytest.mark.parametrize(
    "order", [["ab", "cd", "ab", "cd", "ab"], ["ab", "cd", "ef", "ab"], ["ab", "ba", "ab"], ["ab", "ab", "ab"],
              ["ab", "cd", "bc", "da", "ac", "bd"], ["a", "b", "a", "c", "a"]],
)  # fmt: skip
def test_epochs_over_the_same_prompts_are_training(order: list[str]) -> None:
    files = log(*(rows(prompts) for prompts in order), queue=2 * len(order[0]))
    assert kept(files) == ["".join(p * 2 for p in prompts) for prompts in order]


def test_rows_that_are_carried_over_are_repeats() -> None:
    files = log(rows("ab"), rows("c"), rows("d"), queue=4)  # no generation fills the queue: nobody knows what they are
    assert kept(files) == ["aabb", "cc", "dd"]


def test_prompts_that_are_also_trained_on_are_kept() -> None:
    files = log(rows("abcd"), rows("efgh"), rows("ab"), rows("ijkl"), rows("abmn"), queue=8)
    assert "aabb" in kept(files)[4]


def test_the_same_prompts_in_every_file_are_reported() -> None:
    assert all_alike(log(rows("xy"), rows("xy"), queue=4))
    assert not all_alike(log(rows("xy"), rows("yx"), queue=4))
    assert not all_alike(log(rows("xy"), queue=4))


@pytest.mark.parametrize(
    ("before", "now", "shared"),
    [("abc", "abc", 3), ("abc", "bcd", 2), ("abc", "xyz", 0), ("aaa", "aab", 2), ("", "a", 0), ("a", "", 0),
     ("xabab", "ababc", 4), ("abcabd", "abd", 3), ("ab", "abc", 2)],
)  # fmt: skip
def test_overlap(before: str, now: str, shared: int) -> None:
    assert overlap(before, now) == shared  # a text is a sequence of rows, too


def test_a_converged_policy_at_the_turn_of_an_epoch_is_training() -> None:
    files = log(rows("abcd", text="42"), rows("efgh", text="42"), rows("hacb", text="42"), queue=8)
    assert kept(files) == ["aabbccdd", "eeffgghh", "aaccbb"]  # the rows of h stood in the file before: repeats
