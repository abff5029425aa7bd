"""Several processes, and processes that die."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
import threading
import time
from array import array
from collections.abc import Callable
from pathlib import Path

import pytest

from vllm_monitor.clock import make_random
from vllm_monitor.persistence import PersistenceConfig, PersistenceManager
from vllm_monitor.records import Event, Layout, Series

OpenStore = Callable[..., PersistenceManager]
PAGE = Layout([Series("a_total"), Series("b_total")])

VICTIM = """
import os, sys, time
from array import array
from pathlib import Path
from vllm_monitor.persistence import PersistenceConfig, PersistenceManager
from vllm_monitor.records import Event, Layout, Series

folder, label = Path(sys.argv[1]), sys.argv[2]
store = PersistenceManager(PersistenceConfig(storage_dir=folder))
page = Layout([Series("a_total"), Series("b_total")])
number = 0
while True:
    number += 1
    store.save_scrape(page, array("d", [number, -number]), timestamp=number, target=label)
    store.save_metric("custom", "mine", number, timestamp=number, target=label)
    if number % 20 == 0:
        store.save_event(Event(timestamp=number, event_type="acknowledged", message="m", target=label))
        os.write(1, f"E {number} {time.time()}\\n".encode())
    os.write(1, f"S {number} {time.time()}\\n".encode())
    time.sleep(0.002)
"""

CROWD = """
import sys, threading
from array import array
from pathlib import Path
from vllm_monitor.persistence import PersistenceConfig, PersistenceManager
from vllm_monitor.records import Event, Layout, Series

folder, label, threads, count = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
store = PersistenceManager(PersistenceConfig(storage_dir=folder, durable_timeout_seconds=30))
page = Layout([Series("a_total"), Series("b_total")])

def work(thread):
    target = f"{label}-{thread}"
    for number in range(count):
        store.save_scrape(page, array("d", [number, -number]), timestamp=number, target=target)
        store.save_metric("custom", "mine", number, {"thread": str(thread)}, timestamp=number, target="shared")
        if number % 50 == 0:
            store.save_event(Event(timestamp=number, event_type="e", message="m", target=target))

workers = [threading.Thread(target=work, args=(thread,)) for thread in range(threads)]
for worker in workers:
    worker.start()
for worker in workers:
    worker.join()
