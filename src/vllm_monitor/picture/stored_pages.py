"""The stored pages of a server, put together again from their series."""

from __future__ import annotations

from array import array
from collections.abc import Iterator

from vllm_monitor.persistence import PersistenceManager
from vllm_monitor.records import Layout, PageObservation, Series

__all__ = ["StoredPages"]

CHUNK_SECONDS = 600.0
"""A long stretch is read in parts of this length: ten minutes of a page a second take some ten megabytes."""


class StoredPages:
    """Reads pages as they were scraped, so that a picture can be made of the past. Not thread-safe: one owner.

    Args:
        store: The store.
        target: The server's URL.
    """

    def __init__(self, store: PersistenceManager, target: str) -> None:
        self._store = store
        self._target = target
        self._last_layout: Layout | None = None

    def after(self, time_ms: int) -> list[PageObservation]:
        """All pages that are newer than a time (unix milliseconds), oldest first."""
        return self._read(time_ms + 1, None)

    def between(self, start: float, end: float) -> Iterator[PageObservation]:
        """The pages of a stretch of time (unix seconds, the end not included), oldest first."""
        at = start
        while at < end:
            until = min(end, at + CHUNK_SECONDS)
            yield from self._read(round(at * 1000), round(until * 1000))
            at = until

    def looks(self, start: float, end: float) -> Iterator[tuple[float, PageObservation | None]]:
        """Each page with its time, and after it each moment at which the watch looked, with ``None``; oldest first.

        Args:
            start: Unix seconds.
            end: Unix seconds, not included.
        """
        at = start
        while at < end:
            until = min(end, at + CHUNK_SECONDS)
            pages: list[tuple[float, PageObservation | None]] = [
                (page.timestamp, page) for page in self._read(round(at * 1000), round(until * 1000))
            ]
            looks = [(time, None) for time in self._looked(at, until)]
            yield from sorted([*pages, *looks], key=lambda look: (look[0], look[1] is None))
            at = until

    def look_times(self, start: float, end: float) -> list[float]:
        """The moments at which the watch looked, as :meth:`looks` has them, without reading a page."""
        found: list[float] = []
        at = start
        while at < end:
            until = min(end, at + CHUNK_SECONDS)
            found += self._looked(at, until)
            at = until
        return found

    def _looked(self, start: float, end: float) -> list[float]:
        """When the watch looked; where its probes are not stored, when there was a page."""
        stored = self._store.scrape_times(self._target, start, end)
        for source in ("probes", "metrics"):
            times = [] if stored.get(source) is None else stored[source].tolist()
            looked = [time_ms / 1000 for time_ms in times if time_ms < round(end * 1000)]
            if looked:
                return looked
        return []

    def _read(self, first_ms: int, before_ms: int | None) -> list[PageObservation]:
        end = None if before_ms is None else (before_ms - 1) / 1000
        times = self._store.scrape_times(self._target, first_ms / 1000, end).get("metrics")
        wanted = [] if times is None else [at for at in times.tolist() if at >= first_ms]
        if not wanted:
            return []
        pages: dict[int, tuple[list[Series], array[float]]] = {at: ([], array("d")) for at in wanted}
        found = self._store.query_range(
            None, target=self._target, start_time=wanted[0] / 1000, end_time=wanted[-1] / 1000
        )
        for stored in found:
            for at, value in zip(stored.timestamps_ms.tolist(), stored.values.tolist(), strict=True):
                if at in pages:
                    pages[at][0].append(stored.series)
                    pages[at][1].append(value)
        return [
            PageObservation(
                target=self._target, timestamp=at / 1000, layout=self._layout(series), values=values, status=200
            )
            for at, (series, values) in pages.items()
        ]

    def _layout(self, series: list[Series]) -> Layout:
        """The same object as before when the series are the same, so that what is derived from it is kept."""
        layout = Layout(series)
        if self._last_layout is None or layout != self._last_layout:
            self._last_layout = layout
        return self._last_layout
