"""What expires, when, and that nothing else does.

Over 500 lines: ages, sizes and clocks are played on one stage.
"""

from __future__ import annotations

import itertools
import sqlite3
import threading
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import insert
from tests.waiting import wait_until

from vllm_monitor.clock import ManualClock, make_random
from vllm_monitor.persistence import PersistenceConfig, PersistenceManager, StorageBackend, schema
from vllm_monitor.persistence.maintenance.retention import expire, retention_trouble, shrink
from vllm_monitor.persistence.open_store import open_store as open_sql_store
from vllm_monitor.persistence.samples.block_rows import BlockKind, BlockRow, RollupRow, Tier
from vllm_monitor.persistence.sql_store import OWN_ORIGIN, SqlStore
from vllm_monitor.records import Event, FailurePrediction, Layout, LifecycleState, Series, StateCheckpoint
from vllm_monitor.records.prediction import PredictionConfidence, PredictionOutcome

OpenStore = Callable[..., PersistenceManager]
DAY = 86_400.0
NOW = 1_800_000_000.0
PAGE = Layout([Series("a_total"), Series("b_total")])


class Shelf:
    """A store whose sealed rows are made up: retention looks at their times and sizes alone."""

    def __init__(self, store: SqlStore, config: PersistenceConfig) -> None:
        self.store, self.config = store, config
        self._noise = make_random(7)
        self._next_id = itertools.count(1)
        with store.engine.begin() as connection:
            connection.execute(insert(schema.targets), {"id": 1, "target": "t"})
            connection.execute(insert(schema.streams), {"id": 1, "target_id": 1, "source": "metrics"})

    def add_blocks(self, days: list[float], size_bytes: int = 2_000, hours: float = 1.0) -> None:
        """A block that ends so many days before ``NOW``."""
        rows = []
        for ago in days:
            end_ms = int((NOW - ago * DAY) * 1000)
            number = next(self._next_id)
            times = (end_ms - int(hours * 3_600_000), end_ms, number, number)
            payload = self._noise.randbytes(size_bytes)
            block = BlockRow(number, BlockKind.SCRAPES, Tier.SEALED, 1, OWN_ORIGIN, 1, *times, 10, 100, 0, payload)
            rows.append(block.summed()._asdict())
        with self.store.engine.begin() as connection:
            connection.execute(insert(schema.blocks), rows)

    def add_rollups(self, step_seconds: int, days: list[float], size_bytes: int = 500) -> None:
        rows = []
        for ago in days:
            end_ms = int((NOW - ago * DAY) * 1000)
            payload = self._noise.randbytes(size_bytes)
            number = next(self._next_id)
            rollup = RollupRow(
                number, step_seconds, Tier.SEALED, 1, OWN_ORIGIN, 1, end_ms - 60_000, end_ms, 3, 30, 0, payload
            )
            rows.append(rollup.summed()._asdict())
        with self.store.engine.begin() as connection:
            connection.execute(insert(schema.rollups), rows)

    def ages(self, table: str = "blocks", where: str = "1") -> list[float]:
        """Whole days before ``NOW`` at which the rows end, oldest first."""
        with self.store.engine.connect() as connection:
            query = f"SELECT end_ms FROM {table} WHERE {where} ORDER BY end_ms"  # noqa: S608  # ours
            found = connection.exec_driver_sql(query).scalars().all()
        return [round(NOW / DAY - end_ms / 1000 / DAY, 3) for end_ms in found]

    def fact(self, sql: str) -> Any:
        with self.store.engine.connect() as connection:
            return connection.exec_driver_sql(sql).scalar()

    def expire(self, now: float = NOW, monotonic: float = 0.0, **options: Any) -> dict[str, int]:
        return expire(self.store, self.config, now, monotonic_seconds=monotonic, **options)


@pytest.fixture
def shelf(tmp_path: Path) -> Iterator[Callable[..., Shelf]]:
    opened: list[SqlStore] = []

    def make(**settings: Any) -> Shelf:
        config = PersistenceConfig(storage_dir=tmp_path / "store", **settings)
        store = open_sql_store(config, NOW)
        opened.append(store)
        return Shelf(store, config)

    yield make
    for store in opened:
        store.close()


# --- by age --------------------------------------------------------------------------------------------


