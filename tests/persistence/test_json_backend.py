"""The JSON backend: lines that can be read, torn, damaged, and written anew."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vllm_monitor.clock import ManualClock
from vllm_monitor.errors import StoreTooNewError, StoreUnavailableError
from vllm_monitor.persistence import PersistenceConfig, PersistenceManager, StorageBackend
from vllm_monitor.persistence.json_backend.json_lines import encode_line, read_lines
from vllm_monitor.persistence.json_backend.json_store import JsonStore
from vllm_monitor.records import (
    Alert,
    AlertState,
    Event,
    Layout,
    LifecycleState,
    MetricKind,
    Series,
    StateCheckpoint,
)

OpenStore = Callable[..., PersistenceManager]
PAGE = Layout(
    [
        Series("a_total", (("engine", "0"),), MetricKind.COUNTER),
        Series("b", (("text", "Ü\n"),), MetricKind.GAUGE),
        Series("b", (("a", "1"), ("a", "2"))),
    ]
)
HOST = "http://127.0.0.1:8000"


def settings(folder: Path, **more: Any) -> PersistenceConfig:
    return PersistenceConfig(storage_dir=folder, backend=StorageBackend.JSON, **more)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "store"


def opened(folder: Path, **more: Any) -> PersistenceManager:
    return PersistenceManager(settings(folder, **more), synchronous=True)


def fill(store: PersistenceManager, scrapes: int = 5) -> None:
    for number in range(scrapes):
        store.save_scrape(PAGE, array("d", [number, -0.0, math.nan]), timestamp=100 + number, target=HOST)
        store.save_metric("custom", "queue", number, {"a": 1, "b": True}, {"who": Path("/p")}, timestamp=100 + number)
    store.save_event(Event(timestamp=1.0, event_type="first", message="m"))
    store.save_event(Event(timestamp=2.0, event_type="second", message="m"))


def seen(store: PersistenceManager) -> Any:
    """Everything in a form that compares by bits."""
    samples = [{**sample, "value": (type(sample["value"]), repr(sample["value"]))} for sample in store.get_metrics()]
    return samples, store.get_events(limit=None), store.get_checkpoints(limit=None)


def fields_in(path: Path) -> list[dict[str, Any]]:
    return [line.fields or {} for line in read_lines(path)]


def test_everything_is_there_after_reopening(folder: Path) -> None:
    with opened(folder) as store:
        fill(store)
        before = seen(store)
        identity = store.get_statistics()["store_id"]
    assert len(before[0]) == 20
    for _ in range(2):
        with opened(folder) as store:
            assert seen(store) == before
            assert store.health().ok
            assert store.get_statistics()["store_id"] == identity
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir() if path.is_file()} == {0o600}


def test_a_person_can_read_the_lines(folder: Path) -> None:
    with opened(folder) as store:
        store.save_checkpoint(
            StateCheckpoint(
                5.0, LifecycleState.READY, None, None, {"model": "Ünï"}, {"HOME": "/"}, {}, reason="it runs"
            )
        )
        store.save_scrape(PAGE, array("d", [1.5, math.inf, 0.1]), timestamp=7, target=HOST)
    (line,) = (folder / "checkpoints.jsonl").read_text().splitlines()
    assert '"state":"ready"' in line
    assert '"arguments":{"model":"Ünï"}' in line
    assert json.loads(line)["reason"] == "it runs"
    scrape = json.loads((folder / "samples.jsonl").read_text().splitlines()[-1])
    assert scrape["values"] == [1.5, "0x7ff0000000000000", 0.1]
    assert (scrape["target"], scrape["time_ms"]) == (HOST, 7000)


def test_saving_again_appends_a_line_and_the_last_one_counts(folder: Path) -> None:
    states = [AlertState.PENDING, AlertState.FIRING, AlertState.RESOLVED]
    with opened(folder) as store:
        for state in states:
            store.save_alert(Alert(timestamp=1.0, name="slow", state=state, alert_id="one"))
    assert [fields["state"] for fields in fields_in(folder / "alerts.jsonl")] == states
    with opened(folder) as store:
        assert [alert.state for alert in store.get_alerts()] == [AlertState.RESOLVED]


def test_happy_paths_are_a_document(folder: Path) -> None:
    ready = StateCheckpoint(1.0, LifecycleState.READY, None, None, {}, {}, {})
    with opened(folder) as store:
        for path_id in ("one", "two"):
            store.save_happy_path(path_id, "start", [ready], {"ttft": {"mean": 0.5}}, ["g"])
        store.update_happy_path_stats("two", success=True)
        before = store.get_happy_paths()
    document = json.loads((folder / "happy_paths.json").read_text())
    assert document["entries"]["two"]["success_count"] == 1
    assert document["entries"]["one"]["metrics_profile"] == {"ttft": {"mean": 0.5}}
    with opened(folder) as store:
        assert store.get_happy_paths() == before
        assert [path.success_count for path in before] == [1, 0]
    document["entries"]["one"] = {"name": 5}
    (folder / "happy_paths.json").write_text(json.dumps(document))
    with opened(folder) as store:
        assert [path.path_id for path in store.get_happy_paths()] == ["two"]
        assert not store.health().ok
    (folder / "happy_paths.json").write_text('{"version": 1, "entr')
    with opened(folder) as store:
        assert store.get_happy_paths() == []
    assert sum(1 for _ in folder.glob("happy_paths.json.damaged-*")) == 2


def tear(folder: Path, name: str, step: int) -> None:
    """Open the store with its last line of a file torn at every ``step``-th byte, and at the last one."""
    with opened(folder) as store:
        fill(store, scrapes=2)
        events = store.get_events()
    path = folder / name
    whole = path.read_bytes()
    start = whole[:-1].rindex(b"\n") + 1
    places = sorted({*range(start, len(whole), step), len(whole) - 1})
    for at in places:
        path.write_bytes(whole[:at])
        with opened(folder) as store:
            assert store.health().ok
            assert store.get_events() == (events if name != "events.jsonl" else events[1:])
            assert len(store.query_range("queue")[0]) == (2 if name != "samples.jsonl" else 1)
        rest = path.read_bytes()
        assert rest.startswith(whole[:start])
        assert all(line.fields is not None for line in read_lines(path))
    aside = path.with_name(f"{name}.torn").read_bytes()
    assert aside == b"".join(whole[start:at] for at in places)


@pytest.mark.parametrize("name", ["samples.jsonl", "events.jsonl"])
def test_a_torn_line_is_cut_off(folder: Path, name: str) -> None:
    tear(folder, name, step=67)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["samples.jsonl", "events.jsonl"])
def test_a_line_torn_at_many_bytes_is_cut_off(folder: Path, name: str) -> None:
    tear(folder, name, step=7)


def test_what_was_torn_can_be_gone_on_from(folder: Path) -> None:
    with opened(folder) as store:
        fill(store, scrapes=3)
    path = folder / "samples.jsonl"
    path.write_bytes(path.read_bytes()[:-7])
    with opened(folder) as store:
        assert len(store.query_range("queue")[0]) == 2
        assert store.health().ok
        fill(store, scrapes=3)
    with opened(folder) as store:
        assert len(store.query_range("queue")[0]) == 5
        assert store.query_range("a_total")[0].values.tolist() == [0, 0, 1, 1, 2, 2]


def kind_of(line: bytes) -> bytes:
    """What a line of samples holds: ``values`` of a scrape, one sample with ``tags``, or neither."""
    return next((field for field in (b"values", b"tags") if b'"%b":' % field in line), b"")


@pytest.mark.parametrize("name", ["samples.jsonl", "events.jsonl"])
def test_damaged_lines_are_set_aside_and_the_others_kept(folder: Path, name: str) -> None:
    with opened(folder) as store:
        fill(store)
        before = seen(store)
    path = folder / name
    lines = path.read_bytes().splitlines(keepends=True)
    for number in sorted({*range(min(3, len(lines))), len(lines) // 2, len(lines) - 1}):
        damaged = bytearray(lines[number])
        damaged[len(damaged) // 2] ^= 1
        path.write_bytes(b"".join([*lines[:number], bytes(damaged), *lines[number + 1 :]]))
        with opened(folder) as store:
            found = seen(store)
            (aside,) = folder.glob(f"{name}.damaged-*")
            assert bytes(damaged) in aside.read_bytes()
            assert [event.event_type for event in found[1]].count("store_quarantined") == 1
            assert str(aside) in store.health().quarantined
            assert aside.name in store.health().message
            assert "other lines are kept" in store.health().hint
            lost = len(before[0]) - len(found[0])
            assert lost == {b"values": 3, b"tags": 1}.get(kind_of(lines[number]), 0)
            assert len(found[1]) == len(before[1]) - (name == "events.jsonl") + 1
        assert all(line.fields is not None for line in read_lines(path))  # written anew, without it
        with opened(folder) as store:
            assert store.health().ok
        aside.unlink()
        (folder / "events.jsonl").unlink()
        path.write_bytes(b"".join(lines))
        if name != "events.jsonl":
            with opened(folder) as store:
                for event in before[1]:
                    store.save_event(event)


def test_a_lost_layout_comes_back_from_a_later_line(folder: Path) -> None:
    for _ in range(2):
        with opened(folder) as store:
            fill(store, scrapes=2)
    path = folder / "samples.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    definitions = [at for at, line in enumerate(lines) if b'"series"' in line]
    assert len(definitions) == 2
    lines[definitions[0]] = b"garbage\n"
    path.write_bytes(b"".join(lines))
    with opened(folder) as store:
        assert len(store.query_range("a_total")[0]) == 4


def test_opening_to_read_writes_no_line(folder: Path) -> None:
    with opened(folder) as store:
        fill(store)
    before = {path.name: path.read_bytes() for path in folder.glob("*.jsonl")}
    for _ in range(2):
        with opened(folder) as store:
            assert len(store.get_metrics()) == 20
    assert {path.name: path.read_bytes() for path in folder.glob("*.jsonl")} == before
    with opened(folder) as store:
        identity = store.get_statistics()["store_id"]
        store.save_event(Event(timestamp=3.0, event_type="third", message="m"))
    headers = [fields for fields in fields_in(folder / "samples.jsonl") if "store_id" in fields]
    assert [header["store_id"] for header in headers] == [identity] * len(headers)
    assert len(headers) == 2  # repeated with what was written


def test_garbage_everywhere_still_opens(folder: Path) -> None:
    with opened(folder) as store:
        fill(store)
    for path in folder.glob("*.jsonl"):
        path.write_bytes(os.urandom(5000))
    (folder / "index.db").write_bytes(os.urandom(5000))
    with opened(folder) as store:
        fill(store)
        assert len(store.get_metrics()) == 20


def test_lines_of_a_newer_version_are_refused_untouched(folder: Path) -> None:
    with opened(folder) as store:
        fill(store)
    path = folder / "samples.jsonl"
    first = fields_in(path)[0]
    path.write_bytes(encode_line({**first, "format": 2}))
    before = {file.name: file.read_bytes() for file in folder.iterdir() if file.suffix != ".lock" and file.is_file()}
    with pytest.raises(StoreTooNewError):
        opened(folder, required=True)
    assert before == {file.name: file.read_bytes() for file in folder.iterdir() if file.name in before}


def test_a_second_store_is_refused_until_the_first_ends(folder: Path) -> None:
    first = opened(folder)
    with pytest.raises(StoreUnavailableError, match=f"open in process {os.getpid()}"):
        opened(folder, required=True)
    second = opened(folder)
    assert second.health().degraded
    second.save_event(Event(timestamp=1.0, event_type="waits", message="m"))
    program = (
        "import sys; from pathlib import Path; from vllm_monitor.persistence import *\n"
        "PersistenceManager(PersistenceConfig(storage_dir=Path(sys.argv[1]), backend='json', required=True))"
    )
    done = subprocess.run([sys.executable, "-c", program, str(folder)], capture_output=True, text=True, check=False)
    assert "one process at a time" in done.stderr
    first.save_event(Event(timestamp=2.0, event_type="goes on", message="m"))
    first.close()
    assert second.flush_all()
    assert second.health().ok
    assert {event.event_type for event in second.get_events()} - {"store_recovered"} == {"waits", "goes on"}
    second.close()


FORKER = """
import os, sys
from pathlib import Path
from vllm_monitor.persistence import PersistenceConfig, PersistenceManager
from vllm_monitor.records import Event

