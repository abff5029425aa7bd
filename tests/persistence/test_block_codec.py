from __future__ import annotations

import gzip
import json
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from vllm_monitor.errors import StoreDamagedError, ValueNotStorableError
from vllm_monitor.persistence.samples.blocks.codec import BlockMethod, BlockReader, block_reader, encode_block
from vllm_monitor.records import Series

DATA = Path(__file__).parents[1] / "data"
SPECIALS = [
    0.0, -0.0, 1.0, -1.0, 0.5, 5e-324, -5e-324, 2.2250738585072014e-308, 1.7976931348623157e308, float("inf"),
    float("-inf"), float("nan"), 2.0**53, 2.0**53 + 2, 2.0**61, 2.0**62, 2.0**63, -(2.0**63), 2.0**64, 1e-9,
    15.299999999999999,
]  # fmt: skip

bits_of_anything = st.one_of(
    st.sampled_from(SPECIALS).map(lambda value: struct.unpack("<Q", struct.pack("<d", value))[0]),
    st.integers(0, 2**64 - 1),  # NaN payloads among them
    st.integers(0, 20).map(lambda value: struct.unpack("<Q", struct.pack("<d", float(value)))[0]),
    st.floats(0, 100).map(lambda value: struct.unpack("<Q", struct.pack("<d", value))[0]),
)
names = st.sampled_from(["h", "g", "vllm:x"])
suffixes = st.sampled_from(["_bucket", "_bucket", "_bucket", "_count", "_sum", "_created", "", "_total"])
bounds = st.sampled_from(["0.1", "1", "1.0", "5", "+Inf", "-Inf", "nan", "much", ""])


@st.composite
def any_series(draw: st.DrawFn) -> Series:
    labels = [("model", draw(st.sampled_from(["a", "b"])))] if draw(st.booleans()) else []
    suffix = draw(suffixes)
    if suffix == "_bucket" or draw(st.integers(0, 9)) == 0:
        labels.append(("le", draw(bounds)))
    return Series(draw(names) + suffix, tuple(sorted(labels)))


Matrix = NDArray[np.uint64]


@st.composite
def any_column(draw: st.DrawFn, rows: int) -> Matrix:
    """A column of a server, good or bad, or of no server at all."""
    kind = draw(st.sampled_from(["anything", "counter", "float counter", "few", "clock", "server"]))
    if kind == "server" or rows > 20:
        return server_column(rows, draw(st.integers(0, 2**32)), draw(st.integers(0, 4)))
    if kind == "anything":
        return np.array(draw(st.lists(bits_of_anything, min_size=rows, max_size=rows)), dtype=np.uint64)
    if kind == "few":
        few = draw(st.lists(bits_of_anything, min_size=1, max_size=3))
        return np.array(draw(st.lists(st.sampled_from(few), min_size=rows, max_size=rows)), dtype=np.uint64)
    steps = np.array(draw(st.lists(st.integers(-1, 3), min_size=rows, max_size=rows)), dtype=np.float64)
    if kind == "float counter":
        steps *= draw(st.floats(1e-6, 1e6))
    if kind == "clock":
        steps = np.rint(steps * 123456789) / 1e9
    return np.asarray(np.cumsum(steps), dtype=np.float64).view(np.uint64)


def server_column(rows: int, seed: int, kind: int) -> Matrix:
    """What servers print: counters, sums of clock differences, shares, hundredths, noise."""
    random = np.random.default_rng(seed)
    moves = random.integers(0, 5, rows) * (random.random(rows) < 0.6)
    values = [
        np.cumsum(moves).astype(np.float64),
        np.cumsum(np.diff(300.0 + np.cumsum(moves * 12_345_678 + moves) / 1e9, prepend=300.0)),
        random.integers(0, 6, rows) / 7.0,
        np.cumsum(moves) / 100.0 + np.cumsum(moves[::-1]) / 100.0,
        random.normal(size=rows),
    ]
    return values[kind].view(np.uint64)


