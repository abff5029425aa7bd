"""Learned models: what is saved is what loads, whatever it is, and nothing of it is ever executed.

Over 500 lines: many hostile files, each built byte by byte beside its test.
"""

from __future__ import annotations

import asyncio
import enum
import json
import math
import os
import signal
import sqlite3
import stat
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from tests.waiting import wait_until

from vllm_monitor.errors import (
    RecordNotFoundError,
    StoreDamagedError,
    StoreUnavailableError,
    ValueNotStorableError,
)
from vllm_monitor.persistence import PersistenceManager, StorageBackend
from vllm_monitor.persistence.codecs.value_codec import Reference, encode_value
from vllm_monitor.persistence.models.model_codec import decode_model, encode_model
from vllm_monitor.persistence.models.model_store import model_checksum, remove_orphans

OpenStore = Callable[..., PersistenceManager]
BACKENDS = [StorageBackend.HYBRID, StorageBackend.SQLITE]
MOSTLY_HYBRID = [StorageBackend.HYBRID, pytest.param(StorageBackend.SQLITE, marks=pytest.mark.slow)]
HOSTILE_NAMES = [
    "../../x", "/etc/passwd", "a\0b", "x" * 5000, "ünïcode ☃", "", ".", "..", "...", ".hidden", "a/b", "CON",
    "x.safetensors", "\ud800", "-rf", "json:x", "a b\n",
]  # fmt: skip


class Action(enum.Enum):
    RESTART = "restart"
    WAIT = "wait"


types = st.one_of(
    npst.boolean_dtypes(), npst.integer_dtypes(endianness="?"), npst.unsigned_integer_dtypes(endianness="?"),
    npst.floating_dtypes(endianness="?"), npst.complex_number_dtypes(endianness="?"),
    npst.datetime64_dtypes(endianness="?"), npst.timedelta64_dtypes(endianness="?"),
    npst.unicode_string_dtypes(endianness="?"), npst.byte_string_dtypes(),
)  # fmt: skip
arrays = npst.arrays(
    types | npst.array_dtypes(types, max_size=3), npst.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3)
)
texts = st.text(max_size=6) | st.sampled_from(["\ud800", "$reference", "a\0"])
plain = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), texts, st.binary(max_size=4), st.just(Path("/a")),
    st.sampled_from(Action), st.fractions(), st.dates(),
)  # fmt: skip
keys = st.one_of(texts, st.integers(), st.tuples(texts, st.integers()), st.sampled_from(Action), st.none())
models = st.recursive(
    plain | arrays | st.frozensets(keys, max_size=3),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.tuples(inner, inner), st.dictionaries(keys, inner, max_size=3)
    ),
    max_leaves=8,
)


def same(one: Any, other: Any) -> bool:
    """Equal in type, shape and bits; NaN is NaN."""
    if type(one) is not type(other):
        return False
    if isinstance(one, np.ndarray):
        return (one.dtype, one.shape, one.tobytes()) == (other.dtype, other.shape, other.tobytes())
    if isinstance(one, float):
        return (math.isnan(one) and math.isnan(other)) or repr(one) == repr(other)
    if isinstance(one, dict):
        return len(one) == len(other) and all(map(same, one.items(), other.items()))
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def files_of(folder: Path) -> list[Path]:
    return sorted((folder / "store" / "models").glob("*"))


def database(folder: Path) -> sqlite3.Connection:
    return sqlite3.connect(folder / "store" / "monitor.db", isolation_level=None)


# --- round trips ---------------------------------------------------------------------------------------


@settings(max_examples=80)
@given(model=models, compress=st.booleans())
def test_every_value_comes_back_as_it_was(model: Any, compress: bool) -> None:
    encoded = encode_model(model, compress=compress)
    assert same(decode_model(encoded.structure, encoded.arrays), model)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("compress", [True, False])
