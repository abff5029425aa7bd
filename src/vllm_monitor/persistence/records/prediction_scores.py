"""What expired predictions leave behind: daily counts, so that scores do not forget.

One row of ``prediction_scores`` per origin, UTC day, target, failure type, outcome and calibration bin. From its
sums follow the Brier score (``n - 2 * probability_sum + probability_square_sum`` for those that happened,
``probability_square_sum`` for those that did not) and the calibration error of each bin.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from sqlalchemy import Connection, and_, delete, func, insert, or_, select, update

from vllm_monitor.errors import StoreDamagedError
from vllm_monitor.persistence import schema
from vllm_monitor.persistence.codecs.text_column import from_text_column, to_text_column
from vllm_monitor.persistence.pending import Batch
from vllm_monitor.persistence.records.rare_kinds import PREDICTIONS
from vllm_monitor.persistence.records.rare_rows import Row
from vllm_monitor.persistence.records.record_reader import pending_rows
from vllm_monitor.records import PredictionOutcome, PredictionScore

__all__ = [
    "CALIBRATION_BINS",
    "NO_PROBABILITY_BIN",
    "SCORE_COLUMNS",
    "ScoreKey",
    "ScoreSums",
    "add_up",
    "calibration_bin_of",
    "day_of",
    "fold_expired",
    "fold_predictions",
    "read_scores",
    "score_checksum",
    "score_key_of",
]

_LOG = logging.getLogger(__name__)

CALIBRATION_BINS = 10
NO_PROBABILITY_BIN = -1
"""The bin of probabilities that are no number from 0 to 1; they add nothing to the sums."""
SCORE_COLUMNS = (
    "origin_id",
    "day",
    "target",
    "failure_type",
    "outcome",
    "calibration_bin",
    "predictions",
    "probability_sum",
    "probability_square_sum",
)
"""The columns of ``prediction_scores`` that its checksum covers, in this order."""

_OWN_ORIGIN = 1  # as sql_store.OWN_ORIGIN, which stands above this module
_DAY_SECONDS = 86_400.0
_LARGEST_DAY = (1 << 31) - 1
_OPEN = PredictionOutcome.OPEN.value
_OUTCOMES = {member.value: member for member in PredictionOutcome}
_COUNTED_COLUMNS = ("prediction_id", "timestamp", "target", "failure_type", "outcome", "probability")


class ScoreKey(NamedTuple):
    """What one row counts. Texts are as in the columns of ``predictions``; ``day`` counts from 1970-01-01 UTC."""

    day: int
    target: str
    failure_type: str
    outcome: str
    calibration_bin: int


@dataclass(slots=True)
class ScoreSums:
    """Number of predictions, sum of their probabilities and sum of the squares of those."""

    predictions: int = 0
    probability_sum: float = 0.0
    probability_square_sum: float = 0.0

    def count(self, probability: float | None) -> None:
        """Count one prediction."""
        self.predictions += 1
        if calibration_bin_of(probability) != NO_PROBABILITY_BIN:
            self.probability_sum += probability or 0.0
            self.probability_square_sum += (probability or 0.0) ** 2

    def add(self, other: ScoreSums) -> None:
        """Count all that another has counted."""
        self.predictions += other.predictions
        self.probability_sum += other.probability_sum
        self.probability_square_sum += other.probability_square_sum


def day_of(timestamp: float) -> int:
    """The UTC day of a time, counted from 1970-01-01."""
    return math.floor(max(-_LARGEST_DAY, min(_LARGEST_DAY, timestamp / _DAY_SECONDS)))


def calibration_bin_of(probability: float | None) -> int:
    """0 to 9 for tenths from 0 to 1 (the last includes 1); :data:`NO_PROBABILITY_BIN` for what is none."""
    if probability is None or not 0.0 <= probability <= 1.0:
        return NO_PROBABILITY_BIN
    return min(CALIBRATION_BINS - 1, int(probability * CALIBRATION_BINS))


def score_key_of(row: Mapping[str, Any]) -> ScoreKey:
    """Where a row of ``predictions`` counts."""
    return ScoreKey(
        day=day_of(row["timestamp"]),
        target=row["target"],
        failure_type=row["failure_type"],
        outcome=row["outcome"],
        calibration_bin=calibration_bin_of(row["probability"]),
    )


def add_up(rows: Iterable[Mapping[str, Any]]) -> dict[ScoreKey, ScoreSums]:
    """The counts of some rows of ``predictions``."""
    sums: defaultdict[ScoreKey, ScoreSums] = defaultdict(ScoreSums)
    for row in rows:
        sums[score_key_of(row)].count(row["probability"])
    return dict(sums)


def score_checksum(row: Mapping[str, Any]) -> str:
    """BLAKE2b (8 bytes, hexadecimal) of the JSON array of :data:`SCORE_COLUMNS`."""
    canonical = json.dumps([row[name] for name in SCORE_COLUMNS], separators=(",", ":"), default=repr)
    return hashlib.blake2b(canonical.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def fold_predictions(connection: Connection, cutoff_timestamp: float, *, most: int = 1000) -> int:
    """Turn predictions older than the cut-off into daily counts, inside the caller's write transaction.

    Resolved ones go when they were made before the cut-off. An open one goes when its horizon had ended before
    the cut-off as well: nobody will resolve it any more, and it is counted under the outcome ``open``, which no
    score includes. A row that does not match its checksum is deleted without being counted, and logged.

    Args:
        connection: Within a write transaction; nothing is committed here.
        cutoff_timestamp: Unix seconds.
        most: Most rows in this transaction; call again, in a new one, until 0 is returned.

    Returns:
        The number of predictions deleted.
    """
    table = schema.metadata.tables[PREDICTIONS.table]
    horizon = func.coalesce(table.c.horizon_seconds, 0.0)
    query = (
        select(table)
        .where(
            table.c.timestamp < cutoff_timestamp,
            or_(table.c.outcome != _OPEN, and_(horizon < cutoff_timestamp - table.c.timestamp)),
        )
        .order_by(table.c.timestamp)
        .limit(most)
    )
    rows: list[Row] = [
        {str(name): value for name, value in found.items()} for found in connection.execute(query).mappings()
    ]
    fold_expired(connection, rows)
    connection.execute(delete(table).where(table.c.id.in_([row["id"] for row in rows])))
    return len(rows)


def fold_expired(connection: Connection, rows: Sequence[Row], *, origin_id: int = _OWN_ORIGIN) -> None:
    """Add rows of ``predictions``, which the caller deletes in the same transaction, to the daily counts."""
    intact = []
    for row in rows:
        try:
            PREDICTIONS.verify(row)
        except StoreDamagedError as error:
            _LOG.warning("an expired prediction is not counted: %s", error)
        else:
            intact.append(row)
    for key, sums in add_up(intact).items():
        _add_to_row(connection, origin_id, key, sums)


def _add_to_row(connection: Connection, origin_id: int, key: ScoreKey, sums: ScoreSums) -> None:
    table = schema.prediction_scores
    named = {"origin_id": origin_id, **key._asdict()}
    query = select(table).where(*(table.c[name] == value for name, value in named.items()))
    stored = connection.execute(query).mappings().first()
    if stored is not None and stored["checksum"] == score_checksum({**stored}):
        sums.add(
            ScoreSums(stored["predictions"], float(stored["probability_sum"]), float(stored["probability_square_sum"]))
        )
    elif stored is not None:
        _LOG.error("a row of prediction_scores does not match its checksum; its count begins anew")
    row = {
        **named,
        "predictions": sums.predictions,
        "probability_sum": sums.probability_sum + 0.0,
        "probability_square_sum": sums.probability_square_sum + 0.0,
    }
    row["checksum"] = score_checksum(row)
    if stored is None:
        connection.execute(insert(table), row)
    else:
        connection.execute(update(table).where(table.c.id == stored["id"]), row)


def read_scores(
    memory: Batch,
    connection: Connection | None,
    *,
    failure_type: str | None,
    start: float | None,
    end: float | None,
    target: str | None,
) -> tuple[list[PredictionScore], int]:
    """The counts of all predictions, expired, stored and pending, oldest day first; and damaged rows skipped.

    Rows of ``predictions`` are counted from their columns alone, without their checksums: this reads all of them.
    """
    first_day = -_LARGEST_DAY if start is None else day_of(start)
    last_day = _LARGEST_DAY if end is None else day_of(end)
    type_text = None if failure_type is None else to_text_column(failure_type)
    target_text = None if target is None else to_text_column(target)
    sums: defaultdict[ScoreKey, ScoreSums] = defaultdict(ScoreSums)
    damaged = 0
    if connection is not None:
        for row in connection.execute(select(schema.prediction_scores)).mappings():
            if row["checksum"] != score_checksum({**row}):
                damaged += 1
                continue
            key = ScoreKey(*(row[name] for name in ScoreKey._fields))
            counted = ScoreSums(row["predictions"], row["probability_sum"], row["probability_square_sum"])
            sums[key].add(counted)
    for key, counted in add_up(_live_rows(memory, connection)).items():
        sums[key].add(counted)
    scores = [
        _score(key, sums[key])
        for key in sorted(sums)
        if first_day <= key.day <= last_day
        and type_text in (None, key.failure_type)
        and target_text in (None, key.target)
    ]
    return scores, damaged


def _live_rows(memory: Batch, connection: Connection | None) -> Iterable[Mapping[str, Any]]:
    """What counts of the predictions that have not expired."""
    pending = pending_rows(PREDICTIONS, memory, connection)
    if connection is not None:
        table = schema.predictions
        columns = (table.c[name] for name in _COUNTED_COLUMNS)
        for row in connection.execute(select(*columns)).mappings():
            if row["prediction_id"] not in pending:
                yield {str(name): value for name, value in row.items()}
    for one in pending.values():
        yield one.row


def _score(key: ScoreKey, sums: ScoreSums) -> PredictionScore:
    return PredictionScore(
        day_start=key.day * _DAY_SECONDS,
        target=from_text_column(key.target),
        failure_type=from_text_column(key.failure_type),
        outcome=_OUTCOMES.get(key.outcome, PredictionOutcome.CENSORED),
        calibration_bin=None if key.calibration_bin == NO_PROBABILITY_BIN else key.calibration_bin,
        predictions=sums.predictions,
        probability_sum=sums.probability_sum,
        probability_square_sum=sums.probability_square_sum,
    )
