"""The tables of the store, the same for every SQL database.

=======================  ===================================================================================
table                    one row is
=======================  ===================================================================================
``store_meta``           a fact about the store: ``store_id``, ``created_at``, ``sealing_epoch``
``targets``              a server (or the monitor itself: the empty target)
``streams``              a source of scrapes of a target; the source ``""`` is that of samples saved one by one
``series``               a metric name with its type and labels, shared by all targets
``layouts``              an ordered set of series: the columns of a scrape
``stream_layouts``       that a stream has scrapes with a layout
``stream_series``        that a stream has single samples of a series
``metrics``              one scrape, or some single samples, not sealed yet (``scrape_codec``, ``loose_codec``)
``origins``              a store that samples first arrived in; number 1 is this one
``blocks``               many scrapes, or many single samples, of a stream, sealed (``blocks``)
``rollups``              a stream in steps of 1 or 10 minutes (``rollup_codec``)
``checkpoints``          one state checkpoint, readable as it stands (JSON text of ``value_codec``)
``predictions``          one failure prediction and its outcome
``prediction_scores``    what is left of predictions that have expired: counts by day, type and probability
``failure_patterns``     what preceded failures of one kind, and how often
``mitigation_attempts``  one attempt to mitigate a failure
``alerts``               one alert of one guardrail
``events``               one event
``requests``             how one request went
``happy_paths``          one known-good execution
``learning_data``        one experience of a learner
``models``               one version of a learned model
``documents``            one guardrail, plugin or strategy (backend ``SQLITE``; otherwise they are JSON files)
=======================  ===================================================================================

Text columns that came from outside hold what ``rare_rows`` makes of them: the text itself, or ``json:`` and its
JSON where a database could not hold it. ``exact`` is empty except where a column's type cannot say precisely
what was saved. ``checksum`` of a record covers all columns but ``id``.
"""

from __future__ import annotations

from vllm_monitor.persistence.schema_records import (
    alerts,
    checkpoints,
    documents,
    events,
    failure_patterns,
    happy_paths,
    learning_data,
    mitigation_attempts,
    models,
    prediction_scores,
    predictions,
    requests,
)
from vllm_monitor.persistence.schema_samples import (
    blocks,
    layouts,
    metadata,
    metrics,
    origins,
    rollups,
    series,
    store_meta,
    stream_layouts,
    stream_series,
    streams,
    targets,
)

__all__ = [
    "HEAD_REVISION",
    "alerts",
    "blocks",
    "checkpoints",
    "documents",
    "events",
    "failure_patterns",
    "happy_paths",
    "layouts",
    "learning_data",
    "metadata",
    "metrics",
    "mitigation_attempts",
    "models",
    "origins",
    "prediction_scores",
    "predictions",
    "requests",
    "rollups",
    "series",
    "store_meta",
    "stream_layouts",
    "stream_series",
    "streams",
    "targets",
]

HEAD_REVISION = "0002"
"""The newest migration; a test keeps it equal to what Alembic says."""
