"""The columns of a scrape, checked before the first scrape with them is accepted."""

from __future__ import annotations

from typing import Any

from vllm_monitor.errors import ValueNotStorableError
from vllm_monitor.persistence.codecs.arguments import shown
from vllm_monitor.records import Layout, MetricKind, Series

__all__ = ["checked_layout"]


def checked_layout(layout: Any) -> Layout:
    """A layout whose names and labels are all text and whose kinds are kinds.

    Raises:
        ValueNotStorableError: When it is none.
    """
    if not isinstance(layout, Layout):
        raise ValueNotStorableError(
            f"the layout of a scrape cannot be {shown(layout)}", hint="Pass a Layout of the series of the page."
        )
    for series in layout.series:
        if not _is_storable(series):
            raise ValueNotStorableError(
                f"a series of a scrape cannot be {shown(series)}",
                hint="Pass Series whose name, label names and label values are str and whose kind is a MetricKind.",
            )
    return layout


def _is_storable(series: Any) -> bool:
    if not isinstance(series, Series) or not isinstance(series.kind, MetricKind):
        return False
    labels: Any = series.labels
    return (
        isinstance(labels, tuple)
        and isinstance(series.name, str)
        and all(
            isinstance(pair, tuple) and len(pair) == 2 and all(isinstance(part, str) for part in pair)
            for pair in labels
        )
    )
