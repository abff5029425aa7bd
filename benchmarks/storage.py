"""The sample store: bytes, speed and query times, beside Prometheus, VictoriaMetrics and a row per sample.

``python benchmarks/storage.py [--quick] [--json]``

The peers run when they are installed (``apt-get install prometheus victoria-metrics``). The recording of a real
server that the data are made from lies beside the checkout, or where ``VLLMMON_SHARED`` says.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import gc
import json
import sqlite3
import statistics
import tempfile
import time
import zlib
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage_data import DayGenerator, Scrapes, load_recording, recording_path
from storage_peers import Peer, RowSchema, installed_peers
from vllm_monitor.collectors import PageParser
from vllm_monitor.persistence import PersistenceConfig, PersistenceManager
from vllm_monitor.persistence.results import SeriesData
from vllm_monitor.persistence.samples.blocks.codec import BlockMethod, block_reader, encode_block
from vllm_monitor.records import Series

SEED = 1
STEP_SECONDS = 2.0
DAY_SCRAPES = 43_200
JITTER_MS = 40
TARGET = "http://bench"
HOUR_MS = 3_600_000
ONE_SERIES = "vllm:generation_tokens_total"
TWENTY_SERIES = "vllm:inter_token_latency_seconds_bucket"
POINTS = 300
NEVER_SECONDS = 1e9
PAGES_AT_A_TIME = 1800
SCRAPES_PER_WAIT = 100
SCRAPES_PER_BLOCK, SCRAPES_PER_COLD_BLOCK = 1800, 3600


class Figures:
    """Collects figures and prints them, as text or as lines of JSON."""

    def __init__(self, as_json: bool) -> None:
        self._as_json = as_json

    def add(self, figure: str, value: float, unit: str, peer: str | None = None) -> None:
        if self._as_json:
            print(json.dumps({"figure": figure, "value": value, "unit": unit, "peer": peer}), flush=True)
        else:
            print(f"{figure:46} {peer or 'vllm-monitor':18} {value:14.4g} {unit}", flush=True)


class OurStore:
    """A store of ours behind its public door."""

    name = None

    def __init__(self, folder: Path, *, synchronous: bool = False) -> None:
        self._folder = folder
        self._synchronous = synchronous
        self._manager = self._open(NEVER_SECONDS)

    def _open(self, cold_after_seconds: float) -> PersistenceManager:
        config = PersistenceConfig(storage_dir=self._folder, cold_after_seconds=cold_after_seconds)
        return PersistenceManager(config, synchronous=self._synchronous)

    def write_pages(
        self, pages: list[bytes], times_ms: list[int], parser: PageParser, scrapes_per_commit: int = SCRAPES_PER_WAIT
    ) -> None:
        """From text to committed; the writer is waited for, so that nothing needs to be dropped."""
        manager = self._manager
        for number, (page, time_ms) in enumerate(zip(pages, times_ms, strict=True), 1):
            parsed = parser.parse(page)
            manager.save_scrape(parsed.layout, parsed.values, timestamp=time_ms / 1000, target=TARGET)
            if number % scrapes_per_commit == 0:
                manager.flush_all()
        manager.flush_all()

    def write(self, scrapes: Scrapes) -> None:
        """The values, without the text."""
        for number, (time_ms, row) in enumerate(zip(scrapes.times_ms.tolist(), scrapes.values, strict=True), 1):
            values = array("d", row.tobytes())
            self._manager.save_scrape(scrapes.layout, values, timestamp=time_ms / 1000, target=TARGET)
            if number % SCRAPES_PER_WAIT == 0:
                self._manager.flush_all()
        self._manager.flush_all()

    def seal_what_is_due(self) -> None:
        self._manager.run_maintenance()

    def seal(self) -> None:
        self._manager.run_maintenance(seal_all=True)
        self._checkpoint(NEVER_SECONDS)

    def open_again(self) -> None:
        """Forget what was read."""
        self._manager.close()
        self._manager = self._open(NEVER_SECONDS)

    def make_cold(self) -> None:
        self._checkpoint(0.0)
        self._manager.run_maintenance(seal_all=True)
        self._checkpoint(NEVER_SECONDS)

    def _checkpoint(self, cold_after_seconds: float) -> None:
        self._manager.close()
        with contextlib.closing(self._connect()) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        self._manager = self._open(cold_after_seconds)

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(self._manager.config.db_path)

    def file_bytes(self) -> int:
        return self._manager.config.db_path.stat().st_size

    def block_bytes(self) -> int:
        with contextlib.closing(self._connect()) as connection:
            (total,) = connection.execute("SELECT sum(length(payload)) FROM blocks").fetchone()
        return int(total)

    def wrong_samples(self, scrapes: Scrapes) -> int:
        """How many samples do not come back with the same bits and the same time."""
        wrong = 0
        for column, series in enumerate(scrapes.layout.series):
            found = self._manager.query_range(series.name, target=TARGET, tags=series.tags)
            exact = [one for one in found if one.series == series]
            expected = np.ascontiguousarray(scrapes.values[:, column]).view(np.uint64)
            if len(exact) != 1 or len(exact[0].values) != len(expected):
                wrong += len(expected)
                continue
            same = exact[0].values.view(np.uint64) == expected
            wrong += int(np.count_nonzero(~(same & (exact[0].timestamps_ms == scrapes.times_ms))))
        return wrong

    def raw(self, series: Series, start_ms: int, end_ms: int) -> int:
        found = self._manager.query_range(
            series.name, target=TARGET, tags=series.tags, start_time=start_ms / 1000, end_time=end_ms / 1000
        )
        return len(_rendered(found))

    def stepped(self, metric_name: str, series: Series | None, start_ms: int, end_ms: int, step_ms: int) -> int:
        found = self._manager.query_range(
            metric_name,
            target=TARGET,
            tags=None if series is None else series.tags,
            start_time=start_ms / 1000,
            end_time=end_ms / 1000,
            step_seconds=step_ms / 1000,
            aggregation="last",
        )
        return len(_rendered(found))

    def stop(self) -> None:
        self._manager.close()


def _rendered(found: list[SeriesData]) -> str:
    """The answer as the peers' HTTP interface words it."""
    series = []
    for one in found:
        metric = json.dumps(dict(one.tags, __name__=one.series.name))
        series.append(f'{{"metric":{metric},"values":[{_points(one.timestamps_ms, one.values)}]}}')
    return f'{{"status":"success","data":{{"resultType":"matrix","result":[{",".join(series)}]}}}}'