def test_a_model_survives_a_restart(
    open_store: OpenStore, tmp_path: Path, backend: StorageBackend, compress: bool
) -> None:
    aligned = np.zeros(3, np.dtype([("a", "i1"), ("b", ">f8", (2,)), ("c", "U3")], align=True))
    random = np.random.default_rng(7)
    model = {
        "q": {("serving", Action.RESTART): 0.5, ("stalled", Action.WAIT): -0.0, 3: math.nan},
        "noise": random.standard_normal((40, 50)),
        "zeros": np.zeros((100, 100), np.float32),
        "scalar": np.array(math.nan),
        "order": np.asfortranarray(np.arange(12).reshape(3, 4)),
        "part": np.arange(100)[::7],
        "empty": [np.zeros((0, 3)), np.ndarray((2,), "<U0"), {}, (), set()],
        "aligned": aligned,
        "raw": np.array([b"\0\1\2"], "V3"),
        "table": {str(number): [number, str(number)] for number in range(500)},
    }
    settings_of = {"backend": backend, "compression_enabled": compress}
    with open_store(**settings_of) as store:
        model_id = store.save_model("policy", model, {"run": (1, 2)})
    store = open_store(**settings_of)
    loaded, metadata = store.load_model("policy")
    assert same(loaded, model)
    assert metadata == {"run": (1, 2)}
    loaded["noise"][0, 0] = 1  # it may be changed
    (info,) = store.list_models()
    assert (info.model_name, info.version, info.model_id) == ("policy", 1, model_id)
    assert info.metadata == metadata
    with database(tmp_path) as connection:
        ((structure, size, column),) = connection.execute("SELECT structure, size_bytes, arrays FROM models")
    connection.close()
    assert structure.startswith("zlib:") is compress
    assert (size < 40_000) is compress
    files = files_of(tmp_path)
    if backend is StorageBackend.HYBRID:
        assert column is None
        assert [stat.S_IMODE(file.stat().st_mode) for file in files] == [0o600]
        assert files[0].name.endswith(".zlib") is compress
        if not compress:
            safetensors = pytest.importorskip("safetensors.numpy")
            assert same(safetensors.load_file(files[0])["0"], model["noise"])  # any tool can read it
    else:
        assert (len(column), files) == (size, [])


@pytest.mark.parametrize("backend", BACKENDS)
def test_versions(open_store: OpenStore, tmp_path: Path, backend: StorageBackend) -> None:
    store = open_store(backend=backend, model_versions_kept=3)
    for number in range(5):
        store.save_model("a", np.array([number]), {"number": number})
    store.save_model("b", {"no": "arrays"})
    assert [(info.model_name, info.version) for info in store.list_models()] == [("a", 3), ("a", 4), ("a", 5), ("b", 1)]
    assert len(files_of(tmp_path)) == (3 if backend is StorageBackend.HYBRID else 0)
    assert store.load_model("a")[0].tolist() == [4]
    assert store.load_model("a", 3) == (np.array([2]), {"number": 2})
    assert store.load_model("b") == ({"no": "arrays"}, {})
    for name, version in (("a", 2), ("a", 6), ("c", None), ("b", 0)):
        with pytest.raises(RecordNotFoundError):
            store.load_model(name, version)
        with pytest.raises(RecordNotFoundError):
            store.delete_model(name, version)
    store.delete_model("a", 5)
    assert store.load_model("a")[1] == {"number": 3}
    store.delete_model("a")
    assert [info.model_name for info in store.list_models()] == ["b"]
    assert files_of(tmp_path) == []


