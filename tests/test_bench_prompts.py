"""A user's prompts: every form that is read, and a sentence with file and line for every one that is not."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from rolltree.bench.prompts import Prompts, read_prompts
from rolltree.demo.assets import model_folder
from rolltree.errors import InvalidInputError
from rolltree.replay.tokenizing import TextTokenizer

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<ai>{% endif %}"
)


class FakeTokenizer(TextTokenizer):
    """A token a byte, 1 in front of a text; with a chat template."""

    def __init__(self) -> None:
        self._fast, self._full = None, self
        self.chat_template = TEMPLATE

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        return [1] * add_special_tokens + list(text.encode())

    def apply_chat_template(self, messages: list[dict[str, Any]], **given: Any) -> str:
        from jinja2 import Template

        return str(Template(self.chat_template).render(messages=messages, **given))


def no_tokenizer() -> TextTokenizer:
    raise AssertionError("token ids need no tokenizer")


def read(path: Path, lines: list[object], most: int = 100, name: str = "prompts.jsonl") -> Prompts:
    text = "".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines)
    file = path / name
    file.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return read_prompts([file], FakeTokenizer, most=most)


ASKED = [{"role": "user", "content": "1+1"}]
RENDERED = list(b"<user>1+1<ai>")


@pytest.mark.parametrize(
    ("record", "kind", "tokens"),
    [
        ('"1+1"\n', "text", [1, *b"1+1"]),
        ({"prompt": "1+1", "completion": "2"}, "text", [1, *b"1+1"]),
        ({"question": "1+1", "answer": "2"}, "text", [1, *b"1+1"]),
        ({"input": "1+1", "output": "2", "score": 1}, "text", [1, *b"1+1"]),
        (ASKED, "messages", RENDERED),
        ({"prompt": ASKED}, "messages", RENDERED),
        ({"messages": [*ASKED, {"role": "assistant", "content": "2"}]}, "messages", RENDERED),
        ([5, 6], "token ids", [5, 6]),
        ({"prompt": [5, 6]}, "token ids", [5, 6]),
        ({"prompt_id": "a", "prompt_token_ids": [5, 6], "token_ids": [7]}, "token ids", [5, 6]),
        ({"token_ids": [5, 6, 7, 8], "loss_mask": [0, 0, 1, 1]}, "token ids", [5, 6]),
    ],
)
@pytest.mark.parametrize("name", ["prompts.jsonl", "prompts.jsonl.gz"])
def test_every_form_is_read(tmp_path: Path, record: object, kind: str, tokens: list[int], name: str) -> None:
    found = read(tmp_path, [record], name=name)
    assert (found.kinds, found.tokens, found.places) == ({kind: 1}, [tokens], [f"{tmp_path / name}:1"])


def test_parquet_is_read_as_trainers_write_it(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = [{"prompt": ASKED, "data_source": "a"}, {"prompt": [{"role": "user", "content": "2+2"}], "data_source": "a"}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "train.parquet")
    found = read_prompts([tmp_path], FakeTokenizer, most=9)
    assert found.tokens == [RENDERED, list(b"<user>2+2<ai>")]
    assert found.places[1].endswith("train.parquet:2")


def test_a_log_of_rollouts_gives_each_prompt_once_and_no_more_than_asked(tmp_path: Path) -> None:
    log = [{"prompt_id": str(n), "prompt_token_ids": [n, n], "token_ids": [n]} for n in (1, 1, 2, 1, 3, 4)]
    file = tmp_path / "log.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in log))
    found = read_prompts([file], no_tokenizer, most=3)
    assert (found.tokens, found.repeated, found.more) == ([[1, 1], [2, 2], [3, 3]], 2, True)
    assert found.document()["prompt_tokens"] == 6
    assert not read_prompts([file], no_tokenizer, most=4).more


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ("{not json\n", "not JSON"),
        ("plain text\n", "not JSON"),
        ({"promt": "1+1"}, "none of these keys"),
        ({}, "none of these keys"),
        ({"prompt": ""}, "empty"),
        ({"prompt": "  "}, "empty"),
        ({"prompt": []}, "empty"),
        ({"messages": [{"role": "assistant", "content": "2"}]}, "empty"),
        ({"messages": [{"role": "user", "content": ""}]}, "empty"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "role"),
        ({"prompt": {"role": "user", "content": "x"}}, "one message"),
        ({"prompt": 7}, "a int"),
        ({"prompt_token_ids": [1, -2]}, "prompt_token_ids"),
        ({"prompt_token_ids": [1, "a"]}, "prompt_token_ids"),
        ({"token_ids": [1, 2], "loss_mask": [0]}, "loss_mask"),
        ({"prompt": [{"role": "user", "content": [{"type": "image"}]}]}, "pictures"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, record: object, said: str) -> None:
    with pytest.raises(InvalidInputError, match=said) as caught:
        read(tmp_path, ['"1+1"\n', record])
    assert caught.value.name == f"{tmp_path / 'prompts.jsonl'}:2"


def test_files_without_prompts_and_a_missing_tokenizer_are_told(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="at least one prompt"):
        read(tmp_path, [])
    with pytest.raises(FileNotFoundError):
        read_prompts([tmp_path / "none.jsonl"], no_tokenizer, most=1)
    (tmp_path / "texts.jsonl").write_text('"1+1"\n')
    with pytest.raises(InvalidInputError, match="--tokenizer"):
        read_prompts([tmp_path / "texts.jsonl"], lambda: TextTokenizer(str(tmp_path / "tokenizer.json")), most=1)


def test_the_models_own_tokenizer_is_the_engines(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from transformers import AutoTokenizer

    (tmp_path / "texts.jsonl").write_text('"12+34="\n')
    folder = str(model_folder())
    found = read_prompts([tmp_path / "texts.jsonl"], lambda: TextTokenizer(folder), most=1)
    assert found.tokens == [AutoTokenizer.from_pretrained(folder).encode("12+34=")]
