"""What can go wrong with the simulated server, and when.

A fault is written ``kind@start+duration``, with parameters behind commas: ``freeze@20+15``,
``leak@10+60,bytes_per_second=6e7``, ``crash@40`` (away for the usual restart time), ``crash@40,restart=0``.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from enum import StrEnum

from vllm_monitor.errors import ConfigurationError

__all__ = ["Fault", "FaultKind", "parse_fault"]


class FaultKind(StrEnum):
    """The kinds of fault.

    ``freeze``: the engine stops stepping; ``/health`` stays 200 and every ``vllm:*`` series keeps its last
    value. ``crash``: the engine dies; 503 for a moment, then the port is closed, and the server comes back
    when the duration is over. ``kv_pressure``: long answers and a smaller cache, so blocks run out.
    ``overload``: many more requests than can be served. ``leak``: resident memory grows. ``slow_start``: the
    server restarts and its port stays closed for the duration. ``pause``: as ``POST /pause?mode=keep``.
    ``slowdown``: every step takes longer, as when something else uses the accelerator.
    """

    FREEZE = "freeze"
    CRASH = "crash"
    KV_PRESSURE = "kv_pressure"
    OVERLOAD = "overload"
    LEAK = "leak"
    SLOW_START = "slow_start"
    PAUSE = "pause"
    SLOWDOWN = "slowdown"


# What each kind does by itself; whatever is not named here is left as it is.
_NEUTRAL = {
    "rate_multiplier": 1.0,
    "output_multiplier": 1.0,
    "withheld_ratio": 0.0,
    "bytes_per_second": 0.0,
    "step_multiplier": 1.0,
}
_DEFAULTS = {
    FaultKind.OVERLOAD: {"rate_multiplier": 30.0},
    FaultKind.KV_PRESSURE: {"rate_multiplier": 2.0, "output_multiplier": 6.0, "withheld_ratio": 0.8},
    FaultKind.LEAK: {"bytes_per_second": 60e6},
    FaultKind.SLOWDOWN: {"step_multiplier": 4.0},
}


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault.

    Args:
        kind: What goes wrong.
        start_seconds: When, in seconds of simulated time since the simulator began.
        duration_seconds: For how long. 0 for a crash means the server's usual restart time; for any other
            kind it means until faults are cleared.
        rate_multiplier: Factor on the arrival rate (default 30 for overload, 2 for kv_pressure, else 1).
        output_multiplier: Factor on the length of answers (default 6 for kv_pressure, else 1).
        withheld_ratio: Share of the KV cache that is taken away, 0 to 1 (default 0.8 for kv_pressure).
        bytes_per_second: Growth of resident memory (default 6e7 for leak).
        step_multiplier: Factor on the duration of a step (default 4 for slowdown, else 1).
        restart: Whether a crashed server comes back.
    """

    kind: FaultKind
    start_seconds: float
    duration_seconds: float = 0.0
    rate_multiplier: float | None = None
    output_multiplier: float | None = None
    withheld_ratio: float | None = None
    bytes_per_second: float | None = None
    step_multiplier: float | None = None
    restart: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "kind", _kind_of(self.kind))
        for name, default in self._defaults().items():
            value = getattr(self, name)
            object.__setattr__(self, name, default if value is None else float(value))
            _require_not_negative(name, getattr(self, name))
        for name in ("start_seconds", "duration_seconds"):
            object.__setattr__(self, name, float(getattr(self, name)))
            _require_not_negative(name, getattr(self, name))
        if self.step < 0.01:
            raise ConfigurationError(
                f"step_multiplier = {self.step} makes no sense", hint="Give a number of at least 0.01."
            )
        if self.withheld > 1.0:
            raise ConfigurationError(
                f"withheld_ratio = {self.withheld} is more than the whole cache",
                hint="Give a share between 0 and 1.",
            )

    def _defaults(self) -> dict[str, float]:
        return _NEUTRAL | _DEFAULTS.get(self.kind, {})

    @property
    def rate(self) -> float:
        """Factor on the arrival rate."""
        return self.rate_multiplier or 0.0

    @property
    def output(self) -> float:
        """Factor on the length of answers."""
        return self.output_multiplier or 0.0

    @property
    def withheld(self) -> float:
        """Share of the KV cache that is taken away."""
        return self.withheld_ratio or 0.0

    @property
    def leak_bytes_per_second(self) -> float:
        """Growth of resident memory."""
        return self.bytes_per_second or 0.0

    @property
    def step(self) -> float:
        """Factor on the duration of a step."""
        return self.step_multiplier or 0.0

    @property
    def end_seconds(self) -> float:
        """When it is over; infinity when it lasts until it is cleared."""
        return self.start_seconds + self.duration_seconds if self.duration_seconds > 0 else math.inf

    def __str__(self) -> str:
        """As :func:`parse_fault` reads it; parameters only where they differ from what the kind does."""
        text = f"{self.kind}@{_seconds(self.start_seconds)}"
        if self.duration_seconds:
            text += f"+{_seconds(self.duration_seconds)}"
        for name, default in self._defaults().items():
            if getattr(self, name) != default:
                text += f",{name}={getattr(self, name)!r}"
        return text if self.restart else f"{text},restart=0"


_NUMBER = r"(\d+(?:\.\d*)?(?:e[+-]?\d+)?)s?"
_SPEC = re.compile(rf"([A-Za-z_-]+)@{_NUMBER}(?:\+{_NUMBER})?((?:,[a-z_]+=[^,=]+)*)")
_PARAMETERS = (
    "rate_multiplier",
    "output_multiplier",
    "withheld_ratio",
    "bytes_per_second",
    "step_multiplier",
    "restart",
)
_HINT = f"Write kind@start+duration, for example freeze@20+15; the kinds are {', '.join(FaultKind)}."


def parse_fault(text: str) -> Fault:
    """Read a fault written as ``kind@start+duration[,parameter=value ...]``, times in seconds.

    Raises:
        ConfigurationError: When the text is not of that form, with an example of what is.
    """
    found = _SPEC.fullmatch(text.strip())
    if found is None:
        raise ConfigurationError(f"{text!r} is no fault", hint=_HINT)
    kind, start, duration, rest = found.groups()
    parameters: dict[str, float | bool] = {}
    for pair in filter(None, rest.split(",")):
        name, _, value = pair.partition("=")
        parameters[name] = _parameter(name, value)
    return Fault(
        _kind_of(kind.lower().replace("-", "_")),
        float(start),
        float(duration or 0.0),
        **parameters,  # type: ignore[arg-type]  # _parameter() lets only names and types of Fault through
    )


def _parameter(name: str, value: str) -> float | bool:
    if name not in _PARAMETERS:
        known = ", ".join(_PARAMETERS)
        raise ConfigurationError(f"a fault has no parameter {name!r}", hint=f"The parameters are {known}.")
    try:
        number = float(value)
    except ValueError as error:
        raise ConfigurationError(f"{name}={value} is no number", hint="Give a plain number.") from error
    return bool(number) if name == "restart" else number


def _seconds(value: float) -> str:
    return repr(value).removesuffix(".0")


def _kind_of(kind: str) -> FaultKind:
    try:
        return FaultKind(kind)
    except ValueError as error:
        raise ConfigurationError(f"{kind!r} is no kind of fault", hint=_HINT) from error


def _require_not_negative(name: str, value: float) -> None:
    if not (value >= 0 and math.isfinite(value)):
        raise ConfigurationError(f"{name} = {value} makes no sense", hint="Give 0 or a number above 0.")
