"""The conditions, told apart by what a server shows."""

from __future__ import annotations

from array import array

import pytest
from tests.picture.story import COLUMNS, PRESSED, REFUSED, TIMED_OUT, Story, busy

from vllm_monitor.records import (
    CanaryObservation,
    Condition,
    Layout,
    PageObservation,
    ProbeFailure,
    Series,
    VersionObservation,
)

SIGNS_OF_ILLNESS = {Condition.STALLED, Condition.API_FROZEN, Condition.ENGINE_DEAD, Condition.WORKER_DEAD}


def test_before_the_second_page_nothing_is_known() -> None:
    story = Story()
    assert story.second() is Condition.UNKNOWN
    assert story.second() is not Condition.UNKNOWN


def test_a_working_server_is_ok_and_an_unused_one_idle() -> None:
    story = busy()
    assert story.verdicts[-1].condition is Condition.OK
    assert story.second(15, running=0, tokens_per_second=0.0) is Condition.IDLE


def test_our_own_canary_does_not_make_an_idle_server_busy() -> None:
    story = Story()
    for _ in range(15):
        canary = CanaryObservation(target="http://test", timestamp=0.0, latency_seconds=0.05, ok=True)
        story.second(canary=canary, tokens=story.numbers["tokens"] + 1)
        story.second()
    assert story.verdicts[-1].condition is Condition.IDLE


def test_requests_in_flight_without_a_token_are_a_stall_whatever_health_says() -> None:
    story = busy()
    assert story.second(4, tokens_per_second=0.0) is Condition.OK
    assert story.second(4) is Condition.STALLED
    assert "/health says 200 all the same" in story.reason
    assert story.second(1, tokens_per_second=50.0) is Condition.OK


def test_a_watch_that_begins_in_the_middle_of_a_stall_never_says_ok() -> None:
    story = Story()
    story.second(20, running=5)
    assert {verdict.condition for verdict in story.verdicts} == {Condition.UNKNOWN, Condition.STALLED}
    assert story.verdicts[-1].condition is Condition.STALLED
    assert "too early to tell" in story.verdicts[3].reason
    assert story.second(1, tokens_per_second=50.0) is Condition.OK


def test_a_server_that_froze_in_an_idle_moment_is_seen_by_what_piles_up() -> None:
    story = busy()
    story.second(12, running=0, tokens_per_second=0.0)
    for step in range(10):
        story.second(1, fds=30.0 + 2 * step)
    assert story.verdicts[-1].condition is Condition.STALLED
    assert "piled up" in story.reason
    assert story.second(10) is Condition.STALLED, "clients give up, the engine is still frozen"
    assert story.second(2, tokens_per_second=50.0) is Condition.OK


def test_a_pool_of_connections_on_an_idle_server_is_no_stall() -> None:
    story = busy()
    story.second(12, running=0, tokens_per_second=0.0)
    story.second(60, fds=42)
    assert story.conditions_of_last(60) == {Condition.IDLE}


def test_a_burst_on_a_long_idle_server_is_no_stall() -> None:
    story = busy()
    story.second(300, running=0, tokens_per_second=0.0)
    assert story.second(3, running=8, fds=45) is not Condition.STALLED
    assert story.second(5, tokens_per_second=80.0) is Condition.OK


def test_a_canary_that_waits_in_vain_is_evidence() -> None:
    story = busy()
    story.second(20, running=0, tokens_per_second=0.0)
    for _ in range(2):
        story.second(
            2,
            canary=CanaryObservation(
                target="http://test", timestamp=0.0, latency_seconds=5.0, ok=False, failure=TIMED_OUT
            ),
        )
    assert story.verdicts[-1].condition is Condition.STALLED
    assert "canary" in story.reason


def test_the_first_request_of_a_server_may_take_half_a_minute() -> None:
    story = Story()
    story.second(5, tokens=0)
    assert story.second(30, running=1) is not Condition.STALLED
    assert story.second(40) is Condition.STALLED


