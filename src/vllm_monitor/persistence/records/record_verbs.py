"""The verbs for every kind of record."""

from __future__ import annotations

from vllm_monitor.persistence.codecs.arguments import checked_text
from vllm_monitor.persistence.records.alert_verbs import AlertVerbs
from vllm_monitor.persistence.records.checkpoint_verbs import CheckpointVerbs
from vllm_monitor.persistence.records.event_verbs import EventVerbs
from vllm_monitor.persistence.records.happy_path_verbs import HappyPathVerbs
from vllm_monitor.persistence.records.learning_verbs import LearningVerbs
from vllm_monitor.persistence.records.mitigation_verbs import MitigationVerbs
from vllm_monitor.persistence.records.prediction_verbs import PredictionVerbs
from vllm_monitor.persistence.records.request_verbs import RequestVerbs

__all__ = ["RecordVerbs"]


class RecordVerbs(
    CheckpointVerbs,
    EventVerbs,
    PredictionVerbs,
    MitigationVerbs,
    AlertVerbs,
    HappyPathVerbs,
    LearningVerbs,
    RequestVerbs,
):
    """The verbs for records; part of ``PersistenceManager``."""

    def is_durable(self, record_id: str) -> bool:
        """Whether all that this manager was given under an id is committed.

        Positive knowledge only. ``False`` while anything saved under the id is on its way, so that a durable
        intent says nothing of the outcome saved after it; ``False`` for good when the newest of it was dropped;
        ``False`` also for ids of other managers and for those that lie more than ten thousand ids back. Request
        summaries are never remembered here.
        """
        return self._pending.is_durable(checked_text(record_id, "record_id"))
