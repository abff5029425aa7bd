"""Several processes on one store: who sees what, who watches what, and forks."""

from __future__ import annotations

import subprocess
import sys
import threading
from array import array
from collections.abc import Callable
from pathlib import Path

from vllm_monitor.persistence import PersistenceConfig, PersistenceManager
from vllm_monitor.records import Event, Layout, Series

OpenStore = Callable[..., PersistenceManager]
PAGE = Layout([Series("a_total"), Series("b_total")])


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
