"""The samples of this store, from JSON lines put into the index again, under the numbers that they had."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, insert

from vllm_monitor.errors import StoreDamagedError
from vllm_monitor.persistence import schema
from vllm_monitor.persistence.json_backend.json_sample_parser import ParsedSample, ParsedScrape
from vllm_monitor.persistence.samples.identities import Identities
from vllm_monitor.persistence.samples.loose_codec import SPAN_MS, encode_loose
from vllm_monitor.persistence.samples.scrape_codec import (
    DELTA,
    KEYFRAME,
    KEYFRAME_INTERVAL,
    LOOSE,
    Bits,
    encode_scrape,
    row_checksum,
)

__all__ = ["OwnLoader"]


class OwnLoader:
    """Makes rows of ``metrics``: the samples that first arrived in this store.

    Args:
        connection: In a transaction.
        identities: Numbers of names.
    """

    def __init__(self, connection: Connection, identities: Identities) -> None:
        self.last_sequence = 0
        self._connection = connection
        self._identities = identities
        self._rows: list[dict[str, Any]] = []
        self._runs: dict[tuple[int, int], tuple[int, Bits, int]] = {}
        self._places: dict[tuple[str, str, str], tuple[int, int]] = {}
        self._single: list[ParsedSample] = []

    def add(self, found: ParsedScrape | ParsedSample) -> None:
        """Add what a line said; lines come in ascending order of their sequences.

        Raises:
            StoreDamagedError: When its sequence was there already.
        """
        continues = bool(self._single) and isinstance(found, ParsedSample) and self._belongs(found)
        if found.sequence <= self.last_sequence and not continues:
            raise StoreDamagedError("a line comes a second time", hint="It is set aside; nothing is lost.")
        if not continues:
            self._end_row()
        self.last_sequence = found.sequence
        if isinstance(found, ParsedSample):
            self._single.append(found)
        elif found.present is not None:
            raise StoreDamagedError("a scrape of this store lacks values", hint="The line is set aside.")
        else:
            self._add_scrape(found)

    def flush(self) -> None:
        """Write what was added. A row of single samples that may go on is kept for later; see :meth:`finish`."""
        if self._rows:
            self._connection.execute(insert(schema.metrics), self._rows)
            self._rows.clear()

    def finish(self) -> None:
        """Write everything."""
        self._end_row()
        self.flush()

    def _belongs(self, found: ParsedSample) -> bool:
        first = self._single[0]
        times = [sample.time_ms for sample in (first, found)]
        return (
            found.sequence == first.sequence
            and found.series.target == first.series.target
            and len({time_ms // (SPAN_MS + 1) for time_ms in times}) == 1
        )

    def _add_scrape(self, scrape: ParsedScrape) -> None:
        stream_id, layout_id = self._place_of(scrape)
        previous_id, bits, length = self._runs.get((stream_id, layout_id), (0, None, KEYFRAME_INTERVAL))
        if length >= KEYFRAME_INTERVAL:
            previous_id, bits, length = 0, None, 0
        payload = encode_scrape(scrape.bits, bits)
        kind = KEYFRAME if bits is None else DELTA
        self._runs[stream_id, layout_id] = (scrape.sequence, scrape.bits, length + 1)
        place = (kind, stream_id, layout_id, previous_id, scrape.time_ms, scrape.time_ms)
        self._add_row(scrape.sequence, place, len(scrape.bits), payload)

    def _place_of(self, scrape: ParsedScrape) -> tuple[int, int]:
        key = (scrape.target, scrape.source, scrape.layout.name)
        if key not in self._places:
            stream_id = self._identities.stream(self._connection, scrape.target, scrape.source)
            layout_id = self._identities.layout_of_names(self._connection, stream_id, scrape.layout.columns)
            self._places[key] = (stream_id, layout_id)
        return self._places[key]

    def _end_row(self) -> None:
        samples, self._single = self._single, []
        if not samples:
            return
        numbers = self._identities.loose(self._connection, (sample.series for sample in samples))
        times = [sample.time_ms for sample in samples]
        payload = encode_loose(
            min(times),
            times,
            [numbers[id(sample.series)][1] for sample in samples],
            [sample.value for sample in samples],
            [sample.code for sample in samples],
            {at: sample.metadata_json for at, sample in enumerate(samples) if sample.metadata_json is not None},
        )
        stream_id = numbers[id(samples[0].series)][0]
        self._add_row(samples[0].sequence, (LOOSE, stream_id, 0, 0, min(times), max(times)), len(samples), payload)

    def _add_row(self, row_id: int, place: tuple[int, int, int, int, int, int], samples: int, payload: bytes) -> None:
        kind, stream_id, layout_id, previous_id, start_ms, end_ms = place
        self._rows.append(
            {
                "id": row_id,
                "stream_id": stream_id,
                "kind": kind,
                "start_ms": start_ms,
                "end_ms": end_ms,
                "layout_id": layout_id,
                "previous_id": previous_id,
                "samples": samples,
                "payload": payload,
                "checksum": row_checksum(*place, payload),
            }
        )
