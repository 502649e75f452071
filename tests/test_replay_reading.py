"""What `rolltree replay` reads: our traces, verl's dumps, TRL's logs; and how it says that something is wrong."""

from __future__ import annotations

import gzip
import json
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from rolltree.errors import InvalidInputError, MissingDependencyError
from rolltree.replay.reading import TraceReader
from rolltree.replay.tokenizing import TextTokenizer

RECORD = {"prompt_id": "a", "step": 3, "sample": 1, "prompt_token_ids": [1, 2], "token_ids": [3, 4, 5], "reward": 0.5}


@pytest.fixture(scope="module")
def tokenizer():
    pytest.importorskip("tokenizers")
    import rolltree

    return TextTokenizer(str(Path(rolltree.__file__).parent / "demo" / "model" / "tokenizer.json"))


def write(path, *records):
    text = "".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in records).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


@pytest.mark.parametrize("name", ["r.jsonl", "r.jsonl.gz"])
def test_our_traces(tmp_path, name):
    path = write(tmp_path / name, RECORD, "", RECORD | {"sample": 2, "logprobs": [0.1]})
    first, second = TraceReader().read([path])
    assert (first.prompt_id, first.step, first.sample, first.file) == ("a", 3, 1, name)
    assert (first.prompt.tolist(), first.tokens.tolist()) == ([1, 2], [3, 4, 5])
    assert first.tokens.dtype == np.int32
    assert second.prompt is first.prompt  # one array for all samples


def test_zstandard(tmp_path):
    path = tmp_path / "r.jsonl.zst"
    if find_spec("zstandard"):
        import zstandard

        path.write_bytes(zstandard.ZstdCompressor().compress((json.dumps(RECORD) + "\n").encode() * 3))
        assert len(TraceReader().read([path])) == 3
        path.write_bytes(b"nonsense")
        with pytest.raises(InvalidInputError, match="complete file"):
            TraceReader().read([path])
    else:
        path.write_bytes(b"")
        with pytest.raises(MissingDependencyError, match="pip install zstandard"):
            TraceReader().read([path])


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("{", "r.jsonl:2"),
        ("[1, 2]", "not an object"),
        (json.dumps({**RECORD, "token_ids": [1, -2]}), r"token_ids\[1\]"),
        (json.dumps({**RECORD, "token_ids": [1, 2.5]}), "integer"),
        (json.dumps({**RECORD, "token_ids": "3 4 5"}), "token_ids.ndim"),
        (json.dumps({k: v for k, v in RECORD.items() if k != "step"}), "'step' is missing"),
        (json.dumps({"text": "hello"}), "token_ids .or input and output"),
        ("\x00\x01", "r.jsonl:2"),
    ],
)
def test_a_bad_line_is_named_by_file_and_number(tmp_path, line, why):
    path = write(tmp_path / "r.jsonl", RECORD, line, RECORD)
    with pytest.raises(InvalidInputError, match=why) as error:
        TraceReader().read([path])
    assert f"{path}:2" in str(error.value)
    assert "--skip-bad-lines" in str(error.value)
    reader = TraceReader(skip_bad_lines=True)
    assert len(reader.read([path])) == 2
    assert reader.account.skipped == 1


def test_nothing_to_read_is_an_error(tmp_path):
    for path in (write(tmp_path / "r.jsonl"), write(tmp_path / "e.jsonl", {**RECORD, "token_ids": []}), tmp_path):
        with pytest.raises(InvalidInputError, match="at least one rollout"):
            TraceReader().read([path])
    with pytest.raises(InvalidInputError, match="at least one rollout"):
        TraceReader(skip_bad_lines=True).read([write(tmp_path / "b.jsonl", "{", "}")])


def test_rollouts_without_a_token_are_counted(tmp_path):
    reader = TraceReader()
    assert len(reader.read([write(tmp_path / "r.jsonl", {**RECORD, "token_ids": []}, RECORD)])) == 1
    assert reader.account.empty == 1


@pytest.mark.parametrize("name", ["r.jsonl.gz", "r.parquet"])
def test_a_damaged_file_is_named(tmp_path, name):
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    path = tmp_path / name
    path.write_bytes(gzip.compress(json.dumps(RECORD).encode() * 2000)[:60])
    with pytest.raises(InvalidInputError, match="complete file"):
        TraceReader().read([path])


