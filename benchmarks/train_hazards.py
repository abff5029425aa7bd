"""Makes ``starting_weights.json``: the weights that the hazards of predictions begin with.

``python benchmarks/train_hazards.py [--recordings FOLDER] [--output FILE]``

Development data (docs/prediction.md): the long simulated runs of seeds 1 to 52, short ones of seeds 1 to 60, healthy
ones of seeds 1 to 14 and, with a cache that is held full, 15 to 30, and recordings of real servers. One layer of
rectified units and a logistic regression for each failure type and bin of time are fitted together (Adam, weight decay,
dropout on the inputs).
"""

from __future__ import annotations

import argparse
import json
import math
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prediction import traces_file
from prediction_runs import TARGET, Run, Trace, load_traces, simulate
from prediction_short_runs import short_run
from vllm_monitor.collectors import read_recording
from vllm_monitor.core.pipeline import TargetPipeline
from vllm_monitor.core.replay import replay_ticks
from vllm_monitor.failures import Episode, Facts, FailureWatch
from vllm_monitor.lifecycle_tracker import LifecycleTracker
from vllm_monitor.picture import Snapshot
from vllm_monitor.predictive_failure_detection.detectors import make_detectors
from vllm_monitor.predictive_failure_detection.features import FeatureExtractor
from vllm_monitor.predictive_failure_detection.hazards import (
    ANY_FAILURE,
    EDGES_SECONDS,
    HORIZON_SECONDS,
    may_speak,
)
from vllm_monitor.records import FAILURE_TYPES, Condition

Floats = NDArray[np.float32]

LONG, SHORT, HEALTHY, HELD = range(1, 53), range(1, 61), range(1, 15), range(15, 31)
TRAINED = ("kv_exhaustion", "queue_saturation", "latency_breach", "engine_stall", "memory_exhaustion")
UNITS, EPOCHS, BATCH, RATE, DECAY, DROPOUT, NOISE = 64, 20, 512, 2e-3, 2e-5, 0.02, 0.08
BINS = len(EDGES_SECONDS) - 1
OUTPUT = Path(__file__).parents[1] / "src/vllm_monitor/predictive_failure_detection/starting_weights.json"
_WELL = (Condition.OK, Condition.IDLE)


@dataclass(slots=True)
class Seen:
    """What detectors said of one run, tick by tick, and when what failed.

    Args:
        name: Of the run.
        times: Unix seconds.
        outputs: (ticks, detector outputs).
        known: Ticks at which predictions are made.
        spans: Failure type, when it began, when it had happened, when it was over.
        weight: Of each tick in the fit.
    """

    name: str
    times: NDArray[np.float64]
    outputs: Floats
    known: NDArray[np.bool_]
    spans: list[tuple[str, float, float, float]]
    weight: float = 1.0


def seen(name: str, snapshots: Iterable[Snapshot], facts: dict[str, float], weight: float) -> Seen:
    """Follow a server as the monitor does."""
    watch, features, detectors = FailureWatch(TARGET), FeatureExtractor(), make_detectors()
    times, outputs, known = [], [], []
    begun: list[Episode] = []
    ends: dict[tuple[str, float], float] = {}
    for snapshot in snapshots:
        found = watch.observe(snapshot, Facts())
        happened = [one.failure_type for one in found if one.ended_at is None]
        begun += [one for one in found if one.ended_at is None]
        ends |= {(one.failure_type, one.happened_at): one.ended_at for one in found if one.ended_at is not None}
        look = features.observe(
            snapshot.timestamp,
            snapshot.values,
            is_well=snapshot.condition in _WELL and not watch.current(),
            state=snapshot.condition.value,
            failures=happened,
            facts=facts,
        )
        outputs.append(np.concatenate([detector.score(look) for detector in detectors]).astype(np.float32))
        for detector in detectors:
            detector.learn(look)
        times.append(snapshot.timestamp)
        works = snapshot.condition in (*_WELL, Condition.SATURATED)
        known.append(works and "requests_running" in snapshot.values and look.known_seconds >= 20.0)
    last = times[-1]
    spans = [
        (one.failure_type, one.began_at, one.happened_at, ends.get((one.failure_type, one.happened_at), last))
        for one in begun
    ]
    return Seen(name, np.array(times), np.array(outputs), np.array(known), spans, weight)


