"""Where a trainer's vLLM is, in its process or behind HTTP: how requests are marked there, and commands sent.

Each side replaces one method of one object of the trainer's, never of a class, and gives back what it replaced. What
goes wrong with marks is skipped with one warning: the request then goes out as the trainer made it.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from rolltree.errors import RolltreeError
from rolltree.runlog import SideChannel
from rolltree.serving.request_options import FLAT, REQUEST_KEY, with_options
from rolltree.tokens import prompt_key
from rolltree.trl.turns import Text, Turns

Marks = Callable[[], dict[str, Any]]
"""What the requests of now are marked with: options of a request (`serving.request_options`)."""


@dataclass(frozen=True, slots=True)
class Call:
    """What a generation call left."""

    seconds: float
    rollouts: list[dict[str, Any]]
    """Finished text in the fields of the trace format; empty where the engine is not in this process."""


class Side(Protocol):
    """One of the two places where the engine can be."""

    def collective_rpc(self, method: str, args: tuple[Any, ...] = ()) -> list[Any]:
        """As `vllm.LLM.collective_rpc`."""

    def watch(self, marks: Marks, ended: Callable[[Call], None]) -> None:
        """Mark every request from now on, and tell of every call that ended."""

    def leave(self) -> None:
        """Give back what was replaced."""


class InProcess:
    """`vllm_mode="colocate"`: a `vllm.LLM` of each process."""

    def __init__(self, llm: Any) -> None:
        self._llm, self._turns, self._replaced = llm, Turns(), Replaced(llm)
        self._guard = SideChannel("rolltree's marks of requests")

    def collective_rpc(self, method: str, args: tuple[Any, ...] = ()) -> list[Any]:
        """As `vllm.LLM.collective_rpc`."""
        answers: list[Any] = self._llm.collective_rpc(method, args=args)
        return answers

    def watch(self, marks: Marks, ended: Callable[[Call], None]) -> None:
        """Mark every request of `llm.generate` with its conversation as well."""

        def make(generate: Callable[..., Any]) -> Callable[..., Any]:
            def marked(prompts: Any, sampling_params: Any = None, *args: Any, **kwargs: Any) -> Any:
                texts: list[Text] = []
                with self._guard:
                    texts, sampling_params = self._mark(prompts, sampling_params, marks())
                began = time.perf_counter()
                outputs = generate(prompts, sampling_params, *args, **kwargs)
                seconds, rollouts = time.perf_counter() - began, list[dict[str, Any]]()
                with self._guard:
                    rollouts = self._finished(outputs, texts, marks()["version"])
                ended(Call(seconds, rollouts))
                return outputs

            return marked

        self._replaced.replace("generate", make)

    def leave(self) -> None:
        """Give back `llm.generate`."""
        self._replaced.restore()

    def _mark(self, prompts: Any, given: Any, marks: dict[str, Any]) -> tuple[list[Text], Any]:
        """Return the prompts with their roots, none where one is not token ids, and sampling parameters, one each."""
        rows = list(prompts) if isinstance(prompts, Sequence) and not isinstance(prompts, str) else [prompts]
        if given is None:
            given = self._llm.get_default_sampling_params()
        every = list(given) if isinstance(given, Sequence) else [given] * len(rows)
        tokens = [
            list(row["prompt_token_ids"]) for row in rows if isinstance(row, Mapping) and "prompt_token_ids" in row
        ]
        texts = list(zip(tokens, self._turns.roots(tokens), strict=True)) if len(tokens) == len(rows) else []
        names: list[str | None] = [prompt_key(text[:root]) for text, root in texts]
        made: dict[tuple[int, str | None], Any] = {}
        return texts, [
            _marked(params, marks, name, made) for params, name in zip(every, names or [None] * len(rows), strict=True)
        ]

    def _finished(self, outputs: Any, texts: list[Text], version: int) -> list[dict[str, Any]]:
        rows = [
            (text, list(sample.token_ids), root, bool(getattr(output, "multi_modal_placeholders", None)))
            for output, (text, root) in zip(outputs, texts, strict=bool(texts))
            for sample in output.outputs
        ]
        self._turns.ended((text + tokens, root) for text, tokens, root, _ in rows)
        return [_rollout(text, tokens, root, version) for text, tokens, root, has_media in rows if not has_media]


class OverHttp:
    """`vllm_mode="server"`: one server, which the main process alone talks to, by TRL's client."""

    def __init__(self, client: Any) -> None:
        self._client, self._replaced = client, Replaced(client)
        self._guard = SideChannel("rolltree's marks of requests")

    def collective_rpc(self, method: str, args: tuple[Any, ...] = ()) -> list[Any]:
        """Ask by the server's development endpoint, which TRL needs as well.

        Raises:
            RolltreeError: the server did not answer.

        """
        url = f"{self._client.base_url}/collective_rpc"
        try:
            answer = self._client.session.post(url, json={"method": method, "args": list(args)})
            answer.raise_for_status()
            return list(answer.json()["results"])
        except (OSError, ValueError, LookupError) as error:  # requests' own are OSErrors
            raise RolltreeError(f"{url} did not answer {method} {args[:1]}: {error}") from error

    def watch(self, marks: Marks, ended: Callable[[Call], None]) -> None:
        """Mark every body that the client sends."""

        def make(send: Callable[..., Any]) -> Callable[..., Any]:
            def marked(*args: Any, **kwargs: Any) -> Any:
                with self._guard:
                    kwargs = kwargs | {"generation_kwargs": in_body(kwargs, marks())}
                began = time.perf_counter()
                answer = send(*args, **kwargs)
                ended(Call(time.perf_counter() - began, []))
                return answer

            return marked

        for name in ("generate", "chat"):
            self._replaced.replace(name, make)

    def leave(self) -> None:
        """Give back the client's methods."""
        self._replaced.restore()


