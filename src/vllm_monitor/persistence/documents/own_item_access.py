"""Saving records that know themselves how they are written."""

from __future__ import annotations

from contextlib import suppress

from vllm_monitor.errors import StoreUnavailableError
from vllm_monitor.persistence.documents.own_items import OwnItem
from vllm_monitor.persistence.store_access import StoreAccess

__all__ = ["OwnItemAccess"]


class OwnItemAccess(StoreAccess):
    """Queues such a record and waits for it as for every rare record."""

    def _wait_for(self, item: OwnItem) -> bool:
        """Queue a record and wait, within bounds, until it is durable; whether it is.

        Raises:
            StoreUnavailableError: When it is not and ``config.required`` is set.
        """
        durable = False
        if self._closed:
            self._pending.count_drop("closed")
            item.report(durable=False)
        else:
            self._wake_if_dormant()
            self._pending.add_rare(item)
            self._writer.wake(urgent=True)
        with suppress(TimeoutError):  # not durable yet: that is the answer
            durable = item.first_attempt.result(self.config.durable_timeout_seconds)
        if not durable and self.config.required:
            error = self._writer.state.error
            raise StoreUnavailableError(
                f"a record of {item.kind.table} is not durable",
                hint=error.hint if error is not None else "The store does not answer in time; check its disk.",
            )
        return durable
