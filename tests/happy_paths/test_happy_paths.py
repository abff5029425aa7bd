"""Known-good executions: what is kept of one, and how far a later one is from it."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_monitor.clock import ManualClock, make_random
from vllm_monitor.errors import ConfigurationError
from vllm_monitor.happy_paths import HappyPaths, ProfileBuilder, compare, execution_of, load_level, state_steps
from vllm_monitor.persistence import PersistenceConfig, PersistenceManager
from vllm_monitor.records import HappyPath, Layout, LifecycleState, MetricKind, Series, StateCheckpoint

T = "http://gpu1:8000"
S = LifecycleState
NOW = 1_800_000_000.0
_LABELS = (("engine", "0"), ("model_name", "m"))
PAGE = Layout(
    [
        Series("vllm:num_requests_running", _LABELS, MetricKind.GAUGE),
        Series("vllm:kv_cache_usage_perc", _LABELS, MetricKind.GAUGE),
        Series("vllm:generation_tokens_total", _LABELS, MetricKind.COUNTER),
    ]
)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[PersistenceManager]:
    config = PersistenceConfig(storage_dir=tmp_path / "store")
    with PersistenceManager(config, clock=ManualClock(NOW + 10_000.0)) as opened:
        yield opened


def checkpoint(state: S, at: float, *, version: str = "0.31.0", **fields: Any) -> StateCheckpoint:
    metadata = {"server": {"version": version, "models": ["m"]}}
    return StateCheckpoint(
        at, state, None, None, {"model": "m", "port": "1"}, {}, {}, metadata=metadata, target=T, **fields
    )


def run(
    store: PersistenceManager,
    start: float,
    *,
    tokens_per_second: float = 100.0,
    kv: float = 0.2,
    seconds: int = 120,
    version: str = "0.31.0",
    load_seconds: float = 10.0,
) -> HappyPath:
    """A run of a server, stored and read back: a start, then work with three requests in the batch."""
    for state, at in ((S.LOADING_MODEL, start), (S.READY, start + load_seconds), (S.SERVING, start + load_seconds)):
        store.save_checkpoint(checkpoint(state, at, version=version))
    noise, total = make_random(3), 0.0
    for second in range(seconds):
        total += tokens_per_second * noise.uniform(0.95, 1.05)
        values = array("d", [3.0, kv * noise.uniform(0.9, 1.1), total])
        store.save_scrape(PAGE, values, timestamp=start + load_seconds + second, target=T)
    store.flush_all()
    return execution_of(store, T, start, start + load_seconds + seconds, guardrails=["engine_stall"])


# --- profiles ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("running", "level"),
    [
        (0.0, "0"),
        (1.0, "1"),
        (2.0, "2-3"),
        (3.0, "2-3"),
        (4.0, "4-7"),
        (100.0, "64-127"),
        (math.nan, None),
        (-1.0, None),
    ],
)
def test_load_levels(running: float, level: str | None) -> None:
    assert load_level({"requests_running": running}) == level
    assert load_level({}) is None


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=400))
def test_figures_are_those_of_the_pages(values: list[float]) -> None:
    builder = ProfileBuilder()
    for value in values:
        builder.add({"requests_running": 1.0, "kv_cache_usage_ratio": value, "api_cpu_ratio": math.inf})
    profile = builder.profile()
    assert set(profile) == {"kv_cache_usage_ratio"}
    figures = profile["kv_cache_usage_ratio"]["1"]
    assert figures["count"] == len(values)
    assert figures["mean"] == pytest.approx(np.mean(values), abs=1e-6)
    assert figures["std"] == pytest.approx(np.std(values, ddof=1) if len(values) > 1 else 0.0, abs=1e-3)
    assert figures["p50"] == pytest.approx(np.quantile(values, 0.5), abs=1e-6)


def test_memory_is_bounded_and_quantiles_stay_near() -> None:
    builder = ProfileBuilder(seed=7)
    for number in range(50_000):
        builder.add({"requests_running": 1.0, "kv_cache_usage_ratio": number / 50_000})
    figures = builder.profile()["kv_cache_usage_ratio"]["1"]
    assert figures["p95"] == pytest.approx(0.95, abs=0.04)
    assert figures["p05"] == pytest.approx(0.05, abs=0.04)


# --- recording and comparing ---------------------------------------------------------------------------


def test_what_is_kept_of_a_run(store: PersistenceManager) -> None:
    path = HappyPaths(store).record(run(store, NOW), "after the upgrade", "one")
    assert (path.path_id, path.name, path.target) == ("one", "after the upgrade", T)
    assert state_steps(path.checkpoints) == [("loading_model", 10.0), ("ready", 0.0), ("serving", 0.0)]
    assert path.metadata["fingerprint"] == {"version": "0.31.0", "models": ["m"], "arguments": {"model": "m"}}
    assert path.guardrails == ["engine_stall"]
    figures = path.metrics_profile["generation_tokens_per_second"]["2-3"]
    assert figures["mean"] == pytest.approx(100.0, rel=0.02)
    assert store.get_happy_paths() == [path]


def test_a_run_like_it_deviates_in_nothing(store: PersistenceManager) -> None:
    first, second = run(store, NOW), run(store, NOW + 1_000.0)
    found = compare(first, second)
    assert found.deviations == ()
    assert (found.levels, found.same_configuration, found.score) == (("2-3",), True, 0.0)


def test_what_is_otherwise_is_said_with_numbers_at_equal_load(store: PersistenceManager) -> None:
    first = run(store, NOW)
    second = run(store, NOW + 1_000.0, tokens_per_second=60.0, kv=0.5, version="0.32.0", load_seconds=40.0)
    found = compare(first, second)
    said = [str(one) for one in found.deviations]
    assert any(text.startswith("generation_tokens_per_second -40% at equal load (2-3 running): ") for text in said), (
        said
    )
    assert any(text.startswith("kv_cache_usage_ratio +150% at equal load (2-3 running): ") for text in said), said
    assert "loading_model seconds +300%: 10 s became 40 s" in said
    assert "version: 0.31.0 became 0.32.0" in said
    assert not found.same_configuration
    worse = {one.what for one in found.deviations if one.is_worse}
    assert worse == {"generation_tokens_per_second", "kv_cache_usage_ratio", "loading_model seconds"}
    assert found.score == pytest.approx(3.0)


def test_what_got_better_is_no_deviation_for_the_worse(store: PersistenceManager) -> None:
    found = compare(run(store, NOW), run(store, NOW + 1_000.0, tokens_per_second=200.0))
    assert [one.is_worse for one in found.deviations] == [False]
    assert found.score == 0.0


def test_other_load_is_not_compared(store: PersistenceManager) -> None:
    first = run(store, NOW)
    other = replace(
        first, metrics_profile={"kv_cache_usage_ratio": {"64-127": {"count": 99.0, "mean": 1.0, "std": 0.0}}}
    )
    assert compare(first, other).levels == ()


def test_a_state_that_was_not_in_it_is_worse(store: PersistenceManager) -> None:
    first = run(store, NOW)
    failed = replace(first, checkpoints=[*first.checkpoints, checkpoint(S.CRITICAL_ERROR, NOW + 99.0)])
    assert [one.what for one in compare(first, failed).deviations if one.is_worse] == ["states"]


# --- matching and counting -----------------------------------------------------------------------------


def test_a_run_is_measured_by_the_nearest_and_counted(store: PersistenceManager) -> None:
    paths = HappyPaths(store)
    paths.record(run(store, NOW), "slow", "slow")
    paths.record(run(store, NOW + 1_000.0, tokens_per_second=400.0), "fast", "fast")
    like_slow = run(store, NOW + 2_000.0)
    found = paths.nearest(like_slow)
    assert found is not None
    assert found[0].name == "slow"
    for execution, has_failed, expected in (
        (like_slow, False, ("slow", True)),
        (like_slow, True, ("slow", False)),
        (run(store, NOW + 3_000.0, tokens_per_second=400.0, kv=0.9), False, ("fast", False)),
    ):
        settled = paths.settle(execution, has_failed=has_failed)
        assert settled is not None
        assert (settled[0].name, settled[2]) == expected
    counts = {one.name: (one.success_count, one.failure_count) for one in paths.all()}
    assert counts == {"slow": (1, 1), "fast": (0, 1)}
    paths.record(like_slow, "slow", "slow")
    assert paths.get("slow").success_count == 1, "recording it again keeps its counts"


def test_without_a_path_nothing_is_counted(store: PersistenceManager) -> None:
    assert HappyPaths(store).settle(run(store, NOW), has_failed=False) is None


def test_too_little_is_refused_and_names_are_found(store: PersistenceManager) -> None:
    paths = HappyPaths(store)
    with pytest.raises(ConfigurationError, match="there are 5 pages"):
        paths.record(run(store, NOW, seconds=5), "short")
    known = paths.record(run(store, NOW + 500.0), "good")
    assert paths.get("good") == paths.get(known.path_id[:8]) == known
    assert paths.record(run(store, NOW + 1_000.0), "good").path_id == known.path_id, "the same name again replaces it"
    paths.record(run(store, NOW + 1_000.0), "good", "another id")
    with pytest.raises(ConfigurationError, match="several"):
        paths.get("good")
    with pytest.raises(ConfigurationError, match="no happy path 'bad'"):
        paths.get("bad")