_MILLISECONDS = [f".{number:03d}" if number else "" for number in range(1000)]


def _points(times_ms: NDArray[np.int64], values: NDArray[np.float64]) -> str:
    """Seconds and values; one formatting is faster than a thousand, and whole numbers faster than others."""
    seconds, milliseconds = np.divmod(times_ms, 1000)
    whole = values.astype(np.int64) if bool((np.abs(values) < 2**53).all()) else None
    is_whole = whole is not None and bool((whole == values).all())
    columns = [seconds.tolist(), (whole if whole is not None and is_whole else values).tolist()]
    point = '[%d,"%d"],' if is_whole else '[%d,"%r"],'
    if milliseconds.any():
        columns.insert(1, [_MILLISECONDS[number] for number in milliseconds.tolist()])
        point = point.replace(",", "%s,", 1)
    flat: list[Any] = [None] * (len(columns) * len(values))
    for place, column in enumerate(columns):
        flat[place :: len(columns)] = column
    text: str = point * len(values) % tuple(flat)
    return text[:-1].replace("nan", "NaN").replace("inf", "+Inf").replace("-+", "-")


def recording_figures(figures: Figures, recorded: Scrapes, generated: Scrapes) -> None:
    """The recording through the store; and is what we generate really harder than it?"""
    with tempfile.TemporaryDirectory() as folder:
        store = OurStore(Path(folder) / "store")
        store.write(recorded)
        store.seal()
        figures.add(
            "storage.bytes_per_sample.recording", store.block_bytes() / recorded.values.size, "bytes per sample, blocks"
        )
        assert store.wrong_samples(recorded) == 0
        store.stop()
    alike = generated.first(len(recorded.times_ms))
    for coder, code in (("codec", _codec_bytes), ("plain_deltas", _plain_bytes)):
        for name, scrapes in (("recording", recorded), ("generated", alike)):
            figures.add(f"storage.harder.{name}_{coder}", code(scrapes) / scrapes.values.size, "bytes per sample")
        assert code(alike) > code(recorded), "the generated data are easier than the real ones"


def _codec_bytes(scrapes: Scrapes) -> int:
    bits = np.ascontiguousarray(scrapes.values).view(np.uint64)
    return len(encode_block(scrapes.times_ms, np.arange(len(bits)), bits, scrapes.layout.series))


def _plain_bytes(scrapes: Scrapes) -> int:
    """A coder that knows nothing: differences of the bits, series by series, in byte planes."""
    bits = np.ascontiguousarray(scrapes.values.T).view(np.int64)
    moves = np.diff(bits, axis=1, prepend=0)
    return len(zlib.compress(np.ascontiguousarray(moves.view(np.uint8).reshape(-1, 8).T).tobytes(), 6))