def test_verls_dump_is_a_folder_of_steps(tmp_path, tokenizer):
    # the keys that verl 0.9.1 writes to trainer.rollout_data_dir
    for step in (10, 9):
        entries = [
            {
                "input": f"sum {p} 3 = ",
                "output": f"so {p}+3: {step}",
                "gts": "4",
                "score": 1.0,
                "step": step,
                "uid": "x",
            }
            for p in (1, 1, 2)
        ]
        write(tmp_path / f"{step}.jsonl", *entries)
    rollouts = TraceReader(tokenizer).read([tmp_path])
    assert [r.step for r in rollouts] == [9, 9, 9, 10, 10, 10]
    assert [r.sample for r in rollouts] == [0, 1, 0, 0, 1, 0]
    assert [r.prompt_id for r in rollouts[:3]] == ["sum 1 3 = ", "sum 1 3 = ", "sum 2 3 = "]
    assert rollouts[0].tokens.tolist() == tokenizer.answer("so 1+3: 9").tokens.tolist()
    with pytest.raises(InvalidInputError, match="--tokenizer FOLDER"):
        TraceReader(skip_bad_lines=True).read([tmp_path])


def test_messages_go_through_the_chat_template(tmp_path):
    transformers = pytest.importorskip("transformers")
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    from rolltree.demo.assets import load_tokenizer

    full = load_tokenizer()
    full.chat_template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }} {% endfor %}so: "
    full.save_pretrained(tmp_path / "tokenizer")
    messages = [[{"role": "user", "content": f"sum {p}"}] for p in (1, 1)]
    answers = [[{"role": "assistant", "content": f"ok {p}"}] for p in (1, 2)]
    log = tmp_path / "completions_00007.parquet"
    pandas.DataFrame({"step": [7, 7], "prompt": messages, "completion": answers, "reward": [0.0, 1.0]}).to_parquet(log)
    rollouts = TraceReader(TextTokenizer(str(tmp_path / "tokenizer"))).read([log])
    assert isinstance(full, transformers.PreTrainedTokenizerBase)
    assert full.decode(rollouts[0].prompt) == "user: sum 1 so: "
    assert [full.decode(r.tokens) for r in rollouts] == ["ok 1", "ok 2"]
    assert [(r.step, r.sample) for r in rollouts] == [(7, 0), (7, 1)]
    assert rollouts[0].prompt_id == rollouts[1].prompt_id


def train(folder, **more):
    """A real training by TRL; returns what was generated for it, and for its evaluations."""
    trl, datasets = pytest.importorskip("trl"), pytest.importorskip("datasets")
    from rolltree.demo.assets import load_model, load_tokenizer

    generated = {"train": [], "eval": []}

    def reward(prompts, completions, **_):
        generated["train" if trainer.model.training else "eval"] += zip(prompts, completions, strict=True)
        return [float(len(c)) for c in completions]

    args = trl.GRPOConfig(
        output_dir=str(folder), use_cpu=True, bf16=False, per_device_train_batch_size=4, num_generations=2,
        per_device_eval_batch_size=2, max_completion_length=10, logging_steps=1, log_completions=True,
        num_completions_to_print=0, save_strategy="no", report_to="none", gradient_checkpointing=False,
        disable_tqdm=True, **more,
    )  # fmt: skip
    data, evaluation = (
        datasets.Dataset.from_dict({"prompt": [f"sum {p} 34 = " for p in numbers]})
        for numbers in (range(10, 34), (80, 81))
    )
    trainer = trl.GRPOTrainer(
        model=load_model(), reward_funcs=reward, args=args, train_dataset=data, processing_class=load_tokenizer(),
        eval_dataset=evaluation if "eval_steps" in more else None,
    )  # fmt: skip
    trainer.train()
    return generated


@pytest.mark.filterwarnings("ignore")
def test_trls_own_log_of_a_real_training(tmp_path, tokenizer, capsys):
    train(tmp_path, max_steps=4, steps_per_generation=2)
    reader = TraceReader(tokenizer)
    rollouts = reader.read([tmp_path / "completions"])
    assert len(list((tmp_path / "completions").iterdir())) == 4
    assert sorted({r.step for r in rollouts}) == [1, 3]  # two generations, each logged for its two optimizer steps
    assert (len(rollouts), reader.account.repeated) == (16, 16)
    assert {r.sample for r in rollouts} == {0, 1}
    assert all(1 <= len(r.tokens) <= 10 for r in rollouts)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("steps_per_generation", "eval_steps", "logged"),
    [(2, 3, 20), (1, 2, 12)],  # an evaluation pushes half of the rows out of TRL's queue, or all of them
)
def test_trls_own_log_of_a_training_with_evaluation(
    tmp_path, tokenizer, capsys, steps_per_generation, eval_steps, logged
):
    generated = train(
        tmp_path, max_steps=6, steps_per_generation=steps_per_generation, eval_strategy="steps", eval_steps=eval_steps
    )
    reader = TraceReader(tokenizer)
    rollouts = reader.read([tmp_path / "completions"])
    assert len(rollouts) == logged
    assert {r.prompt_id for r in rollouts} <= {prompt for prompt, _ in generated["train"]}
    assert not {r.prompt_id for r in rollouts} & {prompt for prompt, _ in generated["eval"]}
    assert reader.account.evaluation == len(generated["eval"])
    assert len(TraceReader(tokenizer, keep_evaluation=True).read([tmp_path])) == logged + len(generated["eval"])


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    (tmp_path / "r.parquet").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingDependencyError, match="pip install pyarrow"):
        TraceReader().read([tmp_path / "r.parquet"])
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(MissingDependencyError, match="pip install transformers"):
        TextTokenizer("tokenizer.json")