def test_sealed_rows_go_when_they_are_wholly_too_old(shelf: Callable[..., Shelf]) -> None:
    one = shelf(metrics_retention_days=30, minute_rollup_retention_days=90, ten_minute_rollup_retention_days=730)
    one.add_blocks([400, 31, 30.01, 29.99, 1])
    one.add_rollups(60, [400, 91, 89, 31])
    one.add_rollups(600, [800, 731, 729, 91])
    deleted = one.expire()
    assert one.ages() == [29.99, 1]
    assert one.ages("rollups", "step_seconds = 60") == [89, 31]
    assert one.ages("rollups", "step_seconds = 600") == [729, 91]
    assert (deleted["metrics"], deleted["rollups"]) == (300, 12)
    assert not any(one.expire().values())


def test_a_block_that_reaches_over_the_cut_off_stays(shelf: Callable[..., Shelf]) -> None:
    one = shelf(metrics_retention_days=30)
    one.add_blocks([29.9], hours=24 * 10)
    assert not any(one.expire().values())


def test_records_expire_by_type(open_store: OpenStore) -> None:
    store = open_store(synchronous=True, clock=ManualClock(NOW), checkpoint_retention_days=90, event_retention_days=180)
    for days in (181, 91, 89, 1):
        time = NOW - days * DAY
        store.save_checkpoint(StateCheckpoint(time, LifecycleState.READY, None, None, {}, {}, {}))
        store.save_event(Event(timestamp=time, event_type="e", message="m"))
    inner = store._writer.store
    assert inner is not None
    deleted = expire(inner, store.config, NOW, monotonic_seconds=0.0)
    assert (deleted["checkpoints"], deleted["events"]) == (2, 1)
    assert [round((NOW - one.timestamp) / DAY) for one in store.get_checkpoints()] == [1, 89]
    assert [round((NOW - one.timestamp) / DAY) for one in store.get_events()] == [1, 89, 91]


def test_every_record_table_has_its_age_or_is_for_ever(shelf: Callable[..., Shelf]) -> None:
    kept = {"failure_patterns", "models", "documents", "prediction_scores"}
    one = shelf()
    tables = {name for name, table in schema.metadata.tables.items() if "timestamp" in table.c} - kept
    assert tables == set(one.expire()) - {"metrics", "rollups"}


def test_expired_predictions_leave_their_counts(open_store: OpenStore) -> None:
    store = open_store(synchronous=True, clock=ManualClock(NOW), prediction_retention_days=60)
    for number, days in enumerate((61, 61, 1)):
        state = LifecycleState.SERVING
        prediction = FailurePrediction(
            f"p{number}", NOW - days * DAY, state, None, "engine_stall", 60.0, 0.7, PredictionConfidence.HIGH, [], []
        )
        store.save_prediction(prediction, actual_outcome=PredictionOutcome.HAPPENED)
    inner = store._writer.store
    assert inner is not None
    assert expire(inner, store.config, NOW, monotonic_seconds=0.0)["predictions"] == 2
    assert [one.prediction_id for one in store.get_predictions()] == ["p2"]
    with inner.engine.connect() as connection:
        query = "SELECT failure_type, outcome, predictions FROM prediction_scores"
        assert connection.exec_driver_sql(query).all() == [("engine_stall", "happened", 2)]


def test_what_is_kept_for_ever_stays(open_store: OpenStore) -> None:
    store = open_store(synchronous=True, event_retention_days=None)
    store.save_event(Event(timestamp=1.0, event_type="e", message="m"))
    inner = store._writer.store
    assert inner is not None
    expire(inner, store.config, NOW, monotonic_seconds=0.0)
    assert len(store.get_events()) == 1


def test_rows_that_wait_to_be_sealed_are_left_to_sealing(open_store: OpenStore) -> None:
    store = open_store(synchronous=True, clock=ManualClock(NOW))
    for number in range(100):
        store.save_scrape(PAGE, array("d", [number, 0]), timestamp=1000 + number, target="t")
    store.flush_all()
    inner = store._writer.store
    assert inner is not None
    assert expire(inner, store.config, NOW, monotonic_seconds=0.0)["metrics"] == 0
    assert len(store.query_range("a_total")[0]) == 100


