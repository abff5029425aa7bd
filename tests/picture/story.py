"""Tells a target picture a story, second by second, and remembers its verdicts."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field, replace

from vllm_monitor.picture import Judgement, TargetPicture
from vllm_monitor.records import (
    CanaryObservation,
    Condition,
    HealthObservation,
    HostPressure,
    Layout,
    LogObservation,
    MetricKind,
    PageObservation,
    PauseObservation,
    ProbeFailure,
    ProcessInfo,
    ProcessObservation,
    Series,
)

TARGET = "http://test"
T0 = 1_700_000_000.0
REFUSED = ProbeFailure("refused", "nobody listens")
TIMED_OUT = ProbeFailure("timeout", "no answer within 3 s")
_LABELS = (("engine", "0"), ("model_name", "m"))
COLUMNS: dict[str, Series] = {
    "running": Series("vllm:num_requests_running", _LABELS, MetricKind.GAUGE),
    "waiting": Series("vllm:num_requests_waiting", _LABELS, MetricKind.GAUGE),
    "kv": Series("vllm:kv_cache_usage_perc", _LABELS, MetricKind.GAUGE),
    "tokens": Series("vllm:generation_tokens_total", _LABELS, MetricKind.COUNTER),
    "prompt": Series("vllm:prompt_tokens_total", _LABELS, MetricKind.COUNTER),
    "preemptions": Series("vllm:num_preemptions_total", _LABELS, MetricKind.COUNTER),
    "fds": Series("process_open_fds", (), MetricKind.GAUGE),
    "started": Series("process_start_time_seconds", (), MetricKind.GAUGE),
}
AWAKE = Series("vllm:engine_sleep_state", (*_LABELS, ("sleep_state", "awake")), MetricKind.GAUGE)
API, ENGINE, WORKER = 100, 101, 102
CALM = HostPressure(cpu_percent=20.0, cpu_some_avg10=1.0)
PRESSED = HostPressure(cpu_percent=100.0, cpu_some_avg10=95.0)


@dataclass
class Story:
    """A server that is told what to show. Every field is what the next :meth:`second` will show."""

    local: bool = True
    numbers: dict[str, float] = field(
        default_factory=lambda: dict.fromkeys(COLUMNS, 0.0) | {"tokens": 100.0, "fds": 30.0, "started": T0 - 60}
    )
    awake: float | None = 1.0
    tokens_per_second: float = 0.0
    latency_seconds: float = 0.01
    page_failure: ProbeFailure | None = None
    health_status: int | None = 200
    health_failure: ProbeFailure | None = None
    states: dict[str, str] = field(
        default_factory=lambda: {"api": "sleeping", "engine": "sleeping", "worker": "sleeping"}
    )
    pids: dict[str, int] = field(default_factory=lambda: {"api": API, "engine": ENGINE, "worker": WORKER})
    cpu_ratio: float = 0.0
    host: HostPressure = CALM
    exit_code: int | None = None
    listen_queue: int | None = 0
    is_paused: bool | None = None
    canary: CanaryObservation | None = None
    log: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.picture = TargetPicture(TARGET)
        self.now = T0
        self.cpu_seconds = 10.0
        self.verdicts: list[Judgement] = []

    def second(self, count: int = 1, **changes: object) -> Condition:
        """Let ``count`` seconds pass, after setting fields or page numbers to ``changes``."""
        for name, value in changes.items():
            if name in COLUMNS:
                assert isinstance(value, (int, float))
                self.numbers[name] = float(value)
            else:
                assert hasattr(self, name), name
                setattr(self, name, value)
        for _ in range(count):
            self.now += 1.0
            self._tell()
            self.verdicts.append(self.picture.judge(self.now))
        return self.verdicts[-1].condition

    @property
    def reason(self) -> str:
        return self.verdicts[-1].reason

    def conditions_of_last(self, count: int) -> set[Condition]:
        return {verdict.condition for verdict in self.verdicts[-count:]}

    def _tell(self) -> None:
        at = self.now - 0.5
        self.numbers["tokens"] += self.tokens_per_second
        if self.page_failure is None:
            layout, values = self._page()
            self.picture.observe(
                PageObservation(
                    target=TARGET,
                    timestamp=at,
                    latency_seconds=self.latency_seconds,
                    layout=layout,
                    values=values,
                    status=200,
                )
            )
        else:
            self.picture.observe(PageObservation(target=TARGET, timestamp=at, failure=self.page_failure))
        self.picture.observe(
            HealthObservation(
                target=TARGET,
                timestamp=at,
                latency_seconds=self.latency_seconds,
                status=self.health_status if self.health_failure is None else None,
                failure=self.health_failure,
            )
        )
        if self.local:
            self.cpu_seconds += self.cpu_ratio
            processes = tuple(
                ProcessInfo(self.pids[role], role, state, self.cpu_seconds, 10**9)
                for role, state in self.states.items()
                if state
            )
            self.picture.observe(
                ProcessObservation(
                    target=TARGET,
                    timestamp=at,
                    processes=processes,
                    host=self.host,
                    exit_code=self.exit_code,
                    listen_queue=self.listen_queue,
                )
            )
        if self.is_paused is not None:
            self.picture.observe(PauseObservation(target=TARGET, timestamp=at, is_paused=self.is_paused))
        if self.canary is not None:
            self.picture.observe(replace(self.canary, timestamp=at - self.canary.latency_seconds))
            self.canary = None
        for line in self.log:
            self.picture.observe(LogObservation(target=TARGET, timestamp=at, line=line))
        self.log = []

    def _page(self) -> tuple[Layout, array[float]]:
        series, values = list(COLUMNS.values()), [self.numbers[name] for name in COLUMNS]
        if self.awake is not None:
            series, values = [*series, AWAKE], [*values, self.awake]
        return Layout(series), array("d", values)


def busy(**fields: object) -> Story:
    """A server that has worked for ten seconds."""
    story = Story()
    story.second(10, running=4, tokens_per_second=50.0, **fields)
    return story
