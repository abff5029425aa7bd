"""Saving alerts and asking for them."""

from __future__ import annotations

from vllm_monitor.persistence.records.async_forms import in_thread
from vllm_monitor.persistence.records.rare_kinds import ALERTS
from vllm_monitor.persistence.records.record_access import RecordAccess
from vllm_monitor.records import Alert, AlertState

__all__ = ["AlertVerbs"]


class AlertVerbs(RecordAccess):
    """The verbs for alerts; part of ``PersistenceManager``."""

    def save_alert(self, alert: Alert) -> str:
        """Save an alert, again under the same id whenever its state changes; otherwise as :meth:`save_checkpoint`."""
        return self._save(ALERTS, alert)

    async def save_alert_async(self, alert: Alert) -> str:
        """As :meth:`save_alert`, without blocking the loop."""
        return await self._save_async(ALERTS, alert)

    def enqueue_alert(self, alert: Alert) -> str:
        """Queue an alert; otherwise as :meth:`enqueue_checkpoint`."""
        return self._enqueue(ALERTS, alert)

    def get_alerts(
        self,
        name: str | None = None,
        state: AlertState | str | None = None,
        start_time: float | None = None,
        end_time: float | None = None,
        limit: int | None = 100,
        *,
        target: str | None = None,
    ) -> list[Alert]:
        """The newest alerts that pass the filters, newest first; times (of the first violation) are inclusive."""
        return self._records(ALERTS, ALERTS.wanted(name=name, state=state), start_time, end_time, limit, target)

    get_alerts_async = in_thread(get_alerts)
