"""Series, layouts and whole scrapes: the vocabulary of samples."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum

__all__ = ["Layout", "MetricKind", "MetricType", "Series", "metric_type_of"]


class MetricKind(StrEnum):
    """The type that a page of metrics declares for a family."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"
    SUMMARY = "summary"
    UNKNOWN = "unknown"


class MetricType(StrEnum):
    """Where a metric comes from; the ``metric_type`` column of the store.

    ``performance`` is what the server says of itself (``vllm:*``, ``http_*``), ``resource`` what processes,
    host and GPU use, ``custom`` what plugins add and ``monitor`` what we say of ourselves and our probes.
    """

    PERFORMANCE = "performance"
    RESOURCE = "resource"
    CUSTOM = "custom"
    MONITOR = "monitor"


_RESOURCE_PREFIXES = (
    "process_",
    "python_",
    "vllm_monitor_process_",
    "vllm_monitor_host_",
    "vllm_monitor_gpu_",
)


def metric_type_of(metric_name: str) -> MetricType:
    """The :class:`MetricType` that a scraped or probed name belongs to."""
    if metric_name.startswith(_RESOURCE_PREFIXES):
        return MetricType.RESOURCE
    if metric_name.startswith("vllm_monitor_"):
        return MetricType.MONITOR
    return MetricType.PERFORMANCE


@dataclass(frozen=True, slots=True)
class Series:
    """The identity of a stream of samples within one target.

    Args:
        name: The name of the sample line, as on the page (``vllm:time_to_first_token_seconds_bucket``).
        labels: Pairs of label name and value, sorted by name.
        kind: The declared type of the family; takes no part in equality.
    """

    name: str
    labels: tuple[tuple[str, str], ...] = ()
    kind: MetricKind = field(default=MetricKind.UNKNOWN, compare=False)

    @property
    def tags(self) -> dict[str, str]:
        """The labels as a new dictionary."""
        return dict(self.labels)

    def label(self, name: str) -> str | None:
        """The value of one label, or ``None``."""
        for key, value in self.labels:
            if key == name:
                return value
        return None

    def __str__(self) -> str:
        """The series as a line of the text format begins, labels sorted, values escaped."""
        if not self.labels:
            return self.name
        # Labels are text, but tags of samples that were saved one by one need not be.
        inner = ",".join(f'{key}="{escape_label_value(str(value))}"' for key, value in self.labels)
        return f"{self.name}{{{inner}}}"


def escape_label_value(value: str) -> str:
    r"""Escape ``\``, ``"`` and line feed as the Prometheus text format asks."""
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


class Layout:
    """An ordered set of series; the columns of a scrape.

    A page repeats its series names on every scrape, so one layout object serves thousands of scrapes, and
    what is derived from names (columns of a histogram, ids in the store) is computed once per layout.
    Immutable; equal when the series are equal in order; safe to share between threads.

    Args:
        series: The columns, in order. Duplicates are allowed (a faulty exporter prints them).
    """

    __slots__ = ("__weakref__", "_fingerprint", "_hash", "series")

    def __init__(self, series: Iterable[Series]) -> None:
        self.series: tuple[Series, ...] = tuple(series)
        self._hash = hash(self.series)
        self._fingerprint = ""

    @property
    def fingerprint(self) -> str:
        """32 hexadecimal digits that name this layout across processes and stores."""
        if not self._fingerprint:
            text = "\n".join(f"{series}\x00{series.kind}" for series in self.series)
            self._fingerprint = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
        return self._fingerprint

    def __len__(self) -> int:
        return len(self.series)

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        return isinstance(other, Layout) and self._hash == other._hash and self.series == other.series

    def __hash__(self) -> int:
        return self._hash

    def __repr__(self) -> str:
        return f"Layout({len(self.series)} series, {self.fingerprint})"