def test_a_wrong_tokenizer_is_named(tmp_path):
    pytest.importorskip("tokenizers")
    with pytest.raises(InvalidInputError, match="--tokenizer"):
        TextTokenizer(str(tmp_path / "tokenizer.json"))


def test_a_file_that_ends_before_its_end_is_never_a_whole_one(tmp_path):
    whole = gzip.compress((json.dumps(RECORD) + "\n").encode() * 3) + gzip.compress(
        (json.dumps(RECORD) + "\n").encode()
    )
    path = tmp_path / "r.jsonl.gz"
    path.write_bytes(whole + b"\0" * 512)  # two members, and the padding of a tape
    assert len(TraceReader().read([path])) == 4
    for cut in (whole[:-1], whole[:-8], whole[: len(whole) // 2], whole[:5], b""):
        path.write_bytes(cut)
        with pytest.raises(InvalidInputError, match=r"r\.jsonl\.gz:[0-9]+ .*complete file.*--skip-bad-lines"):
            TraceReader().read([path])
        reader = TraceReader(skip_bad_lines=True)
        good = write(tmp_path / "good.jsonl", RECORD)
        assert 1 <= len(reader.read([path, good])) <= 5
        assert (reader.account.skipped, reader.account.damaged) == (1, [str(path)])
    damaged = bytearray(whole)
    damaged[-5] ^= 1  # the checksum
    path.write_bytes(damaged)
    with pytest.raises(InvalidInputError, match="cannot be read to its end"):
        TraceReader().read([path])


def test_a_zstandard_file_without_its_end(tmp_path):
    zstandard = pytest.importorskip("zstandard")
    frame = zstandard.ZstdCompressor().compress((json.dumps(RECORD) + "\n").encode() * 3)
    path = tmp_path / "r.jsonl.zst"
    path.write_bytes(frame + frame)
    assert len(TraceReader().read([path])) == 6
    for cut in (frame[:-1], frame + frame[:-4], frame[: len(frame) // 2], b""):
        path.write_bytes(cut)
        with pytest.raises(InvalidInputError, match="complete file"):
            TraceReader().read([path])


def test_a_parquet_file_without_its_end(tmp_path):
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    path = tmp_path / "completions_00001.parquet"
    pandas.DataFrame({"step": [1], "prompt": ["a"], "completion": ["b"]}).to_parquet(path)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(InvalidInputError, match=r"completions_00001.parquet:1 .*complete file"):
        TraceReader().read([path])
    reader = TraceReader(skip_bad_lines=True)
    assert len(reader.read([tmp_path, write(tmp_path / "r.jsonl", RECORD)])) >= 1
    assert reader.account.damaged == [str(path)]


def test_a_skipped_line_is_named_and_its_neighbours_are_read(tmp_path):
    bad = [
        b"[" * 200_000,
        json.dumps(RECORD | {"step": 10**400}).encode(),
        json.dumps(RECORD).replace('"step": 3', '"step": 1e400').encode(),
        json.dumps(RECORD).replace('"step": 3', '"step": NaN').encode(),
        json.dumps({"prompt": "a", "completion": ["b", "c"], "step": 1}).encode(),
        json.dumps({"prompt": {"role": "user", "content": "a"}, "completion": "b", "step": 1}).encode(),
        json.dumps(RECORD | {"prompt_id": ["a"]}).encode(),
        json.dumps(RECORD | {"sample": True}).encode(),
        b"caf\xe9",
    ]
    path = tmp_path / "r.jsonl"
    path.write_bytes(b"\n".join([json.dumps(RECORD).encode(), *bad, json.dumps(RECORD).encode()]))
    with pytest.raises(InvalidInputError, match=r"r\.jsonl:2"):
        TraceReader().read([path])
    reader = TraceReader(skip_bad_lines=True)
    assert len(reader.read([path])) == 2
    document = reader.account.document()
    assert document["skipped_lines"] == len(bad)
    assert [line["line"] for line in document["skipped"]] == list(range(2, 2 + len(bad)))
    assert all(line["file"] == str(path) and line["why"] for line in document["skipped"])


def test_context_of_a_trace_is_not_generated(tmp_path):
    path = write(tmp_path / "r.jsonl", RECORD | {"token_ids": [1, 2, 3, 4, 5], "context": [[1, 2], [2, 3], [4, 5]]},
                 RECORD | {"context": []}, RECORD | {"context": [[0, 3]]})  # fmt: skip
    reader = TraceReader()
    first, second = reader.read([path])
    assert (first.tokens.tolist(), first.context, first.generated) == ([1, 2, 3, 4], ((1, 3),), 2)  # cut where it ends
    assert (second.context, second.generated) == ((), 3)
    assert (reader.account.empty, reader.account.context_tokens, reader.account.context_spans) == (1, 2, 1)
    for spans in ([[2, 1]], [[0, 9]], [[1, 2], [0, 1]], [[-1, 1]], [[0, 1.5]], [1], "x", {"0": 1}):
        with pytest.raises(InvalidInputError, match="context"):
            TraceReader().read([write(tmp_path / "b.jsonl", RECORD | {"context": spans})])


def test_a_sequence_with_a_mask(tmp_path):  # prime-rl's token export
    line = {
        "step": 2,
        "rank": 5,
        "token_ids": [1, 2, 3, 4, 5, 6],
        "loss_mask": [False, False, True, False, True, False],
    }
    rollout, again = TraceReader().read([write(tmp_path / "rank_5.jsonl", line, line)])
    assert (rollout.prompt.tolist(), rollout.tokens.tolist(), rollout.context) == ([1, 2], [3, 4, 5], ((1, 2),))
    assert (rollout.step, again.sample, rollout.prompt_id == again.prompt_id) == (2, 1, True)
    for mask in ([True], "010101", [0, 0, 0, 0, 0, 2]):
        with pytest.raises(InvalidInputError, match="loss_mask"):
            TraceReader().read([write(tmp_path / "b.jsonl", line | {"loss_mask": mask})])


def test_the_step_is_asked_for_and_what_was_inferred_is_said(tmp_path, tokenizer):
    folder = tmp_path / "rollout" / "2"
    folder.mkdir(parents=True)
    line = {"task_id": 12, "sample_idx": 0, "prompt": "sum", "completion": "so"}  # AReaL without its versions
    write(folder / "12.jsonl", line)
    with pytest.raises(InvalidInputError, match="--step-from"):
        TraceReader(tokenizer).read([tmp_path])
    reader = TraceReader(tokenizer, step_from="folder")
    assert [r.step for r in reader.read([tmp_path])] == [2]
    assert reader.account.document()["step_from"] == {"name of the folder": 1}
    assert [r.step for r in TraceReader(tokenizer, step_from="order").read([tmp_path, folder])] == [0, 1]
    write(folder / "12.jsonl", line | {"head_version": 1, "tail_version": 3})
    reader = TraceReader(tokenizer)
    assert [r.step for r in reader.read([tmp_path])] == [3]
    assert reader.account.document()["step_from"] == {"field tail_version": 1}
    assert reader.account.document()["formats"] == {"chat": 1}


def test_evaluation_is_left_out_where_the_log_says_so(tmp_path):
    for place in ("step_2/eval", "step_2/train", "eval-rollout"):
        (tmp_path / place).mkdir(parents=True, exist_ok=True)
        write(tmp_path / place / "r.jsonl", RECORD, RECORD | {"is_eval": True}, RECORD | {"mode": "eval"})
    reader = TraceReader()
    assert len(reader.read([tmp_path])) == 1
    assert (reader.account.evaluation, reader.account.evaluation_files) == (2, 2)
    assert len(TraceReader().read([tmp_path / "step_2" / "eval"])) == 1  # named by the user, so wanted


def test_folders_in_folders_are_read_in_order(tmp_path):
    for step in (10, 9):
        (tmp_path / f"step_{step}").mkdir()
        line = {name: value for name, value in RECORD.items() if name != "step"}
        write(tmp_path / f"step_{step}" / "rank_3.jsonl", line)
    assert [r.step for r in TraceReader().read([tmp_path])] == [9, 10]


def test_a_history_of_the_same_trl_log_is_not_repeated(tmp_path, tokenizer):
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")

    def log(step, texts):
        table = {"step": [step] * len(texts), "prompt": [t[0] for t in texts], "completion": texts}
        pandas.DataFrame(table).to_parquet(tmp_path / f"completions_{step:05d}.parquet")
        return tmp_path / f"completions_{step:05d}.parquet"

    first, second, third = log(1, ["s1", "s2"]), log(2, ["s1", "s2"]), log(10, ["t1", "t2"])
    reader = TraceReader(tokenizer)
    assert len(reader.read([first])) == 2
    assert [r.step for r in reader.read([third, second])] == [10, 10]
    assert reader.account.repeated == 2
