"""Forks: parent and child share a store as two processes do, or the child says that it cannot."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from vllm_monitor.persistence import PersistenceConfig, PersistenceManager, StorageBackend
from vllm_monitor.persistence.damage.check import check_store

COMMON = """
import logging, os, sys, threading, time
from pathlib import Path
from vllm_monitor.errors import StoreUnavailableError
from vllm_monitor.persistence import PersistenceConfig, PersistenceManager
from vllm_monitor.records import Event

logging.disable(logging.CRITICAL)
config = PersistenceConfig(storage_dir=Path(sys.argv[1]), backend=sys.argv[2], durable_timeout_seconds=5)
store = PersistenceManager(config)

def save(name, number=5):
    ids = [f"{name}-{at}" for at in range(number)]
    for one in ids:
        store.save_event(Event(timestamp=time.time(), event_type=name, message="y" * 999, event_id=one))
    return all(store.is_durable(one) for one in ids)

def fork(work):
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        except BaseException:
            import traceback
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)
    return child

def wait_for(child):
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

def signal(pipe):
    os.write(pipe[1], b"x")

def wait(pipe):
    os.read(pipe[0], 1)
"""

PARENT_CLOSES = (
    COMMON
    + """
saved, closed, second = os.pipe(), os.pipe(), os.pipe()
assert save("parent")

def child():
    assert save("early")
    signal(saved)
    wait(closed)
    for number in range(20):
        assert save(f"late{number}")
    if "other" in sys.argv:
        wait(second)
        assert save("last")
    assert store.health().ok, store.health()
    store.close()

other = fork(child)
wait(saved)
store.close()
if "other" in sys.argv:
    log = store.config.db_path.with_name("monitor.db-wal")
    with PersistenceManager(config) as store:
        signal(closed)
        for number in range(20):
            assert save(f"second{number}")
    assert log.exists()  # the child uses it
    signal(second)
else:
    signal(closed)
wait_for(other)
"""
)

BUSY_PARENT = (
    COMMON
    + """
is_over = threading.Event()

def work(name):
    number = 0
    while not is_over.wait(0.001):
        number += 1
        store.save_metric("custom", "n", float(number), {"by": name})
        if number % 3 == 0:
            assert save(f"{name}.{number}", 1)
        if number % 7 == 0:
            assert store.get_events(limit=3)
        if number % 11 == 0:
            store.run_maintenance(seal_all=True)

assert save("first")
threads = [threading.Thread(target=work, args=(name,)) for name in "abc"]
[thread.start() for thread in threads]
for number in range(8):
    def child():
        assert save(f"child{number}")
        assert len(store.get_events(event_type=f"child{number}")) == 5
        store.close()
    time.sleep(0.02)
    wait_for(fork(child))
is_over.set()
[thread.join() for thread in threads]
assert store.health().ok, store.health()
store.close()
"""
)

DAEMON = (
    COMMON
    + """
for number in range(100):
    store.save_metric("custom", "before", float(number), timestamp=number)
if os.fork():
    os._exit(0)
os.setsid()
if os.fork():
    os._exit(0)
save("daemon")
while not store.flush_all():  # a JSON store is ours as soon as the process that opened it has ended
    time.sleep(0.05)
assert store.health().ok, store.health()
sys.exit(0)
"""
)

READING = (
    COMMON
    + """
assert save("before")
seen = []

def child():
    began = time.monotonic()
    health = store.health()
    assert not health.ok and health.degraded and "forked" in health.message and "exec" in health.hint, health
    assert not save("child", 1)
    assert not store.health().ok
    try:
        store.export_data(sys.argv[1] + "-again")
        raise AssertionError("exported")
    except StoreUnavailableError:
        pass
    store.close()
    assert time.monotonic() - began < 20

def forks(done, total, what):
    if not seen:
        seen.append(1)
        wait_for(fork(child))

store.export_data(sys.argv[1] + "-archive", progress=forks)
assert seen
assert save("after")
if sys.argv[2] != "json":
    wait_for(fork(lambda: save("next") or sys.exit(3)))
"""
)

OWNED = (
    COMMON
    + """
assert save("parent")
asked, closed = os.pipe(), os.pipe()

def child():
    assert not save("early", 1)
    health = store.health()
    assert not health.ok and f"open in process {os.getppid()}" in health.message, health
    signal(asked)
    wait(closed)
    assert store.flush_all()
    assert save("late") and store.health().ok
    store.close()

other = fork(child)
wait(asked)
assert save("goes on")
store.close()
signal(closed)
wait_for(other)
"""
)


def events_after(program: str, folder: Path, backend: str, *more: str) -> dict[str, int]:
    """Run a program on a store; how many events of each type the store then has, which must be intact."""
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", program, str(folder), backend, *more]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    config = PersistenceConfig(storage_dir=folder, backend=StorageBackend(backend))
    with PersistenceManager(config) as store:
        assert store.health().ok
        found = [event.event_type for event in store.get_events(limit=None)]
    report = check_store(config)
    assert report.ok, report.findings
    return {name: found.count(name) for name in found}


@pytest.mark.parametrize("backend", ["sqlite", pytest.param("hybrid", marks=pytest.mark.slow)])
def test_a_child_goes_on_when_its_parent_closes_and_another_works(tmp_path: Path, backend: str) -> None:
    found = events_after(PARENT_CLOSES, tmp_path / "store", backend, "other")
    assert len(found) == 43
    assert set(found.values()) == {5}


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["sqlite", "hybrid"])
def test_a_child_goes_on_alone(tmp_path: Path, backend: str) -> None:
    found = events_after(PARENT_CLOSES, tmp_path / "store", backend)
    assert len(found) == 22
    assert set(found.values()) == {5}


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["sqlite", "hybrid"])
def test_every_child_of_a_busy_parent_can_store(tmp_path: Path, backend: str) -> None:
    found = events_after(BUSY_PARENT, tmp_path / "store", backend)
    assert [found[f"child{number}"] for number in range(8)] == [5] * 8


SQLITE_FIRST = [
    pytest.param("sqlite"),
    pytest.param("hybrid", marks=pytest.mark.slow),
    pytest.param("json", marks=pytest.mark.slow),
]


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["sqlite", "hybrid", "json"])
def test_a_daemon_and_those_who_started_it_lose_nothing(tmp_path: Path, backend: str) -> None:
    assert events_after(DAEMON, tmp_path / "store", backend) == {"daemon": 5}
    with PersistenceManager(
        PersistenceConfig(storage_dir=tmp_path / "store", backend=StorageBackend(backend))
    ) as store:
        assert store.query_range("before")[0].values.tolist() == list(range(100))


@pytest.mark.parametrize("backend", SQLITE_FIRST)
def test_a_child_forked_while_the_store_is_read_says_that_it_cannot_store(tmp_path: Path, backend: str) -> None:
    more = {} if backend == "json" else {"next": 5}
    assert events_after(READING, tmp_path / "store", backend) == {"before": 5, "after": 5, **more}


@pytest.mark.slow
def test_a_child_is_refused_a_json_store_while_its_parent_has_it(tmp_path: Path) -> None:
    found = events_after(OWNED, tmp_path / "store", "json")
    assert found == {"parent": 5, "early": 1, "goes on": 5, "late": 5}
