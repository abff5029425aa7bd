"""Predictions against thresholds, z-score, ``predict_linear`` and gradient boosting, in the same run.

``python benchmarks/prediction.py [--quick] [--json]``; see README.md for the protocol. Exit status 3 when the arrival
traces are missing.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np

from prediction_methods import (
    SAME_INCIDENT_SECONDS,
    SETTLE_SECONDS,
    WARM_UP_SECONDS,
    Judged,
    LinearRule,
    Scored,
    Seen,
    boosted,
    predict_linear,
    score,
    stepwise,
    threshold_for,
    thresholds,
    z_score,
)
from prediction_runs import START, TARGET, Run, Trace, load_traces, simulate
from vllm_monitor.core.pipeline import TargetPipeline
from vllm_monitor.failures import Episode, Facts, FailureWatch
from vllm_monitor.lifecycle_tracker import LifecycleTracker
from vllm_monitor.picture import Snapshot
from vllm_monitor.predictive_failure_detection import PredictiveFailureDetector
from vllm_monitor.predictive_failure_detection.features import SIGNALS
from vllm_monitor.records import LifecycleState, PageObservation
from vllm_monitor.simulator import Simulator

TRAIN, VALIDATE, TEST = range(1, 53), range(3_001, 3_025), range(4_001, 4_025)
MOST_FALSE_ALARMS_PER_DAY = 6.0
UNPLANNED = "unplanned"


def traces_file() -> Path:
    """``azure_llm_2023.tar.gz``, where ``VLLMMON_SHARED`` says or beside the checkout."""
    shared = os.environ.get("VLLMMON_SHARED")
    folder = Path(shared) if shared else Path(__file__).resolve().parents[2] / "shared"
    return folder / "datasets" / "azure_llm_2023.tar.gz"


def watch(seed: int, traces: Sequence[Trace]) -> Seen:
    """Simulate a run and watch it as the monitor does: picture, failures, predictions, from nothing learned."""
    run = simulate(seed, traces)
    pipeline = TargetPipeline(TARGET, tracker=LifecycleTracker())
    failures = FailureWatch(TARGET)
    detector = PredictiveFailureDetector()
    count = len(run.times)
    levels = np.full((count, len(SIGNALS)), np.nan)
    ours, seconds = np.zeros(count), np.full(count, math.nan)
    made = np.zeros(count, dtype=np.bool_)
    episodes: list[Episode] = []
    for tick, (now, observations) in enumerate(run.ticks()):
        snapshot = pipeline.step(now, observations).snapshot
        found = failures.observe(snapshot, Facts())
        episodes += found
        made[tick] = bool(detector.observe(snapshot, None, found, failures.current()))
        outlook = detector.outlook(TARGET)
        if outlook.any_failure is not None:
            ours[tick], seconds[tick] = outlook.any_failure.probability, outlook.any_failure.seconds
        levels[tick] = [snapshot.values.get(name, math.nan) for name in SIGNALS]
    onsets, valid = truth(run, episodes)
    return Seen(run.times, levels, onsets, valid, ours, seconds, made)


def truth(run: Run, episodes: Sequence[Episode]) -> tuple[list[tuple[float, str]], np.ndarray]:
    """When incidents began, of which kind, and the ticks that count."""
    end = float(run.times[-1])
    over = {(one.failure_type, one.happened_at): one.ended_at for one in episodes if one.ended_at is not None}
    spans = [
        (one.began_at, over.get((one.failure_type, one.happened_at), end)) for one in episodes if one.ended_at is None
    ]
    down = run.times[run.health != 200]
    spans += [(float(at), float(at)) for at in down]
    incidents: list[list[float]] = []
    for begin, until in sorted(spans):
        if incidents and begin - incidents[-1][1] < SAME_INCIDENT_SECONDS:
            incidents[-1][1] = max(incidents[-1][1], until)
        else:
            incidents.append([begin, until])
    valid = ~np.isnan(run.pages[:, 0]) & (run.times - START > WARM_UP_SECONDS) & (run.times < end - 300.0)
    onsets = []
    for begin, until in incidents:
        planned = [one.kind for one in run.failures if one.begins_at - 5.0 <= begin <= one.ends_at + 60.0]
        if begin - START > WARM_UP_SECONDS:
            onsets.append((begin, planned[0] if planned else UNPLANNED))
        valid &= ~((run.times >= begin) & (run.times <= until + SETTLE_SECONDS))
    return onsets, valid


def tick_milliseconds(count: int) -> float:
    """CPU of one tick of predictions for a server with 401 series, the best of five runs, milliseconds."""
    simulator = Simulator(seed=1)
    pipeline = TargetPipeline(TARGET, tracker=LifecycleTracker())
    snapshots: list[Snapshot] = []
    for _ in range(count):
        simulator.advance(1.0)
        layout, values = simulator.scrape()
        page = PageObservation(
            target=TARGET,
            timestamp=simulator.unix_time,
            latency_seconds=0.003,
            layout=layout,
            values=values,
            status=200,
        )
        snapshots.append(pipeline.step(simulator.unix_time + 0.01, [page]).snapshot)
    assert snapshots[-1].state is not LifecycleState.NOT_STARTED
    best = math.inf
    for _ in range(5):
        detector = PredictiveFailureDetector()
        spent = []
        for snapshot in snapshots:
            began = time.process_time()
            detector.observe(snapshot)
            spent.append(time.process_time() - began)
        best = min(best, statistics.median(spent[len(spent) // 2 :]))
    return best * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a third of the runs")
    parser.add_argument("--json", action="store_true", help="one line of JSON per figure")
    options = parser.parse_args()
    archive = traces_file()
    if not archive.is_file():
        sys.stderr.write(
            f"{archive} is missing: put the arrival traces there, or name their folder in VLLMMON_SHARED\n"
        )
        sys.exit(3)
    traces = load_traces(archive)
    share = 3 if options.quick else 1
    groups = [list(one)[: len(one) // share] for one in (TRAIN, VALIDATE, TEST)]
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        train, validate, test = (list(pool.map(partial(watch, traces=traces), group)) for group in groups)

    def say(figure: str, value: float, unit: str, peer: str | None) -> None:
        line = {"figure": figure, "value": None if math.isnan(value) else value, "unit": unit, "peer": peer}
        print(json.dumps(line) if options.json else f"{peer or 'ours':18} {figure:40} {value:10.4g} {unit}", flush=True)

    learned = [*train, *validate]
    valid = np.concatenate([run.valid for run in learned])
    base_rate = float(np.concatenate([run.seconds_left() <= 300.0 for run in learned])[valid].mean())
    rule, rate = chosen_rule(validate, base_rate)
    for name, judged_validate, judged_test in methods(train, validate, test, rule):
        threshold = 0.5 if name == "predict_linear" else threshold_for(validate, judged_validate, rate)
        if name in ("predict_linear", "thresholds", "z_score"):
            below, above = stepwise(validate, judged_validate, threshold)
            for said in judged_test:
                said.probabilities = np.where(said.scores >= threshold, above, below)
        tell(say, score(test, judged_test, threshold, base_rate), None if name == "ours" else name)
    shipped = [Judged(run.ours_made.astype(float), run.ours, run.ours_seconds) for run in test]
    as_shipped = score(test, [widened(one) for one in shipped], 0.5, base_rate)
    say("prediction.shipped.recall", as_shipped.recall, "with the shipped thresholds", None)
    say("prediction.shipped.precision", as_shipped.precision, "with the shipped thresholds", None)
    say("prediction.shipped.false_alarms_per_day", as_shipped.false_alarms_per_day, "with the shipped thresholds", None)
    say("prediction.shipped.lead_seconds", as_shipped.lead_seconds, "s, with the shipped thresholds", None)
    say("prediction.base_rate", base_rate, "share of looks that a failure follows within 300 s", None)
    say("prediction.tick_ms", tick_milliseconds(200 if options.quick else 600), "ms CPU, 401 series", None)


def widened(said: Judged) -> Judged:
    """A prediction as two looks, so that the common counting of alarms, which asks for two, takes it as it is."""
    scores = np.maximum(said.scores, np.concatenate([[0.0], said.scores[:-1]]))
    return Judged(scores, said.probabilities, said.seconds)


def methods(
    train: Sequence[Seen], validate: Sequence[Seen], test: Sequence[Seen], rule: LinearRule
) -> list[tuple[str, list[Judged], list[Judged]]]:
    """Every method with what it says of the validation and of the test runs."""

    def scored(method: object, runs: Sequence[Seen]) -> list[Judged]:
        assert callable(method)
        scores = [method(run) for run in runs]
        return [Judged(one, np.zeros(len(one)), np.full(len(one), math.nan)) for one in scores]

    boosted_validate, boosted_test = boosted(train, validate, test)
    ours = [[Judged(run.ours, run.ours, run.ours_seconds) for run in group] for group in (validate, test)]
    linear = [[predict_linear(run, rule) for run in group] for group in (validate, test)]
    return [
        ("ours", ours[0], ours[1]),
        ("predict_linear", linear[0], linear[1]),
        ("thresholds", scored(thresholds, validate), scored(thresholds, test)),
        ("z_score", scored(z_score, validate), scored(z_score, test)),
        ("gradient_boosting", boosted_validate, boosted_test),
    ]


def chosen_rule(validate: Sequence[Seen], base_rate: float) -> tuple[LinearRule, float]:
    """The rule with the best recall at no more than six false alarms a day, and its false alarms a day."""
    found = []
    for rule in LinearRule.grid():
        scored = score(validate, [predict_linear(run, rule) for run in validate], 0.5, base_rate)
        over = max(0.0, scored.false_alarms_per_day - MOST_FALSE_ALARMS_PER_DAY)
        found.append((-over, scored.recall, -scored.false_alarms_per_day, rule))
    best = max(found, key=lambda one: one[:3])
    return best[3], -best[2]


def tell(say: object, scored: Scored, peer: str | None) -> None:
    """Print the figures of one method."""
    assert callable(say)
    say("prediction.recall", scored.recall, f"of {scored.events} failures with a precursor", peer)
    say("prediction.precision", scored.precision, "of the alarms", peer)
    say("prediction.false_alarms_per_day", scored.false_alarms_per_day, "per day", peer)
    say("prediction.lead_seconds", scored.lead_seconds, "s, median", peer)
    say("prediction.brier_skill", scored.brier_skill, "against the base rate", peer)
    say("prediction.ece", scored.ece, "ten bins", peer)
    say("prediction.ttf_error_seconds", scored.ttf_error_seconds, "s, median, absolute", peer)
    for kind, recall in scored.recall_by_kind.items():
        say(f"prediction.recall.{kind}", recall, "recall", peer)


if __name__ == "__main__":
    main()