def codec_figures(figures: Figures, day: Scrapes) -> None:
    """Blocks alone, without a store around them."""
    for method, rows in ((BlockMethod.ZLIB, SCRAPES_PER_BLOCK), (BlockMethod.LZMA, SCRAPES_PER_COLD_BLOCK)):
        encoded = samples = 0
        encoding = decoding = 0.0
        for start in range(0, len(day.times_ms) - rows + 1, rows * 4):
            bits = np.ascontiguousarray(day.values[start : start + rows]).view(np.uint64)
            times_ms, sequences = day.times_ms[start : start + rows], np.arange(start, start + rows)
            began = time.process_time()
            payload = encode_block(times_ms, sequences, bits, day.layout.series, method=method)
            between = time.process_time()
            decoded = block_reader(payload).columns(range(bits.shape[1]))
            decoding += time.process_time() - between
            encoding += between - began
            assert np.array_equal(decoded, bits)
            encoded += len(payload)
            samples += bits.size
        name = f"storage.codec.{method.name.lower()}"
        figures.add(f"{name}_bytes_per_sample", encoded / samples, f"bytes per sample, {rows} scrapes")
        figures.add(f"{name}_encode_samples_per_cpu_second", samples / encoding, "samples per CPU second")
        figures.add(f"{name}_decode_samples_per_cpu_second", samples / decoding, "samples per CPU second")


