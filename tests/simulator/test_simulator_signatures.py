"""Each fault looks as it does on a real server."""

from __future__ import annotations

from itertools import pairwise

import pytest

from vllm_monitor.simulator import LoadSettings, ServerPhase, ServerSettings, Simulator, parse_fault


def _simulator(*faults: str, **settings: float) -> Simulator:
    return Simulator(
        ServerSettings(**settings),  # type: ignore[arg-type]  # each test names fields that are numbers
        faults=[parse_fault(fault) for fault in faults],
    )


def _value(simulator: Simulator, prefix: str) -> float:
    layout, values = simulator.scrape()
    return sum(value for series, value in zip(layout.series, values, strict=True) if str(series).startswith(prefix))


def _engine_lines(simulator: Simulator) -> list[str]:
    return [line for line in simulator.page().splitlines() if line.startswith("vllm:")]


def _is_open(simulator: Simulator) -> bool:
    assert simulator.reachable == (simulator.health_status() is not None)
    return simulator.reachable


def _is_paused(simulator: Simulator) -> bool:
    return simulator.is_paused


def _tokens(simulator: Simulator) -> float:
    return _value(simulator, "vllm:generation_tokens_total")


def test_a_healthy_server_is_quiet() -> None:
    simulator = _simulator()
    for _ in range(60):
        simulator.advance(5.0)
        assert simulator.health_status() == 200
        assert _value(simulator, "vllm:num_requests_waiting{") == 0
        assert simulator.scrape_latency_seconds < 0.02
    assert _value(simulator, "vllm:num_preemptions_total") == 0
    assert _tokens(simulator) > 10_000
    assert simulator.clients.timed_out == simulator.clients.failed == 0


def test_a_frozen_engine_keeps_its_last_values_while_health_stays_good() -> None:
    simulator = _simulator("freeze@20+40")
    simulator.advance(20.5)
    frozen, fds = _engine_lines(simulator), _value(simulator, "process_open_fds")
    http = _value(simulator, "http_requests_total")
    simulator.advance(35.0)
    assert _engine_lines(simulator) == frozen
    assert simulator.health_status() == 200
    assert not simulator.is_paused
    assert _value(simulator, "process_open_fds") > fds + 30
    assert simulator.clients.timed_out > 0
    assert _value(simulator, "http_requests_total") > http
    simulator.advance(15.0)
    assert _engine_lines(simulator) != frozen
    assert _value(simulator, "process_open_fds") < fds + 20
    timed_out = simulator.clients.timed_out
    simulator.advance(60.0)
    assert simulator.clients.timed_out == timed_out


def test_a_crash_answers_503_for_a_moment_then_nothing_then_starts_afresh() -> None:
    simulator = _simulator("crash@20+15")
    simulator.advance(19.9)
    started = _value(simulator, "process_start_time_seconds")
    request = simulator.submit(10, 1000)
    simulator.advance(0.2)
    assert simulator.health_status() == 503
    assert simulator.phase is ServerPhase.FAILING
    assert "EngineCore" in request.failure
    assert simulator.visible_in_flight == 0
    simulator.advance(1.0)
    assert simulator.health_status() is None
    assert not _is_open(simulator)
    simulator.advance(13.8)
    assert not _is_open(simulator)
    simulator.advance(0.2)
    assert simulator.health_status() == 200
    assert _tokens(simulator) < 50
    assert _value(simulator, "process_start_time_seconds") > started
    assert simulator.clients.refused > 0


def test_a_crash_without_restart_is_final() -> None:
    simulator = _simulator("crash@5,restart=0")
    simulator.advance(3600.0)
    assert simulator.health_status() is None


def test_a_crash_without_duration_takes_the_usual_restart_time() -> None:
    simulator = _simulator("crash@5", restart_seconds=7.0)
    simulator.advance(11.9)
    assert not _is_open(simulator)
    simulator.advance(0.2)
    assert _is_open(simulator)


def test_kv_pressure_fills_the_cache_and_recomputes() -> None:
    simulator = _simulator("kv_pressure@20+60")
    simulator.advance(20.0)
    assert _value(simulator, "vllm:kv_cache_usage_perc") < 0.2
    simulator.advance(30.0)
    waiting, tokens = _value(simulator, "vllm:num_requests_waiting{"), _tokens(simulator)
    usage = 0.0
    for _ in range(30):
        simulator.advance(1.0)
        usage = max(usage, _value(simulator, "vllm:kv_cache_usage_perc"))
    pressed_rate = (_tokens(simulator) - tokens) / 30.0
    assert simulator.health_status() == 200
    assert usage > 0.97
    assert _value(simulator, "vllm:num_preemptions_total") > 20
    assert _value(simulator, "vllm:num_requests_waiting{") > waiting > 5
    # The same backlog, once the cache is back, is served at several times the rate.
    tokens = _tokens(simulator)
    simulator.advance(8.0)
    assert (_tokens(simulator) - tokens) / 8.0 > 1.8 * pressed_rate
    simulator.advance(120.0)
    assert _value(simulator, "vllm:num_requests_waiting{") == 0


def test_a_slowdown_stretches_every_step_until_it_ends() -> None:
    simulator = _simulator("slowdown@30+30,step_multiplier=3", "slowdown@45+15,step_multiplier=2")
    rates = []
    for _ in range(7):
        steps = _value(simulator, "vllm:iteration_tokens_total_count")
        simulator.advance(15.0)
        rates.append(_value(simulator, "vllm:iteration_tokens_total_count") - steps)
    assert rates[2] < 0.5 * rates[1]
    assert rates[3] < 0.7 * rates[2]
    assert rates[6] > 0.7 * rates[1]


