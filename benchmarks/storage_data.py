"""A day of a server's metrics, made from the recording of a real one by a seeded parametric bootstrap.

Requests are drawn one by one: arrivals from the recording's own rates, lengths and latencies from the recording's
histograms (smooth within a bucket, slower under load). Clocks and additions are those of the server: nanosecond
clocks read as float64, one addition per observation. Everything on the page is then counted from the same requests,
so counters are monotone, histograms agree with their counts and sums, and what never changed does not change.
Nothing is repeated: tiling would flatter every compressor.
"""

from __future__ import annotations

import gzip
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vllm_monitor.collectors import PageParser
from vllm_monitor.records import Layout

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

NANO = 1e9
RATE_WINDOW = 5  # scrapes of the recording from which one rate of arrival is estimated
UPTIME_SECONDS = 300.0  # of the recorded host, from the grid of its monotonic clock
TOKENS_PER_BLOCK = 128
KV_BLOCKS = 16383
STEP_NS = 7_000_000


@dataclass(frozen=True, slots=True)
class Scrapes:
    """Scrapes of one page.

    Args:
        names: The series as on the page.
        layout: The same, parsed.
        times_ms: Unix milliseconds of each scrape.
        values: (scrapes, series).
    """

    names: list[str]
    layout: Layout
    times_ms: Integers
    values: Floats

    def pages(self) -> list[bytes]:
        """The text of each scrape, as a server would print it."""
        heads = [f"{name} ".encode() for name in self.names]
        lines = [b""] * len(heads)
        previous = np.full(len(heads), np.nan)
        pages = []
        for row in self.values:
            for column in np.flatnonzero(row != previous).tolist():
                lines[column] = heads[column] + repr(float(row[column])).encode()
            previous = row
            pages.append(b"\n".join(lines) + b"\n")
        return pages

    def first(self, count: int) -> Scrapes:
        """The first scrapes."""
        return Scrapes(self.names, self.layout, self.times_ms[:count], self.values[:count])


def recording_path() -> Path:
    """``scrapes_380s.jsonl.gz``, in ``VLLMMON_SHARED`` or beside the checkout."""
    shared = os.environ.get("VLLMMON_SHARED")
    folder = Path(shared) if shared else Path(__file__).resolve().parents[2] / "shared"
    return folder / "recordings" / "scrapes_380s.jsonl.gz"


def load_recording(path: Path) -> Scrapes:
    """The recorded scrapes."""
    names: list[str] = []
    times: list[int] = []
    rows: list[list[float]] = []
    with gzip.open(path, "rt") as lines:
        for line in lines:
            entry = json.loads(line)
            if "add" in entry:
                names += entry["add"]
            else:
                times.append(entry["t"])
                rows.append([float(value) for value in entry["v"]])
    page = PageParser().parse("".join(f"{name} 0\n" for name in names).encode())
    assert len(page.layout) == len(names)
    return Scrapes(names, page.layout, np.array(times, dtype=np.int64), np.array(rows))


class _Buckets:
    """Draws from the distribution that a recorded histogram shows, log-linear within each bucket."""

    def __init__(self, recorded: Scrapes, name: str) -> None:
        self.columns = [column for column, one in enumerate(recorded.names) if one.startswith(f"{name}_bucket")]
        bounds = [re.search(r'le="([^"]+)"', recorded.names[column]) for column in self.columns]
        self.bounds = np.array([float(bound.group(1)) for bound in bounds if bound])
        seen = recorded.values[-1, self.columns] - recorded.values[0, self.columns]
        share = seen / max(1.0, seen[-1])
        finite = np.isfinite(self.bounds)
        self._shares = np.concatenate(([0.0], share[finite]))
        self._logs = np.log(np.concatenate(([self.bounds[0] / 2.5], self.bounds[finite])))

    def draw(self, quantiles: Floats) -> Floats:
        highest = self._shares[-1]
        return np.asarray(np.exp(np.interp(quantiles * highest, self._shares, self._logs)))