@st.composite
def any_block(draw: st.DrawFn) -> tuple[NDArray[np.int64], NDArray[np.int64], Matrix, list[Series]]:
    rows = draw(st.sampled_from([0, 1, 2, 3, 9, 20, 150]))
    columns = draw(st.integers(0, 8))
    series = [draw(any_series()) for _ in range(columns)]
    matrix = np.zeros((rows, columns), dtype=np.uint64)
    for column in range(columns):
        earlier = draw(st.integers(0, columns))
        matrix[:, column] = matrix[:, earlier] if earlier < column else draw(any_column(rows))
        if column > 1 and draw(st.booleans()):  # as the page's own sums are: nearly that of two others
            with np.errstate(all="ignore"):
                both = matrix[:, column - 1].view(np.float64) + matrix[:, column - 2].view(np.float64)
            matrix[:, column] = both.view(np.uint64)
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    spread = draw(st.sampled_from([1, 1000, 2**51]))
    times = random.integers(-spread, spread, rows) + draw(st.sampled_from([0, 1000])) * np.arange(rows)
    return times, np.cumsum(random.integers(1, draw(st.sampled_from([2, 6])), rows)), matrix, series


def assert_reads(reader: BlockReader, times: NDArray[np.int64], sequences: NDArray[np.int64], matrix: Matrix) -> None:
    everything = range(matrix.shape[1])
    assert (reader.rows, reader.column_count) == matrix.shape
    assert np.array_equal(reader.times_ms(), times)
    assert np.array_equal(reader.sequences(), sequences)
    assert np.array_equal(reader.columns(everything), matrix)


@given(any_block(), st.sampled_from(BlockMethod))
@settings(max_examples=80, deadline=None)
def test_any_matrix_comes_back_bit_for_bit(
    block: tuple[NDArray[np.int64], NDArray[np.int64], Matrix, list[Series]], method: BlockMethod
) -> None:
    times, sequences, matrix, series = block
    payload = encode_block(times, sequences, matrix, series, method=method)
    reader = block_reader(payload)
    reader.verify()
    assert reader.present(range(len(series))) is None
    assert_reads(reader, times, sequences, matrix)
    for column in reversed(range(len(series))):  # alone, from a reader that has read nothing else
        assert np.array_equal(block_reader(payload).columns([column])[:, 0], matrix[:, column])


@given(any_block(), st.data())
@settings(max_examples=60, deadline=None)
def test_cells_that_are_present_come_back_and_absent_ones_are_said_to_be(
    block: tuple[NDArray[np.int64], NDArray[np.int64], Matrix, list[Series]], data: st.DataObject
) -> None:
    times, sequences, matrix, series = block
    flags = data.draw(st.lists(st.booleans(), min_size=matrix.size, max_size=matrix.size))
    present = np.array(flags, dtype=bool).reshape(matrix.shape)
    payload = encode_block(times, sequences, matrix, series, present=present)
    reader = block_reader(payload)
    reader.verify()
    found = reader.present(range(len(series)))
    assert np.array_equal(np.ones_like(present) if found is None else found, present)
    assert np.array_equal(reader.columns(range(len(series)))[present], matrix[present])


