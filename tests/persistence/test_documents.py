"""Guardrails, plugins and strategies: what is saved is what loads, whoever else changes it.

Over 500 lines: the three kinds go through the same stories, told side by side.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import os
import signal
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.waiting import wait_until

from vllm_monitor.clock import ManualClock
from vllm_monitor.errors import (
    ConfigurationError,
    RecordNotFoundError,
    StaleRevisionError,
    StoreTooNewError,
    StoreUnavailableError,
    ValueNotStorableError,
)
from vllm_monitor.persistence import PersistenceConfig, PersistenceManager, StorageBackend
from vllm_monitor.persistence.damage.check import check_store
from vllm_monitor.persistence.documents.document_stores import StoredDocuments, documents_of
from vllm_monitor.persistence.documents.documents import GUARDRAILS, Entry, merged_entry
from vllm_monitor.records import GuardrailPolicy, PluginRecord, Severity, StrategyRecord

OpenStore = Callable[..., PersistenceManager]
BACKENDS = [StorageBackend.HYBRID, StorageBackend.SQLITE]
MOSTLY_HYBRID = [StorageBackend.HYBRID, pytest.param(StorageBackend.SQLITE, marks=pytest.mark.slow)]

texts = st.text(max_size=8) | st.sampled_from(["", "json:x", "\ud800", "a\0b", "$x", "entries"])
plain = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), texts, st.binary(max_size=4), st.just(Path("/a/b")),
    st.sampled_from(Severity), st.decimals(allow_nan=False), st.datetimes(), st.complex_numbers(allow_nan=False),
)  # fmt: skip
values = st.recursive(
    plain,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.tuples(inner, inner),
        st.frozensets(st.integers() | texts, max_size=3),
        st.dictionaries(texts | st.integers() | st.tuples(texts), inner, max_size=3),
    ),
    max_leaves=6,
)
dicts = st.dictionaries(texts, values, max_size=3)
numbers = st.none() | st.floats() | st.integers(0, 9)
guardrails = st.builds(
    GuardrailPolicy, texts, texts, texts, values, texts | st.sampled_from(Severity), st.booleans(), dicts, target=texts
)
plugins = st.builds(
    PluginRecord, texts, texts, texts, texts, texts, dicts, st.lists(texts, max_size=3), st.booleans(), dicts,
    target=texts,
)  # fmt: skip
strategy_records = st.builds(
    StrategyRecord, texts, texts, st.booleans(), dicts, numbers, numbers, st.integers(), dicts, dicts, dicts,
    target=texts,
)  # fmt: skip


def same(one: Any, other: Any) -> bool:
    """Equal in type and bits; NaN is NaN."""
    if type(one) is not type(other):
        return False
    if isinstance(one, float):
        return (math.isnan(one) and math.isnan(other)) or repr(one) == repr(other)
    if isinstance(one, complex):
        return same(one.real, other.real) and same(one.imag, other.imag)
    if isinstance(one, dict):
        return len(one) == len(other) and all(
            same(key, other_key) and same(value, other_value)
            for (key, value), (other_key, other_value) in zip(one.items(), other.items(), strict=True)
        )
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    if hasattr(one, "__dataclass_fields__"):
        return all(same(getattr(one, name), getattr(other, name)) for name in one.__dataclass_fields__)
    return bool(one == other)


def policy(name: str, condition: str = "requests_waiting > 1", **fields: Any) -> GuardrailPolicy:
    return GuardrailPolicy(name, f"about {name}", condition, **fields)


def names_of(store: PersistenceManager) -> list[str]:
    return [found.name for found in store.load_guardrails()]


def document_of(folder: Path, name: str = "guardrails.json") -> Any:
    return json.loads((folder / "store" / name).read_text())


def good_of(file: Path) -> Path:
    return file.with_name(f".{file.name}.good")


def edit(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """As a person would with an editor."""
    document = json.loads(path.read_text())
    change(document["entries"])
    path.write_text(json.dumps(document, indent=4))


# --- round trips ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    policies=st.lists(guardrails, max_size=3, unique_by=lambda found: found.name),
    sources=st.lists(plugins, max_size=2, unique_by=lambda found: found.name),
    remedies=st.lists(strategy_records, max_size=2, unique_by=lambda found: found.name),
)
def test_every_document_comes_back_as_it_was(
    tmp_path_factory: pytest.TempPathFactory,
    backend: StorageBackend,
    policies: list[GuardrailPolicy],
    sources: list[PluginRecord],
    remedies: list[StrategyRecord],
) -> None:
    config = PersistenceConfig(storage_dir=tmp_path_factory.mktemp("s"), backend=backend)
    with PersistenceManager(config, synchronous=True) as store:
        store.save_guardrails(policies)
        store.save_plugins({found.name: found for found in sources})
        store.save_strategies(iter(remedies))
    with PersistenceManager(config, synchronous=True) as store:
        assert same(store.load_guardrails(), policies)
        assert same(list(store.load_plugins().values()), sources)
        assert same(list(store.load_strategies().items()), [(found.name, found) for found in remedies])
        assert store.health().ok


def test_large_sources_are_packed_in_the_table_and_readable_in_the_file(open_store: OpenStore, tmp_path: Path) -> None:
    source = "".join(f"line_{number} = {number}\n" for number in range(2000))
    for backend in BACKENDS:
        for compress in (True, False):
            folder = tmp_path / f"{backend}-{compress}"
            with open_store(storage_dir=folder, backend=backend, compression_enabled=compress) as store:
                store.save_plugins([PluginRecord("big", "collector", source)])
                assert store.load_plugins()["big"].source == source
            if backend is StorageBackend.HYBRID:
                assert json.loads((folder / "plugins.json").read_text())["entries"]["big"]["source"] == source
            else:
                with sqlite3.connect(folder / "monitor.db") as connection:
                    (content,) = connection.execute("SELECT content FROM documents").fetchone()
                connection.close()
                assert content.startswith("zlib:") is compress


def test_a_document_is_private_and_says_who_may_run(open_store: OpenStore, tmp_path: Path) -> None:
    store = open_store()
    store.save_plugins([PluginRecord("p", "collector", "print(1)", sha256="f" * 64)])
    file = tmp_path / "store" / "plugins.json"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    right = hashlib.sha256(b"print(1)").hexdigest()
    assert store.load_plugins()["p"].sha256 == right  # whatever the record claimed
    assert document_of(tmp_path, "plugins.json")["entries"]["p"]["sha256"] == right
    edit(file, lambda entries: entries["p"].update(source="print(2)"))
    assert store.load_plugins()["p"].sha256 == hashlib.sha256(b"print(2)").hexdigest()


def test_asyncio(open_store: OpenStore) -> None:
    store = open_store()

    async def use() -> None:
        assert await store.save_guardrails_async([policy("a")]) == {"a": 1}
        await store.save_plugins_async([PluginRecord("p", "collector")])
        await store.save_strategies_async([StrategyRecord("s")])
        assert [found.name for found in await store.load_guardrails_async()] == ["a"]
        assert (list(await store.load_plugins_async()), list(await store.load_strategies_async())) == (["p"], ["s"])
        await store.delete_guardrail_async("a")
        await store.delete_plugin_async("p")
        await store.delete_strategy_async("s")

    asyncio.run(use())
    assert (store.load_guardrails(), store.load_plugins(), store.load_strategies()) == ([], {}, {})


# --- merging -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_not_named_stays(open_store: OpenStore, backend: StorageBackend) -> None:
    store = open_store(backend=backend)
    assert store.save_guardrails([policy("a"), policy("b", target="http://x")]) == {"a": 1, "b": 1}
    changes: dict[str, dict[str, Any]] = {"b": {"enabled": False}, "c": {"description": "d", "condition": "x > 1"}}
    assert store.save_guardrails(changes) == {"b": 2, "c": 1}
    assert store.load_guardrails() == [
        policy("a"),
        policy("b", target="http://x", enabled=False),
        GuardrailPolicy("c", "d", "x > 1"),
    ]
    assert [found.name for found in store.load_guardrails(target="http://x")] == ["b"]
    assert store.save_guardrails([policy("a")]) == {"a": 1}  # nothing changed, so it is no change
    assert store.save_guardrails([]) == {}


@pytest.mark.parametrize("backend", BACKENDS)
def test_expected_revisions(open_store: OpenStore, backend: StorageBackend) -> None:
    store, other = open_store(backend=backend), open_store(backend=backend)
    store.save_guardrails([policy("a"), policy("b")], expected_revisions={"a": 0, "b": 0})
    revisions = other.document_revisions("guardrails")
    store.save_guardrails({"a": {"severity": "critical"}})
    with pytest.raises(StaleRevisionError, match="'a'") as caught:
        other.save_guardrails({"a": {"enabled": False}, "b": {"enabled": False}}, expected_revisions=revisions)
    assert "again" in caught.value.hint
    assert store.load_guardrails() == [policy("a", severity="critical"), policy("b")]  # not even b
    with pytest.raises(StaleRevisionError):
        other.delete_guardrail("a", expected_revision=1)
    other.delete_guardrail("a", expected_revision=2)
    assert store.document_revisions("guardrails") == {"a": 3, "b": 1}
    assert store.health().dropped == {}
    # What is deleted comes back only for who knows of the deletion.
    store.save_guardrails([policy("a")], expected_revisions={"a": 3})
    assert names_of(other) == ["a", "b"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_stale_change_is_made_on_what_is_newest(open_store: OpenStore, backend: StorageBackend) -> None:
    store, other = open_store(backend=backend), open_store(backend=backend)
    store.save_guardrails([policy("a"), policy("b")])
    (a, b) = other.load_guardrails()
    store.save_guardrails([policy("a", enabled=False)])
    other.save_guardrails([replace(a, severity="critical"), b])
    assert store.load_guardrails() == [policy("a", enabled=False, severity="critical"), policy("b")]
    assert store.document_revisions("guardrails") == {"a": 3, "b": 1}


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_deletion_is_not_undone_by_who_does_not_know_of_it(
    open_store: OpenStore, backend: StorageBackend, caplog: pytest.LogCaptureFixture
) -> None:
    store, other = open_store(backend=backend), open_store(backend=backend)
    store.save_guardrails([policy("a"), policy("b")])
    known = other.load_guardrails()
    store.delete_guardrail("a")
    with pytest.raises(RecordNotFoundError):
        store.delete_guardrail("a")
    assert other.save_guardrails([replace(known[0], enabled=False), known[1]]) == {"b": 1}
    assert "left so: a" in caplog.text
    assert names_of(store) == names_of(other) == ["b"]
    other.save_guardrails([policy("a")])  # it has seen by now that there is none
    assert names_of(store) == ["a", "b"]
    with pytest.raises(RecordNotFoundError):
        store.delete_guardrail("never")


WORKER = """
import sys
from pathlib import Path
from vllm_monitor.persistence import PersistenceConfig, PersistenceManager
from vllm_monitor.records import GuardrailPolicy

