"""What the documentation shows is true: blocks run or are checked, commands, options, calls and links exist."""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

from rolltree.errors import InvalidInputError
from rolltree.serving.options import EngineOptions
from rolltree.serving.request_options import RequestOptions
from tests import doc_python, doc_shell
from tests.doc_blocks import PAGES, ROOT, Block, blocks, faults, page_text, prose
from tests.doc_python import Names
from tests.doc_settings import settings

if not (ROOT / "README.md").exists():
    pytest.skip("the tests of the wheel run without the checkout", allow_module_level=True)

NOT_RUN = {
    "docs/vllm.md": "tests/vllm/test_docs.py checks it",
    "docs/new-host.md": "tests/vllm/test_docs.py checks it",
    "docs/run-ahead.md": "one block needs vLLM, the other the names of the page on the engine",
}
"""Pages whose Python blocks are checked and not run, whatever their fences say."""


@pytest.mark.parametrize("page", PAGES)
def test_blocks_name_what_exists(page: str) -> None:
    names = Names()
    fences = re.findall(r"^\s*```", page_text(page), re.MULTILINE)
    assert len(fences) == 2 * len(blocks(page)), "each block names its language, and none is indented"
    assert [fault for block in blocks(page) for fault in faults(block, names)] == []


def runs(block: Block) -> bool:
    return block.language == "python" and not block.note and block.page not in NOT_RUN


RUN = [page for page in PAGES if any(runs(block) for block in blocks(page))]


@pytest.fixture(name="readers")
def fixture_readers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, object]]:
    """What a reader has: a model, prompts, an engine, the number of the step."""
    torch = pytest.importorskip("torch")
    from rolltree import Engine, EngineConfig, Request, SamplingParams, TreeDrafter
    from rolltree.demo.assets import load_model, load_tokenizer

    torch.set_num_threads(1)
    monkeypatch.chdir(tmp_path)
    model, tokenizer = load_model(), load_tokenizer()
    prompts = [tokenizer("sum 12 34 56\n")["input_ids"]] * 2
    requests = [Request(prompt, SamplingParams(max_tokens=8)) for prompt in prompts]
    engine = Engine(model, EngineConfig(slots=2, max_length=128), TreeDrafter())
    names = {
        "model": model,
        "tokenizer": tokenizer,
        "prompts": prompts,
        "requests": requests,
        "engine": engine,
        "step": 3,
    }
    yield names
    if "store" in names:
        names["store"].close()  # type: ignore[attr-defined]


@pytest.mark.parametrize("page", RUN)
def test_python_blocks_run(page: str, readers: dict[str, object], capsys: pytest.CaptureFixture[str]) -> None:
    for block in filter(runs, blocks(page)):
        exec(compile("\n" * (block.line - 1) + block.text, ROOT / page, "exec"), readers)
    if page == "docs/engine.md":
        assert "tokens per request and forward pass" in capsys.readouterr().out


def test_pages_are_run() -> None:
    """The rules above leave something to run."""
    assert {"README.md", "docs/engine.md", "docs/report.md", "docs/store.md"} <= set(RUN)


@pytest.mark.parametrize("page", PAGES)
def test_commands_in_the_text_exist(page: str) -> None:
    """`make X` and `rolltree X` between back quotes, with their options, as far as they hold no placeholders."""
    found = []
    for code in prose(page):
        command = re.match(r"(?:make|rolltree)( --?[a-z][\w-]*| [a-z0-9][a-z0-9-]*| ARGS=\S.*)+$", code)
        if command:
            found += [fault for words in doc_shell.commands(code) for fault in text_faults(words)]
    assert found == []


def text_faults(words: list[str]) -> list[str]:
    """In running text options stand without their values, and required arguments are left out."""
    faults = doc_shell.command_faults(words)
    return [fault for fault in faults if not re.search("Missing |requires an argument", fault)]


@pytest.mark.parametrize("page", ["docs/cli.md", "docs/replay.md", "docs/run-ahead.md", "docs/store.md"])
def test_options_in_the_text_exist(page: str) -> None:
    """`--option` between back quotes, alone or with a value, is an option of some command."""
    named = {match[0] for code in prose(page) if (match := re.match(r"--[a-z-]+", code))}
    assert named - doc_shell.cli_options() == set()


@pytest.mark.parametrize("page", PAGES)
def test_calls_in_the_text_exist(page: str) -> None:
    """`Class(keyword=...)` between back quotes names what exists."""
    import rolltree

    names = Names()
    names.things = {name: getattr(rolltree, name) for name in rolltree.__all__ if name[0].isupper()}
    if page in NOT_RUN:
        del names.things["SamplingParams"]  # there it is vLLM's
    doc_python.python_faults("from rolltree.runlog import RunLog\nfrom rolltree.trl import RolloutFunction", names)
    found = []
    for code in prose(page):
        expression = code.replace("…", "...")
        try:
            ast.parse(expression, mode="eval")
        except SyntaxError:
            continue
        found += doc_python.python_faults(expression, names)
    assert found == []


