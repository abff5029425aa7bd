"""The GPUs of the host, through NVIDIA's management library (extra ``gpu``)."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from vllm_monitor.clock import Clock
from vllm_monitor.records import GpuInfo, GpuObservation

__all__ = ["GpuCollector"]

_MILLIWATTS_PER_WATT = 1000.0
_PERCENT = 100.0


class GpuCollector:
    """Reads all GPUs. For one thread at a time.

    Args:
        target: The server that the observations are about.
        clock: Where time comes from.
        nvml: A module that speaks the API of ``pynvml``; the installed one when left out.
    """

    def __init__(self, target: str, clock: Clock, nvml: Any | None = None) -> None:
        self._target = target
        self._clock = clock
        self.unavailable_reason = ""
        """Why there is nothing to read, for one report; empty when there is."""
        self._nvml = nvml
        self._devices: list[tuple[Any, str]] = []
        self._start()

    def collect(self) -> GpuObservation | None:
        """Read all GPUs; ``None`` where there are none to read (see :attr:`unavailable_reason`)."""
        if not self._devices:
            return None
        timestamp, began = self._clock.now(), self._clock.monotonic()
        gpus = tuple(self._read(index, handle, name) for index, (handle, name) in enumerate(self._devices))
        return GpuObservation(
            target=self._target,
            timestamp=timestamp,
            latency_seconds=self._clock.monotonic() - began,
            gpus=gpus,
        )

    def close(self) -> None:
        """Let the library go. Safe to call twice."""
        if self._devices and self._nvml is not None:
            self._devices = []
            self._ask(self._nvml.nvmlShutdown)

    def _start(self) -> None:
        if self._nvml is None:
            try:
                self._nvml = importlib.import_module("pynvml")
            except ImportError:
                self.unavailable_reason = "no GPU readings: install vllm-monitor[gpu] to have them"
                return
        nvml = self._nvml
        try:
            nvml.nvmlInit()
            for index in range(nvml.nvmlDeviceGetCount()):
                handle = nvml.nvmlDeviceGetHandleByIndex(index)
                self._devices.append((handle, _text(self._ask(nvml.nvmlDeviceGetName, handle))))
        except nvml.NVMLError as error:
            self._devices = []
            self.unavailable_reason = f"no GPU readings: {error}"
        else:
            if not self._devices:
                self.unavailable_reason = "no GPU readings: the driver lists no GPU"

    def _read(self, index: int, handle: object, name: str) -> GpuInfo:
        nvml: Any = self._nvml
        memory = self._ask(nvml.nvmlDeviceGetMemoryInfo, handle)
        rates = self._ask(nvml.nvmlDeviceGetUtilizationRates, handle)
        power = self._ask(nvml.nvmlDeviceGetPowerUsage, handle)
        # NVIDIA renamed throttle reasons to event reasons; the old name answers in both.
        reasons = getattr(nvml, "nvmlDeviceGetCurrentClocksThrottleReasons", None) or getattr(
            nvml, "nvmlDeviceGetCurrentClocksEventReasons", None
        )
        temperature = self._ask(nvml.nvmlDeviceGetTemperature, handle, nvml.NVML_TEMPERATURE_GPU)
        throttle = None if reasons is None else self._ask(reasons, handle)
        ecc = self._ask(
            nvml.nvmlDeviceGetTotalEccErrors,
            handle,
            nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED,
            nvml.NVML_VOLATILE_ECC,
        )
        return GpuInfo(
            index=index,
            name=name,
            memory_used_bytes=None if memory is None else int(memory.used),
            memory_total_bytes=None if memory is None else int(memory.total),
            utilisation_ratio=None if rates is None else rates.gpu / _PERCENT,
            power_watts=None if power is None else power / _MILLIWATTS_PER_WATT,
            temperature_celsius=None if temperature is None else float(temperature),
            throttle_reasons=None if throttle is None else int(throttle),
            ecc_uncorrected_total=None if ecc is None else int(ecc),
        )

    def _ask(self, question: Callable[..., Any], *arguments: object) -> Any:
        """One value, or ``None`` where this GPU or driver does not report it (now)."""
        nvml: Any = self._nvml
        try:
            return question(*arguments)
        except nvml.NVMLError:
            # Most are "not supported", for good. A GPU that fell off the bus answers nothing at all, which
            # shows as a GPU whose every field is missing.
            return None


def _text(value: object) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return str(value) if value is not None else "unknown GPU"
