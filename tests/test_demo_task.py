"""The demo's task: prompts, rewards, and the tokenizer shipped with the model."""

import random

import pytest

from rolltree.demo.task import ALPHABET, LARGEST, OPERANDS, Problem, sample_problems


@pytest.fixture
def rng():
    return random.Random(0)


def test_prompt_spells_the_numbers():
    assert Problem((47, 8, 93)).prompt == "sum 47 8 93\n"


def test_problems_are_distinct_seeded_and_in_range():
    problems = sample_problems(200, seed=3)
    assert problems == sample_problems(200, seed=3)
    assert problems[:50] == sample_problems(50, seed=3)
    assert problems != sample_problems(200, seed=4)
    assert len(set(problems)) == 200
    assert {len(p.numbers) for p in problems} == set(OPERANDS)
    assert all(1 <= n <= LARGEST for p in problems for n in p.numbers)


@pytest.mark.parametrize(
    ("completion", "reward"),
    [
        ("... total #148", 1.0),
        ("... total #148\n", 1.0),
        ("#148", 1.0),
        ("total #147", 0.0),
        ("total #1480", 0.0),
        ("total #148 and so", 0.0),
        ("total 148", 0.0),
        ("#148 #147", 0.0),
        ("", 0.0),
        ("#", 0.0),
    ],
)
def test_reward_looks_at_the_final_answer_only(completion, reward):
    assert Problem((47, 8, 93)).reward(completion) == reward


def test_tokenizer_shipped_with_the_model_has_one_token_a_character():
    pytest.importorskip("transformers")
    from rolltree.demo.assets import load_tokenizer

    tokenizer = load_tokenizer()
    text = "sum 47 8 93\nnow 47+8: 7+8+0=15, gives 55. #148"
    ids = tokenizer(text)["input_ids"]
    assert len(ids) == len(text)
    assert tokenizer.unk_token_id not in tokenizer(ALPHABET)["input_ids"]
    assert tokenizer.decode([*ids, tokenizer.eos_token_id], skip_special_tokens=True) == text
    assert len(tokenizer) == len(ALPHABET) + 3


def test_shipped_files_are_small():
    from rolltree.demo.assets import model_folder

    files = list(model_folder().iterdir())
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md"} <= {f.name for f in files}
    assert sum(f.stat().st_size for f in files) < 4e6


def test_shipped_model_solves_the_task_partly():
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from rolltree.demo.assets import PROMPT_SEED, load_model, load_tokenizer

    tokenizer, model, problems = load_tokenizer(), load_model(), sample_problems(64, PROMPT_SEED)
    assert model.dtype == torch.float32
    assert not model.training
    torch.manual_seed(0)
    inputs = tokenizer([p.prompt for p in problems], return_tensors="pt", padding=True)
    with torch.no_grad():
        ids = model.generate(**inputs, do_sample=True, top_k=0, max_new_tokens=176)
    texts = tokenizer.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    solved = sum(p.reward(text) for p, text in zip(problems, texts, strict=True)) / len(problems)
    assert 0.25 < solved < 0.7
