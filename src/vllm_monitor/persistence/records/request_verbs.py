"""Saving summaries of requests and asking for them."""

from __future__ import annotations

from vllm_monitor.persistence.records.async_forms import in_thread
from vllm_monitor.persistence.records.rare_kinds import REQUESTS
from vllm_monitor.persistence.records.record_access import RecordAccess
from vllm_monitor.records import RequestSummary

__all__ = ["RequestVerbs"]


class RequestVerbs(RecordAccess):
    """The verbs for request summaries; part of ``PersistenceManager``."""

    def save_request_summary(self, summary: RequestSummary) -> str:
        """Queue the summary of a request and return its id at once.

        Summaries are as safe as samples, not as rare records: committed within a tenth of a second, and dropped,
        oldest first and counted under ``requests``, when twenty thousand of them wait for a store that cannot be
        written. An object that cannot be stored is replaced by its ``repr`` and counted.

        Raises:
            ValueNotStorableError: When it is no ``RequestSummary``, or its time is none.
        """
        return self._enqueue(REQUESTS, summary)

    def get_requests(
        self,
        start_time: float | None = None,
        end_time: float | None = None,
        limit: int | None = 100,
        *,
        target: str | None = None,
    ) -> list[RequestSummary]:
        """The newest summaries that pass the filters, newest first; times (of arrival) are inclusive."""
        return self._records(REQUESTS, REQUESTS.wanted(), start_time, end_time, limit, target)

    get_requests_async = in_thread(get_requests)
