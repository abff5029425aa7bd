"""Saving happy paths, counting what became of later runs, and asking for them."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

from vllm_monitor.errors import ConfigurationError, StoreDamagedError
from vllm_monitor.persistence.codecs.arguments import checked_items, checked_mapping, shown, stored_text
from vllm_monitor.persistence.codecs.columns import UnknownObject
from vllm_monitor.persistence.pending import RareItem
from vllm_monitor.persistence.records.async_forms import in_thread
from vllm_monitor.persistence.records.rare_kinds import HAPPY_PATHS, StoredHappyPath
from vllm_monitor.persistence.records.rare_rows import Row
from vllm_monitor.persistence.records.record_access import RecordAccess
from vllm_monitor.records import GuardrailPolicy, HappyPath, LifecycleState, StateCheckpoint

__all__ = ["HappyPathVerbs"]

_LOG = logging.getLogger(__name__)


class HappyPathVerbs(RecordAccess):
    """The verbs for happy paths; part of ``PersistenceManager``."""

    def save_happy_path(
        self,
        path_id: str,
        name: str,
        checkpoints: Iterable[StateCheckpoint],
        metrics_profile: Mapping[str, Any],
        guardrails: Iterable[str | GuardrailPolicy],
        *,
        metadata: Mapping[str, Any] | None = None,
        target: str = "",
    ) -> str:
        """Save a happy path; durable when the call returns, and its id is returned.

        The same id again replaces what was saved and keeps its counts and the time at which it was first saved,
        also when another process counts at the same moment. Arguments and environment of its checkpoints are
        redacted.

        Args:
            path_id: Unique across stores.
            name: For a person.
            checkpoints: The states it went through, oldest first.
            metrics_profile: Canonical metric name to its figures, by load level.
            guardrails: The guardrails that were active, or their names; the names are kept.
            metadata: Anything else.
            target: The server's URL; empty for a path of all servers.

        Raises:
            ValueNotStorableError: When something in it could not be given back unchanged.
            StoreUnavailableError: When it is not durable and ``config.required`` is set.
        """
        path = self._happy_path(path_id, name, checkpoints, metrics_profile, guardrails, metadata, target)
        return self._save_item(_replacing(path))

    async def save_happy_path_async(
        self,
        path_id: str,
        name: str,
        checkpoints: Iterable[StateCheckpoint],
        metrics_profile: Mapping[str, Any],
        guardrails: Iterable[str | GuardrailPolicy],
        *,
        metadata: Mapping[str, Any] | None = None,
        target: str = "",
    ) -> str:
        """As :meth:`save_happy_path`, without blocking the loop."""
        path = self._happy_path(path_id, name, checkpoints, metrics_profile, guardrails, metadata, target)
        return await self._save_item_async(_replacing(path))

    def enqueue_happy_path(
        self,
        path_id: str,
        name: str,
        checkpoints: Iterable[StateCheckpoint],
        metrics_profile: Mapping[str, Any],
        guardrails: Iterable[str | GuardrailPolicy],
        *,
        metadata: Mapping[str, Any] | None = None,
        target: str = "",
    ) -> str:
        """Queue a happy path; otherwise as :meth:`enqueue_checkpoint`."""
        path = self._happy_path(path_id, name, checkpoints, metrics_profile, guardrails, metadata, target)
        return self._queue(_replacing(path, self._shown)).record_id

    def update_happy_path_stats(self, path_id: str, success: bool) -> None:
        """Count a later run that followed a path; durable when the call returns.

        Counts of several threads and processes add up.

        Raises:
            RecordNotFoundError: When there is no such path.
            StoreUnavailableError: When the store cannot be read, or the count is not durable and
                ``config.required`` is set.
        """
        self._save_item(self._count_of(path_id, success))

    update_happy_path_stats_async = in_thread(update_happy_path_stats)

    def enqueue_happy_path_stats(self, path_id: str, success: bool) -> None:
        """As :meth:`update_happy_path_stats`, without waiting for the commit; the path itself is looked up."""
        self._queue(self._count_of(path_id, success))

    def get_happy_paths(
        self,
        start_state: LifecycleState | str | None = None,
        end_state: LifecycleState | str | None = None,
        *,
        target: str | None = None,
        limit: int | None = None,
    ) -> list[HappyPath]:
        """The happy paths that begin and end with these states, those first saved last in front."""
        wanted = HAPPY_PATHS.wanted(start_state=start_state, end_state=end_state)
        paths = []
        for stored in self._records(HAPPY_PATHS, wanted, None, None, limit, target):
            try:
                paths.append(stored.restored())
            except (StoreDamagedError, TypeError, ValueError, LookupError) as error:
                self._count_damage(1)
                _LOG.warning("a happy path was skipped: %s", error)
        return paths

    get_happy_paths_async = in_thread(get_happy_paths)

    def _happy_path(
        self,
        path_id: str,
        name: str,
        checkpoints: Iterable[StateCheckpoint],
        metrics_profile: Mapping[str, Any],
        guardrails: Iterable[str | GuardrailPolicy],
        metadata: Mapping[str, Any] | None,
        target: str,
    ) -> HappyPath:
        now = self._now()
        return HappyPath(
            path_id=stored_text(path_id, "path_id"),
            name=name,
            checkpoints=checked_items(checkpoints, "checkpoints", _as_it_is),
            metrics_profile=checked_mapping(metrics_profile, "metrics_profile"),
            guardrails=checked_items(guardrails, "guardrails", _guardrail_name),
            timestamp=now,
            updated_at=now,
            target=target,
            metadata=checked_mapping(metadata, "metadata"),
        )

    def _count_of(self, path_id: str, success: bool) -> RareItem:
        if not isinstance(success, (bool, int)):
            raise ConfigurationError(f"success cannot be {shown(success)}", hint="Pass True or False.")
        counted = "success_count" if success else "failure_count"
        now = self._now()

        def count(row: Row) -> Row:
            counts = {counted: HAPPY_PATHS.value_of(row, counted) + 1}
            return HAPPY_PATHS.edited(row, **counts, updated_at=now)

        return self._change_of(HAPPY_PATHS, path_id, count)


def _as_it_is(checkpoint: StateCheckpoint) -> StateCheckpoint:
    return checkpoint  # its row says whether it is one


def _guardrail_name(guardrail: str | GuardrailPolicy) -> str:
    return stored_text(guardrail.name if isinstance(guardrail, GuardrailPolicy) else guardrail, "a guardrail's name")


def _replacing(path: HappyPath, on_unknown: UnknownObject = None) -> RareItem:
    """A path on its way to the store, where it takes over the counts of the one that it replaces."""
    row = HAPPY_PATHS.to_row(StoredHappyPath.of(path, on_unknown), on_unknown)

    def keep_counts(stored: Row | None) -> Row:
        if stored is None:
            return row
        try:
            HAPPY_PATHS.verify(stored)
        except StoreDamagedError as error:
            _LOG.error("the counts of a happy path are lost: %s", error)
            return row
        kept = ("success_count", "failure_count", "timestamp")
        return HAPPY_PATHS.edited(row, **{name: HAPPY_PATHS.value_of(stored, name) for name in kept})

    return RareItem(HAPPY_PATHS, path.path_id, row, keep_counts)
