"""Saving samples and asking for them."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping
from typing import Any, TypeVar
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection

from vllm_monitor.errors import ConfigurationError, ValueNotStorableError
from vllm_monitor.persistence.codecs.arguments import (
    checked_filter,
    checked_limit,
    checked_text,
    checked_time,
    shown,
    stored_text,
)
from vllm_monitor.persistence.codecs.sample_values import LATEST_SECONDS, milliseconds, to_sample_value
from vllm_monitor.persistence.codecs.tags import wanted_tags
from vllm_monitor.persistence.codecs.value_codec import encode_value
from vllm_monitor.persistence.pending import MOST_LOOSE_SAMPLES, Batch, Scrape
from vllm_monitor.persistence.results import SeriesData
from vllm_monitor.persistence.samples.checked_layouts import checked_layout
from vllm_monitor.persistence.samples.range_query import make_range_query
from vllm_monitor.persistence.samples.sample_dicts import loose_to_dict, scrape_to_dicts
from vllm_monitor.persistence.samples.sample_reader import SampleReader
from vllm_monitor.persistence.samples.sample_rows import SeriesCatalogue
from vllm_monitor.persistence.samples.selection import Selector
from vllm_monitor.persistence.store_access import StoreAccess
from vllm_monitor.records import Layout, MetricType, Series

__all__ = ["SampleVerbs"]

_SCRAPES_PER_SYNCHRONOUS_WRITE = 64
_MOST_WAIT_WHEN_CROWDED_SECONDS = 0.0005
_LEAST_EXACT, _GREATEST_EXACT = -(1 << 53), 1 << 53

Answer = TypeVar("Answer")


class SampleVerbs(StoreAccess):
    """The verbs for samples; part of ``PersistenceManager``."""

    def _begin(self) -> None:
        super()._begin()
        # By identity: layouts are equal whatever the kinds of their series, and comparing them takes long.
        self._checked_layouts: WeakValueDictionary[int, Layout] = WeakValueDictionary()

    def save_metric(
        self,
        metric_type: str | MetricType,
        metric_name: str,
        value: Any,
        tags: Mapping[str, Any] | None = None,
        metadata: Mapping[str, Any] | None = None,
        *,
        timestamp: float | None = None,
        target: str = "",
    ) -> None:
        """Save one sample. Queues only; see the class for what that promises.

        When hundreds of thousands of samples wait although the disk is well, each call waits up to half a
        millisecond for the writer rather than lose one.

        Args:
            metric_type: Where it comes from, see :class:`~vllm_monitor.records.MetricType`.
            metric_name: The name, as it will be asked for.
            value: A float, or a number that float64 holds exactly; its Python type comes back.
            tags: Labels: names are text; values are text, numbers, flags or ``None``, and come back by type.
            metadata: A dict of anything that ``value_codec`` stores.
            timestamp: Unix seconds, rounded to the millisecond; ``None`` is now.
            target: The server's URL.

        Raises:
            ValueNotStorableError: When a value could not be given back unchanged.
        """
        try:
            # Names, then values: flat, because a key of pairs costs a tuple per tag.
            series = self._known_series[
                (target, metric_type, metric_name, *tags, *tags.values())
                if tags
                else (target, metric_type, metric_name)
            ]
        except Exception:  # an unknown series; or arguments of any kind, which are told here
            series = self._registry.register(target, metric_type, metric_name, tags)
            if series.is_long:
                self._pending.note_text(len(series.tags_json))
        kind = type(value)
        if kind is not float and (kind is not int or not _LEAST_EXACT <= value <= _GREATEST_EXACT):
            value = to_sample_value(value)
        sample = (
            series,
            (self._now_ns() + 500_000) // 1_000_000 if timestamp is None else milliseconds(timestamp),
            value,
            None if metadata is None else self._text_of_metadata(metadata),
        )
        queue = self._loose
        queue.append(sample)
        series.newest = sample
        if not 1 < len(queue) < self._loose_mark:
            self._tend_queue()

    def _text_of_metadata(self, metadata: Any) -> str | None:
        text = _metadata_text(metadata)
        if text is not None:
            self._pending.note_text(len(text))
        return text

    def _tend_queue(self) -> None:
        """The queue of samples was empty or is long: wake the writer, wait for it a moment, or drop."""
        if self._ended:
            self._pending.count_drop("closed", len(self._loose))
            self._loose.clear()
            return
        self._wake_if_dormant()
        if len(self._loose) < self._loose_mark:
            if not self._synchronous:
                self._writer.wake()
            return
        if len(self._loose) > MOST_LOOSE_SAMPLES:
            self._pending.bound_loose()
        self._writer.wake(urgent=not self._synchronous and self._writer.state.error is None)
        if not self._synchronous and self._writer.state.error is None:
            self._writer.wait_for_room(_MOST_WAIT_WHEN_CROWDED_SECONDS)

    def save_scrape(
        self,
        layout: Layout,
        values: array[float],
        *,
        timestamp: float,
        target: str = "",
        source: str = "metrics",
    ) -> None:
        """Save a whole scrape: many series, one time, one durable row. Queues only.

        Args:
            layout: The columns; use the same object for every scrape with the same series.
            values: ``array('d')``, one per column. The store keeps it: do not change it afterwards.
            timestamp: Unix seconds, rounded to the millisecond.
            target: The server's URL.
            source: Which page or probe of the target; scrapes of different sources are kept apart.

        Raises:
            ValueNotStorableError: When ``values`` does not fit ``layout``, a name or label in it is no text, or
                ``timestamp`` is no time.
        """
        if layout is None or self._checked_layouts.get(id(layout)) is not layout:
            self._checked_layouts[id(layout)] = checked_layout(layout)
        if not isinstance(values, array) or values.typecode != "d" or len(values) != len(layout):
            raise ValueNotStorableError(
                f"a scrape of {len(layout)} series needs as many values",
                hint="Pass array('d') with one float per series of the layout.",
            )
        if type(target) is not str or type(source) is not str:
            target, source = stored_text(target, "target"), stored_text(source, "source")
        if not source:
            raise ValueNotStorableError("a scrape has no source", hint='Name it, for instance "metrics".')
        scrape = Scrape(target, source, layout, milliseconds(timestamp), values)
        if self._closed:
            self._pending.count_drop("closed")
            return
        self._wake_if_dormant()
        self._rings.add(scrape)
        waiting = self._pending.add_scrape(scrape)
        if waiting == 1 if not self._synchronous else waiting >= _SCRAPES_PER_SYNCHRONOUS_WRITE:
            self._writer.wake()

    def get_metrics(
        self,
        metric_type: str | MetricType | None = None,
        metric_name: str | None = None,
        start_time: float | None = None,
        end_time: float | None = None,
        limit: int | None = 1000,
        *,
        target: str | None = None,
    ) -> list[dict[str, Any]]:
        """The newest samples that pass the filters, newest first; times are unix seconds, both inclusive.

        Returns:
            Dictionaries with ``timestamp``, ``metric_type``, ``metric_name``, ``value``, ``tags``,
            ``metadata`` and ``target``.
        """
        most = checked_limit(limit)
        selector = _selector(target, metric_name, None, start_time, end_time, metric_type)
        return self._ask(selector, lambda reader: reader.newest(most))

    def query_range(
        self,
        metric_name: str | None,
        *,
        target: str | None = None,
        tags: Mapping[str, Any] | None = None,
        start_time: float | None = None,
        end_time: float | None = None,
        step_seconds: float | None = None,
        aggregation: str | None = None,
        quantile: float | None = None,
    ) -> list[SeriesData]:
        """Every series of a name, as numpy arrays: its raw samples, or one value per step.

        Args:
            metric_name: The name as on the page, or the canonical name that stands for it in every version of vLLM
                (``records.vocabulary``); ``None`` is every name. For a quantile the name of the histogram, with or
                without ``_bucket``.
            target: Only this server.
            tags: Only series that have all of these labels.
            start_time: Unix seconds, inclusive.
            end_time: Unix seconds, inclusive.
            step_seconds: Length of a bucket; ``None`` gives the raw samples. Buckets begin at multiples of it, and the
                range is widened to whole ones; ``timestamps_ms`` are their starts.
            aggregation: ``avg`` (the default), ``min``, ``max``, ``last``, ``sum``, ``rate``, ``increase`` or
                ``quantile``; see ``aggregation`` for what they mean.
            quantile: Which, from 0 to 1; one series for each histogram, without the label ``le``.

        Roll-ups of one minute (of ten where those are gone) answer instead of the samples when the step is a multiple
        of theirs and the range is at least an hour long or reaches back beyond the samples; the answer is the same. Of
        counters they have ``last``, ``rate``, ``increase`` and ``quantile``, of others ``last``, ``avg``, ``min``,
        ``max`` and ``sum``. Everything else comes from the samples as far as they reach.

        Raises:
            ConfigurationError: When step, aggregation and quantile make no sense together.
        """
        selector = _selector(target, metric_name, tags, start_time, end_time)
        if step_seconds is None:
            if aggregation is not None or quantile is not None:
                raise ConfigurationError("an aggregation without a step", hint="Pass step_seconds as well.")
            return self._ask(selector, lambda reader: reader.range())
        query = make_range_query(selector, step_seconds, aggregation, quantile)
        return self._ask(query.widened, query.answer)

    def latest(self, *, target: str | None = None, metric_name: str | None = None) -> list[dict[str, Any]]:
        """The newest sample of each series, in the form of :meth:`get_metrics`.

        What this process saved is answered from memory. Targets that it did not save, and only those, are
        read from the store: their newest scrape of each source, and their newest single samples.
        """
        selector = _selector(target, metric_name, None, None, None)
        target = selector.target
        newest = self._rings.newest(target)
        found = [sample for scrape in newest.values() for sample in scrape_to_dicts(scrape, selector)]
        here = set(newest)
        for series in self._registry.all():
            if selector.takes_target(series.target):
                here.add((series.target, ""))
                sample = loose_to_dict(series)
                if sample is not None and selector.takes(series.metric_type, series.metric_name, series.tags):
                    found.append(sample)
        if target is not None and newest:
            return found
        return found + self._ask(selector, lambda reader: reader.newest_row(here))

    def recent_scrapes(self, target: str, source: str = "metrics") -> list[tuple[float, Layout, array[float]]]:
        """The last scrapes (at most 300) that this process saved, oldest first, from memory alone."""
        recent = self._rings.recent(checked_text(target, "target"), checked_text(source, "source"))
        return [(scrape.time_ms / 1000, scrape.layout, scrape.values) for scrape in recent]

    def list_targets(self) -> list[str]:
        """Every target with samples, sorted."""
        return self._ask(Selector(), lambda reader: reader.targets())

    def list_series(self, target: str | None = None) -> list[Series]:
        """Every series (of one target), sorted by name and labels."""
        return self._ask(Selector(target=checked_filter(target, "target")), lambda reader: reader.series())

    def scrape_times(
        self, target: str, start_time: float | None = None, end_time: float | None = None
    ) -> dict[str, NDArray[np.int64]]:
        """Source to the ascending unix milliseconds of its stored scrapes; where they are apart is a gap."""
        selector = _selector(checked_text(target, "target"), None, None, start_time, end_time)
        return self._ask(selector, lambda reader: reader.scrape_times())

    def _ask(self, selector: Selector, query: Callable[[SampleReader], Answer]) -> Answer:
        def ask(memory: Batch, connection: Connection | None, catalogue: SeriesCatalogue) -> Answer:
            reader = SampleReader(memory, connection, catalogue, selector)
            answer = query(reader)
            self._count_damage(reader.damaged_rows)
            return answer

        return self._look(ask)


def _selector(
    target: str | None,
    metric_name: str | None,
    tags: Mapping[str, Any] | None,
    start_time: float | None,
    end_time: float | None,
    metric_type: str | MetricType | None = None,
) -> Selector:
    unbounded = Selector()
    return Selector(
        target=checked_filter(target, "target"),
        metric_type=checked_filter(metric_type, "metric_type"),
        metric_name=checked_filter(metric_name, "metric_name"),
        tags=wanted_tags(tags),
        start_ms=_bound(checked_time(start_time, "start_time"), unbounded.start_ms),
        end_ms=_bound(checked_time(end_time, "end_time"), unbounded.end_ms),
    )


def _metadata_text(metadata: Any) -> str | None:
    if not isinstance(metadata, Mapping):
        raise ValueNotStorableError(f"metadata cannot be {shown(metadata)}", hint="Pass a dict, or None.")
    return encode_value(metadata) if metadata else None


def _bound(time: float | None, unbounded: int) -> int:
    """A bound in milliseconds, rounded as the samples were, so that a sample's own time finds it."""
    if time is None:
        return unbounded
    if abs(time) > LATEST_SECONDS:  # infinity, or a number that stands for it
        return Selector().end_ms if time > 0 else Selector().start_ms
    return milliseconds(time)