def test_asyncio(open_store: OpenStore) -> None:
    store = open_store()

    async def use() -> None:
        model_id = await store.save_model_async("m", np.arange(3), {"k": 1})
        assert same(await store.load_model_async("m"), (np.arange(3), {"k": 1}))
        assert [info.model_id for info in await store.list_models_async()] == [model_id]
        await store.delete_model_async("m")

    asyncio.run(use())
    assert store.list_models() == []


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_name_leaves_the_folder(open_store: OpenStore, tmp_path: Path, backend: StorageBackend) -> None:
    store = open_store(backend=backend, storage_dir=tmp_path / "deep" / "er" / "store")
    before = {path for path in tmp_path.rglob("*") if "models" not in path.parts}
    for number, name in enumerate(HOSTILE_NAMES):
        store.save_model(name, np.array([number]))
    for number, name in enumerate(HOSTILE_NAMES):
        assert store.load_model(name)[0].tolist() == [number], name
    assert {info.model_name for info in store.list_models()} == set(HOSTILE_NAMES)
    after = {path for path in tmp_path.rglob("*") if "models" not in path.parts}
    assert {path.name for path in after - before} <= {"models.lock", "monitor.db-wal", "monitor.db-shm"}
    names = [path.name for path in (store.config.storage_dir / "models").glob("*")]
    assert len(names) == (len(HOSTILE_NAMES) if backend is StorageBackend.HYBRID else 0)
    assert all(name.isascii() and len(name) < 120 and not name.startswith(".") for name in names)


# --- what cannot be stored -----------------------------------------------------------------------------


class Tensor:
    """What a tensor of torch looks like from outside."""

    __module__ = "torch"


def test_what_cannot_come_back_is_refused(open_store: OpenStore) -> None:
    store = open_store()
    itself: list[Any] = []
    itself.append(itself)
    refused: list[tuple[Any, str]] = [
        ({"a": [1, len]}, r"model_data\['a'\]\[1\] is a builtin_function"),
        ({"w": Tensor()}, r"numpy\(\)"),
        ({"x": [np.array([object()])]}, r"model_data\['x'\]\[0\]: an array"),
        (np.ma.masked_array([1, 2], [True, False]), "mask"),
        (np.array([1.0], np.dtype("f8", metadata={"unit": "s"})), "metadata"),
        (itself, "deep"),
        (Reference(0), "Reference"),
    ]
    if hasattr(np.dtypes, "StringDType"):
        refused.append((np.array(["a"], np.dtypes.StringDType()), "StringDType"))
    for model, message in refused:
        with pytest.raises(ValueNotStorableError, match=message) as caught:
            store.save_model("m", model)
        assert caught.value.hint
    with pytest.raises(ValueNotStorableError, match="ndarray") as caught:
        store.save_learning_data("weights", {"w": np.ones(3)}, {}, 1.0)
    assert ".tolist()" in caught.value.hint
    assert "save_model" in caught.value.hint
    with pytest.raises(ValueNotStorableError, match="name"):
        store.save_model(7, {})  # type: ignore[arg-type]  # on purpose
    assert store.list_models() == []
    assert store.health().ok


# --- damage and hostile files --------------------------------------------------------------------------


def structure_with(changes: dict[str, Any], **array: Any) -> str:
    whole = {"format": 1, "packing": None, "size": 0, "arrays": [], "data": Reference(0), **changes}
    if array:
        whole["arrays"] = [{"type": "<f8", "shape": [2], **array}]
    return encode_value(whole)


def tensors(header: Any, data: bytes = b"\0" * 16) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


