"""Samples in sealed blocks."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import numpy as np
from numpy.typing import NDArray

from vllm_monitor.errors import StoreDamagedError
from vllm_monitor.persistence.codecs.sample_values import TYPE_OF_CODE, from_float
from vllm_monitor.persistence.samples.block_access import (
    BlockHead,
    OpenBlock,
    block_heads,
    check_times,
    newest_block_heads,
    open_block,
    open_loose,
    read_columns,
)
from vllm_monitor.persistence.samples.block_rows import BlockKind
from vllm_monitor.persistence.samples.gathering import Gathering, Part
from vllm_monitor.persistence.samples.sample_dicts import FoundSample, order_of
from vllm_monitor.persistence.samples.selection import EARLIEST_MS, LATEST_MS, Columns, Scope, Stream

__all__ = ["SealedSamples"]

_LOG = logging.getLogger(__name__)

_Rows = NDArray[np.intp] | slice
_There = NDArray[np.bool_] | slice


class SealedSamples:
    """Reads sealed blocks of one view of the database: of each block only what is asked for.

    Args:
        scope: The view, and what is asked for.
    """

    def __init__(self, scope: Scope) -> None:
        self.damaged = 0
        self._scope = scope
        self._selector = scope.selector

    def times(self, stream: Stream) -> list[int]:
        """When each sealed scrape of a stream in the range was scraped."""
        found: list[int] = []
        for head in self._heads(stream):
            with self._skip_damage(head), self._open(head) as block:
                times = block.reader.times_ms()
                check_times(head, times)
                found.extend(times[self._in_time(times)].tolist())
        return found

    def gather(self, stream: Stream, gathering: Gathering) -> None:
        """Collect what is asked for."""
        for head in self._heads(stream):
            with self._skip_damage(head):
                if head.kind == BlockKind.LOOSE:
                    self._gather_loose(stream, head, gathering)
                else:
                    self._gather_scrapes(stream, head, gathering)

    def found(self, stream: Stream, limit: int | None) -> list[FoundSample]:
        """The newest samples that are asked for, at least ``limit`` of them if there are, in no order."""
        found: list[FoundSample] = []
        selector = self._selector
        for head in newest_block_heads(self._scope.connection, stream.id, selector.start_ms, selector.end_ms):
            if limit is not None and sum(one.time_ms > head.end_ms for one in found) >= limit:
                break  # nothing that is still unread is newer
            with self._skip_damage(head):
                found.extend(self._found_in(stream, head, limit))
        return found

    def newest(self, stream: Stream) -> list[FoundSample]:
        """The newest scrape of a stream, or its newest single samples, in order of time."""
        for head in newest_block_heads(self._scope.connection, stream.id, EARLIEST_MS, LATEST_MS):
            with self._skip_damage(head):
                found = sorted(self._found_in(stream, head, 1 if stream.source else None), key=order_of)
                if found:
                    return [one for one in found if one[:3] == found[-1][:3]] if stream.source else found
        return []

    def _heads(self, stream: Stream) -> list[BlockHead]:
        return block_heads(self._scope.connection, stream.id, self._selector.start_ms, self._selector.end_ms)

    @contextmanager
    def _skip_damage(self, head: BlockHead) -> Iterator[None]:
        try:
            yield
        except StoreDamagedError as error:
            self.damaged += 1
            _LOG.warning("block %d was skipped: %s", head.id, error)

    @contextmanager
    def _open(self, head: BlockHead) -> Iterator[OpenBlock]:
        with open_block(self._scope.connection, head, self._scope.column_count(head.layout_id)) as block:
            yield block

    def _in_time(self, times: NDArray[np.int64]) -> NDArray[np.bool_]:
        return (times >= self._selector.start_ms) & (times <= self._selector.end_ms)

    def _rows_in_time(self, times: NDArray[np.int64]) -> _Rows:
        if (times[1:] >= times[:-1]).all():  # nearly always, and a slice copies nothing
            low, high = np.searchsorted(times, (self._selector.start_ms, self._selector.end_ms + 1)).tolist()
            return slice(low, high)
        return np.flatnonzero(self._in_time(times))

    def _gather_scrapes(self, stream: Stream, head: BlockHead, gathering: Gathering) -> None:
        columns = self._scope.columns(head.layout_id)
        if not columns:
            return
        scope, wanted = self._scope, [column for column, _ in columns]
        count = scope.column_count(head.layout_id)
        block = read_columns(scope.connection, scope.catalogue.read_cache, head, count, wanted)
        if head.start_ms >= self._selector.start_ms and head.end_ms <= self._selector.end_ms:
            rows: _Rows = slice(None)
        else:
            rows = self._rows_in_time(block.times_ms)
        times = block.times_ms[rows]
        for (column, stored), values, present in zip(columns, block.values, block.present, strict=True):
            there: _There = slice(None)
            when, of_column = times, values[rows]
            if present is not None:
                there = present[rows]
                when, of_column = times[there], of_column[there]
            arrived = partial(self._sequences, head, rows, there)
            gathering.add(stream.target, stored, Part(when, of_column, head.origin_id, arrived, column))

    def _sequences(self, head: BlockHead, rows: _Rows, there: _There) -> NDArray[np.int64]:
        with self._open(head) as block:
            return block.reader.sequences()[rows][there]

    def _gather_loose(self, stream: Stream, head: BlockHead, gathering: Gathering) -> None:
        if not self._scope.has_match(stream):
            return
        loose = open_loose(self._scope.connection, head)
        in_time = self._in_time(loose.times_ms)
        for number, stored in self._scope.series(np.unique(loose.series_ids).tolist()).items():
            at = np.flatnonzero(in_time & (loose.series_ids == number))
            part = Part(loose.times_ms[at], loose.values[at], head.origin_id, loose.sequences[at], loose.positions[at])
            gathering.add(stream.target, stored, part)

    def _found_in(self, stream: Stream, head: BlockHead, limit: int | None) -> list[FoundSample]:
        if head.kind == BlockKind.LOOSE:
            return self._found_loose(stream, head)
        columns = self._scope.columns(head.layout_id)
        return self._found_scrapes(stream, head, columns, limit) if columns else []

    def _found_scrapes(self, stream: Stream, head: BlockHead, columns: Columns, limit: int | None) -> list[FoundSample]:
        found: list[FoundSample] = []
        with self._open(head) as block:
            times, sequences = block.reader.times_ms(), block.reader.sequences()
            check_times(head, times)
            wanted = [column for column, _ in columns]
            values = block.reader.columns(wanted).view(np.float64)
            present = block.reader.present(wanted)
        rows = np.flatnonzero(self._in_time(times))
        rows = rows[np.argsort(times[rows], kind="stable")][::-1]
        last_ms = None
        for row, time_ms, sequence in zip(rows.tolist(), times[rows].tolist(), sequences[rows].tolist(), strict=True):
            if limit is not None and len(found) >= limit and time_ms != last_ms:
                break
            last_ms = time_ms
            of_row = values[row].tolist()
            found += [
                FoundSample(time_ms, head.origin_id, sequence, column, stream.target, stored, of_row[place], None)
                for place, (column, stored) in enumerate(columns)
                if present is None or present[row, place]
            ]
        return found

    def _found_loose(self, stream: Stream, head: BlockHead) -> list[FoundSample]:
        if not self._scope.has_match(stream):
            return []
        loose = open_loose(self._scope.connection, head)
        known = self._scope.series(np.unique(loose.series_ids).tolist())
        wanted = np.isin(loose.series_ids, list(known)) & self._in_time(loose.times_ms)
        if len(loose.codes) and int(loose.codes.max()) >= len(TYPE_OF_CODE):
            raise StoreDamagedError("single samples have a type that there is not", hint="Run vllm-monitor check.")
        at = np.flatnonzero(wanted)
        return [
            FoundSample(
                time_ms,
                head.origin_id,
                sequence,
                position,
                stream.target,
                known[number],
                from_float(value, code),
                loose.metadata.get(place),
            )
            for place, time_ms, sequence, position, number, value, code in zip(
                at.tolist(),
                loose.times_ms[at].tolist(),
                loose.sequences[at].tolist(),
                loose.positions[at].tolist(),
                loose.series_ids[at].tolist(),
                loose.values[at].tolist(),
                loose.codes[at].tolist(),
                strict=True,
            )
        ]
