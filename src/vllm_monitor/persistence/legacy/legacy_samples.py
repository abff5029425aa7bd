"""Samples of the earlier design, a row each, as single samples of this one."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from vllm_monitor.errors import ValueNotStorableError
from vllm_monitor.persistence.archive.merge import StoreMerger
from vllm_monitor.persistence.codecs.sample_values import FLOAT_CODE, milliseconds
from vllm_monitor.persistence.codecs.text_column import to_text_column
from vllm_monitor.persistence.codecs.value_codec import encode_value
from vllm_monitor.persistence.legacy.legacy_files import NotUnderstoodError, unpacked
from vllm_monitor.persistence.legacy.legacy_values import number_of
from vllm_monitor.persistence.samples.sample_rows import SeriesName
from vllm_monitor.records import MetricKind

__all__ = ["LegacySample", "add_samples", "sample_of"]


class LegacySample(NamedTuple):
    """One row of the earlier ``metrics``; ``number`` is its ``rowid``, by which it is known again."""

    number: int
    series: SeriesName
    time_ms: int
    value: float
    metadata_json: str | None


def sample_of(row: Mapping[str, Any]) -> LegacySample:
    """A row of ``metrics``; an empty value was NaN, which its database could not hold.

    Raises:
        NotUnderstoodError: When it is no sample.
    """
    names = (row.get("metric_type"), row.get("metric_name"))
    if not all(isinstance(name, str) for name in names):
        raise NotUnderstoodError("a metric has no name")
    tags = unpacked(row.get("tags")) or {}
    if not isinstance(tags, dict):
        raise NotUnderstoodError("tags are no dictionary")
    metadata = unpacked(row.get("metadata"))
    try:
        return LegacySample(
            number=row["rowid"],
            series=SeriesName(
                to_text_column(str(names[0])),
                to_text_column(str(names[1])),
                encode_value(dict(sorted(tags.items()))),
                MetricKind.UNKNOWN.value,
            ),
            time_ms=milliseconds(number_of(row.get("timestamp"))),
            value=math.nan if row.get("value") is None else number_of(row["value"]),
            metadata_json=encode_value(metadata) if metadata else None,
        )
    except ValueNotStorableError as error:
        raise NotUnderstoodError("a sample has no time, or a value that is none") from error


def add_samples(merger: StoreMerger, origin_store_id: str, samples: Iterable[LegacySample]) -> int:
    """Merge samples; the number that was new."""
    rows = list(samples)
    if not rows:
        return 0
    series = {name: number for number, name in enumerate(dict.fromkeys(row.series for row in rows))}
    return merger.add_loose(
        origin_store_id,
        "",
        list(series),
        np.array([row.number for row in rows], dtype=np.int64),
        np.zeros(len(rows), dtype=np.int64),
        np.array([row.time_ms for row in rows], dtype=np.int64),
        np.array([series[row.series] for row in rows], dtype=np.int64),
        np.array([row.value for row in rows], dtype=np.float64),
        np.full(len(rows), FLOAT_CODE, dtype=np.uint8),
        {at: row.metadata_json for at, row in enumerate(rows) if row.metadata_json is not None},
    )
