"""Which series samples saved one by one belong to: one object per identity, found by one dictionary lookup."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

from vllm_monitor.persistence.codecs.arguments import stored_text
from vllm_monitor.persistence.codecs.tags import checked_tags, sorted_tags
from vllm_monitor.persistence.codecs.value_codec import encode_value
from vllm_monitor.persistence.pending import LooseSeries
from vllm_monitor.records import MetricType

__all__ = ["SeriesRegistry"]

_MOST_SERIES = 100_000
_MOST_TAGS_BYTES = 32 << 20

FastKey = tuple[str, ...]


class SeriesRegistry:
    """Makes and remembers the series of single samples. Thread-safe.

    ``fast`` maps (target, type, name, then the tag names as passed, then their values) to a series. It holds only
    entries whose tags are all text: 1 and True would be the same key, but are not the same tag. Bounded: when
    series keep coming it starts again from nothing.
    """

    def __init__(self) -> None:
        self.fast: dict[FastKey, LooseSeries] = {}
        self._by_identity: dict[tuple[str, str, str, str], LooseSeries] = {}
        self._tags_bytes = 0
        self._lock = threading.Lock()

    def register(
        self, target: str, metric_type: str | MetricType, metric_name: str, tags: Mapping[str, Any] | None
    ) -> LooseSeries:
        """The series of a sample that ``fast`` does not know.

        Raises:
            ValueNotStorableError: When a name is no text, or a tag cannot be stored.
        """
        target, metric_name = stored_text(target, "target"), stored_text(metric_name, "metric_name")
        plain_type = (
            metric_type.value if isinstance(metric_type, MetricType) else stored_text(metric_type, "metric_type")
        )
        copied = checked_tags(tags)
        tags_json = encode_value(dict(sorted_tags(copied)))
        identity = (target, plain_type, metric_name, tags_json)
        with self._lock:
            most = max(len(self.fast), len(self._by_identity))
            if most > _MOST_SERIES or self._tags_bytes > _MOST_TAGS_BYTES:
                self.fast.clear()
                self._by_identity.clear()
                self._tags_bytes = 0
            series = self._by_identity.get(identity)
            if series is None:
                series = LooseSeries(target, plain_type, metric_name, copied, tags_json)
                self._by_identity[identity] = series
                self._tags_bytes += len(tags_json)
            # Long tags are counted sample by sample, which only what is not in fast is.
            if not series.is_long and all(type(name) is str and type(value) is str for name, value in copied.items()):
                self.fast[target, plain_type, metric_name, *copied, *copied.values()] = series
        return series

    def all(self) -> list[LooseSeries]:
        """Every series that is remembered."""
        with self._lock:
            return list(self._by_identity.values())
