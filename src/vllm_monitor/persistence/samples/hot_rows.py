"""Rows of ``metrics`` checked one after the other, each decoded with the row that it builds on."""

from __future__ import annotations

from collections.abc import Callable

from vllm_monitor.errors import StoreDamagedError
from vllm_monitor.persistence.damage.stored_rows import StoredRow, verify_row
from vllm_monitor.persistence.samples.loose_codec import decode_loose
from vllm_monitor.persistence.samples.sample_rows import MetricsRow
from vllm_monitor.persistence.samples.scrape_codec import KEYFRAME, LOOSE, Bits, decode_scrape

__all__ = ["HotRowChecker"]

_HINT = "The row is skipped; run vllm-monitor check."


class HotRowChecker:
    """Give it the rows in the order of their ids.

    Args:
        columns_of: The number of columns of a layout; ``None`` when the layout is damaged or missing.
    """

    def __init__(self, columns_of: Callable[[int], int | None]) -> None:
        self._columns_of = columns_of
        self._ends: dict[int, Bits] = {}  # the newest row of each run

    def check(self, stored: StoredRow) -> None:
        """Verify and decode a row.

        Raises:
            StoreDamagedError: When it, or what it builds on, is damaged.
        """
        verify_row("metrics", stored)
        row = MetricsRow(**stored)
        if row.kind == LOOSE:
            decode_loose(row.payload, row.start_ms)
            return
        columns = self._columns_of(row.layout_id)
        if columns is None:
            raise StoreDamagedError(f"its layout {row.layout_id} is damaged or missing", hint=_HINT)
        previous = None
        if row.kind != KEYFRAME:
            previous = self._ends.pop(row.previous_id, None)
            if previous is None or len(previous) != columns:
                raise StoreDamagedError(f"row {row.previous_id}, on which it builds, is damaged or missing", hint=_HINT)
        self._ends[row.id] = decode_scrape(row.payload, columns, previous)