GOOD = {"dtype": "F64", "shape": [2], "data_offsets": [0, 16]}
HEADERS: dict[str, bytes] = {
    "nothing": b"",
    "cut off": b"\1\2\3",
    "huge header": struct.pack("<Q", 1 << 62) + b"{}",
    "header of all": struct.pack("<Q", (1 << 64) - 1) + b"{}",
    "no json": tensors(b"not json at all "),
    "list": tensors(b"[1, 2]          "),
    "deep": tensors(b'{"a":' + b"[" * 100_000),
    "not utf-8": tensors(b'{"\xff": 1}'),
    "key twice": tensors(b'{"0":%s,"0":%s}' % ((json.dumps(GOOD).encode(),) * 2)),
    "another name": tensors({"1": GOOD}),
    "one more": tensors({"0": GOOD, "1": {**GOOD, "data_offsets": [16, 32]}}, b"\0" * 32),
    "beyond the end": tensors({"0": {**GOOD, "data_offsets": [0, 1 << 50]}}),
    "backwards": tensors({"0": {**GOOD, "data_offsets": [16, 0]}}),
    "negative": tensors({"0": {**GOOD, "data_offsets": [-16, 0]}}),
    "hole": tensors({"0": {**GOOD, "data_offsets": [8, 24]}}, b"\0" * 24),
    "overlap": tensors({"0": GOOD, "1": {**GOOD, "data_offsets": [8, 24]}}, b"\0" * 24),
    "huge shape": tensors({"0": {**GOOD, "shape": [1 << 62, 1 << 62]}}),
    "other shape": tensors({"0": {**GOOD, "shape": [3]}}),
    "other type": tensors({"0": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}),
    "unknown type": tensors({"0": {**GOOD, "dtype": "PYTHON"}}),
    "type numpy has not": tensors({"0": {"dtype": "BF16", "shape": [8], "data_offsets": [0, 16]}}),
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_hostile_safetensors_file_is_refused(name: str) -> None:
    good = tensors({"0": GOOD})
    assert decode_model(structure_with({"size": len(good)}, shape=[2]), good).tolist() == [0, 0]
    data = HEADERS[name]
    with pytest.raises(StoreDamagedError):
        decode_model(structure_with({"size": len(data)}, shape=[2]), data)


@pytest.mark.parametrize(
    "array",
    [
        {"type": "|O"}, {"type": "O8"}, {"type": "<f8,<f8"}, {"type": "(1<<60,)f8"}, {"type": "__import__('os')"},
        {"type": "<f4"}, {"type": 7}, {"type": None}, {"type": {}}, {"type": {"names": ["a"], "formats": ["|O"]}},
        {"type": {"names": ["a"], "formats": ["|O"], "offsets": [0], "itemsize": 8}},
        {"type": {"of": "|O", "shape": [1]}}, {"type": {"of": "<f8", "shape": [1 << 40]}},
        {"type": {"names": ["a"], "formats": ["<f8"], "offsets": [1 << 30], "itemsize": 8}},
        {"type": "|V99999999999"}, {"shape": [3]}, {"shape": [1]}, {"shape": [-2]}, {"shape": [2.0]}, {"shape": "2"},
        {"shape": [True, 2]}, {"shape": [0, 1 << 62]}, {"shape": None}, {"shape": [1] * 1000},
    ],
)  # fmt: skip
def test_a_hostile_structure_is_refused(array: dict[str, Any]) -> None:
    good = tensors({"0": GOOD})
    with pytest.raises(StoreDamagedError):
        decode_model(structure_with({"size": len(good)}, **array), good)


def test_other_hostile_structures_are_refused() -> None:
    good = tensors({"0": GOOD})
    bomb = zlib.compress(b"\0" * 5_000_000, 9)
    cases: list[tuple[str, bytes]] = [
        ("[]", b""),
        ("{}", b""),
        ("no json", b""),
        (structure_with({"format": 2}), b""),
        (structure_with({"packing": "pickle"}), b""),
        (structure_with({"packing": "zlib", "size": 10}), bomb),
        (structure_with({"packing": "zlib", "size": -1}), bomb),
        (structure_with({"packing": "zlib", "size": 10}), b"no zlib"),
        (structure_with({"packing": "zlib", "size": 5_000_000}), bomb[:-10]),
        (structure_with({"size": "x"}), b""),
        (structure_with({}), b""),  # a reference to an array that is not there
        (structure_with({"data": 1}), good),
        (structure_with({"size": len(good), "data": Reference(-1)}, shape=[2]), good),
        (structure_with({"arrays": 7}), b""),
    ]
    for structure, data in cases:
        with pytest.raises(StoreDamagedError):
            decode_model(structure, data)


@pytest.mark.parametrize("backend", BACKENDS)
def test_damage_is_noticed_and_other_versions_stay(
    open_store: OpenStore, tmp_path: Path, backend: StorageBackend
) -> None:
    store = open_store(backend=backend)
    for number in range(4):
        store.save_model("m", {"w": np.array([number]), "note": "as it was"})
    files = files_of(tmp_path)
    paths = {info.version: path for info in store.list_models() for path in files if info.model_id in path.name}
    with database(tmp_path) as connection:
        if backend is StorageBackend.HYBRID:
            data = paths[4].read_bytes()
            paths[4].write_bytes(data[:-1] + b"\xff")
            paths[3].unlink()
        else:
            connection.execute("UPDATE models SET arrays = zeroblob(length(arrays)) WHERE version = 4")
            connection.execute("UPDATE models SET arrays = NULL WHERE version = 3")
        connection.execute("UPDATE models SET structure = replace(structure, 'as it', 'not as it') WHERE version = 2")
    connection.close()
    for version in (None, 4, 3, 2):
        with pytest.raises(StoreDamagedError) as caught:
            store.load_model("m", version)
        assert "version" in caught.value.hint
    assert store.load_model("m", 1)[0]["note"] == "as it was"
    assert [info.version for info in store.list_models()] == [1, 3, 4]
    assert store.health().damaged_rows == 1


def test_a_row_cannot_name_a_file_elsewhere(open_store: OpenStore, tmp_path: Path) -> None:
    store = open_store()
    store.save_model("m", np.arange(3))
    (real,) = files_of(tmp_path)
    secret = tmp_path / "secret"
    secret.write_bytes(real.read_bytes())
    link = real.with_name("link-1.safetensors")
    link.symlink_to(secret)
    os.mkfifo(real.with_name("pipe-1.safetensors"))
    for name in ("../../secret", str(secret), "link-1.safetensors", "pipe-1.safetensors", "", "..", "x\0"):
        with database(tmp_path) as connection:
            connection.row_factory = sqlite3.Row
            row = {**connection.execute("SELECT * FROM models").fetchone(), "file_name": name}
            values = (name, model_checksum(row))
            connection.execute("UPDATE models SET file_name = ?, checksum = ?", values)
        connection.close()
        with pytest.raises((StoreDamagedError, StoreUnavailableError)):
            store.load_model("m")


# --- crashes, faults, processes ------------------------------------------------------------------------

KILLED = """
import os, sys
from pathlib import Path
import numpy as np
from vllm_monitor.persistence import PersistenceConfig, PersistenceManager
from vllm_monitor.persistence.models import model_store

store = PersistenceManager(PersistenceConfig(storage_dir=Path(sys.argv[1]), backend=sys.argv[2]))
number = 0
while True:
    number += 1
    store.save_model("m", {"w": np.full(2000, number), "n": number})
    os.write(1, f"{number}\\n".encode())
    if number == int(sys.argv[3]):
        original = model_store.insert
        def die(*_):
            os.kill(os.getpid(), 9)
        model_store.insert = die  # the file is complete, the row is not
"""


@pytest.mark.parametrize("backend", MOSTLY_HYBRID)
@pytest.mark.parametrize("die_after", [3, pytest.param(0, marks=pytest.mark.slow)])
def test_kill_9_leaves_the_version_before(
    open_store: OpenStore, tmp_path: Path, backend: StorageBackend, die_after: int
) -> None:
    program = [sys.executable, "-c", KILLED, str(tmp_path / "store"), str(backend), str(die_after)]
    victim = subprocess.Popen(program, stdout=subprocess.PIPE, text=True)
    assert victim.stdout is not None
    seen = []
    if not die_after:
        seen = [victim.stdout.readline() for _ in range(10)]
        victim.send_signal(signal.SIGKILL)
    seen += victim.communicate()[0].splitlines()
    acknowledged = max(int(line) for line in seen if line.strip())
    store = open_store(backend=backend)
    model, _ = store.load_model("m")
    assert model["n"] in ({3} if die_after else {acknowledged, acknowledged + 1})
    assert (model["w"] == model["n"]).all()
    infos = store.list_models()
    for info in infos:
        store.load_model("m", info.version)
    assert [info.version for info in infos] == list(range(infos[0].version, infos[-1].version + 1))
    if backend is StorageBackend.HYBRID:
        clear_orphans(store, tmp_path, len(infos))


def clear_orphans(store: PersistenceManager, folder: Path, versions: int) -> None:
    database_of = store._writer.store
    assert database_of is not None
    (folder / "store" / "models" / "notes.txt").write_text("mine")
    (folder / "store" / "models" / "part-1.safetensors.new").write_text("half")
    assert remove_orphans(database_of, store.config) == 0  # they may be about to be used
    for path in files_of(folder):
        os.utime(path, (1, 1))
    remove_orphans(database_of, store.config)
    assert len(files_of(folder)) == versions + 1
    assert (folder / "store" / "models" / "notes.txt").exists()  # none of ours
    assert len([store.load_model("m", info.version) for info in store.list_models()]) == versions


SAVER = """
import sys
from pathlib import Path
import numpy as np
from vllm_monitor.persistence import PersistenceConfig, PersistenceManager

folder, backend, label = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
config = PersistenceConfig(storage_dir=folder, backend=backend, durable_timeout_seconds=30, model_versions_kept=8)
store = PersistenceManager(config)
for number in range(10):
    store.save_model("shared", {"w": np.full(50, number), "by": label})
    model, _ = store.load_model("shared")  # whichever is newest, never half of one
    assert (model["w"] == model["w"][0]).all()
print(store.health().message)
"""


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_two_processes_save_one_model(open_store: OpenStore, tmp_path: Path, backend: StorageBackend) -> None:
    open_store(backend=backend).close()
    program = [sys.executable, "-c", SAVER, str(tmp_path / "store"), str(backend)]
    savers = [
        subprocess.Popen([*program, label], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for label in "xy"
    ]
    for saver in savers:
        output, errors = saver.communicate(timeout=60)
        assert (output.strip(), errors) == ("", "")
    store = open_store(backend=backend)
    assert [info.version for info in store.list_models()] == list(range(13, 21))
    assert {store.load_model("shared", info.version)[0]["by"] for info in store.list_models()} <= {"x", "y"}
    assert len(files_of(tmp_path)) == (8 if backend is StorageBackend.HYBRID else 0)


@pytest.mark.parametrize("backend", MOSTLY_HYBRID)
def test_what_cannot_be_written_is_held_and_written_later(
    open_store: OpenStore, tmp_path: Path, backend: StorageBackend
) -> None:
    store = open_store(backend=backend, durable_timeout_seconds=0.3)
    store.save_model("m", np.array([1]))
    store.save_model("gone", np.array([0]))
    blocker = database(tmp_path)
    blocker.execute("BEGIN IMMEDIATE")
    model_id = store.save_model("m", np.array([2]), {"held": True})
    store.delete_model("gone")
    assert not store.is_durable(model_id)
    assert same(store.load_model("m"), (np.array([2]), {"held": True}))
    assert [(info.model_name, info.version) for info in store.list_models()] == [("m", 1), ("m", 2)]
    wait_until(lambda: store.health().degraded, "the fault shows")
    for path in files_of(tmp_path):
        if model_id in path.name:
            path.unlink()  # as if it had waited so long that it was taken for an orphan
    blocker.execute("ROLLBACK")
    blocker.close()
    wait_until(lambda: store.is_durable(model_id), "it is written by itself")
    other = open_store(backend=backend)
    assert same(other.load_model("m", 2), (np.array([2]), {"held": True}))
    assert len(other.list_models()) == 2


def test_a_full_disk_under_the_files_alone(open_store: OpenStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(durable_timeout_seconds=0.3)
    store.save_model("m", np.array([1]))
    full = True
    really = os.fsync

    def fsync(descriptor: int) -> None:
        if full:
            raise OSError(28, "No space left on device")
        really(descriptor)

    monkeypatch.setattr("vllm_monitor.persistence.private_file.os.fsync", fsync)
    model_id = store.save_model("m", np.array([2]))
    assert store.load_model("m")[0].tolist() == [2]
    wait_until(lambda: "No space" in store.health().message, "the full disk shows")
    full = False
    wait_until(lambda: store.is_durable(model_id) and store.health().ok, "it recovers")
    assert open_store().load_model("m")[0].tolist() == [2]
