"""What becomes of predictions: rule by rule, after an absence, and whatever comes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.prediction.made_up import failure, prediction

from vllm_monitor.failures import Episode
from vllm_monitor.predictive_failure_detection import PredictionSettlement, Settled
from vllm_monitor.predictive_failure_detection.settlement import MOST_OPEN
from vllm_monitor.records import FAILURE_TYPES, FailurePrediction, PredictionOutcome

HAPPENED, DID_NOT = PredictionOutcome.HAPPENED, PredictionOutcome.DID_NOT_HAPPEN
MITIGATED, CENSORED = PredictionOutcome.MITIGATED, PredictionOutcome.CENSORED


def look(
    settlement: PredictionSettlement,
    now: float,
    *failures: Episode,
    known: bool = True,
    ongoing: Sequence[Episode] = (),
    meant: bool = False,
    undecided: Iterable[str] = (),
) -> list[Settled]:
    return settlement.observe(
        now, known=known, failures=failures, ongoing=ongoing, meant=meant, undecided=frozenset(undecided)
    )


def watching(settlement: PredictionSettlement, start: int, end: int) -> list[Settled]:
    return [one for now in range(start, end) for one in look(settlement, float(now))]


def begun() -> PredictionSettlement:
    """A settlement at 100 s with a prediction that reaches to 200 s."""
    settlement = PredictionSettlement("x")
    look(settlement, 100.0)
    assert settlement.add(prediction())
    return settlement


def what(settled: Iterable[Settled]) -> list[tuple[PredictionOutcome, float]]:
    return [(one.outcome, one.resolved_at) for one in settled]


def test_it_happened() -> None:
    settlement = begun()
    assert watching(settlement, 101, 130) == []
    (settled,) = look(settlement, 130.0, failure(130.0))
    assert (settled.outcome, settled.resolved_at, settled.lead_seconds) == (HAPPENED, 130.0, 30.0)
    assert (settled.resolved.outcome, settled.resolved.resolved_at) == (HAPPENED, 130.0)
    assert settlement.open() == []
    assert watching(settlement, 131, 300) == []


def test_it_did_not_happen() -> None:
    settlement = begun()
    assert what(watching(settlement, 101, 300)) == [(DID_NOT, 200.0)]


@pytest.mark.parametrize(("at", "outcome"), [(100.0, DID_NOT), (100.5, HAPPENED), (200.0, HAPPENED), (200.5, DID_NOT)])
def test_only_within_the_horizon(at: float, outcome: PredictionOutcome) -> None:
    settlement = PredictionSettlement("x")
    ticks = sorted({*map(float, range(95, 210)), at})
    found = []
    for now in ticks:
        found += look(settlement, now, *([failure(at, ended_at=at)] if now == at else []))
        if now == 100.0:
            settlement.add(prediction())
    assert [one.outcome for one in found] == [outcome]


def test_another_failure_is_not_it() -> None:
    settlement = begun()
    assert look(settlement, 130.0, failure(130.0, "engine_stall")) == []


def test_one_that_happened_before_the_prediction_came_here_counts() -> None:
    settlement = PredictionSettlement("x")
    look(settlement, 100.0)
    look(settlement, 101.0, failure(101.0, ended_at=101.0))
    settlement.add(prediction(at=100.4))
    assert [one.lead_seconds for one in look(settlement, 102.0)] == [pytest.approx(0.6)]


def test_what_was_seen_before_a_late_prediction_came_here_counts() -> None:
    settlement = PredictionSettlement("x")
    watching(settlement, 90, 126)
    settlement.add(prediction())  # 25 s of its 100 s are over
    assert what(watching(settlement, 126, 300)) == [(DID_NOT, 200.0)]


def test_a_small_hole_is_no_matter_and_a_large_one_is() -> None:
    for seconds, outcome in ((9, DID_NOT), (12, CENSORED)):
        settlement = begun()
        watching(settlement, 101, 120)
        for now in range(120, 120 + seconds):
            look(settlement, float(now), known=False)
        assert what(watching(settlement, 120 + seconds, 300)) == [(outcome, 200.0)]


def test_nothing_known_for_more_than_half_a_minute_is_too_much_however_long_the_horizon() -> None:
    for last, outcome in ((1_029, DID_NOT), (1_031, CENSORED)):
        settlement = PredictionSettlement("x")
        look(settlement, 100.0)
        settlement.add(prediction(horizon_seconds=2_000.0))
        watching(settlement, 101, 1_000)
        found = watching(settlement, last, 2_200)
        assert [one.outcome for one in found] == [outcome]


def test_looks_may_be_further_apart_where_they_always_are() -> None:
    settlement = PredictionSettlement("x", longest_hole_seconds=180.0)
    look(settlement, 100.0)
    settlement.add(prediction(horizon_seconds=600.0))
    found = [one for now in range(160, 800, 60) for one in look(settlement, float(now))]
    assert what(found) == [(DID_NOT, 700.0)]


def test_a_type_that_could_not_be_told_is_not_known_not_to_have_happened() -> None:
    for undecided, outcome in ((["kv_exhaustion"], CENSORED), (["engine_stall"], DID_NOT)):
        settlement = begun()
        found = [one for now in range(101, 300) for one in look(settlement, float(now), undecided=undecided)]
        assert what(found) == [(outcome, 200.0)]


def test_what_goes_on_already_cannot_be_predicted() -> None:
    before = failure(90.0)
    settlement = PredictionSettlement("x")
    look(settlement, 100.0, ongoing=[before])
    settlement.add(prediction())
    found = [one for now in range(101, 300) for one in look(settlement, float(now), ongoing=[before])]
    assert what(found) == [(CENSORED, 200.0)]


def test_it_happens_again_after_it_was_over() -> None:
    settlement = PredictionSettlement("x")
    look(settlement, 100.0, ongoing=[failure(90.0)])
    settlement.add(prediction())
    look(settlement, 101.0, failure(90.0, ended_at=100.0))
    assert [one.outcome for one in look(settlement, 150.0, failure(150.0))] == [HAPPENED]


def test_a_server_that_is_stopped_on_purpose_cannot_fail() -> None:
    settlement = begun()
    assert what(look(settlement, 150.0, meant=True)) == [(CENSORED, 150.0)]


def test_it_happened_in_the_moment_in_which_somebody_stopped_it() -> None:
    settlement = begun()
    assert what(look(settlement, 150.0, failure(150.0), meant=True)) == [(HAPPENED, 150.0)]


def test_what_is_stopped_when_the_horizon_has_passed_is_no_matter() -> None:
    settlement = begun()
    watching(settlement, 101, 200)
    assert what(look(settlement, 200.0, meant=True)) == [(DID_NOT, 200.0)]


def test_something_was_done_against_it() -> None:
    settlement = begun()
    watching(settlement, 101, 150)
    settlement.note_mitigation(150.0)
    assert look(settlement, 150.0, meant=True) == [], "it may still happen"
    assert what(watching(settlement, 151, 300)) == [(MITIGATED, 200.0)]


def test_something_was_done_against_it_and_it_happened_all_the_same() -> None:
    settlement = begun()
    settlement.note_mitigation(110.0)
    assert what(look(settlement, 120.0, failure(120.0))) == [(HAPPENED, 120.0)]


@pytest.mark.parametrize("at", [99.0, 201.0])
def test_what_was_done_at_another_time_was_not_done_against_it(at: float) -> None:
    settlement = begun()
    settlement.note_mitigation(at)
    assert what(watching(settlement, 101, 300)) == [(DID_NOT, 200.0)]


def test_of_a_type_of_their_own_nobody_can_tell() -> None:
    settlement = PredictionSettlement("x")
    look(settlement, 100.0)
    settlement.add(prediction(failure_type="flux_capacitor"))
    assert what(watching(settlement, 101, 300)) == [(CENSORED, 200.0)]


@pytest.mark.parametrize(
    "odd",
    [
        prediction(horizon_seconds=0.0),
        prediction(horizon_seconds=-5.0),
        prediction(horizon_seconds=math.nan),
        prediction(horizon_seconds=math.inf),
        prediction(at=math.nan),
        prediction(at=1e9),
    ],
)
def test_one_that_makes_no_sense_is_not_kept(odd: FailurePrediction) -> None:
    settlement = PredictionSettlement("x")
    look(settlement, 100.0)
    settlement.add(odd)
    assert what(look(settlement, 101.0)) == [(CENSORED, 101.0)]


def test_a_clock_that_is_set_back() -> None:
    settlement = begun()
    watching(settlement, 101, 150)
    assert look(settlement, 149.5) == [], "a little is no matter"
    assert what(watching(settlement, 150, 300)) == [(DID_NOT, 200.0)]
    settlement = begun()
    look(settlement, 101.0, failure(101.0, "engine_stall"))
    settlement.note_mitigation(101.0)
    assert what(look(settlement, 10.0, ongoing=[failure(101.0, "engine_stall")])) == [(CENSORED, 10.0)]
    settlement.add(prediction("q", at=10.0, horizon_seconds=200.0, failure_type="engine_stall"))
    assert what(watching(settlement, 11, 300)) == [(DID_NOT, 210.0)], "what happened by the old clock did not happen"


def test_a_clock_that_jumps_ahead_leaves_a_hole() -> None:
    settlement = begun()
    assert what(look(settlement, 5_000.0)) == [(CENSORED, 5_000.0)]


def test_each_is_taken_once() -> None:
    settlement = begun()
    assert not settlement.add(prediction())
    watching(settlement, 101, 201)
    assert not settlement.add(prediction()), "it is settled"
    assert not settlement.add(prediction("q", outcome=HAPPENED))
    assert settlement.open() == []


def test_the_oldest_of_too_many_is_let_go() -> None:
    settlement = PredictionSettlement("x")
    look(settlement, 100.0)
    for number in range(MOST_OPEN + 2):
        settlement.add(prediction(str(number)))
    assert len(settlement.open()) == MOST_OPEN
    found = look(settlement, 101.0)
    assert [(one.prediction.prediction_id, one.outcome) for one in found] == [("0", CENSORED), ("1", CENSORED)]
    assert look(settlement, 102.0) == []


# -- after an absence ---------------------------------------------------------------------------------------------


def test_overdue_ones_are_settled_when_the_watch_resumes() -> None:
    stored = [
        prediction("came true", at=100.0),
        prediction("nobody watched", at=400.0),
        prediction("watched", at=200.0),
        prediction("acted", at=600.0),
        prediction("settled", at=100.0, outcome=HAPPENED),
    ]
    settlement = PredictionSettlement("x")
    found = settlement.resume(
        1_000.0,
        stored,
        failures=[failure(150.0), failure(20.0), failure(350.0, "engine_stall")],
        watched=[(100.0, 420.0), (600.0, 700.0)],
        mitigations=[650.0],
    )
    assert {one.prediction.prediction_id: one.outcome for one in found} == {
        "came true": HAPPENED,
        "nobody watched": CENSORED,
        "watched": DID_NOT,
        "acted": MITIGATED,
    }
    assert settlement.open() == []
    assert [one.lead_seconds for one in found if one.outcome is HAPPENED] == [50.0]


@pytest.mark.parametrize(("back_at", "outcome"), [(108, DID_NOT), (115, CENSORED)])
def test_one_whose_horizon_runs_stays_open_and_the_hole_counts(back_at: int, outcome: PredictionOutcome) -> None:
    settlement = PredictionSettlement("x")
    assert settlement.resume(float(back_at), [prediction()], watched=[(50.0, 100.0)]) == []
    assert [one.prediction_id for one in settlement.open()] == ["p"]
    assert what(watching(settlement, back_at, 300)) == [(outcome, 200.0)]


def test_one_that_comes_true_after_the_absence() -> None:
    settlement = PredictionSettlement("x")
    settlement.resume(180.0, [prediction()], watched=[(50.0, 110.0)])
    assert what(look(settlement, 181.0, failure(181.0))) == [(HAPPENED, 181.0)]


def test_thousands_that_were_left_open_are_settled_at_once() -> None:
    stored = [prediction(str(number), at=100.0 + number) for number in range(5_000)]
    settlement = PredictionSettlement("x")
    watched = [(100.0 + 10 * number, 109.0 + 10 * number) for number in range(300)]
    found = settlement.resume(10_000.0, stored, watched=watched)
    assert len(found) == 5_000
    assert {one.outcome for one in found} == {CENSORED, DID_NOT}


# -- whatever comes -----------------------------------------------------------------------------------------------

times = st.floats(0.0, 400.0) | st.integers(0, 400).map(float) | st.sampled_from([math.nan, math.inf, -1e9])
failures = st.builds(failure, st.floats(0.0, 400.0), st.sampled_from(FAILURE_TYPES[:3]))
predictions = st.builds(
    prediction,
    st.integers(0, 30).map(str),
    times,
    st.floats(-1.0, 300.0) | st.sampled_from([math.nan, math.inf]),
    st.sampled_from([*FAILURE_TYPES[:3], "own"]),
)
steps = st.lists(
    st.tuples(
        st.floats(-50.0, 60.0) | st.just(1.0),
        st.lists(predictions, max_size=4),
        st.lists(failures, max_size=2),
        st.lists(failures, max_size=2),
        st.booleans(),
        st.booleans(),
        st.booleans(),
    ),
    max_size=40,
)


@given(steps, st.lists(predictions, max_size=5))
def test_each_is_settled_exactly_once(
    ticks: list[tuple[float, list[FailurePrediction], list[Episode], list[Episode], bool, bool, bool]],
    stored: list[FailurePrediction],
) -> None:
    now, settlement = 100.0, PredictionSettlement("x")
    taken = {one.prediction_id for one in stored}
    found = [one.prediction.prediction_id for one in settlement.resume(now, stored)]
    for step, made, happened, ongoing, known, meant, acted in ticks:
        now += step
        if acted:
            settlement.note_mitigation(now)
        settled = look(settlement, now, *happened, known=known, ongoing=ongoing, meant=meant)
        assert all(one.resolved_at == now and one.reason for one in settled)
        found += [one.prediction.prediction_id for one in settled]
        for one in made:
            if settlement.add(one):
                assert one.prediction_id not in taken
                taken.add(one.prediction_id)
    still = {one.prediction_id for one in settlement.open()}
    assert sorted(found) == sorted(taken - still)
    for later in (1e4, 1e6):
        found += [one.prediction.prediction_id for one in look(settlement, later)]
    assert sorted(found) == sorted(taken)


@given(st.lists(st.tuples(st.floats(0.1, 40.0), st.booleans()), min_size=1, max_size=60))
def test_a_restart_changes_nothing_but_the_hole(looks: list[tuple[float, bool]]) -> None:
    """Settled from the store as it would have been settled live, when all looks are stored."""
    live, now = PredictionSettlement("x"), 100.0
    look(live, now)
    live.add(prediction())
    watched: list[tuple[float, float]] = []
    outcome = None
    for step, known in looks:
        if known and step <= 30.0:
            watched.append((now, now + step))
        now += step
        for one in look(live, now, known=known):
            outcome = one.outcome
        if outcome is not None:
            break
    resumed = PredictionSettlement("x").resume(now, [replace(prediction())], watched=watched)
    assert [one.outcome for one in resumed] == ([] if outcome is None else [outcome])
