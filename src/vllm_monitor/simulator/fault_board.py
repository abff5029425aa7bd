"""Which faults are active, and what they amount to together."""

from __future__ import annotations

import math

from vllm_monitor.simulator.faults import Fault, FaultKind

__all__ = ["FaultBoard"]


class FaultBoard:
    """The planned and the active faults. Not thread-safe."""

    def __init__(self) -> None:
        self.planned: list[Fault] = []
        self.active: list[Fault] = []

    def begin(self, fault: Fault) -> bool:
        """Make a planned fault active; false when it was cleared meanwhile."""
        if fault not in self.planned:
            return False
        self.planned.remove(fault)
        self.active.append(fault)
        return True

    def end(self, fault: Fault) -> bool:
        """End an active fault; false when it was cleared meanwhile."""
        if fault not in self.active:
            return False
        self.active.remove(fault)
        return True

    def clear(self) -> None:
        """Drop all faults, planned and active."""
        self.planned.clear()
        self.active.clear()

    def drop(self, *kinds: FaultKind) -> None:
        """End the active faults of these kinds."""
        self.active = [fault for fault in self.active if fault.kind not in kinds]

    def has(self, kind: FaultKind) -> bool:
        """Whether a fault of this kind is active."""
        return any(fault.kind is kind for fault in self.active)

    @property
    def rate_multiplier(self) -> float:
        """Factor on the arrival rate."""
        return math.prod(fault.rate for fault in self.active)

    @property
    def output_multiplier(self) -> float:
        """Factor on the length of answers."""
        return math.prod(fault.output for fault in self.active)

    @property
    def step_multiplier(self) -> float:
        """Factor on the duration of a step."""
        return math.prod(fault.step for fault in self.active)

    @property
    def withheld_ratio(self) -> float:
        """Share of the KV cache taken away."""
        return max((fault.withheld for fault in self.active), default=0.0)

    @property
    def leak_bytes_per_second(self) -> float:
        """Growth of resident memory."""
        return math.fsum(fault.leak_bytes_per_second for fault in self.active)
