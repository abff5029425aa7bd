"""The parts of the screen about the machine below a server: processes, host, GPUs."""

from __future__ import annotations

from rich.text import Text

from vllm_monitor.picture.snapshot import Snapshot
from vllm_monitor.records import GpuInfo, HostPressure, ProcessInfo
from vllm_monitor.terminal import format as human
from vllm_monitor.terminal.arrange import Section, fixed
from vllm_monitor.terminal.history import TargetHistory
from vllm_monitor.terminal.safe_text import Script
from vllm_monitor.terminal.tables import Cell, facts, indented, line

__all__ = ["gpus_section", "host_section", "processes_section"]

_ROLE_ORDER = ("api", "engine", "worker")
# Of psutil's states those in which a process does nothing for us, and why that alarms.
_STATE_STYLES = {
    "stopped": "bold red",
    "tracing-stop": "bold red",
    "zombie": "bold red",
    "dead": "bold red",
    "disk-sleep": "bold yellow",
}
_PRESSED_PERCENT = 40.0
_LOW_MEMORY_BYTES = 512 * 2**20
# Bits of NVML's clock event reasons that slow a GPU down against its will.
_THROTTLE_WORDS = {
    0x4: "power cap",
    0x8: "hardware slowdown",
    0x20: "thermal",
    0x40: "hardware thermal",
    0x80: "power brake",
}


def processes_section(history: TargetHistory, width: int, script: Script, *, priority: int) -> Section:
    """Role, pid, state, CPU between ticks, memory, descriptors and threads of each process."""
    processes = sorted(history.snapshot.processes, key=_process_order)
    if not processes:
        lost = Text(" no process of the server is left", style="bold red", no_wrap=True)
        lost.truncate(width)
        return fixed([lost] if history.had_processes else [], priority=priority)

    def build(height: int) -> list[Text]:
        shown = processes[: height - 1]
        lines = [indented(line(_process_header(width - 1), script))]
        lines += [indented(line(_process_cells(process, history, width - 1), script)) for process in shown]
        hidden = len(processes) - len(shown)
        if hidden:
            lines[-1:] = [indented(Text(script.fit(f"and {hidden + 1} more processes", width - 1), style="dim"))]
        return lines

    return Section(build, 1 + len(processes), min(4, 1 + len(processes)), priority)


def host_section(host: HostPressure | None, width: int, script: Script, *, priority: int) -> Section:
    """CPU, load, memory and pressure (PSI, 10 s) of the host, in two lines where one is too short."""
    if host is None:
        return fixed([])
    memory = host.memory_available_bytes
    low = memory is not None and memory < _LOW_MEMORY_BYTES
    use = [
        (f"host cpu {human.percent(host.cpu_percent)}", ""),
        (f"{human.byte_count(memory)} free", "bold red" if low else ""),
        (f"load {human.rate(host.load1)}", ""),
    ]
    pressure = [
        (f"psi cpu {human.percent(host.cpu_some_avg10)}", _pressed(host.cpu_some_avg10)),
        (f"mem {human.percent(host.memory_some_avg10)}", _pressed(host.memory_some_avg10)),
        (f"io {human.percent(host.io_some_avg10)}", _pressed(host.io_some_avg10)),
    ]
    together = sum(len(text) for text, _ in [*use, *pressure]) + len(script.separator) * 5

    def build(height: int) -> list[Text]:
        rows = [use, pressure] if height > 1 else [[*use, *pressure]]
        return [indented(facts(row, width - 1, script)) for row in rows]

    return Section(build, 1 if together < width else 2, 1, priority)


def gpus_section(snapshot: Snapshot, width: int, script: Script, *, priority: int) -> Section:
    """One line for each GPU."""
    gpus = snapshot.gpus

    def build(height: int) -> list[Text]:
        lines = [_gpu_line(gpu, width, script) for gpu in gpus[:height]]
        hidden = len(gpus) - len(lines)
        if hidden and lines:
            lines[-1] = indented(Text(script.fit(f"and {hidden + 1} more GPUs", width - 1), style="dim"))
        return lines

    return Section(build, len(gpus), min(1, len(gpus)), priority)


def _process_order(process: ProcessInfo) -> tuple[int, str, int]:
    place = _ROLE_ORDER.index(process.role) if process.role in _ROLE_ORDER else len(_ROLE_ORDER)
    return place, process.role, process.pid


def _process_header(width: int) -> list[Cell]:
    cells = [
        Cell("process", 12, "dim"),
        Cell("pid", 7, "dim", right=True),
        Cell("state", 10, "dim"),
        Cell("cpu", 6, "dim", right=True),
        Cell("memory", 9, "dim", right=True),
        Cell("fds", 6, "dim", right=True),
        Cell("thr", 4, "dim", right=True),
    ]
    return _as_many_as_fit(cells, width)


def _process_cells(process: ProcessInfo, history: TargetHistory, width: int) -> list[Cell]:
    style = _STATE_STYLES.get(process.state, "")
    cells = [
        Cell(process.role, 12),
        Cell(str(process.pid), 7, right=True),
        Cell(process.state, 10, style),
        Cell(human.percent(history.cpu_percent.get(process.pid)), 6, right=True),
        Cell(human.byte_count(process.rss_bytes), 9, right=True),
        Cell(human.count(process.fds), 6, right=True),
        Cell(human.count(process.threads), 4, right=True),
    ]
    return _as_many_as_fit(cells, width)


def _as_many_as_fit(cells: list[Cell], width: int) -> list[Cell]:
    chosen: list[Cell] = []
    used = 0
    for cell in cells:
        used += cell.width + bool(chosen)
        if used > width:
            break
        chosen.append(cell)
    return chosen


def _pressed(percent: float | None) -> str:
    return "bold yellow" if percent is not None and percent >= _PRESSED_PERCENT else ""


def _gpu_line(gpu: GpuInfo, width: int, script: Script) -> Text:
    share = None
    if gpu.memory_used_bytes is not None and gpu.memory_total_bytes:
        share = gpu.memory_used_bytes / gpu.memory_total_bytes
    memory = f"{human.byte_count(gpu.memory_used_bytes)} of {human.byte_count(gpu.memory_total_bytes)}"
    throttled = [word for bit, word in _THROTTLE_WORDS.items() if (gpu.throttle_reasons or 0) & bit]
    parts = [(f"gpu {gpu.index}", "bold")]
    if throttled:
        parts.append((f"THROTTLED: {', '.join(throttled)}", "bold yellow"))
    if gpu.ecc_uncorrected_total:
        parts.append((f"{human.count(gpu.ecc_uncorrected_total)} ECC ERRORS", "bold red"))
    parts += [
        (f"util {human.ratio(gpu.utilisation_ratio)}", ""),
        (f"mem {human.ratio(share)} ({memory})", ""),
        (f"{human.rate(gpu.power_watts)} W", ""),
        (f"{human.rate(gpu.temperature_celsius)} C", ""),
        (gpu.name, "dim"),
    ]
    return indented(facts(parts, width - 1, script))
