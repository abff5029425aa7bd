"""Readings as a row of values and as a page of Prometheus text."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator

from vllm_monitor.records import Layout, MetricKind, Series
from vllm_monitor.simulator.catalogue import BUCKETS, FAMILIES, Family, Labels
from vllm_monitor.simulator.settings import ServerSettings
from vllm_monitor.simulator.statistics import Readings

__all__ = ["Exposition"]


class Exposition:
    """Knows every sample line of the page, in order. Immutable.

    Args:
        settings: For the labels: model name and cache settings.
    """

    def __init__(self, settings: ServerSettings) -> None:
        self._settings = settings
        self._lines = {family.name: list(self._series_of(family)) for family in FAMILIES}
        self.layout = Layout(series for lines in self._lines.values() for series in lines)

    def values(self, readings: Readings) -> array[float]:
        """One value per column of :attr:`layout`."""
        return array("d", [value for family in FAMILIES for value in readings[family.name]])

    def page(self, readings: Readings, created_unix_seconds: float) -> str:
        """The page, with the lines that say when each row came into being."""
        out: list[str] = []
        for family in FAMILIES:
            out.extend(_header(family.name, family.kind, family.help_text))
            pairs = zip(self._lines[family.name], readings[family.name], strict=True)
            out.extend(f"{series} {_number(value)}" for series, value in pairs)
            if family.created:
                out.extend(_header(family.created_name, MetricKind.GAUGE, family.help_text))
                for row in family.rows:
                    series = Series(family.created_name, self._labels(family, row))
                    out.append(f"{series} {_number(created_unix_seconds)}")
        return "\n".join(out) + "\n"

    def _series_of(self, family: Family) -> Iterator[Series]:
        rows = (self._cache_config(),) if family.name == "vllm:cache_config_info" else family.rows
        for row in rows:
            if family.kind is MetricKind.HISTOGRAM:
                for bound in (*BUCKETS[family.name], math.inf):
                    labels = self._labels(family, (*row, ("le", _number(bound))))
                    yield Series(f"{family.name}_bucket", labels, family.kind)
            if family.kind in (MetricKind.HISTOGRAM, MetricKind.SUMMARY):
                for part in ("count", "sum"):
                    yield Series(f"{family.name}_{part}", self._labels(family, row), family.kind)
            else:
                yield Series(family.name, self._labels(family, row), family.kind)

    def _labels(self, family: Family, row: Labels) -> Labels:
        labels = dict(row)
        if family.engine:
            labels["engine"] = "0"
        if family.model:
            labels["model_name"] = self._settings.model
        return tuple(sorted(labels.items()))

    def _cache_config(self) -> Labels:
        engine = self._settings.engine
        tokens = engine.num_blocks * engine.block_size
        return (
            ("block_size", str(engine.block_size)),
            ("cache_dtype", "auto"),
            ("enable_prefix_caching", "True"),
            ("gpu_memory_utilization", "0.92"),
            ("kv_cache_max_concurrency", str(tokens / engine.max_model_len)),
            ("kv_cache_size_tokens", str(tokens)),
            ("num_cpu_blocks", "None"),
            ("num_gpu_blocks", str(engine.num_blocks)),
            ("num_gpu_blocks_override", "None"),
            ("prefix_caching_hash_algo", "sha256"),
            ("sliding_window", "None"),
        )


def _header(name: str, kind: MetricKind, help_text: str) -> tuple[str, str]:
    return f"# HELP {name} {help_text}", f"# TYPE {name} {kind}"


def _number(value: float) -> str:
    """A number as servers print it: shortest form that reads back, large ones with an exponent."""
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    text = repr(float(value))
    point = text.find(".")
    if point > 6 and "e" not in text:
        digits = (text[:point] + text[point + 1 :]).rstrip("0")
        mantissa = f"{digits[0]}.{digits[1:]}" if digits[1:] else digits
        return f"{mantissa}e+{point - 1:02d}"
    return text
