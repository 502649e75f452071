"""Set up a virtual environment: torch, the pinned packages of a lock file, the built core.

Without options the environment of `make demo` and `make test`; `--lock` names another lock file of requirements/, for
the environment of a host (vLLM, verl) whose pins do not fit the others.

Runs on a bare Python >= 3.10 and imports only the standard library. A step is skipped while its stamp, a hash
of what it was made from, is unchanged, so a second call takes under a second. Uses uv when it is on PATH,
pip otherwise.

Does not install a CUDA build of torch on a machine without an NVIDIA GPU, does not move pins (`make lock`
does), and touches nothing outside the environment and the build folder.

usage: python scripts/bootstrap.py [VENV] [--lock NAME] [--cpu]
  VENV         the environment, seen from the project's root; default .venv
  --lock NAME  install requirements/NAME.txt; default lock
  --cpu        the CPU build of torch, also where there is a GPU (the pinned host is a CPU build)
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CORE_SOURCES = ("CMakeLists.txt", "pyproject.toml", "native/*.h", "native/*.cpp")
"""What the built core depends on. The install is editable: Python sources are live."""

TORCH = "2.13.0"
OTHER_TORCH = {"vllm-0.24": "2.11.0", "vllm-0.26": "2.11.0"}  # their hosts are compiled against it
TORCH_PYTHONS = ((3, 10), (3, 15))
"""The first and the last Python that torch's wheels of this version are built for."""

CXX20_PROBE = "#include <concepts>\ntemplate <std::integral T> T f(T x) { return x; }\nint main() { return f(0); }\n"


class SetupError(Exception):
    """The set-up cannot go on; the message is one sentence that names the fix."""


def main(arguments: Sequence[str]) -> int:
    """Run the steps whose stamps are out of date; return the exit status."""
    parser = argparse.ArgumentParser(prog="bootstrap.py", usage=(__doc__ or "").partition("usage: python ")[2])
    parser.add_argument("venv", nargs="?", default=".venv")
    parser.add_argument("--lock", default="lock")
    parser.add_argument("--cpu", action="store_true")
    options = parser.parse_args(arguments)
    environment = Environment(ROOT / options.venv, torch=OTHER_TORCH.get(options.lock, TORCH))
    started = time.monotonic()
    try:
        steps_done = set_up(environment, find_lock(options.lock), cpu=options.cpu)
    except SetupError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    took = f"done in {time.monotonic() - started:.0f} s" if steps_done else "up to date"
    print(f"Set-up of {environment.path.name}: {took}.", flush=True)
    return 0


def find_lock(name: str) -> Path:
    """Return requirements/NAME.txt; raise when there is none."""
    folder = ROOT / "requirements"
    if (folder / f"{name}.txt").exists():
        return folder / f"{name}.txt"
    known = ", ".join(sorted(path.stem for path in folder.glob("*.txt")))
    raise SetupError(f"--lock {name}: there is no requirements/{name}.txt; known are {known}.")


def set_up(environment: Environment, lock: Path, *, cpu: bool = False) -> int:
    """Bring `environment` up to date with `lock`; return how many steps had to run."""
    done = 0
    if not environment.works():
        check_compiler()
        with step(f"virtual environment {environment.path.name}", "5 s"):
            environment.create()
        done += 1
    lock_hash = hash_files([lock], salt=f"torch {environment.torch}")
    if not environment.is_stamped("lock", lock_hash):
        with step(f"torch {environment.torch}", "20 s to 2 min"):
            install_torch(environment, cpu=cpu)
        with step(f"pinned packages of requirements/{lock.name}", "20 s with uv, 1 to 3 min with pip"):
            environment.install("--no-deps", "--require-hashes", "-r", str(lock))
        environment.stamp("lock", lock_hash)
        done += 1
    core_hash = hash_files(core_sources(), salt=environment.version() + module_names())
    if not environment.is_stamped("core", core_hash):
        check_compiler()
        with step("C++ core and the rolltree package (editable)", "30 s"):
            environment.install_project()
        environment.stamp("core", core_hash)
        done += 1
    return done