def test_pauses_are_no_stalls_and_the_time_paused_does_not_count_afterwards() -> None:
    story = busy(is_paused=False)
    story.second(30, is_paused=True, tokens_per_second=0.0)
    assert story.conditions_of_last(30) == {Condition.PAUSED}
    assert story.second(2, is_paused=False) is Condition.OK
    assert story.second(6) is Condition.STALLED, "but nothing has moved since it was resumed"


def test_a_sleeping_engine_is_paused() -> None:
    story = busy()
    assert story.second(10, awake=0.0, tokens_per_second=0.0) is Condition.PAUSED


@pytest.mark.parametrize(("awake", "words"), [(1.0, "/is_paused is not served"), (None, "neither /is_paused nor")])
def test_where_a_pause_cannot_be_told_the_reason_says_so(awake: float | None, words: str) -> None:
    story = busy(awake=awake)
    assert story.second(8, tokens_per_second=0.0) is Condition.STALLED
    assert words in story.reason


@pytest.mark.parametrize("role", ["engine", "worker"])
def test_a_stopped_process_is_a_stall_within_seconds_and_over_with_it(role: str) -> None:
    story = busy()
    story.states[role] = "stopped"
    assert story.second(3, tokens_per_second=0.0) is Condition.STALLED
    assert "SIGCONT" in story.reason
    story.second(60)
    story.states[role] = "sleeping"
    assert story.second(2) is not Condition.STALLED, "the time it was stopped explains the silence"
    assert story.second(2, tokens_per_second=10.0) is Condition.OK


def test_a_stopped_api_server_is_frozen() -> None:
    story = busy()
    story.states["api"] = "stopped"
    story.second(3, page_failure=TIMED_OUT, health_failure=TIMED_OUT)
    assert story.verdicts[-1].condition is Condition.API_FROZEN
    story.states["api"] = "sleeping"
    assert story.second(2, page_failure=None, health_failure=None) is Condition.OK


def test_a_silent_api_server_that_uses_no_cpu_is_frozen_and_a_starved_one_is_not() -> None:
    frozen = busy()
    assert frozen.second(4, page_failure=TIMED_OUT, health_failure=TIMED_OUT) is Condition.API_FROZEN
    starved = busy(host=PRESSED)
    starved.states["api"] = "running"
    assert starved.second(4, page_failure=TIMED_OUT, health_failure=TIMED_OUT) is Condition.STARVED


def test_a_worker_that_wants_cpu_and_gets_none_is_starved_not_stalled() -> None:
    story = busy(host=PRESSED)
    story.states["worker"] = "running"
    story.second(8, tokens_per_second=0.0, cpu_ratio=0.02)
    assert story.verdicts[-1].condition is Condition.STARVED
    assert not story.conditions_of_last(8) & SIGNS_OF_ILLNESS


def test_a_spinning_worker_on_a_pressed_host_is_stalled() -> None:
    story = busy(host=PRESSED)
    story.states["worker"] = "running"
    assert story.second(9, tokens_per_second=0.0, cpu_ratio=0.9) is Condition.STALLED


def test_pressure_without_effect_is_only_noted() -> None:
    story = busy(host=PRESSED)
    assert story.second(30) is Condition.OK
    assert any("without effect" in note for note in story.picture._current_notes())


def test_pressure_with_slow_answers_is_starvation() -> None:
    story = busy(host=PRESSED)
    assert story.second(8, latency_seconds=0.9) is Condition.STARVED
    assert story.second(15, latency_seconds=0.01) is Condition.OK


def test_slow_answers_without_pressure_are_not() -> None:
    story = busy()
    story.second(20, latency_seconds=0.9)
    assert Condition.STARVED not in story.conditions_of_last(20)


@pytest.mark.parametrize(("role", "condition"), [("engine", "engine_dead"), ("worker", "worker_dead")])
def test_a_missing_process_is_a_death_that_sticks(role: str, condition: str) -> None:
    story = busy()
    story.states[role] = ""
    assert story.second(2, tokens_per_second=0.0) == condition
    story.second(5, page_failure=REFUSED, health_failure=REFUSED)
    story.states.update(api="", engine="", worker="")
    assert story.second(5, exit_code=0) == condition, "exit code 0 after a death is a crash all the same"
    assert "code 0" in story.reason


