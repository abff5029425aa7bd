"""What has been saved but is not committed yet: bounded, and visible to readers.

Everything here is either waiting or in flight (taken by the writer, not yet committed). ``view_lock`` makes the
move from here to the database one step for readers: the writer holds it while it commits and settles, a reader
while it copies this and pins its view of the database, so that each record is seen exactly once.
"""

from __future__ import annotations

import threading
from array import array
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from vllm_monitor.clock import SystemClock
from vllm_monitor.persistence.codecs.sample_values import SampleValue
from vllm_monitor.persistence.records.rare_rows import RareKind, Row
from vllm_monitor.records import Layout

__all__ = ["Batch", "LooseSample", "LooseSeries", "Pending", "RareItem", "RawSample", "Scrape"]

MOST_LOOSE_SAMPLES = 500_000  # some 70 MB
MOST_SCRAPE_BYTES = 64 << 20
MOST_RARE_RECORDS = 10_000
MOST_RARE_BYTES = 64 << 20
MOST_REQUESTS = 20_000
MOST_REQUEST_BYTES = 64 << 20
MOST_LOOSE_TEXT_BYTES = 64 << 20  # of metadata, and of tags that are long
LONG_TAGS_BYTES = 1_000
_SCRAPES_PER_BATCH = 2_000
_RARE_PER_BATCH = 500
_REQUESTS_PER_BATCH = 1_000
_BYTES_PER_SCRAPE = 300  # of Python objects around the values
_BYTES_PER_RECORD = 1_500  # likewise


@dataclass(slots=True, eq=False)
class LooseSeries:
    """The identity of samples that are saved one by one, and the newest of them.

    Args:
        target: The server's URL, or empty.
        metric_type: As given, as plain text.
        metric_name: As given.
        tags: As given.
        tags_json: ``tags`` in the text of ``value_codec``, keys sorted.
        newest: The sample saved last.
    """

    target: str
    metric_type: str
    metric_name: str
    tags: dict[str, Any]
    tags_json: str
    newest: RawSample | None = None

    @property
    def is_long(self) -> bool:
        """Whether its tags count towards the memory of every sample that waits."""
        return len(self.tags_json) > LONG_TAGS_BYTES


class LooseSample(NamedTuple):
    """One sample saved by ``save_metric``."""

    series: LooseSeries
    time_ms: int
    value: SampleValue
    metadata_json: str | None


RawSample = tuple[LooseSeries, int, SampleValue, str | None]
"""A :class:`LooseSample` as it is queued: making the named form costs the caller as much as all the rest."""


class Scrape(NamedTuple):
    """One scrape saved by ``save_scrape``."""

    target: str
    source: str
    layout: Layout
    time_ms: int
    values: array[float]


@dataclass(slots=True, eq=False)
class RareItem:
    """One record on its way to the store.

    Args:
        kind: Table and codec.
        record_id: Its id.
        row: What will be stored; where there is ``change``, what is stored when nothing is there yet.
        change: Makes the new row out of the stored one, inside the transaction that writes it, so that two
            processes cannot undo each other's changes (counts, revisions). A pure function.
        queued_at: Monotonic seconds at which it was queued.
        first_attempt: Becomes ``True`` when it is durable, ``False`` when the first attempt to write it failed
            (it stays pending).
    """

    kind: RareKind[Any]
    record_id: str
    row: Row
    change: Callable[[Row | None], Row] | None = None
    queued_at: float = 0.0
    first_attempt: Future[bool] = field(default_factory=Future)

    def size_bytes(self) -> int:
        """Roughly the memory that it takes."""
        return _BYTES_PER_RECORD + sum(len(value) for value in self.row.values() if isinstance(value, (str, bytes)))

    def resolve(self, stored: Row | None) -> Row:
        """What replaces the row that is stored now (``None`` when there is none)."""
        return self.row if self.change is None else self.change(stored)

    def report(self, durable: bool) -> None:
        """Tell whoever waits; only the first report counts."""
        if not self.first_attempt.done():
            self.first_attempt.set_result(durable)


