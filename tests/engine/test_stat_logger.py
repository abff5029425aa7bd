"""The entry point, against shapes of vLLM that are older or newer than any we can install."""

from __future__ import annotations

import abc
import importlib
import json
import sys
import threading
import types
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.engine.steps import finished, iteration, scheduler

MODULE = "vllm_monitor_engine.stat_logger"


class Base(abc.ABC):
    @abc.abstractmethod
    def __init__(self, vllm_config: Any, engine_index: int = 0) -> None: ...

    @abc.abstractmethod
    def record(
        self, scheduler_stats: Any, iteration_stats: Any, mm_cache_stats: Any = None, engine_idx: int = 0
    ) -> None: ...

    @abc.abstractmethod
    def log_engine_initialized(self) -> None: ...

    def log(self) -> None:
        raise NotImplementedError


class Aggregate(Base):
    @abc.abstractmethod
    def __init__(self, vllm_config: Any, engine_indexes: list[int]) -> None: ...


class OfALaterVersion(Aggregate):
    @abc.abstractmethod
    def record_weather(self, forecast: str) -> None: ...


def load(monkeypatch: pytest.MonkeyPatch, **names: Any) -> Any:
    """Import the entry point with a vLLM whose module of loggers has these names."""
    for name in ("vllm", "vllm.v1", "vllm.v1.metrics"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    loggers = types.ModuleType("vllm.v1.metrics.loggers")
    for name, value in names.items():
        setattr(loggers, name, value)
    monkeypatch.setitem(sys.modules, "vllm.v1.metrics.loggers", loggers)
    sys.modules["vllm.v1.metrics"].loggers = loggers  # type: ignore[attr-defined]
    monkeypatch.delitem(sys.modules, MODULE, raising=False)
    return importlib.import_module(MODULE).MonitorStatLogger


@pytest.fixture
def spool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("VLLMMON_ENABLED", "1")
    monkeypatch.setenv("VLLMMON_SPOOL_DIR", str(tmp_path / "spool"))
    monkeypatch.setenv("VLLMMON_FLUSH_SECONDS", "0.05")
    yield tmp_path / "spool"
    sys.modules.pop(MODULE, None)


def told(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for file in sorted(folder.glob("*.spool")) for line in file.read_text().splitlines()]


CONFIG = SimpleNamespace(
    model_config=SimpleNamespace(served_model_name=["tiny", "alias"], max_model_len=1024, dtype="bf16"),
    scheduler_config=SimpleNamespace(max_num_seqs=8),
    cache_config=SimpleNamespace(num_gpu_blocks=64, block_size=16),
)


@pytest.mark.parametrize("base", [Aggregate, OfALaterVersion])
def test_one_object_for_all_engines(base: type[Base], spool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logger: Any = load(monkeypatch, StatLoggerBase=Base, AggregateStatLoggerBase=base)(
        vllm_config=CONFIG, engine_indexes=[0, 1]
    )
    assert issubclass(type(logger), base)
    logger.log_engine_initialized()
    logger.record(scheduler(), iteration(finished("a")), mm_cache_stats=None, engine_idx=1)
    logger.log()
    logger.record_admission_rejection("max_num_queued_reqs")
    logger.record_sleep_state(1, 2)
    logger._recorder.stop()
    lines = told(spool)
    assert (lines[0]["model"], lines[0]["engines"], lines[0]["config"]["max_num_seqs"]) == ("tiny", [0, 1], 8)
    assert len(lines[0]["config_fingerprint"]) == 64
    assert lines[0]["process_started_at"] < lines[0]["engine_client_at"]
    (ready,) = (line for line in lines if line["kind"] == "engine_initialized")
    assert ready["kv_capacity_tokens"] == 1024
    (request,) = (line for line in lines if line["kind"] == "requests")
    assert (request["id"], request["engine"]) == (["a"], 1)
    (slept,) = (line for line in lines if line["kind"] == "sleep")
    assert (slept["is_asleep"], slept["level"]) == (True, 2)
    totals = [line for line in lines if line["kind"] == "totals"]
    assert totals[-1]["rejected"]["max_num_queued_reqs"] == 1
    assert not [line for line in lines if line["kind"] == "rejected"], "there may be thousands a second"


@pytest.mark.parametrize(
    ("state", "named", "facts"),
    [
        ((1, 1), {}, {"is_asleep": True, "level": 1}),
        ((0, 0), {}, {"is_asleep": False, "level": 0}),
        ((), {"sleep": 1, "level": 2}, {"is_asleep": True, "level": 2}),
        ((), {"is_awake": 1, "level": 0}, {"is_asleep": False, "level": 0}),
        ((), {}, {}),
        ((1,), {"level": "deep"}, {"is_asleep": True}),
    ],
)
def test_sleep_is_told_by_name(
    state: tuple[int, ...], named: dict[str, Any], facts: dict[str, Any], spool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logger = load(monkeypatch, StatLoggerBase=Base, AggregateStatLoggerBase=Aggregate)(CONFIG, [0])
    logger.record_sleep_state(*state, **named)
    logger._recorder.stop()
    (slept,) = (line for line in told(spool) if line["kind"] == "sleep")
    assert {name: value for name, value in slept.items() if name not in ("n", "t", "kind")} == facts


def test_of_several_recorders_in_a_process_one_tells_of_its_gate(spool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = load(monkeypatch, StatLoggerBase=Base, AggregateStatLoggerBase=Aggregate)
    loggers = [kind(CONFIG, [0]) for _ in range(2)]
    for logger in loggers:
        logger._recorder.stop()
    last = [json.loads(file.read_text().splitlines()[-1]) for file in sorted(spool.glob("*.spool"))]
    assert sorted("gate_limit" in line["rejected"] for line in last) == [False, True]


def test_one_object_for_each_engine_where_there_is_no_other(spool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They share a recorder: each of them alone would tell of all requests in flight."""
    kind = load(monkeypatch, StatLoggerBase=Base)
    config = SimpleNamespace()
    loggers = [kind(config, 0), kind(config, 1)]
    for logger in loggers:
        logger.log_engine_initialized()
    loggers[0].record(scheduler(), iteration(finished("a")), engine_idx=0)
    loggers[1].record(scheduler(), iteration(finished("b")))
    loggers[1].record(scheduler(), iteration(finished("c")), engine_idx=1)
    loggers[0]._recorder.stop()
    assert len(list(spool.glob("*.spool"))) == 1
    lines = told(spool)
    requests = {(name, line["engine"]) for line in lines if line["kind"] == "requests" for name in line["id"]}
    assert requests == {("a", 0), ("b", 1), ("c", 1)}
    last = [line for line in lines if line["kind"] == "totals"][-1]
    assert {index: one["counters"]["steps"] for index, one in last["engines"].items()} == {"0": 1, "1": 2}
    assert len([line for line in lines if line["kind"] == "engine_initialized"]) == 1
    other = kind(SimpleNamespace(), 0)
    other._recorder.stop()
    assert len(list(spool.glob("*.spool"))) == 2, "the client of another engine has its own"


def test_a_vllm_without_loggers_is_an_import_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AttributeError):
        load(monkeypatch)


def test_without_the_switch_it_does_nothing(spool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLMMON_ENABLED")
    before = set(threading.enumerate())
    logger = load(monkeypatch, StatLoggerBase=Base, AggregateStatLoggerBase=Aggregate)(CONFIG, [0])
    logger.record(scheduler(), iteration(finished("a")))
    logger.log_engine_initialized()
    assert set(threading.enumerate()) == before
    assert not spool.exists()


class Bad:
    def __getattr__(self, name: str) -> Any:
        raise MemoryError(name)


def test_a_configuration_of_any_shape_is_taken(spool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = load(monkeypatch, StatLoggerBase=Base, AggregateStatLoggerBase=Aggregate)
    for config in (None, object(), Bad(), SimpleNamespace(model_config=SimpleNamespace(served_model_name=object()))):
        logger = kind(config, [0])
        logger.record(scheduler(), None)
        if logger._recorder is not None:
            logger._recorder.stop()


def test_a_recorder_that_fails_does_not_reach_the_loop(spool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logger = load(monkeypatch, StatLoggerBase=Base, AggregateStatLoggerBase=Aggregate)(CONFIG, [0])
    logger._recorder.stop()

    def fail(*_: Any, **__: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(logger._recorder, "record", fail)
    monkeypatch.setattr(logger._recorder, "note", fail)
    monkeypatch.setattr(logger._recorder.rejections, "count", fail)
    logger.record(scheduler(), None)
    logger.record_sleep_state(1, 1)
    logger.log_engine_initialized()
    logger.record_admission_rejection("full")
    assert logger._recorder.faults == 4


def test_a_folder_that_others_may_write_to_is_refused(spool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool.mkdir()
    spool.chmod(0o777)
    logger = load(monkeypatch, StatLoggerBase=Base, AggregateStatLoggerBase=Aggregate)(CONFIG, [0])
    logger.record(scheduler(), iteration(finished("a")))
    logger._recorder.stop()
    assert not list(spool.iterdir())
    assert "others may write" in str(logger._recorder._spool.failure)