def histogram_block(
    rows: int, seed: int = 0
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64], list[Series]]:
    """Two histograms of the same observations, their sums, a gauge, and a counter that starts anew half way."""
    random = np.random.default_rng(seed)
    edges = ("0.1", "0.5", "1.0", "5.0", "+Inf")
    columns: list[NDArray[np.float64]] = []
    series: list[Series] = []
    for name in ("ttft_seconds", "e2e_seconds"):
        fell = random.multinomial(3, [0.5, 0.2, 0.2, 0.1, 0.0], rows) * (random.random((rows, 1)) < 0.5)
        columns.extend(np.cumsum(np.cumsum(fell, axis=1), axis=0).T.astype(np.float64))
        series.extend(Series(f"{name}_bucket", (("le", edge),)) for edge in edges)
        columns.append(columns[-1])
        series.append(Series(f"{name}_count"))
        columns.append(np.cumsum(np.rint(random.random(rows) * 1e9) / 1e9 * (fell.sum(axis=1) > 0)))
        series.append(Series(f"{name}_sum"))
    columns.append(random.integers(0, 5, rows) / 7.0)
    series.append(Series("usage"))
    columns.append(np.concatenate((np.arange(rows // 2), np.arange(rows - rows // 2))).astype(np.float64))
    series.append(Series("restarted_total"))
    matrix = np.array(columns).T if rows else np.zeros((0, len(series)))
    times = 1_795_382_013_905 + np.cumsum(random.integers(980, 1020, rows))
    return times, np.arange(rows, dtype=np.int64) * 3 + 11, np.ascontiguousarray(matrix), series


@pytest.mark.parametrize("method", BlockMethod)
def test_histograms_come_back_however_they_are_coded(method: BlockMethod) -> None:
    times, sequences, values, series = histogram_block(700)
    values[400:, 2] -= 1  # one bucket goes backwards once: no histogram any more
    matrix = values.view(np.uint64)
    payload = encode_block(times, sequences, matrix, series, method=method)
    assert_reads(block_reader(payload), times, sequences, matrix)
    assert len(payload) < matrix.size * 8 / (4 if method else 1.5)


def test_a_wanted_column_reads_a_small_part_of_the_block() -> None:
    times, sequences, values, series = histogram_block(1800)
    payload = encode_block(times, sequences, values.view(np.uint64), series)
    asked: list[int] = []

    def read(offset: int, length: int) -> bytes:
        asked.append(length)
        return payload[offset : offset + length]

    reader = BlockReader(read, len(payload))
    opened = len(asked)
    reader.columns([series.index(Series("usage"))])
    assert sum(asked[opened:]) < len(payload) / 3


def recording(name: str) -> tuple[NDArray[np.int64], Matrix, NDArray[np.bool_], list[Series]]:
    """A recording of a real server; series that a scrape lacks are absent."""
    rows: list[tuple[int, dict[str, float]]] = []
    columns: dict[str, int] = {}
    with gzip.open(DATA / f"{name}.jsonl.gz", "rt") as lines:
        for line in lines:
            entry = json.loads(line)
            if entry["kind"] == "metrics":
                rows.append((round(entry["ts"] * 1000), entry.get("v") or {}))
                for one in rows[-1][1]:
                    columns.setdefault(one, len(columns))
    values = np.zeros((len(rows), len(columns)))
    present = np.zeros(values.shape, dtype=bool)
    for row, (_, page) in enumerate(rows):
        for one, value in page.items():
            values[row, columns[one]], present[row, columns[one]] = float(value), True
    series = [_series_of(one) for one in columns]
    return np.array([time for time, _ in rows]), values.view(np.uint64), present, series


def _series_of(text: str) -> Series:
    name, _, rest = text.partition("{")
    pairs = [pair.split("=", 1) for pair in rest.rstrip("}").split('",') if "=" in pair]
    return Series(name, tuple(sorted((key, value.strip('"')) for key, value in pairs)))


@pytest.mark.parametrize("name", ["engine_sigstop_s0", "worker_sigkill_s0", "overload_s0"])
@pytest.mark.parametrize("method", [BlockMethod.ZLIB, BlockMethod.LZMA])
def test_a_real_server_comes_back_and_gets_small(name: str, method: BlockMethod) -> None:
    times, matrix, present, series = recording(name)
    payload = encode_block(times, np.arange(len(times)), matrix, series, method=method, present=present)
    reader = block_reader(payload)
    reader.verify()
    everything = range(len(series))
    found = reader.present(everything)
    assert found is None or np.array_equal(found, present)
    assert np.array_equal(reader.columns(everything)[present], matrix[present])
    assert len(payload) < 0.25 * matrix.size  # short recordings of hard times; hours of a server take half of it


def outcome(payload: bytes, columns: Sequence[int]) -> tuple[bytes, ...] | None:
    """Everything that a block says, or ``None`` when it says that it is damaged."""
    try:
        reader = block_reader(payload)
        reader.verify()
        found = reader.present(columns)
        return (
            reader.times_ms().tobytes(),
            reader.sequences().tobytes(),
            reader.columns(columns).tobytes(),
            b"" if found is None else found.tobytes(),
        )
    except StoreDamagedError:
        return None


@pytest.mark.parametrize("method", BlockMethod)
def test_every_changed_byte_is_noticed(method: BlockMethod) -> None:
    times, sequences, values, series = histogram_block(40)
    present = np.ones(values.shape, dtype=bool)
    present[5:9, 3] = False
    payload = encode_block(times, sequences, values.view(np.uint64), series, method=method, present=present)
    columns = range(len(series))
    assert outcome(payload, columns) is not None
    step = 1 if len(payload) < 2000 else 3
    for position in range(0, len(payload), step):
        changed = bytearray(payload)
        changed[position] ^= 1 << position % 8
        assert outcome(bytes(changed), columns) is None, position


def forged(payload: bytes, changes: list[tuple[int, int]]) -> bytes:
    """An uncompressed block with other bytes in its directory, and a checksum that holds all the same."""
    stored_bytes = struct.unpack_from("<I", payload, 8)[0]
    head, directory = bytearray(payload[:24]), bytearray(payload[24 : 24 + stored_bytes])
    for position, byte in changes:
        directory[position % stored_bytes] = byte
    head[16:20] = struct.pack("<I", zlib.crc32(directory, zlib.crc32(head[:16])))
    return bytes(head + directory) + payload[24 + stored_bytes :]


FORGERY = histogram_block(30)


@given(st.lists(st.tuples(st.integers(0, 2**16), st.integers(0, 255)), min_size=1, max_size=3))
@settings(max_examples=150, deadline=None)
def test_a_forged_directory_is_damaged_or_read_but_nothing_else(changes: list[tuple[int, int]]) -> None:
    times, sequences, values, series = FORGERY
    present = np.ones(values.shape, dtype=bool)
    present[:3, 1] = False
    payload = encode_block(times, sequences, values.view(np.uint64), series, method=BlockMethod.STORED, present=present)
    assert forged(payload, []) == payload
    outcome(forged(payload, changes), range(len(series)))


def test_a_directory_that_claims_gigabytes_is_refused() -> None:
    times, sequences, values, series = histogram_block(30)
    payload = encode_block(times, sequences, values.view(np.uint64), series, method=BlockMethod.STORED)
    with pytest.raises(StoreDamagedError):
        block_reader(forged(payload, [(3, 0x7F)]))  # rows
    with pytest.raises(StoreDamagedError):
        block_reader(payload[:12] + b"\xff\xff\xff\x7f" + payload[16:])  # the directory itself


def test_sums_that_are_nearly_those_of_others_cost_little() -> None:
    random = np.random.default_rng(1)
    phases = np.cumsum(np.rint(random.random((1000, 3)) * 1e9) / 1e9, axis=0) + 4000.0
    whole = np.cumsum(np.diff(phases[:, 0] + phases[:, 1], prepend=0.0))  # rounded at every step
    alone = [Series("prefill_seconds_sum"), Series("decode_seconds_sum"), Series("queue_seconds_sum")]
    times = np.arange(1000)
    before = len(encode_block(times, times, phases.view(np.uint64), alone))
    matrix = np.column_stack((phases, whole)).view(np.uint64)
    payload = encode_block(times, times, matrix, [*alone, Series("inference_seconds_sum")])
    assert_reads(block_reader(payload), times, times, matrix)
    assert len(payload) - before < 0.2 * before


def test_every_truncation_is_noticed() -> None:
    times, sequences, values, series = histogram_block(20)
    payload = encode_block(times, sequences, values.view(np.uint64), series)
    for length in range(len(payload)):
        assert outcome(payload[:length], range(len(series))) is None
    assert outcome(payload + b"\0", range(len(series))) is None


@pytest.mark.slow
def test_a_page_with_very_many_series_comes_back() -> None:
    rows, columns = 6, 70_000
    random = np.random.default_rng(2)
    matrix = random.integers(0, 3, (rows, columns)).astype(np.float64).view(np.uint64)
    present = random.random((rows, columns)) < 0.5
    series = [Series(f"s{number // 4}_bucket", (("le", str(number % 4)),)) for number in range(columns)]
    payload = encode_block(np.arange(rows), np.arange(rows), matrix, series, present=present)
    reader = block_reader(payload)
    wanted = [0, 1, 35_000, columns - 1]
    found = reader.present(wanted)
    assert found is not None
    assert np.array_equal(found, present[:, wanted])
    assert np.array_equal(reader.columns(wanted)[found], matrix[:, wanted][found])


def test_what_is_no_block_of_ours_is_refused_when_it_is_made() -> None:
    times, sequences, values, series = histogram_block(5)
    with pytest.raises(ValueNotStorableError):
        encode_block(times[:-1], sequences, values.view(np.uint64), series)
    with pytest.raises(ValueNotStorableError):
        encode_block(times, sequences, values.view(np.uint64), series[:-1])


def test_a_column_that_is_not_there_is_an_error() -> None:
    times, sequences, values, series = histogram_block(5)
    reader = block_reader(encode_block(times, sequences, values.view(np.uint64), series))
    for column in (-1, len(series)):
        with pytest.raises(IndexError):
            reader.columns([column])
