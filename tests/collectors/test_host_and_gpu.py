from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from vllm_monitor.clock import ManualClock
from vllm_monitor.collectors.gpu import GpuCollector
from vllm_monitor.collectors.host import HostReader, parse_pressure
from vllm_monitor.records import GpuInfo

CPU = "some avg10=12.34 avg60=0.48 avg300=0.21 total=4728849\nfull avg10=1.00 avg60=0.00 avg300=0.00 total=0\n"


@pytest.mark.parametrize(
    ("text", "value"), [(CPU, 12.34), ("", None), ("full avg10=1.0", None), ("some avg10=x", None), ("some", None)]
)
def test_pressure_text(text: str, value: float | None) -> None:
    assert parse_pressure(text) == value


def test_the_host_is_read_at_most_twice_a_second(tmp_path: Path) -> None:
    clock = ManualClock()
    reader = HostReader(clock, tmp_path)
    first = reader.read()
    assert first.cpu_some_avg10 is None
    assert first.memory_available_bytes
    (tmp_path / "cpu").write_text(CPU)
    (tmp_path / "io").write_bytes(b"\xff")
    assert reader.read() is first
    clock.advance(0.6)
    second = reader.read()
    assert (second.cpu_some_avg10, second.io_some_avg10, second.memory_some_avg10) == (12.34, None, None)
    assert second.cpu_percent is not None
    assert 0 <= second.cpu_percent <= 100


class NVMLError(Exception):
    pass


def fake_nvml(**overrides: Any) -> Any:
    """Two GPUs, the second of which knows no power and no ECC."""
    module = SimpleNamespace(
        NVMLError=NVMLError, NVML_TEMPERATURE_GPU=0, NVML_MEMORY_ERROR_TYPE_UNCORRECTED=1, NVML_VOLATILE_ECC=0
    )

    def only_first(value: object) -> Any:
        def ask(handle: int, *_: object) -> object:
            if handle == 1:
                raise NVMLError("Not Supported")
            return value

        return ask

    module.shut_down = 0

    def shut_down() -> None:
        module.shut_down += 1

    module.nvmlInit = lambda: None
    module.nvmlShutdown = shut_down
    module.nvmlDeviceGetCount = lambda: 2
    module.nvmlDeviceGetHandleByIndex = lambda index: index
    module.nvmlDeviceGetName = lambda handle: b"NVIDIA H100" if handle == 0 else "NVIDIA L4"
    module.nvmlDeviceGetMemoryInfo = lambda handle: SimpleNamespace(used=10, total=80)
    module.nvmlDeviceGetUtilizationRates = lambda handle: SimpleNamespace(gpu=55, memory=20)
    module.nvmlDeviceGetPowerUsage = only_first(312_500)
    module.nvmlDeviceGetTemperature = lambda handle, sensor: 61
    module.nvmlDeviceGetCurrentClocksThrottleReasons = lambda handle: 4
    module.nvmlDeviceGetTotalEccErrors = only_first(7)
    for name, value in overrides.items():
        setattr(module, name, value)
    return module


def failing(*_: object) -> Any:
    raise NVMLError("GPU is lost")


def test_gpus_and_what_they_do_not_report() -> None:
    nvml = fake_nvml()
    collector = GpuCollector("http://gpu7:8000", ManualClock(5.0), nvml)
    seen = collector.collect()
    assert seen is not None
    assert (seen.target, seen.timestamp) == ("http://gpu7:8000", 5.0)
    assert seen.gpus == (
        GpuInfo(0, "NVIDIA H100", 10, 80, 0.55, 312.5, 61.0, 4, 7),
        GpuInfo(1, "NVIDIA L4", 10, 80, 0.55, None, 61.0, 4, None),
    )
    collector.close()
    collector.close()
    assert nvml.shut_down == 1
    assert collector.collect() is None


def test_a_gpu_that_is_lost_stays_in_the_list() -> None:
    nvml = fake_nvml()
    collector = GpuCollector("t", ManualClock(), nvml)
    for name in vars(nvml):
        if name.startswith("nvmlDeviceGet"):
            setattr(nvml, name, failing)
    seen = collector.collect()
    assert seen is not None
    assert seen.gpus == (GpuInfo(0, "NVIDIA H100"), GpuInfo(1, "NVIDIA L4"))


@pytest.mark.parametrize(
    ("overrides", "word"),
    [({"nvmlInit": failing}, "GPU is lost"), ({"nvmlDeviceGetCount": lambda: 0}, "lists no GPU")],
)
def test_no_gpu_is_explained(overrides: dict[str, Any], word: str) -> None:
    collector = GpuCollector("t", ManualClock(), fake_nvml(**overrides))
    assert collector.collect() is None
    assert word in collector.unavailable_reason
    collector.close()


def test_a_missing_library_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    # None in sys.modules makes an import fail as if nothing were installed.
    monkeypatch.setitem(sys.modules, "pynvml", None)
    collector = GpuCollector("t", ManualClock())
    assert collector.collect() is None
    assert "vllm-monitor[gpu]" in collector.unavailable_reason


def test_the_real_library_speaks_this_api() -> None:
    pynvml: ModuleType = pytest.importorskip("pynvml")
    needed = [name for name in vars(fake_nvml()) if name.lower().startswith("nvml")]
    assert [name for name in needed if not hasattr(pynvml, name)] == []
