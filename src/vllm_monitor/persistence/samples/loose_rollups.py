"""Roll-ups of samples that were saved one by one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vllm_monitor.persistence.samples.blocks.loose_block import LooseBlock
from vllm_monitor.persistence.samples.rollup_codec import Form, Rollup, last_sequences
from vllm_monitor.persistence.samples.summaries import MINUTE_MS, is_counter, summarise, summarise_spread
from vllm_monitor.records import Series

__all__ = ["LooseRollup", "rollups_of_loose"]

_MOST_CELLS = 1 << 19
_FIELDS = ("last", "correction", "low", "high", "total", "count")


class LooseRollup(NamedTuple):
    """A roll-up and what its row says."""

    rollup: Rollup
    series_ids: tuple[int, ...]
    series: list[Series]
    start_ms: int
    end_ms: int
    samples: int


def rollups_of_loose(loose: LooseBlock, series: Mapping[int, Series]) -> Iterator[LooseRollup]:
    """Roll-ups of one minute of the samples of a block, of series that are known; several when they are many."""
    known = np.array(sorted(series), dtype=np.int64)
    all_buckets = len(np.unique(loose.times_ms // MINUTE_MS))
    step = max(1, _MOST_CELLS // max(1, all_buckets))
    for at in range(0, len(known), step):
        ids = known[at : at + step]
        places = np.flatnonzero(np.isin(loose.series_ids, ids))
        if len(places):
            yield _rollup(loose, places, series)


def _rollup(loose: LooseBlock, places: NDArray[np.intp], series: Mapping[int, Series]) -> LooseRollup:
    # By series, then time, then arrival.
    order = places[np.lexsort((places, loose.times_ms[places], loose.series_ids[places]))]
    numbers, times, values = loose.series_ids[order], loose.times_ms[order], loose.values[order]
    buckets = np.unique(times // MINUTE_MS) * MINUTE_MS
    starts = np.concatenate(([0], np.flatnonzero(np.diff(numbers)) + 1))
    ends = np.append(starts[1:], len(numbers))
    present_ids = tuple(numbers[starts].tolist())
    shape = (len(buckets), len(present_ids))
    found = {name: np.zeros(shape) for name in _FIELDS}
    first = np.zeros(len(present_ids))
    there = np.zeros(shape, dtype=bool)
    forms = np.full(len(present_ids), Form.GAUGE, dtype=np.uint8)
    for column, (start, end) in enumerate(zip(starts.tolist(), ends.tolist(), strict=True)):
        part = values[start:end, None]
        summary = summarise(times[start:end], part, MINUTE_MS)
        spread = summarise_spread(times[start:end], part, MINUTE_MS)
        rows = np.searchsorted(buckets, summary.bucket_ms)
        there[rows, column] = True
        first[column] = summary.first[0]
        found["last"][rows, column] = summary.last[:, 0]
        for name in ("low", "high", "total", "count"):
            found[name][rows, column] = getattr(spread, name)[:, 0]
        if is_counter(series[present_ids[column]]) and bool(np.isfinite(part).all()):
            found["correction"][rows, column] = summary.correction[:, 0]
            forms[column] = Form.COUNTER_WITH_RESETS if summary.correction.any() else Form.COUNTER
    sequences = loose.sequences[order]
    return LooseRollup(
        Rollup(
            buckets, forms, there, first, **found,
            first_sequence=int(sequences.min()), last_sequences=last_sequences(buckets, times, sequences),
        ),
        present_ids,
        [series[number] for number in present_ids],
        int(times.min()),
        int(times.max()),
        len(order),
    )  # fmt: skip