config = PersistenceConfig(storage_dir=Path(sys.argv[1]), backend="json", required=True)
store = PersistenceManager(config)
read, write = os.pipe()
child = os.fork()
if child == 0:
    os.close(write)
    os.read(read, 1)
    os._exit(0)
store.save_event(Event(timestamp=1.0, event_type="parent", message="m"))
store.close()
with PersistenceManager(config) as again:  # although the child lives on
    print(len(again.get_events()))
os.write(write, b"x")
os.waitpid(child, 0)
"""


def test_a_forked_child_does_not_keep_the_store(folder: Path) -> None:
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORKER, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("1\n", "")


VICTIM = """
import os, sys, time
from array import array
from pathlib import Path
from vllm_monitor.persistence import PersistenceConfig, PersistenceManager
from vllm_monitor.records import Event, Layout, Series

store = PersistenceManager(PersistenceConfig(storage_dir=Path(sys.argv[1]), backend="json"))
page = Layout([Series("a_total"), Series("b_total")])
number = int(sys.argv[2])
while True:
    number += 1
    store.save_scrape(page, array("d", [number, -number]), timestamp=number)
    store.save_metric("custom", "mine", number, timestamp=number)
    os.write(1, f"S {number} {time.time()}\\n".encode())
    if number % 10 == 0:
        store.save_event(Event(timestamp=number, event_type="e", message="m"))
        os.write(1, f"E {number} {time.time()}\\n".encode())
