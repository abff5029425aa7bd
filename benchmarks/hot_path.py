"""The hot path: from the text of a page to a stored row, alone and for a hundred targets at once.

``python benchmarks/hot_path.py [--quick] [--json]``
"""

from __future__ import annotations

import argparse
import contextlib
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from vllm_monitor.collectors import PageParser
from vllm_monitor.core import MonitorConfig, VLLMMonitor
from vllm_monitor.persistence import PersistenceConfig, PersistenceManager
from vllm_monitor.simulator import Simulator

SERIES = 400
TARGETS = 100
SAVING_RUNS = 5


class Figures:
    """Collects figures and prints them, as text or as lines of JSON."""

    def __init__(self, as_json: bool) -> None:
        self._as_json = as_json

    def add(self, figure: str, value: float, unit: str, peer: str | None = None) -> None:
        if self._as_json:
            print(json.dumps({"figure": figure, "value": value, "unit": unit, "peer": peer}), flush=True)
        else:
            print(f"{figure:38} {peer or 'vllm-monitor':18} {value:14.4g} {unit}", flush=True)


def pages(count: int) -> list[bytes]:
    """Consecutive pages of a simulated server under load, of at least 400 series."""
    simulator = Simulator(seed=1)
    simulator.advance(60.0)
    found = []
    for _ in range(count):
        simulator.advance(1.0)
        found.append(simulator.page().encode())
    return found