def test_rows_that_sealing_passed_over_go_by_whole_runs(open_store: OpenStore) -> None:
    store = open_store(synchronous=True, clock=ManualClock(NOW), metrics_retention_days=30)
    old, new = NOW - 31 * DAY, NOW - 1 * DAY
    for number in range(90):  # the second run of sixty begins among the old and ends among the new
        store.save_scrape(PAGE, array("d", [number, 0]), timestamp=(old if number < 75 else new) + number, target="t")
    store.flush_all()
    inner = store._writer.store
    assert inner is not None
    sealed = BlockRow(1, BlockKind.SCRAPES, Tier.SEALED, 1, OWN_ORIGIN, 1, 1, 2, 1_000, 1_000, 1, 1, 0, b"").summed()
    with inner.engine.begin() as connection:
        connection.execute(insert(schema.blocks), sealed._asdict())
    before = epoch_of(inner)
    assert expire(inner, store.config, NOW, monotonic_seconds=0.0)["metrics"] == 60 * 2 + 1  # and the block
    assert epoch_of(inner) > before
    with inner.engine.connect() as connection:
        numbers = connection.exec_driver_sql("SELECT id FROM metrics ORDER BY id").scalars().all()
    assert numbers == list(range(61, 91))


def epoch_of(store: SqlStore) -> int:
    with store.engine.connect() as connection:
        found = connection.exec_driver_sql("SELECT value FROM store_meta WHERE key = 'sealing_epoch'").scalar()
    return int(found or 0)


def test_retention_stops_between_transactions_when_told(shelf: Callable[..., Shelf]) -> None:
    one = shelf()
    one.add_blocks([100.0 + number for number in range(500)], size_bytes=10)
    answers = iter([False, False, True])
    one.expire(should_stop=lambda: next(answers, True))
    assert 0 < len(one.ages()) < 500


def test_a_writer_goes_on_beside_retention(open_store: OpenStore) -> None:
    store = open_store()
    inner = store._writer.store
    assert inner is not None
    one = Shelf(inner, store.config)
    one.add_blocks([100.0 + number / 10 for number in range(2_000)], size_bytes=8_000)
    thread = threading.Thread(target=one.expire)
    thread.start()
    saved = 0
    while thread.is_alive():
        assert store.is_durable(store.save_event(Event(timestamp=NOW, event_type="e", message="m")))
        saved += 1
    thread.join()
    assert one.ages() == []
    assert saved > 3  # it was let in between the steps
    assert store.health().ok


# --- the clock -----------------------------------------------------------------------------------------


def test_a_clock_set_to_2099_deletes_nothing(shelf: Callable[..., Shelf]) -> None:
    one, clock = shelf(), ManualClock(NOW)
    one.add_blocks([29.0, 10, 1])

    def look(**options: Any) -> None:
        one.expire(clock.now(), clock.monotonic(), **options)

    look()
    clock.step_wall(73 * 365 * DAY)
    for _ in range(23):
        look()
        look(asked=True)
        clock.advance(3_600)
    assert len(one.ages()) == 3
    trouble = retention_trouble(one.store, one.config)
    assert trouble is not None
    assert "clock" in trouble[0]
    clock.step_wall(-73 * 365 * DAY)
    look()
    assert retention_trouble(one.store, one.config) is None
    clock.advance(2 * DAY)
    look()
    assert one.ages() == [10, 1]  # time has gone on meanwhile, and is believed


def test_a_clock_set_back_deletes_nothing_and_neither_does_its_correction(shelf: Callable[..., Shelf]) -> None:
    one, clock = shelf(), ManualClock(NOW)
    one.add_blocks([29.0, 1])
    one.expire(clock.now(), clock.monotonic())
    clock.step_wall(-NOW)
    for _ in range(60):  # so long that 1970 is believed
        clock.advance(3_600)
        one.expire(clock.now(), clock.monotonic())
    clock.step_wall(NOW)
    one.expire(clock.now(), clock.monotonic())
    assert len(one.ages()) == 2
    for _ in range(25):
        clock.advance(3_600)
        one.expire(clock.now(), clock.monotonic())
    assert one.ages() == [1]


