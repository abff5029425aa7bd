from __future__ import annotations

import os
from collections import defaultdict
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from vllm_monitor.errors import TargetUnreachableError
from vllm_monitor.simulator import Arrival, LoadSettings, ServerSettings, Simulator, parse_fault

_SHARED = Path(os.environ.get("VLLMMON_SHARED", Path(__file__).parents[2].parent / "shared"))
_REAL_PAGE = _SHARED / "recordings" / "metrics_vllm_0.32.0.txt"
_needs_real_page = pytest.mark.skipif(not _REAL_PAGE.exists(), reason=f"no {_REAL_PAGE}")

Shape = dict[str, tuple[str, frozenset[str]]]


def _shape(page: str) -> Shape:
    """Family to type and label names of its samples; the ``_created`` families included."""
    shape: Shape = {}
    for family in text_string_to_metric_families(page):
        names = frozenset(f"{sample.name}:{label}" for sample in family.samples for label in sample.labels)
        shape[family.name] = (family.type, names)
    return shape


def _buckets(page: str) -> dict[str, set[str]]:
    bounds: dict[str, set[str]] = defaultdict(set)
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            if sample.name.endswith("_bucket"):
                bounds[family.name].add(sample.labels["le"])
    return bounds


def _declared(page: str) -> dict[str, str]:
    lines = [line.split() for line in page.splitlines() if line.startswith("# TYPE ")]
    return {words[2]: words[3] for words in lines}


@_needs_real_page
def test_families_types_and_labels_are_those_of_a_real_page() -> None:
    real, ours = _REAL_PAGE.read_text(), Simulator().page()
    assert list(_declared(ours).items()) == list(_declared(real).items())
    real_shape, our_shape = _shape(real), _shape(ours)
    # The labels of this one are the settings of the server that ran; ours has fewer.
    assert our_shape.pop("vllm:cache_config_info")[1] <= real_shape.pop("vllm:cache_config_info")[1]
    assert our_shape == real_shape


@_needs_real_page
def test_buckets_are_those_of_a_real_page() -> None:
    assert _buckets(Simulator().page()) == _buckets(_REAL_PAGE.read_text())


@_needs_real_page
def test_label_values_of_the_engine_are_those_of_a_real_page() -> None:
    def rows(page: str) -> set[tuple[str, tuple[tuple[str, str], ...]]]:
        return {
            (sample.name, tuple(sorted((k, v) for k, v in sample.labels.items() if k != "model_name")))
            for family in text_string_to_metric_families(page)
            for sample in family.samples
            if sample.name.startswith("vllm:") and "cache_config_info" not in sample.name
        }

    assert rows(Simulator().page()) == rows(_REAL_PAGE.read_text())


def test_the_official_parser_reads_the_page_and_agrees_with_the_scrape() -> None:
    simulator = Simulator(seed=5)
    simulator.advance(300.0)
    layout, values = simulator.scrape()
    ours = {(s.name, s.labels): v for s, v in zip(layout.series, values, strict=True)}
    parsed = {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(simulator.page())
        for sample in family.samples
        if not family.name.endswith("_created")
    }
    assert parsed == ours
    assert len(ours) == len(layout)


def test_help_lines_stand_before_type_lines_for_every_family() -> None:
    lines = Simulator().page().splitlines()
    helped = [line.split()[2] for line in lines if line.startswith("# HELP ")]
    typed = [line.split()[2] for line in lines if line.startswith("# TYPE ")]
    assert helped == typed
    assert len(set(typed)) == len(typed)


def test_the_model_name_is_escaped_on_the_page() -> None:
    simulator = Simulator(ServerSettings(model='a"b\\c'))
    models = {
        sample.labels["model_name"]
        for family in text_string_to_metric_families(simulator.page())
        for sample in family.samples
        if "model_name" in sample.labels
    }
    assert models == {'a"b\\c'}


def test_the_layout_is_one_object_even_across_a_restart() -> None:
    simulator = Simulator(faults=[parse_fault("crash@5+5")])
    before = simulator.scrape()[0]
    simulator.advance(20.0)
    assert simulator.scrape()[0] is before


def _run(seed: int, step: float, *faults: str) -> list[str]:
    simulator = Simulator(seed=seed, faults=[parse_fault(fault) for fault in faults])
    pages = []
    for _ in range(round(60 / step)):
        simulator.advance(step)
        pages.append(simulator.page() if simulator.reachable else "")
    return pages


def test_the_same_seed_gives_the_same_pages() -> None:
    faults = ("kv_pressure@10+20", "crash@40+5")
    assert _run(7, 1.0, *faults) == _run(7, 1.0, *faults)


def test_another_seed_gives_other_pages() -> None:
    assert _run(7, 10.0) != _run(8, 10.0)


@pytest.mark.parametrize("fault", ["freeze@10+20", "kv_pressure@10+30", "pause@15+5"])
def test_how_time_is_cut_does_not_matter(fault: str) -> None:
    coarse = Simulator(seed=3, faults=[parse_fault(fault)])
    fine = Simulator(seed=3, faults=[parse_fault(fault)])
    coarse.advance(60.0)
    for _ in range(960):
        fine.advance(0.0625)  # exact in binary, so that both end at the same moment
    assert list(fine.scrape()[1]) == pytest.approx(list(coarse.scrape()[1]), rel=1e-6)


def test_scheduled_arrivals_are_served() -> None:
    arrivals = [Arrival(3.0, 50, 20), Arrival(1.0, 100, 10)]
    settings = ServerSettings(load=LoadSettings(requests_per_second=0.0))
    simulator = Simulator(settings, arrivals=arrivals)
    simulator.advance(10.0)
    assert simulator.life is not None
    assert simulator.life.statistics.generation_tokens == 30
    assert simulator.life.statistics.prompt_tokens == 150
    assert simulator.clients.sent == 2


def test_there_is_no_page_while_the_port_is_closed() -> None:
    simulator = Simulator(faults=[parse_fault("slow_start@0+30")])
    with pytest.raises(TargetUnreachableError) as caught:
        simulator.page()
    assert caught.value.hint
