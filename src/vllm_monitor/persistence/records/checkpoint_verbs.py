"""Saving checkpoints and asking for them."""

from __future__ import annotations

from vllm_monitor.persistence.records.async_forms import in_thread
from vllm_monitor.persistence.records.rare_kinds import CHECKPOINTS
from vllm_monitor.persistence.records.record_access import RecordAccess
from vllm_monitor.records import LifecycleState, StateCheckpoint

__all__ = ["CheckpointVerbs"]


class CheckpointVerbs(RecordAccess):
    """The verbs for checkpoints; part of ``PersistenceManager``."""

    def save_checkpoint(self, checkpoint: StateCheckpoint) -> str:
        """Save a checkpoint; durable when the call returns, and its id is returned.

        Arguments and environment are redacted. The call waits at most ``durable_timeout_seconds``, and not
        longer than the first attempt to write takes; a record that is not durable then stays in memory, is
        retried, and counts in :meth:`health`. The same id again replaces what was saved.

        Raises:
            ValueNotStorableError: When something in it could not be given back unchanged.
            StoreUnavailableError: When it is not durable and ``config.required`` is set.
        """
        return self._save(CHECKPOINTS, checkpoint)

    async def save_checkpoint_async(self, checkpoint: StateCheckpoint) -> str:
        """As :meth:`save_checkpoint`, without blocking the loop."""
        return await self._save_async(CHECKPOINTS, checkpoint)

    def enqueue_checkpoint(self, checkpoint: StateCheckpoint) -> str:
        """Queue a checkpoint and return its id at once; records are committed in order of arrival.

        Unlike :meth:`save_checkpoint`, an object that cannot be stored does not raise: its ``repr`` is
        stored in its place and counted in :meth:`health`.
        """
        return self._enqueue(CHECKPOINTS, checkpoint)

    def get_checkpoints(
        self,
        state: LifecycleState | str | None = None,
        start_time: float | None = None,
        end_time: float | None = None,
        limit: int | None = 100,
        *,
        target: str | None = None,
    ) -> list[StateCheckpoint]:
        """The newest checkpoints that pass the filters, newest first; times are inclusive."""
        return self._records(CHECKPOINTS, CHECKPOINTS.wanted(state=state), start_time, end_time, limit, target)

    get_checkpoints_async = in_thread(get_checkpoints)