def test_a_step_is_believed_after_a_day_of_running(shelf: Callable[..., Shelf]) -> None:
    one, clock = shelf(), ManualClock(NOW)
    one.add_blocks([29.0, 1])
    one.expire(clock.now(), clock.monotonic())
    clock.step_wall(5 * DAY)
    for _ in range(24):
        one.expire(clock.now(), clock.monotonic())
        assert len(one.ages()) == 2
        clock.advance(3_600)
    one.expire(clock.now(), clock.monotonic())
    assert one.ages() == [1]


def test_a_second_step_begins_the_day_again(shelf: Callable[..., Shelf]) -> None:
    one, clock = shelf(), ManualClock(NOW)
    one.add_blocks([29.0, 20])
    for _ in range(40):
        one.expire(clock.now(), clock.monotonic())
        clock.step_wall(2 * DAY)
        clock.advance(3_600)
    assert one.ages() == [20]  # the hours that passed meanwhile are believed


def test_while_the_clock_is_back_its_own_time_counts(shelf: Callable[..., Shelf]) -> None:
    one, clock = shelf(), ManualClock(NOW)
    one.expire(clock.now(), clock.monotonic())
    clock.step_wall(-10 * DAY)
    one.add_blocks([31.0])
    one.expire(clock.now(), clock.monotonic())
    assert one.ages() == [31]


def test_a_clock_that_was_back_for_an_hour_leaves_no_doubt(shelf: Callable[..., Shelf]) -> None:
    one, clock = shelf(), ManualClock(NOW)
    one.expire(clock.now(), clock.monotonic())
    clock.step_wall(-10 * DAY)
    clock.advance(3_600)
    one.expire(clock.now(), clock.monotonic())
    clock.step_wall(10 * DAY)
    one.add_blocks([31.0, 1])
    one.expire(clock.now(), clock.monotonic())
    assert one.ages() == [1]


def test_time_that_passes_is_believed_however_much(shelf: Callable[..., Shelf]) -> None:
    one, clock = shelf(), ManualClock(NOW)
    one.add_blocks([29.0, 1])
    one.expire(clock.now(), clock.monotonic())
    clock.advance(15 * DAY)  # nobody looked, but the monotonic clock says the same
    one.expire(clock.now(), clock.monotonic())
    assert one.ages() == [1]


def test_a_host_that_was_off_waits_unless_a_person_asks(shelf: Callable[..., Shelf]) -> None:
    one = shelf()
    one.add_blocks([29.0, 1])
    one.expire(NOW, 1e6)
    one.expire(NOW + 15 * DAY, 10.0)  # the monotonic clock began anew
    assert len(one.ages()) == 2
    one.expire(NOW + 15 * DAY + 60, 70.0, asked=True)
    assert one.ages() == [1]


def test_a_new_program_on_an_old_store_with_a_wrong_clock(shelf: Callable[..., Shelf]) -> None:
    one = shelf()
    one.add_blocks([20.0, 1])
    one.expire(NOW + 73 * 365 * DAY, 0.0)
    assert len(one.ages()) == 2


def test_a_spoilt_memory_of_the_clock_is_made_anew(shelf: Callable[..., Shelf]) -> None:
    one = shelf()
    one.add_blocks([40.0, 1])
    for text in ("[1, 2]", "nonsense", '{"trusted": NaN, "seen": 1, "monotonic": 1}', "{}"):
        with one.store.engine.begin() as connection:
            connection.exec_driver_sql("DELETE FROM store_meta WHERE key = 'retention_clock'")
            connection.execute(insert(schema.store_meta), {"key": "retention_clock", "value": text})
        one.expire()
    assert one.ages() == [1]


# --- size ----------------------------------------------------------------------------------------------


def size_on_disk(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.name.endswith("-shm"))


def test_the_oldest_blocks_go_until_the_store_fits(shelf: Callable[..., Shelf], tmp_path: Path) -> None:
    one = shelf(max_bytes=4 << 20)
    one.add_blocks([10 - number / 100 for number in range(1_000)], size_bytes=10_000)
    one.add_rollups(60, [5.0, 4, 3])
    one.expire()
    assert shrink(one.store, one.config) > 5 << 20
    kept = one.ages()
    assert 150 < len(kept) < 300
    assert kept == [round(10 - number / 100, 3) for number in range(1_000 - len(kept), 1_000)]
    assert len(one.ages("rollups")) == 3
    assert size_on_disk(tmp_path / "store") < 4 << 20
    assert retention_trouble(one.store, one.config) is None
    one.add_blocks([0.0] * 20, size_bytes=10_000)
    assert not any(one.expire().values())  # it does not all begin again with the next block