class Environment:
    """A virtual environment, how packages get into it, and the stamps of what is installed."""

    def __init__(self, path: Path, *, torch: str = TORCH) -> None:
        self.path, self.torch = path, torch
        scripts = "Scripts" if os.name == "nt" else "bin"
        self.bin = path / scripts
        self.python = self.bin / ("python.exe" if os.name == "nt" else "python")
        self.uv = shutil.which("uv")

    def works(self) -> bool:
        """Return whether the environment exists and its Python still runs and is new enough."""
        probe = "import sys, pip; sys.exit(sys.version_info < (3, 10))"
        return self.python.exists() and subprocess.run([self.python, "-c", probe], capture_output=True).returncode == 0

    def create(self) -> None:
        """Make the environment anew, with pip in it."""
        if self.uv:
            run([self.uv, "venv", "--quiet", "--clear", "--seed", "--python", sys.executable, str(self.path)])
            return
        try:
            import ensurepip  # noqa: F401
            import venv
        except ImportError as error:
            raise SetupError(
                f"this Python has no module {error.name}; install it (Debian: apt install python3-venv) or install uv."
            ) from None
        venv.create(self.path, with_pip=True, clear=True)

    def version(self) -> str:
        """Return the Python version of the environment, which the built core is bound to."""
        return run([str(self.python), "-c", "import sys; print(sys.version)"])

    def install(self, *arguments: str) -> None:
        """Install into the environment, with uv or with pip; the output is shown only when it fails."""
        run([*(self._uv_install() if self.uv else self._pip_install()), *arguments], env=self.variables())

    def install_project(self) -> None:
        """Build the core and install the project, editable; uv must be told that it may have changed."""
        reinstall = ["--reinstall-package", "rolltree"] if self.uv else []
        self.install(*reinstall, "--no-deps", "--no-build-isolation", "--editable", str(ROOT))

    def pip_install(self, *arguments: str) -> None:
        """Install with pip, which unlike uv reads this machine's own settings (wheel folders, mirrors)."""
        run([*self._pip_install(), *arguments], env=self.variables())

    def is_stamped(self, name: str, value: str) -> bool:
        """Return whether step `name` last finished with `value`."""
        path = self.path / ".stamps" / name
        return path.exists() and path.read_text() == value

    def stamp(self, name: str, value: str) -> None:
        """Record that step `name` finished with `value`."""
        path = self.path / ".stamps" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(value)

    def _uv_install(self) -> list[str]:
        assert self.uv is not None
        return [self.uv, "pip", "install", "--quiet", "--python", str(self.python)]

    def _pip_install(self) -> list[str]:
        return [str(self.python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]

    def variables(self) -> dict[str, str]:
        """Return the process environment: the venv's tools first, pip's wheel folders told to uv, a build folder.

        The build folder remembers the venv's cmake and nanobind, so each environment but the first has its own.
        """
        variables = {**os.environ, "PATH": f"{self.bin}{os.pathsep}{os.environ.get('PATH', '')}"}
        if self.path.name != ".venv":
            variables.setdefault("SKBUILD_BUILD_DIR", f"build/{self.path.name.lstrip('.')}")
        if folders := os.environ.get("PIP_FIND_LINKS"):
            variables.setdefault("UV_FIND_LINKS", ",".join(folders.split()))
        return variables


def install_torch(environment: Environment, *, cpu: bool = False) -> None:
    """Install torch: keep what is there, else with a GPU the default build, else (or if `cpu`) the CPU build."""
    gpu = not cpu and has_nvidia_gpu()
    if torch_is_installed(environment, allow_cuda=gpu):
        return
    check_torch_supports(environment)
    if gpu or sys.platform != "linux":  # elsewhere than on Linux the default build is a CPU build
        environment.install(f"torch=={environment.torch}")
        return
    try:
        # Only a CPU build carries this local version, so this never brings a CUDA build.
        environment.pip_install("--no-deps", f"torch=={environment.torch}+cpu")
    except SetupError:
        print("      not among this machine's wheels; asking uv for the CPU build", flush=True)
        install_torch_by_uv(environment)


def install_torch_by_uv(environment: Environment) -> None:
    """Install the CPU build with uv, which knows where PyTorch keeps it; install uv itself if need be."""
    try:
        if not environment.uv:
            environment.pip_install("uv")
        uv = environment.uv or str(environment.bin / "uv")
        options = ["--quiet", "--python", str(environment.python), "--torch-backend=cpu", "--no-deps"]
        run([uv, "pip", "install", *options, f"torch=={environment.torch}"], env=environment.variables())
    except SetupError as error:
        reason = str(error).splitlines()[-1].strip().removeprefix("cause: ")
        raise SetupError(
            f"no CPU build of torch {environment.torch} for {python_name(environment)} could be installed "
            f"({reason}). Put its wheel into a folder and run again with PIP_FIND_LINKS=FOLDER."
        ) from None


def torch_is_installed(environment: Environment, *, allow_cuda: bool) -> bool:
    """Return whether the wanted torch can be imported in the environment."""
    probe = "import torch; print(torch.__version__, torch.version.cuda or 'cpu')"
    result = subprocess.run([environment.python, "-c", probe], capture_output=True, text=True)
    version, _, backend = result.stdout.strip().partition(" ")
    return result.returncode == 0 and version.split("+")[0] == environment.torch and (allow_cuda or backend == "cpu")


def check_torch_supports(environment: Environment) -> None:
    """Raise when no wheel of torch can exist for the environment's Python."""
    major, minor = map(int, environment.version().split()[0].split(".")[:2])
    first, last = TORCH_PYTHONS
    if not first <= (major, minor) <= last:
        allowed = f"Python {first[0]}.{first[1]} to {last[0]}.{last[1]}"
        raise SetupError(
            f"torch {environment.torch} has no build for Python {major}.{minor}; use {allowed}: "
            f"rm -r {environment.path.name} && make test PYTHON=python{last[0]}.{last[1] - 2}"
        )


def check_compiler() -> None:
    """Raise unless a C++20 compiler and Python's headers are there."""
    candidates = [os.environ["CXX"]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]
    compiler = next(filter(None, map(shutil.which, candidates)), None)
    if compiler is None:
        raise SetupError(
            "no C++ compiler; install one (Debian, Ubuntu: apt install g++; macOS: xcode-select --install)"
        )
    with tempfile.TemporaryDirectory() as folder:
        command = [compiler, "-std=c++20", "-x", "c++", "-", "-o", str(Path(folder) / "probe")]
        if subprocess.run(command, input=CXX20_PROBE, text=True, capture_output=True).returncode != 0:
            raise SetupError(
                f"{compiler} does not compile C++20; use GCC 11 or Clang 14 or newer (CXX=/path/to/compiler)."
            )
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        raise SetupError("Python's C headers are missing; install them (Debian, Ubuntu: apt install python3-dev).")


def has_nvidia_gpu() -> bool:
    """Return whether an NVIDIA driver lists a GPU."""
    nvidia_smi = shutil.which("nvidia-smi")
    return nvidia_smi is not None and b"GPU " in subprocess.run([nvidia_smi, "-L"], capture_output=True).stdout


def python_name(environment: Environment) -> str:
    """Return the environment's Python as people call it."""
    return "Python " + ".".join(environment.version().split()[0].split(".")[:2])


def core_sources() -> Iterator[Path]:
    """Yield the files the built core depends on, in a fixed order."""
    for pattern in CORE_SOURCES:
        yield from sorted(ROOT.glob(pattern))


def module_names() -> str:
    """Return the names of all Python modules: the editable install maps them, so a change reruns it."""
    return "\n".join(sorted(str(path.relative_to(ROOT)) for path in (ROOT / "src").rglob("*.py")))


def hash_files(paths: Iterable[Path], *, salt: str) -> str:
    """Return a hash of the names and contents of `paths` and of `salt`."""
    digest = hashlib.sha256(salt.encode())
    for path in paths:
        digest.update(f"\n{path.relative_to(ROOT)}\n".encode() + path.read_bytes())
    return digest.hexdigest()


@contextmanager
def step(what: str, usual: str) -> Iterator[None]:
    """Say what starts and how long it usually takes, then how long it took."""
    print(f"  ... {what} (usually {usual})", flush=True)
    started = time.monotonic()
    yield
    print(f"      {time.monotonic() - started:.1f} s", flush=True)


def run(command: Sequence[str], env: dict[str, str] | None = None) -> str:
    """Run a command in the project's root and return what it printed; raise with all of it when it fails."""
    result = subprocess.run(command, cwd=ROOT, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if result.returncode != 0:
        raise SetupError(f"{' '.join(map(str, command))} failed:\n{result.stdout.strip()}")
    return result.stdout


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
