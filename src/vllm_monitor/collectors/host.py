"""How hard the host is pressed: CPU, memory, and what the kernel says of stalls (PSI)."""

from __future__ import annotations

from pathlib import Path

import psutil

from vllm_monitor.clock import Clock
from vllm_monitor.records import HostPressure

__all__ = ["HostReader", "parse_pressure"]

_CACHE_SECONDS = 0.5


class HostReader:
    """Reads the host's pressure, at most twice a second however many ask. For one thread at a time.

    Args:
        clock: Where time comes from.
        folder: Where the kernel shows pressure; absent on old kernels and in some containers.
    """

    def __init__(self, clock: Clock, folder: Path = Path("/proc/pressure")) -> None:
        self._clock = clock
        self._folder = folder
        self._reading: HostPressure | None = None
        self._read_at = 0.0
        # psutil reports the share since its last call; the first one has nothing to compare with.
        psutil.cpu_percent(interval=None)

    def read(self) -> HostPressure:
        """The pressure now."""
        now = self._clock.monotonic()
        if self._reading is None or now - self._read_at >= _CACHE_SECONDS:
            first = self._reading is None
            self._reading = HostPressure(
                cpu_percent=None if first else psutil.cpu_percent(interval=None),
                load1=psutil.getloadavg()[0],
                memory_available_bytes=psutil.virtual_memory().available,
                cpu_some_avg10=self._pressure("cpu"),
                memory_some_avg10=self._pressure("memory"),
                io_some_avg10=self._pressure("io"),
            )
            self._read_at = now
        return self._reading

    def _pressure(self, name: str) -> float | None:
        try:
            text = (self._folder / name).read_text(encoding="ascii")
        except (OSError, UnicodeDecodeError):
            return None
        return parse_pressure(text)


def parse_pressure(text: str) -> float | None:
    """``avg10`` of the line ``some avg10=0.12 avg60=...``, in percent; ``None`` when it is not there."""
    for line in text.splitlines():
        kind, _, rest = line.partition(" ")
        if kind == "some":
            for part in rest.split():
                name, _, value = part.partition("=")
                if name == "avg10":
                    try:
                        return float(value)
                    except ValueError:
                        return None
    return None