class Replaced:
    """Methods of one object that are replaced on it alone."""

    def __init__(self, owner: Any) -> None:
        self._owner = owner
        self._ours: dict[str, tuple[Any, Any]] = {}  # by name: what stands there, what stood on the object before

    def replace(self, name: str, make: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
        """Put `make(what is there)` in its place; a name that the object lacks is left alone."""
        if (original := getattr(self._owner, name, None)) is not None:
            ours = make(original)
            self._ours[name] = ours, vars(self._owner).get(name)
            setattr(self._owner, name, ours)

    def restore(self) -> None:
        """Put back what was there, unless somebody has replaced ours since."""
        for name, (ours, before) in self._ours.items():
            if vars(self._owner).get(name) is ours:
                delattr(self._owner, name) if before is None else setattr(self._owner, name, before)
        self._ours.clear()


def with_marks(given: Mapping[str, Any] | None, marks: Mapping[str, Any]) -> dict[str, Any]:
    """Return a request's dictionary with these marks; those that the user has set win."""
    return with_options(given, **{**marks, **with_options(given)[REQUEST_KEY]})


def in_body(settings: Mapping[str, Any], marks: Mapping[str, Any]) -> dict[str, Any]:
    """Return the client's `generation_kwargs` with marks, where the endpoint that it will choose takes them."""
    given = dict(settings.get("generation_kwargs") or {})
    if settings.get("features") is not None:  # then it asks /inference/v1/generate
        return given | {"extra_args": with_marks(given.get("extra_args"), marks)}
    flat = {f"{FLAT}{name}": str(value).lower() for name, value in marks.items()}
    return given | {"vllm_xargs": flat | dict(given.get("vllm_xargs") or {})}


def _marked(params: Any, marks: dict[str, Any], session: str | None, made: dict[tuple[int, str | None], Any]) -> Any:
    """A copy with marks; `made` holds those of this call, for samples of a prompt share one."""
    place = id(params), session
    if place not in made:
        made[place] = copy.copy(params)
        made[place].extra_args = with_marks(
            params.extra_args, marks if session is None else {**marks, "session": session}
        )
    return made[place]


def _rollout(prompt: list[int], tokens: list[int], root: int, version: int) -> dict[str, Any]:
    """Of a later turn, what stands between its first prompt and the completion is context."""
    turns = prompt[root:]
    return {
        "prompt_token_ids": np.array(prompt[:root], np.int32),
        "token_ids": np.array(turns + tokens, np.int32),
        "step": version,
        "context": [(0, len(turns))] if turns else [],
    }
