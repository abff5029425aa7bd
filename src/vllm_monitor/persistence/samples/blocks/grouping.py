"""What the names of a layout say about its columns: which are the buckets, the count and the sum of one histogram."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from vllm_monitor.records import Series

__all__ = ["HistogramColumns", "LayoutPlan", "plan_of"]

_SUFFIXES = ("_bucket", "_count", "_sum", "_created")


@dataclass(frozen=True, slots=True)
class HistogramColumns:
    """The columns of one histogram.

    Args:
        buckets: Column numbers, by ascending upper bound.
        bounds: Upper bound of each.
        count: Column of ``_count``, or -1.
        total: Column of ``_sum``, or -1.
    """

    buckets: tuple[int, ...]
    bounds: tuple[float, ...]
    count: int
    total: int


@dataclass(frozen=True, slots=True)
class LayoutPlan:
    """The histograms of a layout, and all columns in the order in which they may stand for others.

    A column is coded as a copy of an earlier one of ``precedence`` where it can be: counts and gauges come
    before buckets, so that the largest bucket refers to the count and not the other way round.
    """

    histograms: tuple[HistogramColumns, ...]
    precedence: tuple[int, ...]


def plan_of(series: Sequence[Series]) -> LayoutPlan:
    """The plan of a layout; computed once per layout. Thread-safe."""
    return _plan(series if isinstance(series, tuple) else tuple(series))


@lru_cache(maxsize=64)
def _plan(series: tuple[Series, ...]) -> LayoutPlan:
    members: dict[tuple[str, tuple[tuple[str, str], ...]], dict[str, list[tuple[float, int]]]] = {}
    buckets: set[int] = set()
    for column, one in enumerate(series):
        for suffix in _SUFFIXES:
            if one.name.endswith(suffix):
                break
        else:
            continue
        bound = _upper_bound(one) if suffix == "_bucket" else 0.0
        if bound is None:
            continue
        labels = tuple(pair for pair in one.labels if pair[0] != "le") if suffix == "_bucket" else one.labels
        group = members.setdefault((one.name.removesuffix(suffix), labels), {})
        group.setdefault(suffix, []).append((bound, column))
    histograms = []
    for group in members.values():
        if "_bucket" not in group:
            continue
        ordered = sorted(group["_bucket"])
        buckets.update(column for _, column in ordered)
        histograms.append(
            HistogramColumns(
                buckets=tuple(column for _, column in ordered),
                bounds=tuple(bound for bound, _ in ordered),
                count=group["_count"][0][1] if "_count" in group else -1,
                total=group["_sum"][0][1] if "_sum" in group else -1,
            )
        )
    plain = [column for column in range(len(series)) if column not in buckets]
    ordered_buckets = [column for histogram in histograms for column in reversed(histogram.buckets)]
    return LayoutPlan(tuple(histograms), (*plain, *ordered_buckets))


def _upper_bound(series: Series) -> float | None:
    text = series.label("le")
    try:
        bound = math.nan if text is None else float(text)
    except ValueError:
        return None
    return None if math.isnan(bound) else bound