def our_figures(figures: Figures, day: Scrapes, suffix: str, *, all_figures: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = OurStore(Path(folder) / "store")
        if all_figures:
            ingest_figures(figures, store, day)
        else:
            store.write(day)
        store.seal()
        size = day.values.size
        figures.add(f"storage.bytes_per_sample.sealed{suffix}", store.file_bytes() / size, "bytes per sample, file")
        figures.add(f"storage.bytes_per_sample.sealed_blocks{suffix}", store.block_bytes() / size, "bytes per sample")
        wrong = 0
        if all_figures:
            query_figures(figures, store, day)
            wrong += store.wrong_samples(day)
        store.make_cold()
        figures.add(f"storage.bytes_per_sample.cold{suffix}", store.file_bytes() / size, "bytes per sample, file")
        figures.add(f"storage.bytes_per_sample.cold_blocks{suffix}", store.block_bytes() / size, "bytes per sample")
        wrong += store.wrong_samples(day)
        figures.add(f"storage.bit_exact{suffix}", float(wrong == 0), f"1 is yes; {wrong} samples differ")
        if all_figures:
            query_figures(figures, store, day, "_cold")
        store.stop()


def ingest_figures(figures: Figures, store: OurStore, day: Scrapes) -> None:
    """From the text of pages to sealed blocks, as a running monitor does it: its writer commits in groups.

    The CPU seconds are those of this process, all threads; making the text is not counted.
    """
    parser = PageParser()
    committing = sealing = 0.0
    for part in parts_of(day):
        pages, times = part.pages(), part.times_ms.tolist()
        gc.collect()
        began = time.process_time()
        store.write_pages(pages, times, parser)
        between = time.process_time()
        store.seal_what_is_due()
        sealing += time.process_time() - between
        committing += between - began
    unit = "samples per CPU second"
    size = day.values.size
    figures.add("storage.ingest_samples_per_cpu_second", size / committing, f"{unit}, text to committed, in groups")
    figures.add(
        "storage.ingest_sealed_samples_per_cpu_second", size / (committing + sealing), f"{unit}, text to sealed"
    )
    figures.add("storage.seal_samples_per_cpu_second", size / sealing, f"{unit}, rows to blocks and roll-ups")
    with tempfile.TemporaryDirectory() as folder:
        own = OurStore(Path(folder) / "store", synchronous=True)
        part = next(parts_of(day))
        pages, times = part.pages(), part.times_ms.tolist()
        parser.parse(pages[0])
        gc.collect()
        began = time.process_time()
        own.write_pages(pages, times, parser, scrapes_per_commit=1)
        rate = part.values.size / (time.process_time() - began)
        own.stop()
    figures.add("storage.ingest_commit_each_samples_per_cpu_second", rate, f"{unit}, a commit per scrape")


def parts_of(day: Scrapes) -> Iterator[Scrapes]:
    """Blocks of it, one after the other: the text of a whole day would fill the memory."""
    for start in range(0, len(day.times_ms), PAGES_AT_A_TIME):
        rows = slice(start, start + PAGES_AT_A_TIME)
        yield dataclasses.replace(day, times_ms=day.times_ms[rows], values=day.values[rows])


def query_figures(figures: Figures, store: OurStore | Peer, day: Scrapes, suffix: str = "") -> None:
    """Medians; those of a peer less its answer to a question that finds nothing."""
    end = int(day.times_ms[-1])
    series = next(one for one in day.layout.series if one.name == ONE_SERIES)
    empty = 0.0
    if store.name in {"prometheus", "victoria_metrics"}:
        empty = median_ms(lambda: store.stepped("no_such_metric", None, end - HOUR_MS, end, HOUR_MS // POINTS))
        figures.add("storage.query_ms.empty", empty, "ms", store.name)
    hours = (day.times_ms[-1] - day.times_ms[0]) / HOUR_MS
    questions: list[tuple[str, float, str, Callable[[], int]]] = [
        ("series_1h", 1, "ms", lambda: store.raw(series, end - HOUR_MS, end)),
        (
            "series_24h_300",
            23.9,
            "ms, 300 points",
            lambda: store.stepped(ONE_SERIES, series, end - 24 * HOUR_MS, end, 24 * HOUR_MS // POINTS),
        ),
        (
            "series20_6h",
            5.9,
            "ms",
            lambda: store.stepped(TWENTY_SERIES, None, end - 6 * HOUR_MS, end, 6 * HOUR_MS // POINTS),
        ),
    ]
    for name, needs_hours, unit, question in questions:
        if hours >= needs_hours:
            if isinstance(store, OurStore):  # with nothing read before; answers of the peers are warm as well
                store.open_again()
                began = time.perf_counter()
                question()
                first_ms = (time.perf_counter() - began) * 1e3
                figures.add(f"storage.query_ms.{name}{suffix}.first", first_ms, "ms, the first after opening")
            figures.add(f"storage.query_ms.{name}{suffix}", median_ms(question) - empty, unit, store.name)


def median_ms(question: Callable[[], int]) -> float:
    question()
    took = []
    for _ in range(21):
        began = time.perf_counter()
        assert question() > 0
        took.append(time.perf_counter() - began)
    return statistics.median(took) * 1e3


def peer_figures(figures: Figures, peer: Peer, day: Scrapes, suffix: str, *, all_figures: bool) -> None:
    before = peer.cpu_seconds()
    peer.write(day)
    peer.finish()
    rate = day.values.size / (peer.cpu_seconds() - before)
    figures.add(f"storage.bytes_per_sample.sealed{suffix}", peer.data_bytes() / day.values.size, "bytes", peer.name)
    if all_figures:
        figures.add("storage.ingest_samples_per_cpu_second", rate, "samples per CPU second, values alone", peer.name)
        query_figures(figures, peer, day)


@contextlib.contextmanager
def running(kind: Callable[[Path], Peer]) -> Iterator[Peer]:
    with tempfile.TemporaryDirectory() as folder:
        peer = kind(Path(folder))
        try:
            yield peer
        finally:
            peer.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="no jittered data set, fewer rows for the row schema")
    parser.add_argument("--json", action="store_true", help="one line of JSON per figure")
    options = parser.parse_args()
    figures = Figures(options.json)
    recorded = load_recording(recording_path())
    # The peers refuse what is far in the future, so the day ends an hour ago.
    ends_ms = (int(time.time()) // 3600 - 1) * HOUR_MS
    starts_ms = ends_ms - round(DAY_SCRAPES * STEP_SECONDS * 1000)
    recorded_at_end = dataclasses.replace(recorded, times_ms=recorded.times_ms - recorded.times_ms[0] + starts_ms)
    day = DayGenerator(recorded_at_end, SEED, STEP_SECONDS).make(DAY_SCRAPES)

    recording_figures(figures, recorded_at_end, day)
    codec_figures(figures, day)
    our_figures(figures, day, "", all_figures=True)
    with running(RowSchema) as rows:
        peer_figures(figures, rows, day.first(1800 if options.quick else 10_801), "", all_figures=True)
    for kind in installed_peers():
        with running(kind) as peer:
            peer_figures(figures, peer, day, "", all_figures=True)
    if not options.quick:
        jittered = DayGenerator(recorded_at_end, SEED, STEP_SECONDS, JITTER_MS).make(DAY_SCRAPES)
        our_figures(figures, jittered, "_jittered", all_figures=False)
        for kind in installed_peers():
            with running(kind) as peer:
                peer_figures(figures, peer, jittered, "_jittered", all_figures=False)


if __name__ == "__main__":
    main()
