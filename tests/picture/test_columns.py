"""Canonical names from the columns of a page."""

from __future__ import annotations

from array import array

import pytest

from vllm_monitor.picture.columns import COUNTER_NAMES, column_map
from vllm_monitor.records import Layout, Series
from vllm_monitor.records.vocabulary import DERIVED, FAMILIES, canonical_help, is_known_family


def page(*lines: tuple[str, dict[str, str], float]) -> tuple[Layout, array[float]]:
    series = [Series(name, tuple(sorted(labels.items()))) for name, labels, _ in lines]
    return Layout(series), array("d", [value for *_, value in lines])


def test_engines_are_summed_but_the_fullest_cache_counts() -> None:
    layout, values = page(
        ("vllm:num_requests_running", {"engine": "0"}, 3),
        ("vllm:num_requests_running", {"engine": "1"}, 4),
        ("vllm:kv_cache_usage_perc", {"engine": "0"}, 0.2),
        ("vllm:kv_cache_usage_perc", {"engine": "1"}, 0.9),
        ("vllm:engine_sleep_state", {"engine": "0", "sleep_state": "awake"}, 1),
        ("vllm:engine_sleep_state", {"engine": "1", "sleep_state": "awake"}, 0),
        ("vllm:engine_sleep_state", {"engine": "1", "sleep_state": "weights_offloaded"}, 1),
        ("vllm:generation_tokens_total", {"engine": "0"}, 10),
        ("vllm:generation_tokens_total", {"engine": "1"}, 20),
    )
    columns = column_map(layout)
    numbers = columns.read(values)
    assert numbers.gauges == {"requests_running": 7, "kv_cache_usage_ratio": 0.9, "engine_awake": 0}
    assert numbers.counters[COUNTER_NAMES.index("generation_tokens_total")] == 30
    assert columns.engine_labels == ("0", "1")
    assert numbers.engines.progress.tolist() == [10, 20]
    assert numbers.engines.in_flight.tolist() == [3, 4]


def test_old_names_are_aliases_and_new_ones_win() -> None:
    old, values = page(("vllm:gpu_cache_usage_perc", {}, 0.4))
    assert column_map(old).read(values).gauges["kv_cache_usage_ratio"] == 0.4
    both, values = page(("vllm:gpu_cache_usage_perc", {}, 0.4), ("vllm:kv_cache_usage_perc", {}, 0.6))
    assert column_map(both).read(values).gauges["kv_cache_usage_ratio"] == 0.6


def test_labels_choose_the_series_of_a_family() -> None:
    layout, values = page(
        ("vllm:request_success_total", {"finished_reason": "stop"}, 5),
        ("vllm:request_success_total", {"finished_reason": "abort"}, 2),
        ("vllm:request_success_total", {"finished_reason": "error"}, 1),
        ("http_requests_total", {"status": "2xx"}, 8),
        ("http_requests_total", {"status": "5xx"}, 3),
    )
    counters = column_map(layout).read(values).counters
    assert counters[COUNTER_NAMES.index("requests_finished_total")] == 8
    assert counters[COUNTER_NAMES.index("requests_failed_total")] == 3
    assert counters[COUNTER_NAMES.index("http_server_errors_total")] == 3


def test_histograms_are_sorted_by_bound_and_summed_over_engines() -> None:
    lines = []
    for engine in ("0", "1"):
        for bound, count in (("+Inf", 9.0), ("0.5", 2.0), ("1.0", 5.0)):
            lines.append(("vllm:time_to_first_token_seconds_bucket", {"engine": engine, "le": bound}, count))
    layout, values = page(*lines)
    columns = column_map(layout)
    bounds, part = columns.histograms["time_to_first_token_seconds"]
    assert bounds.tolist() == [0.5, 1.0, float("inf")]
    assert columns.read(values).buckets[part].tolist() == [4, 10, 18]


def test_a_layout_is_mapped_once() -> None:
    layout, _ = page(("vllm:num_requests_running", {}, 1))
    assert column_map(layout) is column_map(layout)


def test_what_is_unknown_and_what_is_missing_is_named() -> None:
    layout, _ = page(("vllm:num_requests_running", {}, 1), ("vllm:brand_new_thing_total", {}, 1))
    columns = column_map(layout)
    assert columns.unknown_families == ("vllm:brand_new_thing_total",)
    assert "generation_tokens_total" in columns.missing_names
    assert "requests_running" not in columns.missing_names


@pytest.mark.parametrize("name", ["vllm:spec_decode_num_drafts_total", "vllm:request_params_n_bucket"])
def test_families_we_do_not_use_are_still_known(name: str) -> None:
    assert is_known_family(name)


def test_every_canonical_name_has_a_meaning_and_names_are_unique() -> None:
    names = [family.name for family in FAMILIES] + list(DERIVED)
    assert len(names) == len(set(names))
    assert all(canonical_help(name) for name in names)
    assert canonical_help("no_such_name") is None
