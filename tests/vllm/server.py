"""vLLM's OpenAI server with the demo's model, a process of its own, and a client for it."""

from __future__ import annotations

import http.client
import json
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rolltree.demo.assets import model_folder
from tests.vllm.engines import OPTIONS, WIDTH

READY = "Application startup complete"
"""The next thing that it does is to listen."""
SECONDS = 600
"""A server that says nothing for so long hangs."""


class Server:
    """A running server."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.lines: list[str] = []
        """What it has logged."""

    def connect(self) -> http.client.HTTPConnection:
        """Open a connection."""
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=SECONDS)

    def listens(self) -> bool:
        """Return whether a connection is taken."""
        try:
            self.connect().connect()
        except ConnectionRefusedError:
            return False
        return True

    def ask(
        self, path: str, body: object = None, *, method: str | None = None, headers: Mapping[str, str] = {}
    ) -> tuple[int, str]:
        """Send a request; return status and text of the answer."""
        connection = self.connect()
        text = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        connection.request(method or ("GET" if body is None else "POST"), path, text, {**HEADERS, **headers})
        answer = connection.getresponse()
        content = answer.read().decode()
        connection.close()
        return answer.status, content

    def complete(
        self, prompt: object, xargs: object = None, *, headers: Mapping[str, str] = {}, **settings: Any
    ) -> tuple[int, Any]:
        """Ask for a completion; return the status and the answer."""
        body = {"model": "demo", "prompt": prompt, "temperature": 0, "max_tokens": 8} | settings
        body = body if xargs is None else body | {"vllm_xargs": xargs}
        status, text = self.ask("/v1/completions", body, headers=headers)
        return status, json.loads(text)

    def figures(self) -> dict[str, float]:
        """rolltree's statistics, finished requests included."""
        self.ask("/collective_rpc", {"method": "rolltree", "args": ["commit"]})
        status, text = self.ask("/collective_rpc", {"method": "rolltree", "args": ["stats"]})
        assert status == 200, text
        stats: dict[str, float] = json.loads(text)["results"][0]["answer"]
        return stats

    def shown(self, name: str) -> float:
        """What the metrics endpoint says."""
        found = re.search(rf"^vllm:rolltree_{name}(?:_total)? (\S+)$", self.ask("/metrics")[1], re.MULTILINE)
        assert found, name
        return float(found[1])


HEADERS = {"Content-Type": "application/json"}


@contextmanager
def server(*arguments: str, **environment: str) -> Iterator[Server]:
    """Start a server on a free port, wait until it says that it is ready, and end it; the environment lets it draft."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        *(sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model_folder())),
        *("--served-model-name", "demo", "--host", "127.0.0.1", "--port", str(port), "--dtype", "float32"),
        *("--enforce-eager", "--max-model-len", "256", "--max-num-seqs", "8", "--seed", "0"),
        *("--chat-template", "{{ messages[0]['content'] }}"),
        *("--additional-config", json.dumps({"rolltree": OPTIONS}), *arguments),
    ]
    own = {
        "ROLLTREE_DRAFT": str(WIDTH),
        "VLLM_SERVER_DEV_MODE": "1",
        "VLLM_LOGGING_LEVEL": "INFO",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "1",
    }
    process = subprocess.Popen(
        command, env=os.environ | own | environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert process.stdout is not None
    running = Server(port)
    try:
        for line in process.stdout:
            running.lines.append(line)
            if READY in line:
                break
        else:
            raise AssertionError("the server ended:\n" + "".join(running.lines))
        while not running.listens():
            assert process.poll() is None, "the server ended"
        threading.Thread(target=running.lines.extend, args=(process.stdout,), daemon=True).start()
        yield running
    finally:
        process.terminate()
        process.wait()
