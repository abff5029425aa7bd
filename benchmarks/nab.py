"""The anomaly detector on the Numenta Anomaly Benchmark, beside windowed Gaussian and chance.

``python benchmarks/nab.py [--quick] [--json]``

The corpus (58 labelled series) lies in ``../shared/datasets`` beside the checkout, or where ``VLLMMON_SHARED`` says;
without it the exit status is 3.
"""

from __future__ import annotations

import argparse
import csv
import io
import itertools
import json
import os
import statistics
import sys
import tarfile
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from nab_peers import Floats, random_scores, windowed_gaussian
from nab_scoring import LabelledSeries, Steps, normalised, pooled, standard_score, steps
from vllm_monitor.predictive_failure_detection.detectors.stream_anomaly import StreamAnomaly

DATA_MISSING = 3
RANDOM_SEEDS = 5
NATURAL_THRESHOLD = 0.5
GRID: dict[str, tuple[float, ...]] = {
    "neighbours": (1, 3, 5),
    "memory": (8.0, 4.0),
    "smoothing": (1 / 30, 1 / 15),
    "hold": (0.3, 0.2),
}
QUICK_GRID: dict[str, tuple[float, ...]] = {"neighbours": (1, 5), "memory": (8.0, 4.0)}
PUBLISHED = (
    ("windowed Gaussian", "40"),
    ("k-means as in Netdata", "43"),
    ("kNN-CAD", "58, leave-one-category-out 58"),
    ("HTM", "70, leave-one-category-out 69"),
)


def corpus_path() -> Path:
    """``nab.tar.gz``, in ``VLLMMON_SHARED`` or beside the checkout."""
    shared = os.environ.get("VLLMMON_SHARED")
    folder = Path(shared) if shared else Path(__file__).resolve().parents[2] / "shared"
    return folder / "datasets" / "nab.tar.gz"


def load_corpus(path: Path) -> list[LabelledSeries]:
    """The series and their windows, out of the archive."""
    with tarfile.open(path) as archive:

        def text(name: str) -> io.TextIOWrapper:
            member = archive.extractfile(f"NAB/{name}")
            assert member is not None
            return io.TextIOWrapper(member, "utf-8")

        windows = json.load(text("labels/combined_windows.json"))
        return [_series(name, text(f"data/{name}"), windows[name]) for name in sorted(windows)]


def _series(name: str, rows: io.TextIOWrapper, windows: Sequence[Sequence[str]]) -> LabelledSeries:
    table = [(_seconds(row["timestamp"]), float(row["value"])) for row in csv.DictReader(rows)]
    timestamps, values = np.array(table).T
    found = []
    for start, end in windows:
        inside = np.flatnonzero((timestamps >= _seconds(start)) & (timestamps <= _seconds(end)))
        found.append((int(inside[0]), int(inside[-1])))
    return LabelledSeries(name, np.ascontiguousarray(timestamps), np.ascontiguousarray(values), found)


def _seconds(stamp: str) -> float:
    return datetime.fromisoformat(stamp).replace(tzinfo=UTC).timestamp()


def our_scores(series: LabelledSeries, settings: dict[str, Any]) -> Floats:
    """Row by row: first the score, then the value is learned."""
    detector = StreamAnomaly(series.probation, **settings)
    scores = np.empty(len(series.values))
    for row, (value, timestamp) in enumerate(zip(series.values.tolist(), series.timestamps.tolist(), strict=True)):
        scores[row] = detector.score(value, timestamp)
        detector.learn(value, timestamp)
    return scores


def measured(corpus: Sequence[LabelledSeries], scores: Callable[[LabelledSeries], Floats]) -> list[Steps]:
    return [steps(series, scores(series)) for series in corpus]


