"""`rolltree bench engine`: the demo's model in the built-in engine, or a user's own model and prompts, also in vLLM."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from rolltree.cli.bar import Bar
from rolltree.cli.output import Json, Out, check_file, check_outputs, console, finish, table
from rolltree.errors import InvalidInputError

if TYPE_CHECKING:
    from rolltree.bench.prompts import Prompts

ENGINES = ("builtin", "vllm")
BUILTIN_ALONE = ("repeats", "train_epochs", "threads", "device", "dtype", "cost", "save_cost")
VLLM_ALONE = ("runner", "arguments")
OWN_ALONE = ("samples", "temperature", "max_tokens", "tokenizer")
ROLLOUTS, OWN_ROLLOUTS = 64, 256
"""Of an epoch, on the demo's model and on a user's own: 32 prompts, eight samples each."""


Arguments = Annotated[
    list[str] | None, typer.Argument(metavar="[-- ENGINE ARGUMENTS]", help="With --engine vllm: as of `vllm serve`.")
]
PromptFiles = Annotated[
    list[Path] | None,
    typer.Option(help="Your prompts: texts, messages or token ids, JSON lines or Parquet; repeat it."),
]
Tokenizer = Annotated[str | None, typer.Option(help="For prompts that are no token ids. Default: --model's.")]
Runner = Annotated[
    list[str] | None, typer.Option(help="vLLM's model runner for rolltree: v1 or v2; repeat it. Default: vLLM's own.")
]
Batch = Annotated[
    list[int] | None, typer.Option("--batch", min=1, help="Requests at once; repeat it. Default: 8, 32, 64; vLLM's.")
]
Drafter = Annotated[list[str] | None, typer.Option("--drafter", help="What to run; repeat it. Default: all.")]
Epochs = Annotated[int | None, typer.Option(min=1, help="Times that every prompt is generated. Default: 6; 3.")]
TrainEpochs = Annotated[int, typer.Option(min=0, help="Epochs of GRPO before; their rollouts warm the caches.")]
SaveCost = Annotated[
    Path | None,
    typer.Option(
        callback=lambda path: path and check_file(path, "--save-cost"),
        help="Where the cost model measured at the largest batch goes, for --cost, also of `replay`.",
    ),
]


def run(
    context: typer.Context,
    arguments: Arguments = None,
    engine: Annotated[str, typer.Option(help="builtin or vllm.")] = "builtin",
    model: Annotated[str | None, typer.Option(help="Your model: a folder, or a name. Default: the demo's.")] = None,
    prompts: PromptFiles = None,
    samples: Annotated[int, typer.Option(min=1, help="Rollouts of a prompt, of your model.")] = 8,
    temperature: Annotated[float, typer.Option(min=0.0, max=10.0, help="Of your model.")] = 1.0,
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens of a rollout at most, of your model.")] = 512,
    tokenizer: Tokenizer = None,
    runner: Runner = None,
    batch: Batch = None,
    drafter: Drafter = None,
    epochs: Epochs = None,
    repeats: Annotated[int | None, typer.Option(min=1, help="Repetitions with fresh caches. Default: 3; 1.")] = None,
    rollouts: Annotated[int | None, typer.Option(min=1, help="Rollouts of an epoch. Default: 64; 256.")] = None,
    train_epochs: TrainEpochs = 0,
    threads: Annotated[int, typer.Option(min=1, help="Threads of torch.")] = 1,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    max_draft: Annotated[int, typer.Option(min=1, help="Draft tokens of a request and step at most.")] = 16,
    cost: Annotated[Path | None, typer.Option(help="A frozen cost model instead of a measured one.")] = None,
    save_cost: SaveCost = None,
    json_output: Json = False,
    out: Out = None,
) -> None:
    """Rollout seconds over epochs with every drafter: on the demo's model, or on your model and prompts.

    With --model and --prompts it ends with a sentence: worth it or not, and with which setting.

    Example: rolltree bench engine --engine vllm --model Qwen/Qwen2.5-7B-Instruct --prompts prompts.jsonl
    """
    _check(context, engine, model, prompts)
    check_outputs([*(prompts or []), *([cost] if cost else [])], out=out, save_cost=save_cost)
    screen = console(json_output)
    if engine == "vllm" and model is not None:
        from rolltree.bench.vllm_engines import VllmRun
        from rolltree.bench.vllm_worker import DRAFTERS

        setting = VllmRun(
            model=model, prompts=_prompts(prompts or [], tokenizer or model, rollouts, samples), samples=samples,
            epochs=epochs or 3, temperature=temperature, max_tokens=max_tokens, batches=batch or (None,),
            drafters=_installed(drafter, DRAFTERS), runners=runner or ("",), max_draft=max_draft,
            arguments=tuple(arguments or ()),
        )  # fmt: skip
        document = _vllm(screen, setting)
    else:
        own: dict[str, Any] = {}
        if model is not None:
            read = _prompts(prompts or [], tokenizer or model, rollouts, samples)
            rollouts = samples * len(read.tokens)
            own = {"model": model, "prompts": read, "samples": samples, "temperature": temperature}
            own["max_tokens"] = max_tokens
        document = _builtin(
            screen, own, device=device, dtype=dtype, threads=threads, train_epochs=train_epochs, save_cost=save_cost,
            cost=cost, batches=batch or [8, 32, 64], drafters=drafter, max_draft=max_draft,
            epochs=epochs or (3 if own else 6), repeats=repeats or (1 if own else 3), rollouts=rollouts or ROLLOUTS,
        )  # fmt: skip
    finish(document, json_output=json_output, out=out)


def _check(context: typer.Context, engine: str, model: str | None, prompts: list[Path] | None) -> None:
    """Refuse options that would mean nothing, and halves."""
    if engine not in ENGINES:
        raise InvalidInputError("--engine", engine, f"one of {', '.join(ENGINES)}")
    if (model is None) != (not prompts):
        raise InvalidInputError("--model", model, "given together with --prompts", "Both are yours, or the demo's.")
    if engine == "vllm" and model is None:
        fix = "Name your model and your prompts; the demo's model in vLLM is measured in a checkout: make vllm-bench."
        raise InvalidInputError("--engine", engine, "given with --model and --prompts", fix)
    for names, is_wrong, where in (
        (BUILTIN_ALONE, engine == "vllm", "--engine builtin"),
        (VLLM_ALONE, engine != "vllm", "--engine vllm"),
        (OWN_ALONE, model is None, "--model and --prompts"),
        (("train_epochs",), model is not None, "the demo's model"),
    ):
        for name in names:
            source = context.get_parameter_source(name)
            if is_wrong and source is not None and source.name == "COMMANDLINE":
                shown = "[-- ENGINE ARGUMENTS]" if name == "arguments" else f"--{name.replace('_', '-')}"
                raise InvalidInputError(shown, context.params.get(name), f"left out: it goes with {where} alone")


def _prompts(paths: list[Path], tokenizer: str, rollouts: int | None, samples: int) -> Prompts:
    from rolltree.bench.prompts import read_prompts
    from rolltree.replay.tokenizing import TextTokenizer

    most = max(1, (rollouts or OWN_ROLLOUTS) // samples)
    return read_prompts(paths, lambda: TextTokenizer(tokenizer), most=most)


def _installed(given: list[str] | None, known: tuple[str, ...]) -> list[str]:
    from rolltree.bench.subjects import peer_installed

    return given or [name for name in known if name != "suffix" or peer_installed()]


def _vllm(screen: Console, setting: Any) -> dict[str, Any]:
    from importlib.util import find_spec

    from rolltree.bench.vllm_engines import run_vllm
    from rolltree.errors import MissingDependencyError

    if find_spec("vllm") is None:
        raise MissingDependencyError("--engine vllm needs vLLM: pip install 'rolltree[vllm]'")
    with Bar(screen, setting.rollouts) as bar:
        document = run_vllm(setting, bar)
    _show_own(screen, document)
    return document


def _builtin(
    screen: Console, own: dict[str, Any], *, device: str, dtype: str, threads: int, train_epochs: int,
    cost: Path | None, save_cost: Path | None, drafters: list[str] | None, **settings: Any,
) -> dict[str, Any]:  # fmt: skip
    import torch

    from rolltree.bench.demo_workload import demo_workload
    from rolltree.bench.device import moved
    from rolltree.bench.engine import DRAFTERS, run_engine
    from rolltree.bench.own_workload import own_workload
    from rolltree.bench.verdict import judge
    from rolltree.budget import CostModel

    torch.set_num_threads(threads)
    names = _installed(drafters, DRAFTERS)
    with screen.status("training" if train_epochs else "") as status:
        workload = own_workload(**own) if own else demo_workload(train_epochs=train_epochs)
        document: dict[str, Any] = run_engine(
            moved(workload, device, dtype), drafters=names, cost=CostModel.load(cost) if cost else None,
            progress=status.update, **settings,
        )  # fmt: skip
    if save_cost is not None and (costs := document.get("costs")):
        CostModel(**costs[max(costs, key=int)]).save(save_cost)
    if not own:
        show_cases(screen, document)
        return document
    asked = {name: own[name] for name in ("samples", "temperature", "max_tokens")}
    document |= judge(document["cases"]).document() | own["prompts"].document() | asked
    show_cases(screen, document)
    _say(screen, document)
    return document


def _show_own(screen: Console, document: dict[str, Any]) -> None:
    keys = ["epoch", "seconds", "tokens_per_second", "tokens_per_step", "drafted_per_step", "speedup"]
    rows = []
    for case in document["cases"]:
        batch = f"batch {case['batch']}, " if case["batch"] else ""
        name = f"{batch}{case['drafter']}" + (f" ({case['runner']})" if case["runner"] else "")
        same = case.get("identical_rollouts")
        rows.append([name, *[case[key] for key in keys], None if same is None else f"{same} of {case['rollouts']}"])
    columns = ["engine", "epoch", "seconds", "tokens/s", "tokens/step", "drafted/step", "speedup", "identical"]
    screen.print(table(f"vLLM, {document['prompts']} prompts, {document['samples']} samples each", columns, rows))
    for case in document["cases"]:
        if case["error"]:
            screen.print(f"{case['drafter']} {case['runner'] or ''} failed: {case['error']}", markup=False)
    _say(screen, document)


def _say(screen: Console, document: dict[str, Any]) -> None:
    if document["partial"]:
        screen.print("Stopped before the end: these are the epochs that were complete.")
    if document["more_prompts"]:
        screen.print(f"The first {document['prompts']} prompts of the files; --rollouts takes more.")
    screen.print(document["verdict"], markup=False, highlight=False, soft_wrap=True)


def show_cases(screen: Any, document: dict[str, Any]) -> None:
    """Print the table of `bench engine`: a row for each batch size, epoch and drafter."""
    cases = document["cases"]
    keys = ["epoch", "drafter", "tokens_per_second", "tokens_per_step", "drafted_per_step", "speedup"]
    rows = [[f"batch {c['batch']}", *[c[k] for k in keys], "{:.2f}-{:.2f}".format(*c["spread"])] for c in cases]
    columns = ["batch", "epoch", "drafter", "tokens/s", "tokens/step", "drafted/step", "speedup", "spread"]
    screen.print(table("Engine: speedup over the same engine without drafts", columns, rows))