def of_run(name: str, run: Run, weight: float) -> Seen:
    """A simulated run."""
    pipeline = TargetPipeline(TARGET, tracker=LifecycleTracker())
    snapshots = (pipeline.step(now, observations).snapshot for now, observations in run.ticks())
    facts = {} if math.isnan(run.memory_limit_bytes) else {"memory_limit_bytes": run.memory_limit_bytes}
    found = seen(name, snapshots, facts, weight)
    resident = run.pages[:, [one.name for one in run.layout.series].index("process_resident_memory_bytes")]
    down = np.flatnonzero((run.health[1:] != 200) & (run.health[:-1] == 200)) + 1
    for tick in down.tolist():
        grew = resident[tick - 1] > 1.2e9  # else it crashed
        at = float(run.times[tick])
        found.spans.append(("memory_exhaustion" if grew else "engine_death", at, at, at + 60.0))
    return found


def long_seen(seed: int, traces: list[Trace]) -> Seen:
    """A long run."""
    return of_run(f"long {seed}", simulate(seed, traces), 1.0)


def short_seen(seed: int, *, healthy: bool) -> Seen:
    """A short run."""
    return of_run(f"{'healthy' if healthy else 'short'} {seed}", short_run(seed, healthy=healthy), 0.5)


def held_seen(seed: int) -> Seen:
    """A healthy run with long requests that hold a part of the cache all the time: a level alone is no sign."""
    dice = np.random.default_rng(seed)
    run = short_run(seed, healthy=True, busy=True)
    names = [one.name for one in run.layout.series]
    cache, running = names.index("vllm:kv_cache_usage_perc"), names.index("vllm:num_requests_running")
    level, drift = dice.uniform(0.25, 0.93), 0.02 * np.sin(run.times / dice.uniform(20.0, 120.0))
    run.pages[:, cache] = np.minimum(0.97, np.maximum(run.pages[:, cache], level + drift))
    run.pages[:, running] += dice.integers(1, 24)
    return of_run(f"healthy {seed}", run, 0.5)


def recorded_seen(path: Path) -> Seen:
    """A recording of a real server."""
    recording = read_recording(path)
    found = seen(path.name, (tick.snapshot for tick in replay_ticks(recording)), {}, 1.0)
    injected = recording.truth.injected_at
    if injected is not None:
        found.known[found.times < injected] = False  # what comes out of the blue cannot be learned from calm
    if path.name.startswith("mem_leak"):
        # It ended before the memory did; had it gone on, this is what would have happened.
        begin = float(found.times[0]) + 31.0
        found.spans.append(("memory_exhaustion", begin + 180.0, begin + 180.0, begin + 180.0))
        found.known[found.times > begin + 40.0] = False
    return found


def labels(run: Seen) -> tuple[Floats, Floats]:
    """(ticks, types, bins): whether it failed in that bin, and whether that is asked (it had not failed before)."""
    kinds = (*TRAINED, ANY_FAILURE)
    times, count = run.times, len(run.times)
    y, asked = (np.zeros((count, len(kinds), BINS), np.float32) for _ in range(2))
    deaths = [(begin - 5.0, end + 30.0) for kind, begin, _, end in run.spans if kind.endswith("_death")]
    for place, kind in enumerate(kinds):
        if kind == ANY_FAILURE:
            spans = list(_merged((begin, end + 60.0) for _, begin, _, end in run.spans))
            own = [(begin, begin, end) for begin, end in spans]
        else:
            own = [(begin, happened, end + 10.0) for one, begin, happened, end in run.spans if one == kind]
        left, valid = np.full(count, math.inf), run.known.copy()
        for begin, happened, end in own:
            before = times < happened
            left[before] = np.minimum(left[before], happened - times[before])
            valid &= ~((times >= begin) & (times <= end))
        for begin, end in deaths:
            valid &= ~((times >= begin) & (times <= end))
        # What followed the last five minutes of a simulation is not known, unless something did, or nothing could. Of
        # recordings, which are short, it is taken that nothing did.
        if run.name.startswith(("long", "short")):
            valid &= (times < times[-1] - HORIZON_SECONDS) | (left <= HORIZON_SECONDS)
        bins = np.searchsorted(EDGES_SECONDS[1:], left, side="left")
        for number in range(BINS):
            asked[:, place, number] = valid & (bins >= number)
            y[:, place, number] = valid & (bins == number)
    return y, asked


