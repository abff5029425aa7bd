"""A vLLM look-alike: queueing, KV blocks, the real metric names, and faults to inject.

:class:`Simulator` lives in simulated time and is deterministic given a seed; :class:`SimulatorProcess` starts
the same thing as a process that answers HTTP in real time.
"""

from vllm_monitor.simulator.faults import Fault, FaultKind, parse_fault
from vllm_monitor.simulator.phases import ServerPhase
from vllm_monitor.simulator.process_handle import SimulatorProcess
from vllm_monitor.simulator.settings import EngineSettings, LoadSettings, ServerSettings
from vllm_monitor.simulator.simulator import Simulator
from vllm_monitor.simulator.workload import Arrival

__all__ = [
    "Arrival",
    "EngineSettings",
    "Fault",
    "FaultKind",
    "LoadSettings",
    "ServerPhase",
    "ServerSettings",
    "Simulator",
    "SimulatorProcess",
    "parse_fault",
]