@dataclass(slots=True)
class Batch:
    """What one transaction writes."""

    scrapes: list[Scrape] = field(default_factory=list)
    loose: list[LooseSample] = field(default_factory=list)
    rare: list[RareItem] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.scrapes) + len(self.loose) + len(self.rare)

    def halves(self) -> list[Batch]:
        """Two smaller batches with the same items in the same order, to find one that cannot be written."""
        middle = len(self) // 2
        first = Batch()
        first.scrapes = self.scrapes[:middle]
        middle -= len(first.scrapes)
        first.loose = self.loose[:middle]
        middle -= len(first.loose)
        first.rare = self.rare[:middle]
        second = Batch(self.scrapes[len(first.scrapes) :], self.loose[len(first.loose) :], self.rare[len(first.rare) :])
        return [first, second]

    @classmethod
    def joined(cls, parts: Iterable[Batch]) -> Batch:
        """All items of some batches, in order."""
        whole = cls()
        for part in parts:
            whole.scrapes += part.scrapes
            whole.loose += part.loose
            whole.rare += part.rare
        return whole


class Pending:
    """The queues between those who save and the one who writes. Thread-safe.

    ``loose`` is a plain deque so that saving a sample costs one append; when it is full the oldest go. Each
    queue drops its oldest when it is full, and counts. Records that are not rare (request summaries) have a
    queue of their own, so that they never push a rare one out.
    """

    def __init__(self) -> None:
        self._monotonic = SystemClock().monotonic
        self.view_lock = threading.Lock()
        self.loose: deque[RawSample] = deque()
        self.dropped = {
            "samples": 0,
            "scrapes": 0,
            "records": 0,
            "requests": 0,
            "unwritable": 0,
            "closed": 0,
        }
        self._queue_lock = threading.Lock()
        self._scrapes: deque[Scrape] = deque()
        self._scrape_bytes = 0
        self._rare: deque[RareItem] = deque()
        self._rare_bytes = 0
        self._requests: deque[RareItem] = deque()
        self._request_bytes = 0
        self._loose_text_bytes = 0
        self._deferred: deque[RareItem] = deque()
        self._in_flight = Batch()
        self._durable: OrderedDict[str, None] = OrderedDict()
        self._newest: dict[str, RareItem] = {}  # of each id that waits

    def count_drop(self, kind: str, number: int = 1) -> None:
        """Count what was lost."""
        with self._queue_lock:
            self.dropped[kind] += number

    def note_text(self, size: int) -> None:
        """A single sample with a long text is about to be queued; the oldest samples go when that is too much."""
        with self._queue_lock:
            self._loose_text_bytes += size
            while self._loose_text_bytes > MOST_LOOSE_TEXT_BYTES and self.loose:
                self._loose_text_bytes -= _text_of(self.loose.popleft())
                self.dropped["samples"] += 1

    def add_scrape(self, scrape: Scrape) -> int:
        """Queue a scrape; the number that wait is returned."""
        with self._queue_lock:
            self._scrapes.append(scrape)
            self._scrape_bytes += _size_of(scrape)
            self._bound_scrapes()
            return len(self._scrapes)

    def add_rare(self, item: RareItem) -> None:
        """Queue a record; what was known of its id before (that an intent is durable, say) no longer counts."""
        with self._queue_lock:
            if not item.kind.is_rare:
                self._requests.append(item)
                self._request_bytes += item.size_bytes()
                self._bound_requests()
                return
            item.queued_at = self._monotonic()
            self._durable.pop(item.record_id, None)
            self._newest[item.record_id] = item
            self._rare.append(item)
            self._rare_bytes += item.size_bytes()
            self._bound_rare()

    def bound_loose(self) -> None:
        """Drop the oldest samples beyond the bound."""
        with self._queue_lock:
            while len(self.loose) > MOST_LOOSE_SAMPLES:
                self._loose_text_bytes -= _text_of(self.loose.popleft())
                self.dropped["samples"] += 1

    def take(self, most_loose: int) -> Batch:
        """Take the next batch; it stays visible as in flight until it is settled or put back."""
        with self.view_lock, self._queue_lock:
            batch = Batch(
                scrapes=_pop(self._scrapes, _SCRAPES_PER_BATCH),
                loose=list(map(LooseSample._make, _pop(self.loose, most_loose))),
                rare=_pop(self._rare, _RARE_PER_BATCH),
            )
            self._scrape_bytes -= sum(map(_size_of, batch.scrapes))
            self._rare_bytes -= sum(item.size_bytes() for item in batch.rare)
            if self._loose_text_bytes:
                self._loose_text_bytes -= sum(map(_text_of, batch.loose))
            requests = _pop(self._requests, _REQUESTS_PER_BATCH)
            self._request_bytes -= sum(item.size_bytes() for item in requests)
            batch.rare += requests
            kinds = {id(item.kind) for item in self._deferred}
            if kinds:  # what is behind one that waits by itself waits with it
                self._put_off([item for item in batch.rare if id(item.kind) in kinds])
                batch.rare = [item for item in batch.rare if id(item.kind) not in kinds]
            self._in_flight = batch
        return batch

    def defer(self, item: RareItem, batch: Batch, rest: Batch) -> Batch:
        """Let a record whose own file cannot be written wait by itself, with those of its kind behind it.

        Args:
            item: One of ``batch``.
            batch: What is being written.
            rest: What is in flight behind it.

        Returns:
            The batch without them.
        """
        at = batch.rare.index(item)
        waiting = [one for one in batch.rare[at:] if one.kind is item.kind]
        others = batch.rare[:at] + [one for one in batch.rare[at:] if one.kind is not item.kind]
        kept = Batch(batch.scrapes, batch.loose, others)
        with self.view_lock, self._queue_lock:
            self._in_flight = Batch.joined([kept, rest])
            self._put_off(waiting)
        return kept

    def deferred(self) -> list[RareItem]:
        """The records that wait by themselves, in order."""
        with self._queue_lock:
            return list(self._deferred)

    def take_deferred(self, item: RareItem) -> Batch:
        """Take one of :meth:`deferred`; it is in flight until it is settled or deferred again."""
        with self.view_lock, self._queue_lock:
            self._deferred.remove(item)
            self._in_flight = Batch(rare=[item])
            return self._in_flight

    def defer_again(self, item: RareItem) -> None:
        """One that was taken still cannot be written."""
        with self.view_lock, self._queue_lock:
            self._in_flight = Batch()
            self._deferred.appendleft(item)

    def settle(self, committed: Batch, rest: Batch) -> None:
        """Move on: ``committed`` is durable, ``rest`` is still in flight. The caller holds ``view_lock``."""
        self._in_flight = rest
        with self._queue_lock:
            for item in committed.rare:
                if self._newest.get(item.record_id) is item:
                    del self._newest[item.record_id]
                    self._durable[item.record_id] = None
            while len(self._durable) > MOST_RARE_RECORDS:
                self._durable.popitem(last=False)

    def forget(self, item: RareItem) -> None:
        """A record was given up: nothing is waited for any more, and its id stays not durable."""
        with self._queue_lock:
            self._forget(item)

    def is_durable(self, record_id: str) -> bool:
        """Whether all that was saved under an id is known to be committed (of the newest ten thousand ids)."""
        with self._queue_lock:
            return record_id in self._durable

    def put_back(self) -> None:
        """Queue again what was in flight, before what came since; the oldest go when that is too much."""
        with self.view_lock, self._queue_lock:
            batch, self._in_flight = self._in_flight, Batch()
            self._scrapes.extendleft(reversed(batch.scrapes))
            self._scrape_bytes += sum(map(_size_of, batch.scrapes))
            self.loose.extendleft(reversed(batch.loose))
            self._loose_text_bytes += sum(map(_text_of, batch.loose))
            rare = [item for item in batch.rare if item.kind.is_rare]
            self._rare.extendleft(reversed(rare))
            self._rare_bytes += sum(item.size_bytes() for item in rare)
            requests = [item for item in batch.rare if not item.kind.is_rare]
            self._requests.extendleft(reversed(requests))
            self._request_bytes += sum(item.size_bytes() for item in requests)
            self._bound_scrapes()
            self._bound_rare()
            self._bound_requests()
        self.bound_loose()

    def snapshot(self) -> Batch:
        """A copy of all that is not committed, in order of arrival. The caller holds ``view_lock``."""
        with self._queue_lock:
            return Batch(
                scrapes=[*self._in_flight.scrapes, *self._scrapes],
                loose=[*self._in_flight.loose, *map(LooseSample._make, self.loose.copy())],
                rare=[*self._deferred, *self._in_flight.rare, *self._rare, *self._requests],
            )

    def not_durable(self) -> int:
        """The number of rare records that wait."""
        in_flight = sum(item.kind.is_rare for item in self._in_flight.rare)
        return len(self._rare) + len(self._deferred) + in_flight

    def overdue(self, seconds: float) -> int:
        """The number of rare records that have waited for longer than this."""
        limit = self._monotonic() - seconds
        with self._queue_lock:
            waiting = [item for item in (*self._deferred, *self._in_flight.rare, *self._rare) if item.kind.is_rare]
        return sum(item.queued_at < limit for item in waiting)

    def __len__(self) -> int:
        queued = len(self._scrapes) + len(self.loose) + len(self._rare) + len(self._requests) + len(self._deferred)
        return queued + len(self._in_flight)

    def _bound_scrapes(self) -> None:
        while self._scrape_bytes > MOST_SCRAPE_BYTES:
            self._scrape_bytes -= _size_of(self._scrapes.popleft())
            self.dropped["scrapes"] += 1

    def _bound_rare(self) -> None:
        # The newest stays whatever its size: a single large model must be storable.
        while len(self._rare) > MOST_RARE_RECORDS or (self._rare_bytes > MOST_RARE_BYTES and len(self._rare) > 1):
            item = self._rare.popleft()
            self._rare_bytes -= item.size_bytes()
            self._forget(item)
            item.report(durable=False)
            self.dropped["records"] += 1

    def _put_off(self, items: list[RareItem]) -> None:
        self._deferred.extend(items)
        size = sum(item.size_bytes() for item in self._deferred)
        while len(self._deferred) > MOST_RARE_RECORDS or (size > MOST_RARE_BYTES and len(self._deferred) > 1):
            item = self._deferred.popleft()
            size -= item.size_bytes()
            self._forget(item)
            item.report(durable=False)
            self.dropped["records"] += 1

    def _bound_requests(self) -> None:
        while len(self._requests) > MOST_REQUESTS or self._request_bytes > MOST_REQUEST_BYTES:
            self._request_bytes -= self._requests.popleft().size_bytes()
            self.dropped["requests"] += 1

    def _forget(self, item: RareItem) -> None:
        if self._newest.get(item.record_id) is item:
            del self._newest[item.record_id]


def _text_of(sample: RawSample) -> int:
    series, _, _, metadata = sample
    tags = len(series.tags_json)
    return (0 if metadata is None else len(metadata)) + (tags if tags > LONG_TAGS_BYTES else 0)


def _size_of(scrape: Scrape) -> int:
    return len(scrape.values) * 8 + _BYTES_PER_SCRAPE


def _pop(queue: deque[Any], most: int) -> list[Any]:
    # One popleft() at a time: samples are appended without a lock meanwhile.
    return [queue.popleft() for _ in range(min(most, len(queue)))]
