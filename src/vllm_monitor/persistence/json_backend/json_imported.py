"""Samples that first arrived in other stores, and roll-ups, from JSON lines put into the index again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection, insert, select

from vllm_monitor.errors import StoreDamagedError
from vllm_monitor.persistence import schema
from vllm_monitor.persistence.codecs.text_column import from_text_column
from vllm_monitor.persistence.json_backend.json_sample_parser import ParsedLayout, ParsedSample, ParsedScrape
from vllm_monitor.persistence.json_backend.json_samples import ROLLUP_NUMBERS
from vllm_monitor.persistence.json_backend.json_values import bytes_of
from vllm_monitor.persistence.samples.block_rows import BlockKind, BlockRow, RollupRow, Tier
from vllm_monitor.persistence.samples.blocks.codec import encode_block
from vllm_monitor.persistence.samples.blocks.loose_block import encode_loose_block
from vllm_monitor.persistence.samples.identities import Identities, layout_of_series
from vllm_monitor.persistence.samples.sample_rows import stored_series

__all__ = ["ImportedLoader", "RollupLoader", "origin_number"]

_SCRAPES_PER_BLOCK = 1800
_SAMPLES_PER_BLOCK = 50_000

Integers = NDArray[np.int64]


def origin_number(connection: Connection, store_id: str) -> int:
    """The number of a store among the ``origins``; it is added when it is new."""
    table = schema.origins
    query = select(table.c.id).where(table.c.store_id == store_id)
    found = connection.execute(query).scalar()
    if found is None:
        connection.execute(insert(table), {"store_id": store_id})
        found = connection.execute(query).scalar_one()
    return int(found)


class ImportedLoader:
    """Makes rows of ``blocks``: the samples that first arrived in other stores.

    Args:
        connection: In a transaction.
        identities: Numbers of names.
    """

    def __init__(self, connection: Connection, identities: Identities) -> None:
        self._connection = connection
        self._identities = identities
        self._scrapes: list[ParsedScrape] = []
        self._samples: list[ParsedSample] = []

    def add(self, found: ParsedScrape | ParsedSample) -> None:
        """Add what a line said.

        Raises:
            StoreDamagedError: When it does not say which sample of which store it is.
        """
        if found.origin is None or (isinstance(found, ParsedSample) and found.position is None):
            raise StoreDamagedError("an imported sample has no origin", hint="The line is set aside.")
        if isinstance(found, ParsedSample):
            last_sample = self._samples[-1] if self._samples else found
            same_place = (last_sample.origin, last_sample.series.target) == (found.origin, found.series.target)
            if not same_place or found.sequence < last_sample.sequence or len(self._samples) >= _SAMPLES_PER_BLOCK:
                self.finish()
            self._samples.append(found)
        else:
            last = self._scrapes[-1] if self._scrapes else None
            if last is not None and not (
                (last.origin, last.target, last.source) == (found.origin, found.target, found.source)
                and last.layout.name == found.layout.name
                and last.sequence < found.sequence
                and len(self._scrapes) < _SCRAPES_PER_BLOCK
            ):
                self.finish()
            self._scrapes.append(found)

    def flush(self) -> None:
        """Nothing to do before a block is full."""

    def finish(self) -> None:
        """Write everything."""
        scrapes, self._scrapes = self._scrapes, []
        samples, self._samples = self._samples, []
        if scrapes:
            self._write_scrapes(scrapes)
        if samples:
            self._write_samples(samples)

    def _write_scrapes(self, scrapes: list[ParsedScrape]) -> None:
        first = scrapes[0]
        stream_id = self._identities.stream(self._connection, first.target, first.source)
        layout_id = self._identities.layout_of_names(self._connection, stream_id, first.layout.columns)
        series = [stored_series(name).series for name in first.layout.columns]
        times, sequences = _integers(s.time_ms for s in scrapes), _integers(s.sequence for s in scrapes)
        present = None
        samples = len(scrapes) * len(series)
        if any(scrape.present is not None for scrape in scrapes):
            everywhere = np.ones(len(series), dtype=bool)
            present = np.stack([everywhere if s.present is None else s.present for s in scrapes])
            samples = int(present.sum())
        bits = np.stack([scrape.bits for scrape in scrapes])
        payload = encode_block(times, sequences, bits, series, present=present)
        self._insert(first.origin, BlockKind.SCRAPES, (stream_id, layout_id), times, sequences, samples, payload)

    def _write_samples(self, samples: list[ParsedSample]) -> None:
        numbers = self._identities.loose(self._connection, (sample.series for sample in samples))
        times, sequences = _integers(s.time_ms for s in samples), _integers(s.sequence for s in samples)
        payload = encode_loose_block(
            sequences,
            _integers(sample.position or 0 for sample in samples),
            times,
            _integers(numbers[id(sample.series)][1] for sample in samples),
            np.array([sample.value for sample in samples], dtype=np.float64),
            np.array([sample.code for sample in samples], dtype=np.uint8),
            {at: sample.metadata_json for at, sample in enumerate(samples) if sample.metadata_json is not None},
        )
        stream_id = numbers[id(samples[0].series)][0]
        self._insert(samples[0].origin, BlockKind.LOOSE, (stream_id, 0), times, sequences, len(samples), payload)

    def _insert(
        self,
        origin: str | None,
        kind: BlockKind,
        place: tuple[int, int],
        times: Integers,
        sequences: Integers,
        samples: int,
        payload: bytes,
    ) -> None:
        stream_id, layout_id = place
        block = BlockRow(
            id=0,
            kind=kind,
            tier=Tier.SEALED,
            stream_id=stream_id,
            origin_id=origin_number(self._connection, str(origin)),
            layout_id=layout_id,
            start_ms=int(times.min()),
            end_ms=int(times.max()),
            first_sequence=int(sequences.min()),
            last_sequence=int(sequences.max()),
            scrapes=len(np.unique(sequences)),
            samples=samples,
            checksum=0,
            payload=payload,
        ).summed()
        row = block._asdict()
        del row["id"]
        self._connection.execute(insert(schema.blocks), row)


class RollupLoader:
    """Makes rows of ``rollups``.

    Args:
        connection: In a transaction.
        identities: Numbers of names.
    """

    def __init__(self, connection: Connection, identities: Identities) -> None:
        self._connection = connection
        self._identities = identities

    def add(self, fields: Mapping[str, Any], layout: ParsedLayout) -> None:
        """Add what a line said.

        Raises:
            StoreDamagedError: When it makes no sense.
        """
        try:
            numbers = {name: int(fields[name]) for name in ROLLUP_NUMBERS}
            target, source = from_text_column(fields["target"]), from_text_column(fields["source"])
            origin, payload = str(fields["origin"]), bytes_of(fields["payload"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise StoreDamagedError("a line of a roll-up lacks a field", hint="The line is set aside.") from error
        stream_id = self._identities.stream(self._connection, target, source)
        if source:
            layout_id = self._identities.layout_of_names(self._connection, stream_id, layout.columns)
        else:
            series_ids = self._identities.series_of_names(self._connection, stream_id, layout.columns)
            layout_id = layout_of_series(self._connection, stream_id, series_ids, is_loose=True)
        row = RollupRow(
            id=0,
            stream_id=stream_id,
            origin_id=origin_number(self._connection, origin),
            layout_id=layout_id,
            checksum=0,
            payload=payload,
            **numbers,
        )
        columns = row.summed()._asdict()
        del columns["id"]
        self._connection.execute(insert(schema.rollups), columns)


def _integers(numbers: Iterable[int]) -> Integers:
    return np.fromiter(numbers, dtype=np.int64)