def test_one_look_without_a_process_is_not_enough() -> None:
    story = busy()
    story.states["engine"] = ""
    story.second(1)
    story.states["engine"] = "sleeping"
    story.second(5)
    assert not story.conditions_of_last(6) & SIGNS_OF_ILLNESS


def test_health_503_is_a_dead_engine_even_from_afar() -> None:
    story = busy(local=False)
    assert story.second(1, health_status=503) is Condition.ENGINE_DEAD
    assert story.second(5, page_failure=REFUSED, health_failure=REFUSED) is Condition.ENGINE_DEAD
    assert story.second(3, page_failure=None, health_failure=None, health_status=200) is Condition.OK


def test_the_api_server_alone_gone_is_api_dead() -> None:
    story = busy()
    story.states["api"] = ""
    assert story.second(3, page_failure=REFUSED, health_failure=REFUSED) is Condition.API_DEAD


def test_a_new_server_process_is_starting_until_its_port_opens() -> None:
    story = busy()
    story.states.update(api="", engine="", worker="")
    story.second(5, page_failure=REFUSED, health_failure=REFUSED)
    story.states.update(api="running")
    story.pids.update(api=200, engine=201, worker=202)
    assert story.second(2) is Condition.STARTING
    story.states.update(engine="running", worker="running")
    assert story.second(30) is Condition.STARTING
    story.second(2, page_failure=None, health_failure=None, tokens=0, running=0, started=story.now)
    assert story.verdicts[-1].condition is Condition.OK


def test_a_clean_shutdown_is_no_crash_although_its_log_reads_like_one() -> None:
    story = busy()
    story.second(1, log=["INFO [launcher.py:254] [shutdown] API server: shutdown triggered by signal SIGTERM"])
    assert story.verdicts[-1].condition is Condition.STOPPED
    story.second(1, log=["ERROR AsyncLLM output_handler failed.", "vllm.v1.engine.exceptions.EngineDeadError"])
    story.states.update(api="", engine="", worker="")
    assert story.second(5, page_failure=REFUSED, health_failure=REFUSED) is Condition.STOPPED


def test_a_fatal_log_line_alone_is_a_death() -> None:
    story = busy(local=False)
    line = "ERROR [multiproc_executor.py:315] Worker proc VllmWorker-0 died unexpectedly (exit code: -9)"
    assert story.second(1, log=[line]) is Condition.WORKER_DEAD
    assert "exit code: -9" in story.reason


def test_from_afar_a_closed_port_is_unreachable_and_a_silent_one_frozen() -> None:
    closed = busy(local=False)
    assert closed.second(4, page_failure=REFUSED, health_failure=REFUSED) is Condition.UNREACHABLE
    silent = busy(local=False)
    assert silent.second(4, page_failure=TIMED_OUT, health_failure=TIMED_OUT) is Condition.API_FROZEN
    never = Story(local=False, page_failure=TIMED_OUT, health_failure=TIMED_OUT)
    assert never.second(4) is Condition.UNREACHABLE


def test_a_growing_queue_is_saturation_until_it_is_gone() -> None:
    story = busy()
    assert story.second(4, waiting=20, kv=0.97) is Condition.SATURATED
    assert story.second(4, waiting=0, kv=0.5) is Condition.OK


def test_a_full_cache_without_a_queue_is_fine() -> None:
    story = busy()
    assert story.second(10, kv=1.0) is Condition.OK


def test_time_without_pages_does_not_count_as_a_stall() -> None:
    story = busy(local=False)
    story.now += 120.0
    assert story.second(2, tokens_per_second=0.0) is not Condition.STALLED


def test_a_clock_set_back_is_survived() -> None:
    story = busy()
    story.now -= 3600.0
    story.second(10)
    assert story.verdicts[-1].condition is Condition.OK
    assert all(value >= 0 for name, value in story.picture.values(story.now).items() if name.endswith("_per_second"))


