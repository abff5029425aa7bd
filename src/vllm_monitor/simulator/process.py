"""What the operating system says about the API server's process."""

from __future__ import annotations

from vllm_monitor.simulator.statistics import Readings

__all__ = ["ProcessModel"]

_RESIDENT_BYTES = 640e6
_RESIDENT_BYTES_PER_REQUEST = 0.2e6
_VIRTUAL_BYTES = 2.2e9
_OPEN_FDS = 32
_MAX_FDS = 65536
_START_CPU_SECONDS = 8.0
_CPU_PER_SECOND = 0.006
_CPU_PER_REQUEST = 0.002
_CPU_PER_TOKEN = 0.000_15


class ProcessModel:
    """Memory, descriptors, CPU time and garbage collections, consistent with the load so far.

    Args:
        started_at_unix_seconds: When the process began.
    """

    def __init__(self, started_at_unix_seconds: float) -> None:
        self.started_at_unix_seconds = started_at_unix_seconds
        self._leaked_bytes = 0.0
        self._leak_bytes_per_second = 0.0
        self._leak_since = 0.0

    def leak(self, now: float, bytes_per_second: float) -> None:
        """Leak at this rate from ``now`` on; 0 gives everything back."""
        self._leaked_bytes = self._leaked_at(now) if bytes_per_second else 0.0
        self._leak_bytes_per_second = bytes_per_second
        self._leak_since = now

    def resident_bytes(self, now: float, in_flight: int) -> float:
        """Resident memory in whole pages."""
        memory = _RESIDENT_BYTES + _RESIDENT_BYTES_PER_REQUEST * in_flight + self._leaked_at(now)
        return float(int(memory) // 4096 * 4096)

    def seconds_until(self, limit_bytes: float, now: float) -> float:
        """How long the leak takes to reach ``limit_bytes``, other things equal."""
        return max(0.0, (limit_bytes - _RESIDENT_BYTES - self._leaked_at(now)) / self._leak_bytes_per_second)

    def readings(self, now: float, *, uptime: float, in_flight: int, requests: int, tokens: int) -> Readings:
        """All of it, as the page shows it.

        Args:
            now: Simulated time.
            uptime: Seconds since the port opened.
            in_flight: Open requests, one connection each.
            requests: Requests since the start.
            tokens: Tokens since the start.
        """
        young = 1500 + int(uptime / 2) + requests // 8 + tokens // 2000
        middle = 136 + (young - 1500) // 11
        old = 10 + (middle - 136) // 25
        cpu = _START_CPU_SECONDS + _CPU_PER_SECOND * uptime + _CPU_PER_REQUEST * requests + _CPU_PER_TOKEN * tokens
        return {
            "python_gc_objects_collected_total": [young * 9.0, middle * 15.0, old * 64.0],
            "python_gc_objects_uncollectable_total": [0.0, 0.0, 0.0],
            "python_gc_collections_total": [float(young), float(middle), float(old)],
            "python_info": [1.0],
            "process_virtual_memory_bytes": [_VIRTUAL_BYTES + self._leaked_at(now)],
            "process_resident_memory_bytes": [self.resident_bytes(now, in_flight)],
            "process_start_time_seconds": [self.started_at_unix_seconds],
            "process_cpu_seconds_total": [cpu],
            "process_open_fds": [float(_OPEN_FDS + in_flight)],
            "process_max_fds": [float(_MAX_FDS)],
        }

    def _leaked_at(self, now: float) -> float:
        return self._leaked_bytes + self._leak_bytes_per_second * (now - self._leak_since)