def leave_one_category_out(corpus: Sequence[LabelledSeries], candidates: Sequence[Sequence[Steps]]) -> float:
    """Configuration and threshold are those that are best on all other categories; what they then are on this one."""
    raw = 0.0
    for category in sorted({series.category for series in corpus}):
        is_here = [series.category == category for series in corpus]
        others = [pooled(itertools.compress(parts, [not here for here in is_here])) for parts in candidates]
        best = max(range(len(candidates)), key=lambda number: others[number].best()[1])
        raw += pooled(itertools.compress(candidates[best], is_here)).score(others[best].best()[0])
    return normalised(raw, sum(len(series.windows) for series in corpus))


def check_scale(corpus: Sequence[LabelledSeries]) -> None:
    """No detection is worth 0 and the perfect detector 100, or our scoring is wrong."""

    def first_rows(series: LabelledSeries) -> Floats:
        scores = np.zeros(len(series.values))
        scores[[first for first, _ in series.windows]] = 1.0
        return scores

    nothing = pooled(measured(corpus, lambda series: np.zeros(len(series.values))))
    assert normalised(nothing.score(1.0), nothing.windows) == 0.0
    assert abs(standard_score(measured(corpus, first_rows)) - 100.0) < 1e-9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer configurations to choose from")
    parser.add_argument("--json", action="store_true", help="one line of JSON per figure")
    options = parser.parse_args()
    path = corpus_path()
    if not path.is_file():
        print(f"the corpus is missing: no {path} (VLLMMON_SHARED names the folder of shared data)", file=sys.stderr)
        sys.exit(DATA_MISSING)

    def add(figure: str, value: float, unit: str, peer: str | None = None) -> None:
        line = {"figure": figure, "value": value, "unit": unit, "peer": peer}
        print(json.dumps(line) if options.json else f"{figure:16} {peer or 'vllm-monitor':18} {value:8.2f} {unit}")
        sys.stdout.flush()

    corpus = load_corpus(path)
    check_scale(corpus)
    began = time.process_time()
    fixed = measured(corpus, partial(our_scores, settings={}))
    took = time.process_time() - began
    standard, chosen_threshold = "NAB score, one fixed configuration", "NAB score, threshold of the other categories"
    add("nab.standard", standard_score(fixed), standard)
    whole = pooled(fixed)
    at_half = normalised(whole.score(NATURAL_THRESHOLD), whole.windows)
    add("nab.at_half", at_half, "NAB score, the threshold is not optimised but 0.5")
    add("nab.row_us", took / sum(len(series.values) for series in corpus) * 1e6, "us CPU a row, score and learn")
    add("nab.loco.fixed", leave_one_category_out(corpus, [fixed]), chosen_threshold)
    grid = QUICK_GRID if options.quick else GRID
    candidates = []
    for values in itertools.product(*grid.values()):
        settings = dict(zip(grid, values, strict=True))
        candidates.append(measured(corpus, partial(our_scores, settings=settings)))
    unit = f"NAB score, threshold and one of {len(candidates)} configurations of the other categories"
    add("nab.loco", leave_one_category_out(corpus, candidates), unit)
    all_scores = sorted(standard_score(candidate) for candidate in candidates)
    add("nab.grid.lowest", all_scores[0], f"NAB score, the worst of the {len(candidates)} configurations")
    add("nab.grid.highest", all_scores[-1], f"NAB score, the best of the {len(candidates)} configurations")

    gaussian = measured(corpus, windowed_gaussian)
    add("nab.standard", standard_score(gaussian), f"{standard}; published: 39.6", "windowed_gaussian")
    add("nab.loco", leave_one_category_out(corpus, [gaussian]), chosen_threshold, "windowed_gaussian")
    noise = [measured(corpus, partial(random_scores, seed=seed)) for seed in range(RANDOM_SEEDS)]
    unit = f"NAB score, mean of {RANDOM_SEEDS} seeds"
    add("nab.standard", statistics.mean(standard_score(parts) for parts in noise), unit, "random")
    add("nab.loco", statistics.mean(leave_one_category_out(corpus, [parts]) for parts in noise), unit, "random")
    for name, score in PUBLISHED:
        print(f"published, not measured here: {name} {score}", file=sys.stderr)


if __name__ == "__main__":
    main()
