"""Saving mitigation attempts and asking for them."""

from __future__ import annotations

from vllm_monitor.persistence.records.async_forms import in_thread
from vllm_monitor.persistence.records.rare_kinds import ATTEMPTS
from vllm_monitor.persistence.records.record_access import RecordAccess
from vllm_monitor.records import AttemptStatus, MitigationAttempt, MitigationOutcome

__all__ = ["MitigationVerbs"]


class MitigationVerbs(RecordAccess):
    """The verbs for mitigation attempts; part of ``PersistenceManager``."""

    def save_mitigation_attempt(self, attempt: MitigationAttempt) -> str:
        """Save an attempt: the intent before acting, and again under the same id when its outcome is known.

        The same id replaces what was saved, so saving twice is saving once. Act only when :meth:`is_durable`
        says so of the intent. Otherwise as :meth:`save_checkpoint`.
        """
        return self._save(ATTEMPTS, attempt)

    async def save_mitigation_attempt_async(self, attempt: MitigationAttempt) -> str:
        """As :meth:`save_mitigation_attempt`, without blocking the loop."""
        return await self._save_async(ATTEMPTS, attempt)

    def enqueue_mitigation_attempt(self, attempt: MitigationAttempt) -> str:
        """Queue an attempt; otherwise as :meth:`enqueue_checkpoint`."""
        return self._enqueue(ATTEMPTS, attempt)

    def get_mitigation_history(
        self,
        strategy_name: str | None = None,
        outcome: MitigationOutcome | str | None = None,
        limit: int | None = 100,
        *,
        target: str | None = None,
        status: AttemptStatus | str | None = None,
        start_time: float | None = None,
        end_time: float | None = None,
    ) -> list[MitigationAttempt]:
        """The newest attempts that pass the filters, newest first; times are inclusive."""
        wanted = ATTEMPTS.wanted(strategy_name=strategy_name, outcome=outcome, status=status)
        return self._records(ATTEMPTS, wanted, start_time, end_time, limit, target)

    get_mitigation_history_async = in_thread(get_mitigation_history)