@dataclass(slots=True)
class _Requests:
    """Nanoseconds since the start, and sizes, of every request that finishes."""

    arrived: Integers
    scheduled: Integers
    first_token: Integers
    finished: Integers
    prompt: Integers
    cached: Integers
    generated: Integers
    asked: Integers
    token_times: Integers
    token_gaps: Integers


class DayGenerator:
    """Makes scrapes like those of a recording; the same seed makes the same ones.

    Args:
        recorded: What to be like.
        seed: Of the random generator.
        step_seconds: Between two scrapes.
        jitter_ms: Greatest deviation of a scrape's time from its turn.
    """

    def __init__(self, recorded: Scrapes, seed: int, step_seconds: float = 2.0, jitter_ms: int = 0) -> None:
        self._recorded = recorded
        self._random = np.random.default_rng(seed)
        self._step_ms = round(step_seconds * 1000)
        self._jitter_ms = jitter_ms
        self._columns: dict[str, Floats] = {}
        self._at_ns = np.zeros(0, dtype=np.int64)

    def make(self, scrapes: int) -> Scrapes:
        """That many scrapes."""
        recorded = self._recorded
        offsets = np.arange(scrapes, dtype=np.int64) * self._step_ms
        if self._jitter_ms:
            offsets += self._random.integers(-self._jitter_ms, self._jitter_ms + 1, scrapes)
        self._at_ns = offsets * 1_000_000
        requests = self._requests(scrapes * self._step_ms / 1000)
        self._count_requests(requests)
        self._count_tokens(requests)
        self._count_http(requests)
        self._count_process(requests)
        values = np.repeat(recorded.values[:1], scrapes, axis=0)
        changing = (recorded.values != recorded.values[0]).any(axis=0)
        for column in np.flatnonzero(changing).tolist():
            name = recorded.names[column]
            if "_bucket{" not in name:
                values[:, column] = self._columns[name]
        for name, cumulative in self._columns.items():
            if name.endswith("|buckets"):
                columns = _Buckets(recorded, name.removesuffix("|buckets")).columns
                if name.startswith("http_request_duration_seconds"):
                    columns = [column for column in columns if "completions" in recorded.names[column]]
                values[:, columns] = cumulative
        return Scrapes(recorded.names, recorded.layout, recorded.times_ms[0] + offsets, values)

    def _requests(self, seconds: float) -> _Requests:
        random = self._random
        arrived, slowness = self._arrivals(seconds)
        count = len(arrived)
        quantile = np.clip(0.62 * random.random(count) + 0.38 * slowness + random.normal(0, 0.05, count), 0, 0.9999)
        prompt = np.ceil(_Buckets(self._recorded, "vllm:request_prompt_tokens").draw(random.random(count))).astype(
            np.int64
        )
        most_tokens = _Buckets(self._recorded, "vllm:request_params_max_tokens").draw(random.random(count))
        asked = np.maximum(3, np.ceil(most_tokens)).astype(np.int64)
        stopped = random.random(count) < self._share("vllm:request_success_total", "stop")
        generated = np.where(stopped, np.maximum(2, asked * random.random(count)).astype(np.int64), asked)
        hits = np.where(random.random(count) < 0.5, prompt * random.random(count) // TOKENS_PER_BLOCK, 0)
        cached = hits.astype(np.int64) * TOKENS_PER_BLOCK
        cached = np.where(prompt - cached < 3, 0, cached)
        waits = np.exp(random.normal(np.log(4.5e-5), 0.5, count))
        waits = np.where(random.random(count) < 0.004, random.uniform(0.3, 2.5, count), waits)
        prefill = _Buckets(self._recorded, "vllm:time_to_first_token_seconds").draw(quantile)
        prefill = np.maximum(0.4 * prefill, prefill - 0.002)  # the rest of it is before and after
        scheduled = arrived + (waits * NANO).astype(np.int64) + random.integers(100_000, 900_000, count)
        first_token = scheduled + (prefill * NANO).astype(np.int64)

        gaps_of = generated - 1
        owner = np.repeat(np.arange(count), gaps_of)
        usual = np.exp(random.normal(np.log(0.0071), 0.13, len(owner))).clip(0.002, 0.0099)
        slow = _Buckets(self._recorded, "vllm:inter_token_latency_seconds").draw(
            random.uniform(0.932, 0.9999, len(owner))
        )
        gaps = np.where(random.random(len(owner)) < (0.136 * slowness**2)[owner], slow, usual)
        gaps_ns = (gaps * NANO).astype(np.int64)
        running = np.cumsum(gaps_ns)
        starts = np.cumsum(gaps_of) - gaps_of
        before = np.where(starts > 0, running[starts - 1], 0)
        token_times = first_token[owner] + running - before[owner]
        finished = token_times[starts + gaps_of - 1]
        return _Requests(
            arrived, scheduled, first_token, finished, prompt, cached, generated, asked,
            token_times, gaps_ns,
        )  # fmt: skip

    def _arrivals(self, seconds: float) -> tuple[Integers, Floats]:
        """When requests arrive, in nanoseconds, and how slow the server was then, as a rank of 0 to 1."""
        recorded = self._recorded
        random = self._random
        done = recorded.values[:, self._column("vllm:e2e_request_latency_seconds_count")]
        at = recorded.times_ms / 1000
        rates = (done[RATE_WINDOW:] - done[:-RATE_WINDOW]) / (at[RATE_WINDOW:] - at[:-RATE_WINDOW])
        arrivals = []
        ranks = []
        start = 0.0
        while start < seconds:
            lasts = random.exponential(30.0) + 2.0
            pick = int(random.integers(len(rates)))
            rate = rates[pick] * np.exp(random.normal(0, 0.25))
            count = int(random.poisson(rate * lasts))
            arrivals.append(np.sort(random.uniform(start, start + lasts, count)))
            ranks.append(np.full(count, float((rates <= rates[pick]).mean())))
            start += lasts
        times = np.concatenate(arrivals)
        inside = times < seconds
        return (times[inside] * NANO).astype(np.int64), np.concatenate(ranks)[inside]

    def _count_requests(self, requests: _Requests) -> None:
        finished = requests.finished
        engine = "vllm:"
        sizes = {
            "request_prompt_tokens": requests.prompt,
            "request_generation_tokens": requests.generated,
            "request_max_num_generation_tokens": requests.generated,
            "request_params_n": np.ones_like(finished),
            "request_params_max_tokens": requests.asked,
            "request_num_preemptions": np.zeros_like(finished),
            "request_prefill_kv_computed_tokens": requests.prompt - requests.cached,
        }
        for name, values in sizes.items():
            self._histogram(engine + name, finished, values.astype(np.float64))
        mono = [UPTIME_SECONDS + part / NANO for part in (requests.scheduled, requests.first_token, finished)]
        queued = UPTIME_SECONDS + (requests.arrived + 250_000) / NANO
        decode = mono[2] - mono[1]
        latencies = {
            "request_queue_time_seconds": mono[0] - np.minimum(queued, mono[0]),
            "request_prefill_time_seconds": mono[1] - mono[0],
            "request_decode_time_seconds": decode,
            "request_inference_time_seconds": mono[2] - mono[0],
            "request_time_per_output_token_seconds": decode / (requests.generated - 1),
        }
        for name, seconds in latencies.items():
            self._histogram(engine + name, finished, seconds)
        wall = self._recorded.times_ms[0] / 1000
        overhead = self._random.integers(200_000, 3_000_000, len(finished))
        arrived = wall + requests.arrived / NANO
        ends = finished + overhead
        self._histogram("vllm:e2e_request_latency_seconds", finished, (wall + ends / NANO) - arrived)
        firsts = requests.first_token + overhead // 2
        self._histogram("vllm:time_to_first_token_seconds", requests.first_token, (wall + firsts / NANO) - arrived)
        length = requests.generated == requests.asked
        self._counter("vllm:request_success_total", "length", finished[length])
        self._counter("vllm:request_success_total", "stop", finished[~length])

    def _count_tokens(self, requests: _Requests) -> None:
        token_step = requests.token_times // STEP_NS
        first_step = requests.first_token // STEP_NS
        steps = int(max(token_step.max(initial=0), first_step.max(initial=0))) + 1
        of_prompts = np.bincount(first_step, weights=requests.prompt - requests.cached, minlength=steps)
        tokens = (of_prompts + np.bincount(token_step, minlength=steps)).astype(np.float64)
        used = np.flatnonzero(tokens)
        self._histogram("vllm:iteration_tokens_total", (used + 1) * STEP_NS, tokens[used])
        up = UPTIME_SECONDS + requests.token_times / NANO
        gaps = up - (UPTIME_SECONDS + (requests.token_times - requests.token_gaps) / NANO)
        self._histogram("vllm:inter_token_latency_seconds", requests.token_times, gaps)
        every = np.concatenate((requests.token_times, requests.first_token))
        self._counter("vllm:generation_tokens_total", "", every)
        first = requests.first_token
        for name, label, amounts in (
            ("vllm:prefix_cache_queries_total", "", requests.prompt),
            ("vllm:prefix_cache_hits_total", "", requests.cached),
            ("vllm:prompt_tokens_total", "", requests.prompt),
            ("vllm:prompt_tokens_by_source_total", "local_compute", requests.prompt - requests.cached),
            ("vllm:prompt_tokens_by_source_total", "local_cache_hit", requests.cached),
            ("vllm:prompt_tokens_cached_total", "", requests.cached),
            ("vllm:prompt_tokens_cached_by_source_total", "device", requests.cached),
        ):
            self._counter(name, label, first, amounts)
        running = self._standing(requests.scheduled, requests.finished)
        waiting = self._standing(requests.arrived, requests.scheduled)
        self._gauge("vllm:num_requests_running", "", running)
        self._gauge("vllm:num_requests_waiting", "", waiting)
        self._gauge("vllm:num_requests_waiting_by_reason", "capacity", waiting)
        blocks = -(-(requests.prompt + requests.generated // 2) // TOKENS_PER_BLOCK)
        used_blocks = self._standing(requests.scheduled, requests.finished, blocks)
        self._gauge("vllm:kv_cache_usage_perc", "", 1.0 - (KV_BLOCKS - used_blocks) / KV_BLOCKS)

    def _count_http(self, requests: _Requests) -> None:
        random = self._random
        bad = requests.arrived[random.random(len(requests.arrived)) < 0.35] + random.integers(0, 2_000_000_000)
        took_bad = (np.exp(random.normal(np.log(0.004), 0.7, len(bad))) * NANO).astype(np.int64)
        extra = random.integers(400_000, 4_000_000, len(requests.finished))
        begun = np.concatenate((requests.arrived - extra // 3, bad))
        ended = np.concatenate((requests.finished + extra, bad + took_bad))
        took = (UPTIME_SECONDS + ended / NANO) - (UPTIME_SECONDS + begun / NANO)
        self._histogram("http_request_duration_highr_seconds", ended, took)
        self._histogram("http_request_duration_seconds", ended, took, "POST")
        good = len(requests.finished)
        self._counter("http_requests_total", "2xx", ended[:good], base_label='"/v1/completions"')
        self._counter("http_requests_total", "4xx", ended[good:])
        asked = np.concatenate((requests.prompt * 2 + 130, random.integers(150, 2600, len(bad))))
        asked += random.integers(0, 40, len(asked))
        given = np.concatenate((requests.generated * 4 + 420, random.integers(160, 420, len(bad))))
        given += random.integers(0, 60, len(given))
        for name, sizes in (("http_request_size_bytes", asked), ("http_response_size_bytes", given)):
            self._counter(f"{name}_count", '"/v1/completions"', ended)
            self._counter(f"{name}_sum", '"/v1/completions"', ended, sizes)

    def _count_process(self, requests: _Requests) -> None:
        random = self._random
        scrapes = len(self._at_ns)
        busy = np.diff(np.searchsorted(np.sort(requests.arrived), self._at_ns), prepend=0)
        for generation, mean in (("0", 0.072), ("1", 0.0064)):
            increments = random.poisson(mean * (0.5 * busy + 0.2))
            self._gauge("python_gc_collections_total", f'"{generation}"', np.cumsum(increments), onto_first=True)
        user = random.poisson(0.8 * busy + 2.0).cumsum() / 100.0
        system = random.poisson(0.25 * busy + 0.6).cumsum() / 100.0
        self._gauge("process_cpu_seconds_total", "", (9.24 + user) + system)
        pages = np.where(random.random(scrapes) < 0.088, random.choice([32, 32, 32, 64, 96, -32, -64, 1], scrapes), 0)
        self._gauge("process_resident_memory_bytes", "", np.cumsum(pages) * 4096, onto_first=True)
        grown = np.where(random.random(scrapes) < 0.02, random.integers(1, 180, scrapes), 0)
        self._gauge("process_virtual_memory_bytes", "", np.cumsum(grown) * 4096, onto_first=True)
        self._gauge("process_open_fds", "", 34 + random.binomial(np.minimum(busy, 6), 0.25))

    def _column(self, name: str, label: str = "") -> int:
        for column, one in enumerate(self._recorded.names):
            if one.partition("{")[0] == name and label in one:
                return column
        raise KeyError(name)

    def _share(self, name: str, label: str) -> float:
        grown = self._recorded.values[-1] - self._recorded.values[0]
        of_all = sum(grown[column] for column, one in enumerate(self._recorded.names) if one.startswith(name + "{"))
        return float(grown[self._column(name, label)] / of_all)

    def _gauge(self, name: str, label: str, values: NDArray[Any], *, onto_first: bool = False) -> None:
        column = self._column(name, label)
        first = self._recorded.values[0, column] if onto_first else 0.0
        self._columns[self._recorded.names[column]] = first + values.astype(np.float64)

    def _counter(
        self, name: str, label: str, times: Integers, amounts: NDArray[Any] | None = None, base_label: str = ""
    ) -> None:
        column = next(
            column
            for column, one in enumerate(self._recorded.names)
            if one.partition("{")[0] == name and label in one and base_label in one
        )
        order = np.argsort(times, kind="stable")
        added = np.ones(len(times)) if amounts is None else amounts.astype(np.float64)[order]
        total = np.cumsum(np.concatenate(([self._recorded.values[0, column]], added)))
        self._columns[self._recorded.names[column]] = total[np.searchsorted(times[order], self._at_ns, side="right")]

    def _histogram(self, name: str, times: Integers, values: NDArray[Any], label: str = "") -> None:
        order = np.argsort(times, kind="stable")
        self._counter(f"{name}_count", label, times)
        self._counter(f"{name}_sum", label, times, values)
        buckets = _Buckets(self._recorded, name)
        columns = [column for column in buckets.columns if label in self._recorded.names[column]]
        bounds = buckets.bounds[: len(columns)] if label else buckets.bounds
        scrape = np.searchsorted(self._at_ns, times[order])
        inside = scrape < len(self._at_ns)
        which = np.searchsorted(bounds, values[order][inside])
        cells = np.bincount(scrape[inside] * len(bounds) + which, minlength=len(self._at_ns) * len(bounds))
        counts = cells.reshape(len(self._at_ns), len(bounds))
        first = self._recorded.values[0, columns]
        self._columns[f"{name}|buckets"] = first + np.cumsum(np.cumsum(counts, axis=1), axis=0)

    def _standing(self, begins: Integers, ends: Integers, amounts: Integers | None = None) -> Integers:
        """How many (or how much) have begun and not ended, at each scrape."""
        parts = []
        for times in (begins, ends):
            order = np.argsort(times, kind="stable")
            added = np.ones(len(times), dtype=np.int64) if amounts is None else amounts[order]
            total = np.concatenate(([0], np.cumsum(added)))
            parts.append(total[np.searchsorted(times[order], self._at_ns, side="right")])
        return np.asarray(parts[0] - parts[1], dtype=np.int64)