health = store.health()
store.close()
print(health.dropped, health.not_durable, repr(store.health().message))
"""


def start(program: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def kill_and_check(folder: Path, label: str, seconds: float) -> None:
    victim = start(VICTIM, folder, label)
    assert victim.stdout is not None
    first = victim.stdout.readline()  # it runs
    time.sleep(seconds)
    victim.send_signal(signal.SIGKILL)
    killed_at = time.time()
    output, _ = victim.communicate()
    lines = [line.split() for line in (first + output).splitlines()]
    complete = [line for line in lines if len(line) == 3]
    acknowledged = {int(number) for kind, number, _ in complete if kind == "E"}
    old = {int(number) for kind, number, at in complete if kind == "S" and float(at) < killed_at - 1}

    with PersistenceManager(PersistenceConfig(storage_dir=folder)) as store:
        assert store.health().ok
        events = {int(event.timestamp) for event in store.get_events(target=label, limit=None)}
        assert acknowledged <= events
        for name in ("a_total", "mine"):
            found = store.query_range(name, target=label)
            numbers = found[0].values.tolist() if found else []
            assert old <= set(numbers)
            assert numbers == list(range(1, len(numbers) + 1))  # in order, none twice, none missing inside
        assert store.health().damaged_rows == 0
    connection = sqlite3.connect(folder / "monitor.db")
    assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()


def test_kill_9_loses_nothing_older_than_a_second(tmp_path: Path) -> None:
    random = make_random(None)
    for attempt in range(3):
        kill_and_check(tmp_path / "store", f"victim-{attempt}", 0.3 + random.random())


@pytest.mark.slow
def test_kill_9_at_forty_random_moments(tmp_path: Path) -> None:
    random = make_random(None)
    for attempt in range(40):
        kill_and_check(tmp_path / "store", f"victim-{attempt}", 2.5 * random.random() ** 2)


def crowd(folder: Path, processes: int, threads: int, count: int) -> None:
    running = [start(CROWD, folder, f"p{number}", threads, count) for number in range(processes)]
    for process in running:
        output, errors = process.communicate(timeout=240)
        assert (process.returncode, output.strip(), errors) == (0, "{} 0 ''", "")
    with PersistenceManager(PersistenceConfig(storage_dir=folder)) as store:
        for process_number in range(processes):
            for thread in range(threads):
                target = f"p{process_number}-{thread}"
                series = store.query_range(None, target=target)
                assert [one.values.tolist() for one in series] == [
                    list(range(count)),
                    [-number for number in range(count)],
                ]
                assert len(store.get_events(target=target, limit=None)) == (count + 49) // 50
        shared = store.query_range("mine", target="shared")
        assert len(shared) == threads
        assert all(one.values.tolist() == sorted(list(range(count)) * processes) for one in shared)
        assert store.health().ok


def test_two_processes_write_at_once(tmp_path: Path) -> None:
    crowd(tmp_path / "store", processes=2, threads=3, count=200)


@pytest.mark.slow
def test_four_processes_of_eight_threads(tmp_path: Path) -> None:
    crowd(tmp_path / "store", processes=4, threads=8, count=2000)


def test_readers_beside_writers_see_each_sample_once(open_store: OpenStore) -> None:
    store = open_store()
    done = threading.Event()
    faults: list[object] = []

    def read() -> None:
        seen = 0
        while not done.is_set():
            for name in ("a_total", "mine"):
                series = store.query_range(name, target="t")
                numbers = series[0].values.tolist() if series else []
                if numbers != list(range(len(numbers))) or (name == "a_total" and len(numbers) < seen):
                    faults.append(numbers)
                if name == "a_total":
                    seen = len(numbers)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for number in range(600):
        store.save_scrape(PAGE, array("d", [number, 0]), timestamp=number, target="t")
        store.save_metric("custom", "mine", number, timestamp=number, target="t")
        if number % 10 == 0:
            store.save_event(Event(timestamp=number, event_type="e", message="m"))
    done.set()
    for reader in readers:
        reader.join()
    assert not faults


def test_one_process_sees_what_another_stores(open_store: OpenStore, tmp_path: Path) -> None:
    watcher = open_store()
    writer = PersistenceManager(PersistenceConfig(storage_dir=tmp_path / "store"))
    for number in range(3):
        writer.save_scrape(PAGE, array("d", [number, 0]), timestamp=number, target="t")
        writer.flush_all()
        assert watcher.latest(target="t")[0]["value"] == number
        assert len(watcher.get_metrics(metric_name="a_total")) == number + 1
    watcher.save_scrape(PAGE, array("d", [7, 0]), timestamp=1.5, target="t")  # saving needs no lease
    watcher.flush_all()
    assert writer.query_range("a_total")[0].values.tolist() == [0, 1, 7, 2]
    writer.close()


HOLDER = """
import sys, time
from pathlib import Path
from vllm_monitor.persistence import PersistenceConfig, PersistenceManager
store = PersistenceManager(PersistenceConfig(storage_dir=Path(sys.argv[1])))
print(store.acquire_lease("http://t"), flush=True)
sys.stdin.readline()
"""


def test_one_process_watches_a_target(open_store: OpenStore, tmp_path: Path) -> None:
    store = open_store()
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "store")],
        stdout=subprocess.PIPE,
        stdin=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "True\n"
    assert not store.acquire_lease("http://t")
    assert store.acquire_lease("http://u")
    holder.kill()
    holder.communicate()
    assert store.acquire_lease("http://t")
    assert store.acquire_lease("http://t")
    other = open_store()
    assert not other.acquire_lease("http://t")
    store.release_lease("http://t")
    store.release_lease("http://t")
    assert other.acquire_lease("http://t")
    store.close()
    assert other.acquire_lease("http://u")


FORKER = """
import os, signal, sys, time
from array import array
from pathlib import Path
from vllm_monitor.persistence import PersistenceConfig, PersistenceManager
from vllm_monitor.records import Event, Layout, Series

store = PersistenceManager(PersistenceConfig(storage_dir=Path(sys.argv[1])))
page = Layout([Series("a_total")])
assert store.acquire_lease("t")
for number in range(500):
    store.save_scrape(page, array("d", [number]), timestamp=number, target="parent")
    store.save_metric("custom", "before", number, target="parent", timestamp=number)
child = os.fork()
if child == 0:
    for number in range(300):
        store.save_metric("custom", "after", number, target="child", timestamp=number)
        store.save_scrape(page, array("d", [number]), timestamp=number, target="child")
    store.save_event(Event(timestamp=1, event_type="child", message="m"))
    assert len(store.query_range("after", target="child")[0]) == 300
    assert not store.acquire_lease("t")
    sys.exit(0)
quiet = os.fork()
if quiet == 0:
    sys.exit(0)
store.save_event(Event(timestamp=2, event_type="parent", message="m"))
assert os.waitpid(child, 0)[1] == 0
assert os.waitpid(quiet, 0)[1] == 0
store.save_event(Event(timestamp=3, event_type="parent", message="m"))
"""


def test_a_forked_child_leaves_the_parent_s_store_alone(open_store: OpenStore, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORKER, str(tmp_path / "store")],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    store = open_store()
    assert store.query_range("a_total", target="parent")[0].values.tolist() == list(range(500))
    assert store.query_range("before")[0].values.tolist() == list(range(500))
    assert store.query_range("after")[0].values.tolist() == list(range(300))
    assert store.query_range("a_total", target="child")[0].values.tolist() == list(range(300))
    assert [event.event_type for event in store.get_events()] == ["parent", "parent", "child"]