folder, backend, label, count = Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])
store = PersistenceManager(PersistenceConfig(storage_dir=folder, backend=backend, durable_timeout_seconds=30))
for number in range(count):
    store.save_guardrails([GuardrailPolicy(f"{label}-{number}", "d", "x > 1")])
    store.save_guardrails({"shared": {"description": "d", "condition": "x > 1", "metadata": {label: number}}})
print(store.health().message)
"""


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_processes_lose_nothing(open_store: OpenStore, tmp_path: Path, backend: StorageBackend) -> None:
    open_store(backend=backend).close()
    arguments = [sys.executable, "-c", WORKER, str(tmp_path / "store"), str(backend)]
    workers = [
        subprocess.Popen([*arguments, label, "12"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for label in ("x", "y")
    ]
    for worker in workers:
        output, errors = worker.communicate(timeout=60)
        assert (output.strip(), errors) == ("", "")
    store = open_store(backend=backend)
    assert set(names_of(store)) == {f"{label}-{number}" for label in "xy" for number in range(12)} | {"shared"}
    assert store.document_revisions("guardrails")["shared"] == 24  # every change was one


KILLED = """
import os, sys
from pathlib import Path
from vllm_monitor.persistence import PersistenceConfig, PersistenceManager
from vllm_monitor.records import GuardrailPolicy

