"""From the columns of a page to canonical numbers.

The work that depends on names is done once per layout (:func:`column_map`); a tick then costs a few numpy calls.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from vllm_monitor.records import Layout, Series
from vllm_monitor.records.vocabulary import CORE_NAMES, FAMILIES, Family, Kind, is_known_family

__all__ = ["COUNTER_NAMES", "ColumnMap", "EngineColumns", "PageNumbers", "column_map"]

Floats = npt.NDArray[np.float64]
Indexes = npt.NDArray[np.intp]

COUNTER_NAMES: tuple[str, ...] = tuple(family.name for family in FAMILIES if family.kind is Kind.COUNTER)
_HISTOGRAMS = tuple(family for family in FAMILIES if family.kind is Kind.HISTOGRAM)
_GAUGES = tuple(family for family in FAMILIES if family.kind in (Kind.GAUGE_SUM, Kind.GAUGE_MAX, Kind.GAUGE_MIN))

MOST_GAUGE = 1e15
"""A figure beyond this, a petabyte or thirty million years, is a fault of whoever wrote the page, and not known."""


@dataclass(frozen=True, slots=True)
class EngineColumns:
    """Progress and load per engine (one per data-parallel rank).

    Args:
        progress: Sum of tokens generated, prompt tokens and engine steps, per engine.
        in_flight: Requests running or waiting, per engine; NaN where the page does not say.
    """

    progress: Floats
    in_flight: Floats


@dataclass(frozen=True, slots=True)
class PageNumbers:
    """A page in canonical numbers.

    Args:
        gauges: Canonical gauge name to value, for those on the page.
        counters: One value per name of :data:`COUNTER_NAMES`; NaN where the page has none.
        buckets: Cumulative bucket counts of all canonical histograms, one after another, then their sums.
        engines: Progress and load per engine.
    """

    gauges: dict[str, float]
    counters: Floats
    buckets: Floats
    engines: EngineColumns


class _GroupedSum:
    """Sums of groups of columns, all at once."""

    def __init__(self, groups: list[list[int]]) -> None:
        self._full = np.array([slot for slot, group in enumerate(groups) if group], dtype=np.intp)
        chosen = [group for group in groups if group]
        self._take: Indexes = np.array([column for group in chosen for column in group], dtype=np.intp)
        sizes = [len(group) for group in chosen]
        self._starts: Indexes = np.cumsum([0, *sizes], dtype=np.intp)[:-1]
        self._size = len(groups)

    def __call__(self, values: Floats) -> Floats:
        result = np.full(self._size, np.nan)
        if self._full.size:
            with np.errstate(invalid="ignore", over="ignore"):  # a hostile page may hold infinities
                result[self._full] = np.add.reduceat(values[self._take], self._starts)
        return result


class ColumnMap:
    """Which columns of one layout hold what.

    Attributes:
        histograms: Canonical histogram name to its upper bucket bounds and its slice of ``PageNumbers.buckets``.
        bucket_signature: Equal for two layouts whose bucket vectors can be subtracted.
        sums: Canonical histogram name to its place in ``PageNumbers.buckets`` where the sum of observations stands.
        engine_labels: The values of the ``engine`` label, in order.
        unknown_families: ``vllm:`` names that no known version has.
        missing_names: Canonical names of :data:`CORE_NAMES` that the page lacks.
    """

    def __init__(self, layout: Layout) -> None:
        by_name: dict[str, list[int]] = {}
        for column, series in enumerate(layout.series):
            by_name.setdefault(series.name, []).append(column)
        self._gauges: list[tuple[str, Kind, Indexes]] = []
        for family in _GAUGES:
            columns = _columns_of(family, layout.series, by_name)
            if columns:
                self._gauges.append((family.name, family.kind, np.array(columns, dtype=np.intp)))
        self._counters = _GroupedSum(
            [_columns_of(f, layout.series, by_name) for f in FAMILIES if f.kind is Kind.COUNTER]
        )
        self.histograms: dict[str, tuple[Floats, slice]] = {}
        bucket_groups: list[list[int]] = []
        for family in _HISTOGRAMS:
            bounds, groups = _buckets_of(family, layout.series, by_name)
            if groups:
                start = len(bucket_groups)
                bucket_groups.extend(groups)
                self.histograms[family.name] = (np.array(bounds), slice(start, len(bucket_groups)))
        self.sums: dict[str, int] = {}
        for family in _HISTOGRAMS:
            if family.name in self.histograms:
                self.sums[family.name] = len(bucket_groups)
                found = (by_name.get(f"{alias}_sum") for alias in family.aliases)
                bucket_groups.append(next((columns for columns in found if columns), []))
        self._buckets = _GroupedSum(bucket_groups)
        self.bucket_signature = tuple((name, tuple(bounds.tolist())) for name, (bounds, _) in self.histograms.items())
        self.engine_labels: tuple[str, ...] = ()
        self._engine_progress, self._engine_load = self._engine_sums(layout.series, by_name)
        vllm_names = {series.name for series in layout.series if series.name.startswith("vllm:")}
        self.unknown_families = tuple(sorted(name for name in vllm_names if not is_known_family(name)))
        present = {name for name, _, _ in self._gauges} | set(self.histograms)
        for family in FAMILIES:
            if family.kind is Kind.COUNTER and _columns_of(family, layout.series, by_name):
                present.add(family.name)
        self.missing_names = tuple(name for name in CORE_NAMES if name not in present)
        self.is_vllm = bool(vllm_names)

    def _engine_sums(
        self, series: tuple[Series, ...], by_name: Mapping[str, list[int]]
    ) -> tuple[_GroupedSum, _GroupedSum]:
        progress: dict[str, list[int]] = {}
        load: dict[str, list[int]] = {}
        for names, groups in (
            (("generation_tokens_total", "prompt_tokens_total", "engine_steps_total"), progress),
            (("requests_running", "requests_waiting"), load),
        ):
            for family in FAMILIES:
                if family.name in names:
                    for column in _columns_of(family, series, by_name):
                        groups.setdefault(series[column].label("engine") or "", []).append(column)
        self.engine_labels = tuple(sorted(set(progress) | set(load)))
        return (
            _GroupedSum([progress.get(engine, []) for engine in self.engine_labels]),
            _GroupedSum([load.get(engine, []) for engine in self.engine_labels]),
        )

    def read(self, values: array[float]) -> PageNumbers:
        """The page in canonical numbers.

        Args:
            values: One float64 per column of the layout.
        """
        vector = np.frombuffer(values, dtype=np.float64)
        gauges: dict[str, float] = {}
        for name, kind, columns in self._gauges:
            if len(columns) == 1:
                number = float(vector[columns[0]])
            elif kind is Kind.GAUGE_SUM:
                number = math.fsum(vector[columns]) if np.isfinite(vector[columns]).all() else math.nan
            elif kind is Kind.GAUGE_MAX:
                number = float(vector[columns].max())
            else:
                number = float(vector[columns].min())
            if abs(number) <= MOST_GAUGE:  # NaN is not
                gauges[name] = number
        return PageNumbers(
            gauges=gauges,
            counters=self._counters(vector),
            buckets=self._buckets(vector),
            engines=EngineColumns(self._engine_progress(vector), self._engine_load(vector)),
        )


def _columns_of(family: Family, series: tuple[Series, ...], by_name: Mapping[str, list[int]]) -> list[int]:
    for alias in family.aliases:
        columns = by_name.get(alias)
        if columns:
            if family.label is None:
                return columns
            label, prefixes = family.label
            return [c for c in columns if (series[c].label(label) or "").startswith(prefixes)]
    return []


def _buckets_of(
    family: Family, series: tuple[Series, ...], by_name: Mapping[str, list[int]]
) -> tuple[list[float], list[list[int]]]:
    for alias in family.aliases:
        columns = by_name.get(f"{alias}_bucket")
        if columns:
            groups: dict[float, list[int]] = {}
            for column in columns:
                try:
                    bound = float(series[column].label("le") or "nan")
                except ValueError:
                    continue
                if not math.isnan(bound):
                    groups.setdefault(bound, []).append(column)
            bounds = sorted(groups)
            return bounds, [groups[bound] for bound in bounds]
    return [], []


_maps: WeakKeyDictionary[Layout, ColumnMap] = WeakKeyDictionary()


def column_map(layout: Layout) -> ColumnMap:
    """The map of a layout, computed once and kept as long as the layout lives. Thread-safe."""
    found = _maps.get(layout)
    if found is None:
        found = ColumnMap(layout)
        _maps[layout] = found
    return found