def _merged(spans: Iterable[tuple[float, float]]) -> Iterator[tuple[float, float]]:
    last: tuple[float, float] | None = None
    for begin, end in sorted(spans):
        if last is not None and begin - last[1] < 180.0:
            last = (last[0], max(last[1], end))
        else:
            if last is not None:
                yield last
            last = (begin, end)
    if last is not None:
        yield last


@dataclass(slots=True)
class Net:
    """One layer of rectified units beside the inputs, and a logistic output for each type and bin."""

    units: Floats
    unit_bias: Floats
    slope: Floats
    bias: Floats

    def parts(self) -> list[Floats]:
        """All parameters."""
        return [self.units, self.unit_bias, self.slope, self.bias]

    def __call__(self, x: Floats) -> Floats:
        terms = np.concatenate([x, np.maximum(x @ self.units + self.unit_bias, 0.0)], axis=1)
        return _logistic(terms @ self.slope + self.bias)


def _logistic(logits: Floats) -> Floats:
    return np.asarray(1.0 / (1.0 + np.exp(-np.clip(logits, -9.0, 9.0))), dtype=np.float32)


def fit(x: Floats, y: Floats, asked: Floats, weight: Floats, speaks: Floats, seed: int) -> Net:
    """Adam (Kingma and Ba, 2015) on the sum of the logistic losses.

    Args:
        x: (looks, inputs).
        y: (looks, types and bins).
        asked: Likewise.
        weight: (looks,).
        speaks: (types, inputs): 1 where an input may say something of a type; combinations are made of those alone
            that may speak of all.
        seed: Of the dice.
    """
    dice = np.random.default_rng(seed)
    inputs, outputs = x.shape[1], y.shape[1]
    net = Net(
        (dice.normal(size=(inputs, UNITS)) * math.sqrt(2.0 / inputs)).astype(np.float32),
        np.zeros(UNITS, np.float32),
        np.concatenate([np.zeros((inputs, outputs)), dice.normal(size=(UNITS, outputs)) * 0.05]).astype(np.float32),
        np.full(outputs, -4.0, np.float32),
    )
    of_units = np.broadcast_to(speaks.min(axis=0)[:, None], net.units.shape)
    of_slope = np.concatenate([np.repeat(speaks, BINS, axis=0).T, np.ones((UNITS, outputs), np.float32)])
    net.units *= of_units
    means, squares = ([np.zeros_like(part) for part in net.parts()] for _ in range(2))
    step = 0
    for epoch in range(EPOCHS):
        rate = RATE * 0.5 * (1.0 + math.cos(math.pi * epoch / EPOCHS)) + 1e-5
        order = dice.permutation(len(x))
        for begin in range(0, len(x), BATCH):
            chosen = order[begin : begin + BATCH]
            noisy = x[chosen] + dice.normal(size=(len(chosen), inputs)).astype(np.float32) * NOISE
            noisy *= dice.random(noisy.shape) > DROPOUT
            hidden = noisy @ net.units + net.unit_bias
            terms = np.concatenate([noisy, np.maximum(hidden, 0.0)], axis=1)
            error = (_logistic(terms @ net.slope + net.bias) - y[chosen]) * asked[chosen] * weight[chosen, None]
            error /= len(chosen)
            back = (error @ net.slope[inputs:].T) * (hidden > 0)
            gradients = [
                noisy.T @ back + DECAY * net.units,
                back.sum(axis=0),
                terms.T @ error + DECAY * net.slope,
                error.sum(axis=0),
            ]
            step += 1
            for part, mean, square, gradient in zip(net.parts(), means, squares, gradients, strict=True):
                np.add(mean, 0.1 * (gradient - mean), out=mean)
                np.add(square, 0.001 * (gradient**2 - square), out=square)
                move = rate * (mean / (1 - 0.9**step)) / (np.sqrt(square / (1 - 0.999**step)) + 1e-8)
                np.subtract(part, move, out=part)
            net.units *= of_units
            net.slope *= of_slope
    return net