def test_a_restart_is_told_by_the_start_time_and_counts_from_zero() -> None:
    story = busy()
    story.second(3, started=story.now, tokens=5)
    events = [event.event_type for event in story.picture.take_events()]
    assert events.count("server_restarted") == 1
    assert 0 <= story.picture.values(story.now)["generation_tokens_per_second"] <= 60


def test_engine_and_api_server_gone_in_one_look_is_the_engine() -> None:
    story = busy()
    story.states.update(api="", engine="", worker="")
    assert story.second(3, page_failure=REFUSED, health_failure=REFUSED) is Condition.ENGINE_DEAD


def test_without_a_log_a_port_that_closes_before_the_processes_end_is_a_shutdown() -> None:
    story = busy()
    story.second(1, page_failure=REFUSED, health_failure=REFUSED, listen_queue=None)
    assert story.verdicts[-1].condition is Condition.STOPPED
    story.states.update(engine="", worker="")
    story.second(2)
    story.states.update(api="")
    story.second(5)
    assert story.conditions_of_last(8) == {Condition.STOPPED}
    assert "--log-file" in story.reason


def test_a_shutdown_that_hangs_is_told_after_a_minute() -> None:
    story = busy()
    story.second(50, page_failure=REFUSED, health_failure=REFUSED, listen_queue=None)
    assert story.verdicts[-1].condition is Condition.STOPPED
    assert story.second(20) is Condition.API_DEAD


def test_an_engine_that_dies_before_the_port_closes_is_no_shutdown() -> None:
    story = busy()
    story.states["engine"] = ""
    story.second(1)
    assert story.second(3, page_failure=REFUSED, health_failure=REFUSED, listen_queue=None) is Condition.ENGINE_DEAD


def test_figures_of_an_old_page_are_not_shown_and_the_heartbeat_ages() -> None:
    story = busy()
    assert "generation_tokens_per_second" in story.picture.values(story.now)
    story.second(20, page_failure=TIMED_OUT, health_failure=TIMED_OUT)
    values = story.picture.values(story.now)
    assert "generation_tokens_per_second" not in values
    assert "requests_running" not in values
    assert values["progress_age_seconds"] == pytest.approx(20.5, abs=0.1)


def test_models_that_may_not_be_asked_for_are_said_once() -> None:
    story = busy()
    refusal = ProbeFailure("http", "HTTP 401: give --api-key")
    for _ in range(3):
        story.picture.observe(VersionObservation(target="http://test", timestamp=story.now, models_failure=refusal))
    assert [event.event_type for event in story.picture.take_events()].count("models_unknown") == 1
    assert any("401" in note for note in story.picture._current_notes())


@pytest.mark.parametrize("step", [3600.0, 86400.0])
def test_a_clock_set_forward_and_back_does_not_hide_a_stall(step: float) -> None:
    story = busy()
    story.now += step
    story.second(5, tokens_per_second=0.0)
    story.now -= step
    assert story.second(8) is Condition.STALLED


def test_a_page_that_invents_names_does_not_fill_memory_with_notes() -> None:
    story = busy()
    for number in range(200):
        layout = Layout([*COLUMNS.values(), *(Series(f"vllm:invented_{number}_{i}") for i in range(50))])
        values = array("d", [*(story.numbers[name] for name in COLUMNS), *([0.0] * 50)])
        story.picture.observe(
            PageObservation(
                target="http://test", timestamp=story.now + number, layout=layout, values=values, status=200
            )
        )
    assert len(story.picture._current_notes()) < 60
    assert len(story.picture.take_events()) < 60


def test_words_of_a_client_in_the_log_do_not_kill_a_server_that_works() -> None:
    story = busy()
    assert story.second(1, log=["INFO Received request cmpl-1: prompt: 'what is an EngineDeadError?'"]) == "engine_dead"
    assert story.second(8) is Condition.OK