"""


def kill_and_look(folder: Path, first: int, seconds: float) -> int:
    victim = subprocess.Popen([sys.executable, "-c", VICTIM, str(folder), str(first)], stdout=subprocess.PIPE)
    assert victim.stdout is not None
    head = victim.stdout.readline()
    time.sleep(seconds)
    victim.send_signal(signal.SIGKILL)
    killed_at = time.time()
    output, _ = victim.communicate()
    lines = [line.split() for line in (head + output).splitlines()]
    complete = [line for line in lines if len(line) == 3]
    with opened(folder) as store:
        assert store.health().ok
        events = {int(event.timestamp) for event in store.get_events(limit=None)}
        assert {int(number) for kind, number, _ in complete if kind == b"E"} <= events
        old = {int(number) for kind, number, at in complete if kind == b"S" and float(at) < killed_at - 1}
        numbers: list[float] = []
        for name in ("a_total", "mine"):
            found = store.query_range(name)
            numbers = found[0].values.tolist() if found else []
            assert old <= set(numbers)
            assert len(set(numbers)) == len(numbers)
    return int(max(numbers, default=first))


def test_kill_9_loses_nothing_acknowledged(folder: Path) -> None:
    last = 0
    for seconds in (0.1, 0.4):
        last = kill_and_look(folder, last, seconds)


@pytest.mark.slow
def test_kill_9_twenty_times(folder: Path) -> None:
    last = 0
    for number in range(20):
        last = kill_and_look(folder, last, number / 20)


def test_a_failed_append_leaves_no_trace(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = opened(folder, flush_interval_seconds=0.01)
    fill(store)
    before = {path.name: path.read_bytes() for path in folder.glob("*.jsonl")}
    real = os.write

    def full(descriptor: int, data: Any) -> int:
        if Path(f"/proc/self/fd/{descriptor}").readlink().name == "events.jsonl":
            real(descriptor, bytes(data)[:10])
            raise OSError(28, "No space left on device")
        return real(descriptor, data)

    monkeypatch.setattr(os, "write", full)
    fill(store)
    assert store.health().degraded
    assert {path.name: path.read_bytes() for path in folder.glob("*.jsonl")} == before
    monkeypatch.undo()
    assert store.flush_all()
    assert len(store.query_range("queue")[0]) == 10
    held = seen(store)
    store.close()
    with opened(folder) as again:
        assert seen(again) == held


def test_deleted_rows_leave_the_lines(folder: Path) -> None:
    with opened(folder) as store:
        fill(store)
        inner = store._writer.store
        assert isinstance(inner, JsonStore)
        with inner.engine.connect().execution_options(begin="IMMEDIATE") as connection, connection.begin():
            connection.exec_driver_sql("DELETE FROM events WHERE event_type = 'first'")
        inner.after_bulk_change()
        assert [fields["event_type"] for fields in fields_in(folder / "events.jsonl")] == ["second"]
        store.save_event(Event(timestamp=9.0, event_type="third", message="m"))
    with opened(folder) as store:
        assert [event.event_type for event in store.get_events()] == ["third", "second"]


def test_durability_full_flushes_the_lines(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[str] = []
    real = os.fsync

    def noted(descriptor: int) -> None:
        flushed.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        real(descriptor)

    with opened(folder, durability="full") as store:
        monkeypatch.setattr(os, "fsync", noted)
        store.save_event(Event(timestamp=1.0, event_type="e", message="m"))
        assert "events.jsonl" in flushed
        assert "store" in flushed  # the folder: the file is new in it
    monkeypatch.undo()


def test_old_samples_expire_and_what_builds_on_others_stays(folder: Path) -> None:
    clock = ManualClock(1_000_000.0)
    with PersistenceManager(settings(folder, metrics_retention_days=1), synchronous=True, clock=clock) as store:
        for number in range(150):
            for target in ("one", "two"):
                store.save_scrape(PAGE, array("d", [number, 1, 2]), timestamp=1_000_000 + number, target=target)
            store.save_metric("custom", "queue", number, timestamp=1_000_000 + number)
        store.flush_all()
        assert store.run_maintenance(seal_all=True).sealed_blocks == 0
        clock.advance(86_500.0)
        store.cleanup_old_data()
        for target in ("one", "two"):
            found = store.query_range("a_total", target=target)[0].values.tolist()
            assert found[-50:] == list(range(100, 150))
            assert len(found) <= 110  # what is left of a run of 60
        store.save_scrape(PAGE, array("d", [7, 1, 2]), timestamp=1_086_500, target="one")
        assert store.health().damaged_rows == 0
        before = seen(store)
    assert len(list(read_lines(folder / "samples.jsonl"))) < 400
    with opened(folder, metrics_retention_days=1) as store:
        assert seen(store) == before
        store.save_scrape(PAGE, array("d", [8, 1, 2]), timestamp=1_086_501, target="one")
        sequences = [fields["sequence"] for fields in fields_in(folder / "samples.jsonl") if "sequence" in fields]
        assert sequences == sorted(sequences)