def process_seconds(work: Callable[[], None]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def best_of(rounds: int, work: Callable[[], None]) -> float:
    return min(process_seconds(work) for _ in range(rounds))


def tick_ms(figures: Figures, texts: list[bytes], rounds: int) -> None:
    """Text to stored, with the writer's commit, beside the same with a general parser."""
    series = len(PageParser().parse(texts[0]).values)
    decoded = [text.decode() for text in texts]

    def ours() -> None:
        with tempfile.TemporaryDirectory() as folder:
            store = PersistenceManager(PersistenceConfig(storage_dir=Path(folder) / "store"))
            parser = PageParser()
            for second, text in enumerate(texts):
                page = parser.parse(text)
                store.save_scrape(page.layout, page.values, timestamp=1e9 + second, target="http://bench")
                store.flush_all()
            store.close()

    def general() -> None:
        for text in decoded:
            for family in text_string_to_metric_families(text):
                for _sample in family.samples:
                    pass

    # Opening and closing a store is no part of a tick: measured apart and taken off.
    def nothing() -> None:
        with tempfile.TemporaryDirectory() as folder:
            PersistenceManager(PersistenceConfig(storage_dir=Path(folder) / "store")).close()

    nothing()
    fixed = best_of(rounds, nothing)
    scale = SERIES / series
    figures.add("hot_path.tick_ms", (best_of(rounds, ours) - fixed) / len(texts) * 1e3 * scale, "ms CPU")
    figures.add(
        "hot_path.tick_ms",
        best_of(rounds, general) / len(texts) * 1e3 * scale,
        "ms CPU, parsing alone",
        "general_parser",
    )


def save_metric(figures: Figures, count: int) -> None:
    """One sample into the queue while the writer is busy; the slowest calls also with a disk that is."""
    with tempfile.TemporaryDirectory() as folder:
        store = PersistenceManager(PersistenceConfig(storage_dir=Path(folder) / "store"))
        tags = {"engine": "0", "model": "m"}
        medians = []
        for _ in range(SAVING_RUNS):
            took = []
            for _ in range(count // SAVING_RUNS // 100):
                began = time.perf_counter_ns()
                for value in range(100):
                    store.save_metric("custom", "bench_value", value, tags)
                took.append((time.perf_counter_ns() - began) / 100)
            store.flush_all()
            medians.append(statistics.median(took))
        single = []
        with busy_disk(Path(folder) / "busy"):
            for value in range(count // 10):
                began = time.perf_counter_ns()
                store.save_metric("custom", "bench_value", value, tags)
                single.append(time.perf_counter_ns() - began)
        store.close()
    single.sort()
    figures.add("hot_path.save_metric_us", min(medians) / 1e3, "us, median, best of five runs")
    figures.add("hot_path.save_metric_p999_us", single[int(len(single) * 0.999)] / 1e3, "us, p99.9, disk busy")


@contextlib.contextmanager
def busy_disk(path: Path) -> Iterator[None]:
    """Another process writes a mebibyte and waits until the disk has it, again and again."""
    source = """
import os, sys
file = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT)
data = os.urandom(1 << 20)
print("begun", flush=True)
while True:
    os.pwrite(file, data, 0)
    os.fsync(file)
"""
    process = subprocess.Popen([sys.executable, "-c", source, str(path)], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        yield
    finally:
        process.kill()
        process.wait()


class PageServer:
    """A hundred servers in another process: one port, one path prefix per target."""

    SOURCE = """
import asyncio, sys
pages = open(sys.argv[1], 'rb').read().split(b'\\x00')
count = 0
async def serve(reader, writer):
    global count
    try:
        while True:
            request = await reader.readuntil(b'\\r\\n\\r\\n')
            path = request.split(b' ', 2)[1]
            if path.endswith(b'/metrics'):
                count += 1
                body = pages[(count // 100) % len(pages)]
            elif path.endswith(b'/version'):
                body = b'{"version": "0.32.0"}'
            else:
                body = b'{}'
            head = b'HTTP/1.1 200 OK\\r\\nContent-Type: text/plain\\r\\nContent-Length: %d\\r\\n\\r\\n'
            writer.write(head % len(body))
            writer.write(body)
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()
async def main():
    servers = [await asyncio.start_server(serve, '127.0.0.1', 0) for _ in range(int(sys.argv[2]))]
    print(' '.join(str(s.sockets[0].getsockname()[1]) for s in servers), flush=True)
    await asyncio.sleep(3600)
asyncio.run(main())
"""

    def __init__(self, texts: list[bytes], count: int) -> None:
        self._file = tempfile.NamedTemporaryFile()  # noqa: SIM115  # closed by __exit__
        self._file.write(b"\x00".join(texts))
        self._file.flush()
        self._process = subprocess.Popen(
            [sys.executable, "-c", self.SOURCE, self._file.name, str(count)], stdout=subprocess.PIPE, text=True
        )

    def __enter__(self) -> list[str]:
        assert self._process.stdout is not None
        ports = self._process.stdout.readline().split()
        return [f"http://127.0.0.1:{port}" for port in ports]

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        self._file.close()


def hundred_targets(figures: Figures, texts: list[bytes], seconds: float) -> None:
    """A hundred targets at 1 s in one process, fetch included."""
    with PageServer(texts, TARGETS) as urls, tempfile.TemporaryDirectory() as folder:
        monitor = VLLMMonitor(
            MonitorConfig(interval_seconds=1.0),
            persistence_config=PersistenceConfig(storage_dir=Path(folder) / "store"),
        )
        ticks = 0

        def count(_: object) -> None:
            nonlocal ticks
            ticks += 1

        monitor.add_listener(count)
        for url in urls:
            monitor.add_target(url)
        monitor.start()
        time.sleep(10.0)  # connections, layouts and caches are made once
        ticks_before, cpu_before, began = ticks, time.process_time(), time.monotonic()
        time.sleep(seconds)
        elapsed = time.monotonic() - began
        ratio = (time.process_time() - cpu_before) / elapsed
        rate = (ticks - ticks_before) / elapsed
        monitor.close()
    figures.add("hot_path.targets_100_cpu_ratio", ratio, "cores")
    figures.add("hot_path.targets_100_ticks_per_second", rate, "ticks per second, of 100")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    figures.add("hot_path.targets_100_rss_bytes", peak, "bytes at the peak")


def import_cost(figures: Figures) -> None:
    """What ``import vllm_monitor`` costs, beside numpy and pydantic."""

    def median_ms(statement: str) -> float:
        code = f"import time; b=time.process_time(); {statement}; print(time.process_time()-b)"
        runs = [
            float(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout)
            for _ in range(7)
        ]
        return statistics.median(runs) * 1e3

    figures.add("import.vllm_monitor_ms", median_ms("import vllm_monitor"), "ms CPU")
    figures.add("import.vllm_monitor_ms", median_ms("import numpy, pydantic"), "ms CPU", "numpy_and_pydantic")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds: under two minutes")
    parser.add_argument("--json", action="store_true", help="one line of JSON per figure")
    options = parser.parse_args()
    figures = Figures(options.json)
    texts = pages(120)
    tick_ms(figures, texts, rounds=3 if options.quick else 5)
    save_metric(figures, count=100_000 if options.quick else 1_000_000)
    hundred_targets(figures, texts, seconds=20.0 if options.quick else 60.0)
    import_cost(figures)


if __name__ == "__main__":
    main()