def test_overload_grows_queue_latency_and_scrape_time() -> None:
    simulator = _simulator("overload@20+30")
    simulator.advance(20.0)
    quiet = simulator.scrape_latency_seconds
    waiting = []
    for _ in range(5):
        simulator.advance(5.0)
        waiting.append(_value(simulator, "vllm:num_requests_waiting{"))
    assert waiting == sorted(waiting)
    assert waiting[-1] > 200
    assert simulator.scrape_latency_seconds > 100 * quiet
    mean = _value(simulator, "vllm:time_to_first_token_seconds_sum") / _value(
        simulator, "vllm:time_to_first_token_seconds_count"
    )
    assert mean > 1.0
    simulator.advance(100.0)
    assert simulator.clients.timed_out > 100
    assert _value(simulator, "vllm:num_requests_waiting{") == 0


def test_a_leak_grows_in_a_straight_line_and_is_given_back() -> None:
    simulator = _simulator("leak@10+30,bytes_per_second=5e7")
    simulator.advance(10.0)
    sizes = [_value(simulator, "process_resident_memory_bytes")]
    for _ in range(5):
        simulator.advance(5.0)
        sizes.append(_value(simulator, "process_resident_memory_bytes"))
    for before, after in pairwise(sizes):
        assert after - before == pytest.approx(5 * 5e7, rel=0.05)
    assert simulator.health_status() == 200
    simulator.advance(10.0)
    assert _value(simulator, "process_resident_memory_bytes") == pytest.approx(sizes[0], rel=0.02)


def test_a_leak_that_meets_the_limit_kills_the_server() -> None:
    simulator = _simulator("leak@10,bytes_per_second=1e8", memory_limit_bytes=1.64e9, restart_seconds=20.0)
    simulator.advance(19.5)
    assert _is_open(simulator)
    simulator.advance(1.0)
    assert not _is_open(simulator)
    simulator.advance(20.0)
    assert _is_open(simulator)


def test_a_slow_start_keeps_the_port_closed() -> None:
    simulator = _simulator("slow_start@0+60")
    assert not _is_open(simulator)
    simulator.advance(59.9)
    assert simulator.health_status() is None
    simulator.advance(0.2)
    assert simulator.health_status() == 200


def test_a_pause_freezes_the_gauges_and_queues() -> None:
    simulator = _simulator("pause@20+15")
    simulator.advance(21.0)
    frozen = _engine_lines(simulator)
    in_flight = simulator.visible_in_flight
    simulator.advance(10.0)
    assert _is_paused(simulator)
    assert simulator.health_status() == 200
    assert _engine_lines(simulator) == frozen
    assert simulator.visible_in_flight > in_flight + 10
    simulator.advance(20.0)
    assert not _is_paused(simulator)
    assert _engine_lines(simulator) != frozen
    assert simulator.clients.timed_out == 0


def test_pausing_a_frozen_engine_takes_effect_after_the_thaw() -> None:
    simulator = _simulator("freeze@5+10")
    simulator.advance(6.0)
    lever = simulator.pause()
    simulator.advance(5.0)
    assert [lever.applied] == [False]
    assert not _is_paused(simulator)
    simulator.advance(5.0)
    assert lever.applied
    assert _is_paused(simulator)
    assert simulator.resume().applied
    assert not _is_paused(simulator)


def test_pausing_with_abort_ends_everything_and_counts_it() -> None:
    simulator = Simulator(ServerSettings(load=LoadSettings(requests_per_second=0.0)))
    requests = [simulator.submit(10, 500) for _ in range(100)]
    simulator.advance(1.0)
    assert simulator.pause(abort=True).applied
    assert [request.finish_reason for request in requests] == ["abort"] * 100
    assert _value(simulator, 'vllm:request_success_total{engine="0",finished_reason="abort"') == 100
    assert simulator.visible_in_flight == 0
    late = simulator.submit(10, 5)
    simulator.advance(5.0)
    assert not late.is_over
    simulator.resume()
    simulator.advance(5.0)
    assert late.finish_reason == "length"


def test_faults_can_be_cleared() -> None:
    simulator = _simulator("crash@5,restart=0", "freeze@100+50")
    simulator.advance(10.0)
    simulator.clear_faults()
    assert _is_open(simulator)
    assert simulator.active_faults == simulator.planned_faults == ()
    tokens = _tokens(simulator)
    simulator.advance(120.0)
    assert _tokens(simulator) > tokens


def test_a_fault_injected_now_acts_now() -> None:
    simulator = _simulator()
    simulator.advance(10.0)
    simulator.inject(parse_fault("freeze@10+5"))
    assert [fault.kind for fault in simulator.active_faults] == ["freeze"]
    tokens = _tokens(simulator)
    simulator.advance(4.9)
    assert _tokens(simulator) == tokens


def test_a_restart_cures_a_freeze() -> None:
    simulator = _simulator("freeze@5", "crash@20+5")
    simulator.advance(19.0)
    assert [fault.kind for fault in simulator.active_faults] == ["freeze"]
    simulator.advance(20.0)
    assert simulator.active_faults == ()
    assert _tokens(simulator) > 100


def test_a_fault_at_the_very_beginning_outlives_the_start() -> None:
    simulator = _simulator("freeze@0+50", "slow_start@0+10")
    simulator.advance(40.0)
    assert [fault.kind for fault in simulator.active_faults] == ["freeze"]
    assert _tokens(simulator) == 0
    simulator.advance(30.0)
    assert _tokens(simulator) > 0