def settings_faults(page: str, text: str | None = None) -> list[str]:
    """What the readers of our options say against the settings of a page."""
    read = {
        "speculative_config": lambda given: import_module(given["model"].rpartition(".")[0]),
        "additional_config": lambda given: EngineOptions(**given["rolltree"]),
        "extra_args": RequestOptions.read,
        "vllm_xargs": RequestOptions.read,
    }
    found = []
    for name, value in settings(page, text):
        try:
            read[name](value)
        except (InvalidInputError, TypeError, ImportError) as error:
            found.append(f"{name}: {error}")
    return found


@pytest.mark.parametrize("page", PAGES)
def test_settings_are_what_our_readers_take(page: str) -> None:
    assert settings_faults(page) == []


def test_settings_are_found() -> None:
    names = {name for page in PAGES for name, _ in settings(page)}
    assert names >= {"speculative_config", "extra_args", "vllm_xargs"}


@pytest.mark.parametrize(
    "text",
    [
        'Say `SamplingParams(extra_args={"rolltree": {"keys": "k"}})`.',
        '```python\nLLM(m, additional_config={"rolltree": {"windows": 3}})\n```\n',
        '```python\nLLM(m, speculative_config={"model": "rolltree.motor.Proposer"})\n```\n',
        '```sh\ncurl x -d \'{"vllm_xargs":\n  {"rolltree_kind": "rollouts"}}\'\n```\n',
    ],
)
def test_a_planted_setting_is_found(text: str) -> None:
    assert len(settings_faults("page", text)) == 1


def anchors(text: str) -> set[str]:
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    dead = []
    for link in re.findall(r"\]\(([^)\s]+)\)", page_text(page)):
        target, _, anchor = link.partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        path = (ROOT / page).parent / target if target else ROOT / page
        if not path.exists() or (anchor and anchor not in anchors(path.read_text())):
            dead.append(link)
    assert dead == []


def test_the_index_names_each_page_once() -> None:
    index = re.findall(r"\]\(([\w.-]+\.md)\)", page_text("docs/README.md"))
    assert sorted(index) == sorted(
        os.path.basename(page) for page in PAGES if page.startswith("docs/") and page != "docs/README.md"
    )


def missing_paths(text: str) -> list[str]:
    """Paths between back quotes, from the root, that do not exist."""
    named = [code for code in prose("", text) if "/" in code and re.fullmatch(r"[\w./-]+", code)]
    return [code for code in named if not (ROOT / code).exists()]


def test_the_table_of_changes_names_what_exists() -> None:
    table = page_text("CONTRIBUTING.md").split("## Where does this change go?")[1].split("\n## ")[0]
    assert len(re.findall(r"^\| [a-z]", table, re.MULTILINE)) == 8
    assert missing_paths(table) == []
    assert missing_paths("`src/rolltree/motor.py`, `native/ranker.h` and `rolltree/failures x`") == [
        "src/rolltree/motor.py"
    ]


PLANTED = [
    ("sh", "rolltree replay FILE --batches 3", "--batches"),
    ("sh", "rolltree replai FILE", "no such command"),
    ("sh", "rolltree replay FILE --batch many", "batch"),
    ("sh", "A=1 site/bin/rolltree replay \\\n  FILE --nothing", "--nothing"),
    ("sh", "make bench  # fine\nmake benches", "make benches"),
    ("sh", 'make demo ARGS="--slowly"', "--slowly"),
    ("sh", 'pip install "rolltree[vlm]"', "no extra vlm"),
    ("sh", "scripts/gone.sh", "does not exist"),
    ("sh", "python3 -m benchmarks.gone --out x", "no such module"),
    ("sh", "rolltree doctor && frobnicate", "frobnicate"),
    ("sh", "rolltree 'doctor", "midst of a command"),
    ("json", '{"a": 1,}', "not JSON"),
    ("yaml", "a: [1", "not YAML"),
    ("toml", "a = 1", "nothing checks"),
    ("python", "from rolltree import Engine, Motor", "rolltree has no Motor"),
    ("python", "from rolltree.motor import Engine", "no module rolltree.motor"),
    ("python", "from rolltree import CacheConfig\nCacheConfig(windows=3)", "no argument windows"),
    (
        "python",
        "from rolltree import RolloutCache\ncache = RolloutCache()\ncache.opne([1])",
        "RolloutCache has no opne",
    ),
    ("python", "from rolltree import RolloutCache\nc = RolloutCache()\nc.open([1], clé=2)", "no argument clé"),
    ("python", "from rolltree import RolloutCache\ncache = RolloutCache()\nprint(cache.verison)", "no verison"),
    ("python", "x = = 1", "not Python"),
]


@pytest.mark.parametrize(("language", "text", "message"), PLANTED)
def test_a_planted_fault_is_found(language: str, text: str, message: str) -> None:
    (block,) = blocks("page", f"Text\n\n```{language}\n{text}\n```\n")
    assert [message in fault for fault in faults(block)] == [True]


def test_fences_say_why() -> None:
    """A block is left alone for a reason, and only the two words of the fence count."""
    notes = {"skip: a listing": 0, "check: needs a GPU": 1, "not run": 1, "check:": 1, "skip": 1}
    for note, expected in notes.items():
        (block,) = blocks("page", f"```python {note}\nx = = 1\n```\n")
        assert len(faults(block)) == expected, note


def test_a_planted_block_fails_when_it_runs() -> None:
    (block,) = blocks("page", "```python\nassert False\n```\n")
    assert runs(block)
    with pytest.raises(AssertionError):
        exec(block.text, {})
