"""Samples in the form of ``get_metrics``."""

from __future__ import annotations

from typing import Any, NamedTuple

from vllm_monitor.persistence.codecs.sample_values import SampleValue
from vllm_monitor.persistence.codecs.tags import identity_labels, sorted_tags
from vllm_monitor.persistence.codecs.value_codec import decode_value
from vllm_monitor.persistence.pending import LooseSeries, Scrape
from vllm_monitor.persistence.samples.sample_rows import StoredSeries
from vllm_monitor.persistence.samples.selection import Selector, columns_of_layout
from vllm_monitor.records import Series

__all__ = ["FoundSample", "SampleDict", "loose_as_stored", "loose_to_dict", "order_of", "scrape_to_dicts"]

SampleDict = dict[str, Any]


class FoundSample(NamedTuple):
    """A sample on its way to the caller; the first four order it by time, then by arrival.

    ``origin`` is the store where it first arrived (what is not committed comes after all of them), ``sequence``
    and ``position`` are its row there and its place in it.
    """

    time_ms: int
    origin: int
    sequence: int
    position: int
    target: str
    series: StoredSeries
    value: SampleValue
    metadata_json: str | None

    def to_dict(self) -> SampleDict:
        """As ``get_metrics`` returns it."""
        return _sample_dict(self.target, self.series, self.time_ms, self.value, self.metadata_json)


def order_of(found: FoundSample) -> tuple[int, int, int, int]:
    """Sorts samples by time, then by arrival."""
    return found[:4]


def loose_as_stored(series: LooseSeries) -> StoredSeries:
    """A series of single samples as it will be stored."""
    labels = identity_labels(sorted_tags(series.tags))
    return StoredSeries(series.metric_type, Series(series.metric_name, labels), series.tags)


def scrape_to_dicts(scrape: Scrape, selector: Selector) -> list[SampleDict]:
    """The samples of a scrape that are asked for."""
    return [
        _sample_dict(scrape.target, stored, scrape.time_ms, scrape.values[column], None)
        for column, stored in columns_of_layout(scrape.layout, selector)
    ]


def loose_to_dict(series: LooseSeries) -> SampleDict | None:
    """The newest sample of a series, if there is one."""
    newest = series.newest
    if newest is None:
        return None
    _, time_ms, value, metadata_json = newest
    return _sample_dict(series.target, loose_as_stored(series), time_ms, value, metadata_json)


def _sample_dict(
    target: str, series: StoredSeries, time_ms: int, value: SampleValue, metadata_json: str | None
) -> SampleDict:
    return {
        "timestamp": time_ms / 1000,
        "metric_type": series.metric_type,
        "metric_name": series.series.name,
        "value": value,
        "tags": dict(series.tags),
        "metadata": {} if metadata_json is None else decode_value(metadata_json),
        "target": target,
    }