def test_roll_ups_go_after_blocks_and_rare_records_never(open_store: OpenStore) -> None:
    store = open_store(synchronous=True, max_bytes=2 << 20, clock=ManualClock(NOW))
    inner = store._writer.store
    assert inner is not None
    one = Shelf(inner, store.config)
    one.add_blocks([1.0] * 60, size_bytes=10_000)
    one.add_rollups(60, [4.0, 3], size_bytes=250_000)
    one.add_rollups(600, [6.0, 5], size_bytes=250_000)
    one.expire()
    assert len(one.ages()) == (524_288 - 250_000) // 10_000
    assert one.ages("rollups", "step_seconds = 60") == []
    assert one.ages("rollups", "step_seconds = 600") == [6, 5]
    for number in range(100):
        store.save_event(Event(timestamp=NOW, event_type="e", message=make_random(number).randbytes(4_000).hex()))
    one.expire()
    assert one.ages("rollups") == [5]  # the newest have a part of the limit, whatever fills the rest
    assert len(store.get_events(limit=None)) == 100
    trouble = retention_trouble(inner, store.config)
    assert trouble is not None
    assert "max_bytes" in trouble[0]
    assert "max_bytes" in trouble[1]


def test_models_that_fill_the_limit_leave_a_quarter_to_the_newest_samples(open_store: OpenStore) -> None:
    store = open_store(synchronous=True, max_bytes=1 << 20, clock=ManualClock(NOW))
    inner = store._writer.store
    assert inner is not None
    one = Shelf(inner, store.config)
    one.add_blocks([10 - number / 10 for number in range(60)], size_bytes=10_000)
    one.add_rollups(600, [6.0, 5], size_bytes=20_000)
    store.save_model("m", np.frombuffer(make_random(1).randbytes(2_000_000), np.uint8))
    one.expire()
    newest_first = (262_144 - 40_000) // 10_000
    assert one.ages() == [round(10 - number / 10, 3) for number in range(60 - newest_first, 60)]
    assert one.ages("rollups") == [6, 5]
    trouble = retention_trouble(inner, store.config)
    assert trouble is not None
    assert "models take 2,000,0" in trouble[0]


def test_models_count_towards_the_limit(shelf: Callable[..., Shelf], tmp_path: Path) -> None:
    one = shelf(max_bytes=4 << 20)
    one.add_blocks([1.0] * 150, size_bytes=10_000)
    assert not any(one.expire().values())
    folder = tmp_path / "store" / "models"
    folder.mkdir()
    (folder / "one.safetensors").write_bytes(bytes(2_500_000))
    assert one.expire()["metrics"] > 0


# --- the file ------------------------------------------------------------------------------------------


def test_the_file_really_shrinks(shelf: Callable[..., Shelf], tmp_path: Path) -> None:
    one = shelf()
    one.add_blocks([40.0] * 1_000 + [1.0], size_bytes=10_000)
    file = tmp_path / "store" / "monitor.db"
    shrink(one.store, one.config)
    full = file.stat().st_size
    assert full > 10 << 20
    one.expire()
    assert file.stat().st_size >= full - 4096
    assert shrink(one.store, one.config) > 9 << 20
    assert file.stat().st_size < 1 << 20
    log = file.with_name("monitor.db-wal")
    assert not log.exists() or log.stat().st_size == 0
    assert one.fact("PRAGMA integrity_check") == "ok"
    assert one.ages() == [1]


def test_a_reader_delays_the_shrinking_and_nobody_waits(shelf: Callable[..., Shelf], tmp_path: Path) -> None:
    one = shelf()
    one.add_blocks([40.0] * 500, size_bytes=10_000)
    file = tmp_path / "store" / "monitor.db"
    shrink(one.store, one.config)
    reader = sqlite3.connect(file)
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM blocks").fetchone()
    one.expire()
    shrink(one.store, one.config)
    assert reader.execute("SELECT count(*) FROM blocks").fetchone() == (500,)
    reader.close()
    shrink(one.store, one.config)
    assert file.stat().st_size < 1 << 20


