"""Saving what learners experienced and asking for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vllm_monitor.persistence.codecs.arguments import checked_mapping
from vllm_monitor.persistence.records.async_forms import in_thread
from vllm_monitor.persistence.records.rare_kinds import LEARNING, LearningRecord
from vllm_monitor.persistence.records.record_access import RecordAccess

__all__ = ["LearningVerbs"]


class LearningVerbs(RecordAccess):
    """The verbs for learning data; part of ``PersistenceManager``."""

    def save_learning_data(
        self,
        learning_type: str,
        state_context: Any,
        action_taken: Any,
        reward: float | None,
        metadata: Mapping[str, Any] | None = None,
        *,
        timestamp: float | None = None,
        target: str = "",
    ) -> str:
        """Save one experience; durable when the call returns, and its id is returned.

        Args:
            learning_type: What learns from it.
            state_context: Where it was made; anything of ``value_codec``.
            action_taken: What was done; likewise.
            reward: What came of it.
            metadata: Anything else.
            timestamp: Unix seconds; ``None`` is now.
            target: The server's URL; empty for all.

        Raises:
            ValueNotStorableError: When something in it could not be given back unchanged.
            StoreUnavailableError: When it is not durable and ``config.required`` is set.
        """
        record = self._experience(learning_type, state_context, action_taken, reward, metadata, timestamp, target)
        return self._save(LEARNING, record)

    async def save_learning_data_async(
        self,
        learning_type: str,
        state_context: Any,
        action_taken: Any,
        reward: float | None,
        metadata: Mapping[str, Any] | None = None,
        *,
        timestamp: float | None = None,
        target: str = "",
    ) -> str:
        """As :meth:`save_learning_data`, without blocking the loop."""
        record = self._experience(learning_type, state_context, action_taken, reward, metadata, timestamp, target)
        return await self._save_async(LEARNING, record)

    def enqueue_learning_data(
        self,
        learning_type: str,
        state_context: Any,
        action_taken: Any,
        reward: float | None,
        metadata: Mapping[str, Any] | None = None,
        *,
        timestamp: float | None = None,
        target: str = "",
    ) -> str:
        """Queue one experience; otherwise as :meth:`enqueue_checkpoint`."""
        record = self._experience(learning_type, state_context, action_taken, reward, metadata, timestamp, target)
        return self._enqueue(LEARNING, record)

    def get_learning_data(
        self,
        learning_type: str | None = None,
        start_time: float | None = None,
        end_time: float | None = None,
        limit: int | None = 1000,
        *,
        target: str | None = None,
    ) -> list[dict[str, Any]]:
        """The newest experiences that pass the filters, newest first; times are inclusive.

        Returns:
            Dictionaries with ``learning_id``, ``timestamp``, ``learning_type``, ``state_context``,
            ``action_taken``, ``reward``, ``metadata`` and ``target``.
        """
        wanted = LEARNING.wanted(learning_type=learning_type)
        found = self._records(LEARNING, wanted, start_time, end_time, limit, target)
        return [{name: getattr(record, name) for name in LEARNING.forms} for record in found]

    get_learning_data_async = in_thread(get_learning_data)

    def _experience(
        self,
        learning_type: str,
        state_context: Any,
        action_taken: Any,
        reward: float | None,
        metadata: Mapping[str, Any] | None,
        timestamp: float | None,
        target: str,
    ) -> LearningRecord:
        return LearningRecord(
            timestamp=self._now() if timestamp is None else timestamp,
            learning_type=learning_type,
            state_context=state_context,
            action_taken=action_taken,
            reward=reward,
            metadata=checked_mapping(metadata, "metadata"),
            target=target,
        )