store = PersistenceManager(PersistenceConfig(storage_dir=Path(sys.argv[1]), backend=sys.argv[2]))
number = 0
while True:
    number += 1
    new = GuardrailPolicy(f"g{number}", "d" * 500, "x > 1")
    store.save_guardrails([new, GuardrailPolicy("same", f"{number}", "y")])
    os.write(1, f"{number}\\n".encode())
"""


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_kill_9_loses_nothing_that_was_acknowledged(
    open_store: OpenStore, tmp_path: Path, backend: StorageBackend
) -> None:
    program = [sys.executable, "-c", KILLED, str(tmp_path / "store"), str(backend)]
    victim = subprocess.Popen(program, stdout=subprocess.PIPE, text=True)
    assert victim.stdout is not None
    seen = [victim.stdout.readline() for _ in range(15)]
    victim.send_signal(signal.SIGKILL)
    seen += victim.communicate()[0].splitlines()
    acknowledged = max(int(line) for line in seen if line.strip())
    store = open_store(backend=backend)
    assert store.health().ok
    found = {policy.name: policy for policy in store.load_guardrails()}
    assert {f"g{number}" for number in range(1, acknowledged + 1)} <= found.keys()
    assert int(found["same"].description) >= acknowledged
    assert len(found) <= acknowledged + 2


@pytest.mark.parametrize("backend", BACKENDS)
def test_merging_what_comes_from_another_store(open_store: OpenStore, tmp_path: Path, backend: StorageBackend) -> None:
    theirs = open_store(storage_dir=tmp_path / "theirs", clock=ManualClock(1000))
    theirs.save_guardrails([policy("new"), policy("both", "theirs > 1"), policy("old", "theirs > 1"), policy("gone")])
    theirs.delete_guardrail("gone")
    clock = ManualClock(900)
    ours = open_store(backend=backend, clock=clock)
    ours.save_guardrails([policy("both"), policy("gone"), policy("mine")])
    clock.advance(200)
    ours.save_guardrails([policy("old", "ours > 1")])
    documents = documents_of(ours.config, lambda *_: None)
    others = documents_of(theirs.config, lambda *_: None).read(GUARDRAILS, None).entries
    others["future"] = Entry(1, 1e15, False, GUARDRAILS.fields_of(policy("future")))
    store = ours._writer.store
    assert store is not None
    changed: list[dict[str, Entry]] = []

    def merge(stored: StoredDocuments) -> dict[str, Entry]:
        found = {name: merged_entry(stored.entries.get(name), other, 1200) for name, other in others.items()}
        changed.append({name: entry for name, entry in found.items() if entry is not None})
        return changed[-1]

    for _ in range(2):
        with store.engine.connect().execution_options(begin="IMMEDIATE") as connection, connection.begin():
            documents.update(GUARDRAILS, connection, merge)
        file = ours.config.storage_dir / "guardrails.json"
        assert backend is StorageBackend.SQLITE or good_of(file).read_bytes() == file.read_bytes()
    assert [set(entries) for entries in changed] == [{"new", "both", "gone", "future"}, set()]  # twice is once
    assert {policy.name: policy.condition for policy in ours.load_guardrails()} == {
        "both": "theirs > 1",  # changed later than ours
        "mine": "requests_waiting > 1",
        "old": "ours > 1",  # ours was changed later
        "new": "requests_waiting > 1",
        "future": "requests_waiting > 1",
    }
    assert changed[0]["future"].modified_at == 1200


# --- a person edits ------------------------------------------------------------------------------------


def test_edits_by_hand_are_accepted(open_store: OpenStore, tmp_path: Path) -> None:
    store = open_store()
    store.save_guardrails([policy("a"), policy("b"), policy("c")])
    file = tmp_path / "store" / "guardrails.json"

    def by_hand(entries: dict[str, Any]) -> None:
        entries["a"]["condition"] = "mine > 1"
        entries["a"]["note"] = ["kept"]
        entries["new"] = {"description": "by hand", "condition": "y > 2"}
        entries["b"]["deleted"] = True
        del entries["c"]

    held = store.load_guardrails()
    edit(file, by_hand)
    assert store.document_revisions("guardrails") == {"a": 2, "b": 2, "new": 1}
    with pytest.raises(StaleRevisionError):
        store.save_guardrails({"a": {"enabled": False}}, expected_revisions={"a": 1})
    store.save_guardrails(held)  # as a monitor does that knows of no edit
    store.save_guardrails({"a": {"enabled": False}})
    assert store.load_guardrails() == [
        replace(policy("a", "mine > 1"), enabled=False),
        GuardrailPolicy("new", "by hand", "y > 2"),
    ]
    entries = document_of(tmp_path)["entries"]
    assert entries["a"]["note"] == ["kept"]
    assert [(name, entry["revision"]) for name, entry in entries.items()] == [("a", 3), ("b", 2), ("new", 1)]
    assert store.document_revisions("guardrails") == {"a": 3, "b": 2, "new": 1}
    assert store.health().ok


@pytest.mark.parametrize(
    "broken",
    [
        {"description": "d"},
        {"description": "d", "condition": "x", "enabled": "false"},
        {"description": 7, "condition": "x"},
        {"description": "d", "condition": "x", "metadata": {"$bytes": "%"}},
        {"description": "d", "condition": "x", "intervention": math.nan},
        "no entry",
        ["x"],
        {"deleted": "perhaps"},
    ],
)
def test_an_entry_that_makes_no_sense_is_skipped_and_kept(open_store: OpenStore, tmp_path: Path, broken: Any) -> None:
    store = open_store()
    store.save_guardrails([policy("a")])
    edit(tmp_path / "store" / "guardrails.json", lambda entries: entries.update(mine=broken))
    assert names_of(store) == ["a"]
    assert store.health().damaged_rows == 1
    store.save_guardrails([policy("b")])
    kept = document_of(tmp_path)["entries"]["mine"]
    if isinstance(broken, dict):
        kept = {name: kept[name] for name in broken}
    assert repr(kept) == repr(broken)


def settle(file: Path, at: float = 1.0) -> None:
    """No editor is at work."""
    os.utime(file, (at, at))


def unreadable(store: PersistenceManager) -> list[str]:
    store.flush_all()
    return [found.message for found in store.get_events("document_unreadable", limit=None)]


def test_a_forgotten_comma_leaves_the_last_good_version_in_force(open_store: OpenStore, tmp_path: Path) -> None:
    store = open_store()
    store.save_guardrails([policy("a"), policy("b"), policy("c")])
    file = tmp_path / "store" / "guardrails.json"
    good = store.load_guardrails()
    lines = file.read_text().splitlines()
    at = next(number for number, line in enumerate(lines) if "about b" in line)
    lines[at] = lines[at].removesuffix(",")
    broken = "\n".join(lines)
    file.write_text(broken)
    settle(file)
    place = f"guardrails.json, line {at + 2}, column 7: expecting ',' delimiter"
    for _ in range(3):
        assert store.load_guardrails() == good
        other = open_store()
        assert other.load_guardrails() == good  # a restart knows it too
        other.flush_all()
    health = store.health()
    assert place in health.message
    assert "last good version is in force" in health.message
    assert "Mend" in health.hint
    assert not health.ok
    assert not health.quarantined
    assert store.get_statistics()["damaged_documents"] == [health.message]
    assert len(unreadable(store)) == 1  # of four managers that saw it, and of all their reads
    (finding,) = check_store(store.config).findings
    assert (finding.where, finding.name) == ("guardrails", "guardrails.json")
    assert finding.problem == f"{place.partition(', ')[2]}; the last good version is in force"
    assert file.read_text() == broken  # the person who edits it finds it as it was left
    lines[at] += ","
    lines = [line.replace("about c", "mended") for line in lines]
    file.write_text("\n".join(lines))
    settle(file, 2)
    assert [found.description for found in store.load_guardrails()] == ["about a", "about b", "mended"]
    assert store.health().ok
    assert check_store(store.config).ok
    file.write_text("{")
    settle(file, 3)
    assert store.load_guardrails()[2].description == "mended"  # an edit by hand is a good version too
    assert len(unreadable(store)) == 2
    assert sorted(path.name for path in file.parent.iterdir() if "guardrails" in path.name) == [
        ".guardrails.json.good",
        "guardrails.json",
    ]
    assert stat.S_IMODE(good_of(file).stat().st_mode) == 0o600


def test_a_broken_file_is_noticed_though_nobody_loads_it(open_store: OpenStore, tmp_path: Path) -> None:
    store = open_store()
    store.save_strategies([StrategyRecord("s")])
    file = tmp_path / "store" / "strategies.json"
    file.write_bytes(file.read_bytes().replace(b'"description": ""', b'"description": "\xe9"'))
    assert not store.get_statistics()["damaged_documents"]  # somebody may be writing it just now
    settle(file)
    (message,) = store.get_statistics()["damaged_documents"]
    assert "strategies.json, line 8, column 23: not UTF-8" in message
    assert not store.health().ok
    good_of(file).replace(file)
    settle(file, 2)
    assert not store.get_statistics()["damaged_documents"]
    assert store.health().ok


def test_a_file_cut_off_at_any_byte_leaves_the_last_good_version_in_force(
    open_store: OpenStore, tmp_path: Path
) -> None:
    store = open_store()
    store.save_guardrails([policy("a")])
    file = tmp_path / "store" / "guardrails.json"
    whole = file.read_bytes()
    good = store.load_guardrails()
    for length in range(len(whole) - 1):
        file.write_bytes(whole[:length])
        settle(file)
        assert store.load_guardrails() == good
        assert not store.health().ok
    assert len(unreadable(store)) == 1
    file.write_bytes(whole)
    assert store.load_guardrails() == good
    assert store.health().ok


def test_saving_joins_a_broken_file_with_the_last_good_version(open_store: OpenStore, tmp_path: Path) -> None:
    store = open_store()
    store.save_guardrails([policy(name) for name in "abcd"])
    file = tmp_path / "store" / "guardrails.json"

    def by_hand(entries: dict[str, Any]) -> None:
        entries["a"]["condition"] = "mine > 1"
        del entries["a"]["revision"]
        entries["b"]["condition"] = "mine > 2"
        entries["new"] = {"description": "by hand", "condition": "y > 2"}

    edit(file, by_hand)
    broken = file.read_text().replace('"about b",', '"about b"')
    file.write_text(broken)
    settle(file)
    store.save_guardrails({"d": {"enabled": False}})
    expected = [
        policy("a", "mine > 1"),
        policy("b"),  # its edit cannot be read
        policy("c"),
        policy("d", enabled=False),
        GuardrailPolicy("new", "by hand", "y > 2"),
    ]
    assert store.load_guardrails() == expected
    assert open_store().load_guardrails() == expected
    assert store.document_revisions("guardrails") == {"a": 2, "b": 1, "c": 1, "d": 2, "new": 1}
    assert "salvaged" not in document_of(tmp_path)  # nothing that counted was lost
    (aside,) = store.health().quarantined
    assert Path(aside).read_text() == broken
    assert not store.get_statistics()["damaged_documents"]
    assert good_of(file).read_bytes() == file.read_bytes()
    store.flush_all()
    assert [found.severity for found in store.get_events("document_quarantined")] == [Severity.WARNING]  # it was told


def test_where_no_good_version_can_be_kept_memory_has_it(open_store: OpenStore, tmp_path: Path) -> None:
    store = open_store()
    file = tmp_path / "store" / "guardrails.json"
    good_of(file).mkdir(parents=True)
    store.save_guardrails([policy("a"), policy("b")])
    file.write_text(file.read_text()[:20])
    settle(file)
    assert names_of(store) == ["a", "b"]
    assert names_of(open_store()) == []


def test_without_a_good_version_entries_are_salvaged(open_store: OpenStore, tmp_path: Path) -> None:
    store = open_store()
    store.save_guardrails([policy(f"g{number}", metadata={"n": {"revision": 1}}) for number in range(9)])
    known = store.load_guardrails()
    file = tmp_path / "store" / "guardrails.json"
    whole = file.read_text()
    at = whole.index('"g4"')
    hole = whole[:at] + '"g4": {"revision": ' + whole[whole.index("about g4") :]
    harms = {
        "cut off": (whole[: len(whole) * 2 // 3].encode(), {f"g{number}" for number in range(5)}),
        "hole": (hole.encode(), {f"g{number}" for number in range(9)} - {"g4"}),
        "bytes": (whole.replace("about g2", "about \xff").encode("latin-1"), {"g1", "g3", "g8"}),
        "garbage": (b"\xa5" * 500, set()),
        "another": (b'["no", "document"]', set()),
        "empty": (b"", set()),
        "deep": (b'{"entries": {"a": ' + b"[" * 100_000, set()),
    }
    for name, (damaged, least) in harms.items():
        store.close()
        store = open_store()
        file.write_bytes(damaged)
        good_of(file).unlink()
        settle(file)
        found = set(names_of(store))
        assert least <= found, name
        assert name != "bytes" or "g2" not in found  # what can no longer be known is not made up
        assert "no good version is kept" in store.health().message
        assert "no good version is kept" in check_store(store.config).findings[0].problem
        assert file.read_bytes() == damaged
        store.save_guardrails(known)
        assert Path(store.health().quarantined[-1]).read_bytes() == damaged
        assert {found.name for found in known} == set(names_of(store)), name
        assert store.load_guardrails()[0] in known
        assert not store.health().ok
    store.flush_all()
    events = store.get_events("document_quarantined", limit=None)
    assert len(events) == len(harms)
    assert "guardrails.json" in events[0].message


def test_a_broken_file_is_also_found_when_saving(open_store: OpenStore, tmp_path: Path) -> None:
    store = open_store()
    store.save_guardrails([policy("a"), policy("b")])
    file = tmp_path / "store" / "guardrails.json"
    file.write_text(file.read_text()[:-5])
    settle(file)
    open_store().save_guardrails([policy("c")])
    assert set(names_of(store)) == {"a", "b", "c"}
    good_of(file).unlink()
    file.unlink()
    file.mkdir()
    store.save_guardrails([policy("d")])
    assert names_of(store) == ["a", "b", "c", "d"]
    assert not [found for found in file.parent.iterdir() if found.name.endswith(".new")]


def test_an_edit_without_its_revision_is_not_overwritten(open_store: OpenStore, tmp_path: Path) -> None:
    store = open_store()
    store.save_guardrails([policy("a")])
    (known,) = store.load_guardrails()
    file = tmp_path / "store" / "guardrails.json"

    def by_hand(entries: dict[str, Any]) -> None:
        entries["a"] = {"description": "about a", "condition": "mine > 1"}

    edit(file, by_hand)
    store.save_guardrails([replace(known, enabled=False)])
    assert store.load_guardrails() == [policy("a", "mine > 1", enabled=False)]


def test_a_deleted_file_is_written_again(open_store: OpenStore, tmp_path: Path) -> None:
    store = open_store()
    store.save_guardrails([policy("a")])
    (tmp_path / "store" / "guardrails.json").unlink()
    assert names_of(store) == []
    store.save_guardrails([policy("a")])
    assert names_of(store) == ["a"]


def test_a_newer_file_is_refused_untouched(open_store: OpenStore, tmp_path: Path) -> None:
    store = open_store()
    file = tmp_path / "store" / "guardrails.json"
    newer = '{"version": 2, "entries": {}, "more": 1}'
    file.write_text(newer)
    with pytest.raises(StoreTooNewError, match=r"guardrails\.json"):
        store.load_guardrails()
    with pytest.raises(StoreTooNewError):
        store.save_guardrails([policy("a")])
    assert file.read_text() == newer
    store.save_plugins([PluginRecord("p", "collector")])  # the others are well
    assert store.health().ok


def test_a_damaged_row_is_skipped(open_store: OpenStore, tmp_path: Path) -> None:
    store = open_store(backend=StorageBackend.SQLITE)
    store.save_guardrails([policy("a"), policy("b")])
    with sqlite3.connect(tmp_path / "store" / "monitor.db") as connection:
        connection.execute("UPDATE documents SET content = replace(content, 'about a', 'about z') WHERE name = 'a'")
    connection.close()
    assert names_of(store) == ["b"]
    assert store.health().damaged_rows == 1
    store.save_guardrails([policy("a")])
    assert names_of(store) == ["a", "b"]


# --- faults --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", MOSTLY_HYBRID)
def test_what_cannot_be_written_is_held_and_written_later(
    open_store: OpenStore, tmp_path: Path, backend: StorageBackend
) -> None:
    store = open_store(backend=backend, durable_timeout_seconds=0.2)
    store.save_guardrails([policy("a"), policy("b")])
    blocker = sqlite3.connect(tmp_path / "store" / "monitor.db", isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    store.save_guardrails({"a": {"enabled": False}})
    store.delete_guardrail("b")
    store.save_guardrails([policy("c")])
    assert store.load_guardrails() == [policy("a", enabled=False), policy("c")]  # served from memory
    assert store.document_revisions("guardrails") == {"a": 2, "b": 2, "c": 1}
    wait_until(lambda: store.health().degraded, "the fault shows")
    assert store.health().not_durable == 3
    blocker.execute("ROLLBACK")
    blocker.close()
    wait_until(lambda: store.health().not_durable == 0, "it is written by itself")
    assert open_store(backend=backend).load_guardrails() == [policy("a", enabled=False), policy("c")]
    assert store.document_revisions("guardrails") == {"a": 2, "b": 2, "c": 1}


def test_a_full_disk_under_the_documents_alone(open_store: OpenStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(durable_timeout_seconds=0.3)
    store.save_guardrails([policy("a")])
    full = True
    really = os.fsync

    def fsync(descriptor: int) -> None:
        if full:
            raise OSError(28, "No space left on device")
        really(descriptor)

    monkeypatch.setattr("vllm_monitor.persistence.private_file.os.fsync", fsync)
    store.save_guardrails([policy("b")])
    assert names_of(store) == ["a", "b"]
    wait_until(lambda: "No space" in store.health().message, "the full disk shows")
    full = False
    wait_until(lambda: store.health().ok and not store.health().not_durable, "it recovers")
    assert names_of(open_store()) == ["a", "b"]


def test_required_says_so(open_store: OpenStore, tmp_path: Path) -> None:
    store = open_store(required=True, durable_timeout_seconds=0.2)
    blocker = sqlite3.connect(tmp_path / "store" / "monitor.db", isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreUnavailableError, match="not durable"):
        store.save_guardrails([policy("a")])
    blocker.execute("ROLLBACK")
    blocker.close()
    wait_until(lambda: store.health().not_durable == 0, "it is written after all")


def test_what_makes_no_sense_is_refused_at_the_door(open_store: OpenStore) -> None:
    store = open_store()
    with pytest.raises(ConfigurationError, match="'condtion'") as caught:
        store.save_guardrails({"a": {"description": "d", "condtion": "x"}})
    assert "condition" in caught.value.hint
    with pytest.raises(ConfigurationError, match="condition"):
        store.save_guardrails({"a": {"description": "d"}})
    with pytest.raises(ConfigurationError, match="name"):
        store.save_guardrails({"b": policy("a")})
    with pytest.raises(ConfigurationError, match="name"):
        store.save_guardrails({"b": {"name": "a", "enabled": True}})
    with pytest.raises(ValueNotStorableError, match="PluginRecord is no GuardrailPolicy"):
        store.save_guardrails([PluginRecord("p", "collector")])  # type: ignore[list-item]  # on purpose
    with pytest.raises(ValueNotStorableError, match="function"):
        store.save_guardrails([policy("a", metadata={"f": print})])
    with pytest.raises(ValueNotStorableError, match="enabled"):
        store.save_guardrails({"a": {"description": "d", "condition": "x", "enabled": "no"}})
    deep: list[Any] = []
    for _ in range(200):
        deep = [deep]
    with pytest.raises(ValueNotStorableError, match="deep"):
        store.save_guardrails([policy("a", metadata={"d": deep})])
    with pytest.raises(ConfigurationError, match="there are no"):
        store.document_revisions("plugin")
    assert store.load_guardrails() == []
    assert store.health().ok
