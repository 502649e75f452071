"""The set-up script: which torch it asks for, when it runs again; and what the lock files may hold."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent
LOCKS = sorted((ROOT / "requirements").glob("*.txt"))

if not LOCKS:
    pytest.skip("there is no source tree: these tests run against an installed wheel", allow_module_level=True)


@pytest.fixture(name="bootstrap")
def fixture_bootstrap(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module, on a Linux machine without GPU and without torch, that runs no command."""
    spec = importlib.util.spec_from_file_location("bootstrap", ROOT / "scripts" / "bootstrap.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(module, "has_nvidia_gpu", lambda: False)
    monkeypatch.setattr(module, "torch_is_installed", lambda environment, allow_cuda: False)
    return module


class Commands:
    """Stands in for `run`: records the commands; those that contain one of `failing` fail."""

    def __init__(self, bootstrap: ModuleType, *failing: str) -> None:
        self.bootstrap, self.failing = bootstrap, failing
        self.commands: list[str] = []

    def __call__(self, command: list[str], env: object = None) -> str:
        text = " ".join(command)
        if "sys.version" in text:
            return "3.12.1 (main)"
        self.commands.append(text)
        if any(part in text for part in self.failing):
            raise self.bootstrap.SetupError(f"{text} failed:\nno such wheel\n  cause: no route")
        return ""


def torch_commands(bootstrap: ModuleType, *failing: str, uv: str | None = None) -> list[str]:
    """Return the commands by which the script installs torch."""
    commands = Commands(bootstrap, *failing)
    bootstrap.run = commands
    environment = bootstrap.Environment(Path("venv"))
    environment.uv = uv
    bootstrap.install_torch(environment)
    return commands.commands


def test_without_gpu_only_cpu_builds_are_asked_for(bootstrap: ModuleType) -> None:
    """The first way that works ends the search, and no command could bring a CUDA build."""
    commands = torch_commands(bootstrap)
    assert len(commands) == 1
    assert commands[0].endswith("-m pip install --quiet --disable-pip-version-check --no-deps torch==2.13.0+cpu")


@pytest.mark.parametrize("uv", [None, "/usr/bin/uv"])
def test_without_wheel_uv_is_asked_for_the_cpu_build(bootstrap: ModuleType, uv: str | None) -> None:
    """uv comes from PyPI when it is absent, and is told to stay with the CPU."""
    commands = torch_commands(bootstrap, "+cpu", uv=uv)
    assert [command.endswith("pip-version-check uv") for command in commands[1:-1]] == ([] if uv else [True])
    assert "--torch-backend=cpu" in commands[-1]


def test_no_way_to_torch_is_one_sentence(bootstrap: ModuleType) -> None:
    """The error names the Python, the cause and the fix, on one line."""
    with pytest.raises(bootstrap.SetupError, match=r"Python 3\.12 .*\(no route\).*PIP_FIND_LINKS") as caught:
        torch_commands(bootstrap, "+cpu", "--torch-backend", uv="uv")
    assert "\n" not in str(caught.value)


def test_with_gpu_the_default_build_is_installed(bootstrap: ModuleType) -> None:
    """An NVIDIA GPU gets the build that PyPI serves, with its CUDA packages."""
    bootstrap.has_nvidia_gpu = lambda: True
    (command,) = torch_commands(bootstrap)
    assert command.endswith("pip-version-check torch==2.13.0")


def test_host_of_a_cpu_build_gets_the_cpu_build(bootstrap: ModuleType) -> None:
    """`--cpu` wins over the GPU: vLLM's CPU build beside a CUDA build of torch does not start."""
    bootstrap.has_nvidia_gpu = lambda: True
    commands = Commands(bootstrap)
    bootstrap.run = commands
    environment = bootstrap.Environment(Path("venv"))
    environment.uv = None
    bootstrap.install_torch(environment, cpu=True)
    assert [command.rpartition(" ")[2] for command in commands.commands] == ["torch==2.13.0+cpu"]


def test_lock_is_found_by_name(bootstrap: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    """A name that is not there is refused by name, with those that are."""
    assert bootstrap.find_lock("vllm").name == "vllm.txt"
    assert bootstrap.main(["venv", "--lock", "vlm"]) == 2
    assert re.search(r"--lock vlm: .*known are .*vllm", capsys.readouterr().err)


def test_environments_build_apart(bootstrap: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """A build folder remembers one environment's nanobind; a second environment must not find it."""
    monkeypatch.delenv("SKBUILD_BUILD_DIR", raising=False)
    assert "SKBUILD_BUILD_DIR" not in bootstrap.Environment(Path(".venv")).variables()
    assert bootstrap.Environment(Path(".venv-vllm")).variables()["SKBUILD_BUILD_DIR"] == "build/venv-vllm"


def test_installed_torch_is_kept(bootstrap: ModuleType) -> None:
    """A torch that can be imported is not replaced."""
    bootstrap.torch_is_installed = lambda environment, allow_cuda: True
    assert torch_commands(bootstrap) == []


def test_python_without_torch_is_refused(bootstrap: ModuleType) -> None:
    """A Python that torch has no build for gets told which ones it has."""
    bootstrap.TORCH_PYTHONS = ((3, 10), (3, 11))
    with pytest.raises(bootstrap.SetupError, match=r"no build for Python 3\.12; use Python 3\.10 to 3\.11"):
        torch_commands(bootstrap)


def test_hash_follows_content_name_and_salt(bootstrap: ModuleType, tmp_path: Path) -> None:
    """A step runs again when a file's bytes, its name or the Python change, and only then."""
    bootstrap.ROOT = tmp_path
    one, two = tmp_path / "one.h", tmp_path / "two.h"
    one.write_text("a")
    two.write_text("a")
    reference = bootstrap.hash_files([one], salt="3.11")
    assert bootstrap.hash_files([one], salt="3.11") == reference
    assert bootstrap.hash_files([two], salt="3.11") != reference
    assert bootstrap.hash_files([one], salt="3.12") != reference
    one.write_text("b")
    assert bootstrap.hash_files([one], salt="3.11") != reference


def test_core_sources_are_found(bootstrap: ModuleType) -> None:
    """The patterns match: a pattern that matches nothing would never trigger a rebuild."""
    names = {path.relative_to(ROOT).as_posix() for path in bootstrap.core_sources()}
    assert {"CMakeLists.txt", "pyproject.toml", "native/binding.cpp"} <= names
    assert any(name.endswith(".h") for name in names)


def pins(lock: Path) -> dict[str, str]:
    """Return each requirement of a lock file (with its marker) and the lines that follow it."""
    blocks = re.split(r"^(?=[A-Za-z0-9])", lock.read_text(), flags=re.MULTILINE)
    return {block.splitlines()[0].rstrip("\\ "): block for block in blocks if block.strip()}


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.name)
def test_lock_is_hashed_and_free_of_addresses_and_cuda(lock: Path) -> None:
    """Pins are exact and hashed; neither torch nor its CUDA packages are there; no address is recorded.

    triton has a lock of its own, for an environment in which nothing else is.
    """
    for pin, block in pins(lock).items():
        assert re.match(r"[a-z0-9._-]+==[^ ]+( ;|$)", pin)
        assert "--hash=sha256:" in block
        assert not re.match(r"(torch|nvidia|cuda)\b" if lock.stem == "triton" else r"(torch|triton|nvidia|cuda)\b", pin)
    assert "://" not in lock.read_text()


def test_slim_lock_is_a_subset() -> None:
    """The wheel is tested with the versions that everything else is tested with."""
    assert set(pins(ROOT / "requirements" / "slim.txt")) <= set(pins(ROOT / "requirements" / "lock.txt"))