def test_a_few_free_pages_are_left_alone(shelf: Callable[..., Shelf]) -> None:
    one = shelf()
    one.add_blocks([40.0] * 20 + [1.0] * 20, size_bytes=10_000)
    one.expire()
    shrink(one.store, one.config)
    assert one.fact("PRAGMA freelist_count") > 20


def test_a_file_not_made_for_it_keeps_its_size_and_stays_usable(tmp_path: Path) -> None:
    config = PersistenceConfig(storage_dir=tmp_path / "store", max_bytes=4 << 20)
    open_sql_store(config, NOW).close()
    with sqlite3.connect(config.db_path) as connection:
        connection.execute("PRAGMA journal_mode=DELETE")
        connection.execute("PRAGMA auto_vacuum=NONE")
        connection.execute("VACUUM")
        connection.execute("PRAGMA journal_mode=WAL")
    connection.close()
    store = open_sql_store(config, NOW)
    one = Shelf(store, config)
    one.add_blocks([1.0] * 600, size_bytes=10_000)
    one.expire()
    kept = len(one.ages())
    assert 0 < kept < 400
    shrink(store, config)
    assert not any(one.expire().values())  # free pages are no reason to delete more
    store.close()


def test_the_store_s_own_verbs_do_it_all(open_store: OpenStore, tmp_path: Path) -> None:
    clock = ManualClock(NOW)
    store = open_store(synchronous=True, clock=clock, block_scrapes=50, cold_after_seconds=1e9)
    for number in range(500):
        store.save_scrape(PAGE, array("d", [number, number / 3]), timestamp=NOW + number, target="t")
    store.run_maintenance(seal_all=True)
    assert len(store.query_range("a_total")[0]) == 500
    clock.advance(30 * DAY + 260)
    deleted = store.cleanup_old_data()
    assert deleted["metrics"] > 0
    left = store.query_range("a_total")[0].values.tolist()
    assert left == list(range(500 - len(left), 500))
    assert 240 <= len(left) <= 300  # to the block
    clock.advance(31 * DAY)
    store.cleanup_old_data()
    assert store.query_range("a_total", start_time=NOW, end_time=NOW + 1000) == []


@pytest.mark.parametrize("backend", list(StorageBackend))
def test_cleaning_up_deletes_single_samples_that_are_too_old(open_store: OpenStore, backend: StorageBackend) -> None:
    """Also those that were saved with an old time a moment ago, between new ones."""
    store = open_store(synchronous=True, clock=ManualClock(NOW), backend=backend)
    for number in range(3):
        store.save_metric("custom", "late", float(number), timestamp=NOW - 40 * DAY + number)
        store.save_metric("custom", "late", 10.0 + number, timestamp=NOW + number)
    assert store.cleanup_old_data()["metrics"] == 3
    assert [found["value"] for found in store.get_metrics(metric_name="late")] == [12.0, 11.0, 10.0]
    assert store.cleanup_old_data()["metrics"] == 0


def test_cleaning_up_seals_no_scrape_that_stays(open_store: OpenStore) -> None:
    store = open_store(synchronous=True, clock=ManualClock(NOW))
    for number in range(3):
        store.save_scrape(PAGE, array("d", [number, number]), timestamp=NOW - 40 * DAY + number, target="t")
        store.save_scrape(PAGE, array("d", [10 + number, number]), timestamp=NOW + number, target="t")
    assert store.cleanup_old_data()["metrics"] == 3 * 2
    assert [found["value"] for found in store.get_metrics(metric_name="a_total")] == [12.0, 11.0, 10.0]
    with sqlite3.connect(store.config.db_path) as connection:
        assert connection.execute("SELECT count(*) FROM metrics").fetchone() == (3,)
    connection.close()
    buckets = store.query_range("a_total", start_time=NOW - 41 * DAY, end_time=NOW, step_seconds=60, aggregation="last")
    assert buckets[0].values.tolist() == [2.0, 12.0]  # of what is gone, its roll-up


def test_it_runs_by_itself(open_store: OpenStore) -> None:
    store = open_store(maintenance_interval_seconds=0.05)
    inner = store._writer.store
    assert inner is not None
    Shelf(inner, store.config).add_blocks([3_000.0] * 10)
    with sqlite3.connect(inner.path) as connection:
        wait_until(lambda: connection.execute("SELECT count(*) FROM blocks").fetchone() == (0,), "old blocks go")
    connection.close()