def collect(recordings: Path | None) -> list[Seen]:
    """All development data, as detectors see it."""
    traces = load_traces(traces_file())
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        runs = list(pool.map(partial(long_seen, traces=traces), LONG))
        runs += pool.map(partial(short_seen, healthy=False), SHORT)
        runs += pool.map(partial(short_seen, healthy=True), HEALTHY)
        runs += pool.map(held_seen, HELD)
        if recordings is not None:
            runs += pool.map(recorded_seen, sorted(recordings.glob("*_s?.jsonl.gz")))
    return runs


def by_hand(kind: str, names: list[str]) -> tuple[float, dict[str, float]]:
    """Weights of what the development data hold no example of: bias, and output to slope."""
    own = {f"{kind}_looks_alike": 6.0, f"{kind}_from_here": 8.0}
    more: dict[str, dict[str, float]] = {
        "fd_exhaustion": {"fds_near_90s": 5.0, "fds_near_360s": 5.0, "fds_level": 3.0},
        "error_surge": {"failing_answers": 4.0, "refusing": 1.0},
        "silent_degradation": {"slowdown": 5.0, "inter_token_latency_p50_seconds_changed": 2.0},
        "api_frozen": {"accept_queue": 2.0, "scrape_slow": 2.0, "fds_near_90s": 2.0},
    }
    slopes = own | more.get(kind, {})
    return -8.0, {name: worth for name, worth in slopes.items() if name in names}


def document(net: Net, names: list[str], thresholds: dict[str, float], version: str) -> dict[str, Any]:
    """The weights as they are shipped."""
    trained = (*TRAINED, ANY_FAILURE)
    kinds = [*FAILURE_TYPES, ANY_FAILURE]
    terms = len(names) + UNITS
    bias, slope = np.zeros((len(kinds), BINS)), np.zeros((len(kinds), BINS, terms))
    learned = net.slope.T.reshape(len(trained), BINS, terms)
    for row, kind in enumerate(kinds):
        if kind in trained:
            bias[row] = net.bias.reshape(len(trained), BINS)[trained.index(kind)]
            slope[row] = learned[trained.index(kind)]
        else:
            bias[row], slopes = by_hand(kind, names)
            for name, worth in slopes.items():
                slope[row, :, names.index(name)] = worth
    return {
        "version": version,
        "outputs": names,
        "failure_types": kinds,
        "units": rounded(net.units),
        "unit_bias": rounded(net.unit_bias),
        "bias": rounded(bias),
        "slope": rounded(slope),
        "thresholds": [thresholds.get(kind, 0.6) for kind in kinds],
    }


def rounded(values: NDArray[Any]) -> Any:
    """Three significant digits are enough, and can be read."""
    flat = [float(f"{value:.3g}") for value in np.asarray(values, dtype=np.float64).ravel().tolist()]
    return np.array(flat).reshape(values.shape).tolist()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recordings", type=Path, help="a folder of recordings of real servers")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="the file to write")
    parser.add_argument("--version", default="1", help="the version that predictions name")
    options = parser.parse_args()
    runs = collect(options.recordings)
    pairs = [labels(run) for run in runs]
    x = np.concatenate([run.outputs for run in runs])
    y, asked = (np.concatenate([pair[part] for pair in pairs]).reshape(len(x), -1) for part in (0, 1))
    weight = np.concatenate([np.full(len(run.times), run.weight, np.float32) for run in runs])
    used = asked.any(axis=1)
    names = [name for detector in make_detectors() for name in detector.outputs]
    speaks = may_speak(names, (*TRAINED, ANY_FAILURE)).astype(np.float32)
    net = fit(x[used], y[used], asked[used], weight[used], speaks, seed=3)
    found = document(net, names, {}, options.version)
    options.output.write_text(json.dumps(found, separators=(",", ":")) + "\n", "utf-8")


if __name__ == "__main__":
    main()
