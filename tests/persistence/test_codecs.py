from __future__ import annotations

import enum
import inspect
import math
import struct
import sys
import types
import uuid
import zlib
from array import array
from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from fractions import Fraction
from itertools import pairwise
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_monitor.errors import StoreDamagedError, ValueNotStorableError
from vllm_monitor.persistence.codecs.sample_values import code_of, from_float, milliseconds, to_sample_value
from vllm_monitor.persistence.codecs.text_column import from_text_column, to_text_column
from vllm_monitor.persistence.codecs.value_codec import DEEPEST, decode_value, encode_value
from vllm_monitor.persistence.samples.loose_codec import SPAN_MS, decode_loose, encode_loose
from vllm_monitor.persistence.samples.scrape_codec import bits_of, decode_run, decode_scrape, encode_scrape
from vllm_monitor.records import LifecycleState

any_text = st.text(st.characters(), max_size=20)  # with lone surrogates
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(2**200), 2**200),
    st.floats(),
    any_text,
    st.binary(max_size=20),
    st.sampled_from(LifecycleState),
    st.decimals(),
    st.fractions(),
    st.uuids(),
    st.dates(),
    st.times(),
    st.datetimes(),
    st.datetimes(timezones=st.just(UTC)),
    st.timedeltas(),
    st.complex_numbers(),
    any_text.filter(lambda text: "\0" not in text).map(Path),
)
hashables = st.one_of(st.integers(), any_text, st.binary(max_size=5), st.booleans(), st.none())
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(st.one_of(any_text, hashables), inner, max_size=4),
        st.sets(hashables, max_size=4),
        st.frozensets(hashables, max_size=4),
    ),
    max_leaves=12,
)


def same(one: Any, other: Any) -> bool:
    """Equal by type and value, NaN equal to NaN, zeros by sign."""
    if type(one) is not type(other):
        return False
    if isinstance(one, float):
        return struct.pack("d", one) == struct.pack("d", other) or (math.isnan(one) and math.isnan(other))
    if isinstance(one, complex):
        return same(one.real, other.real) and same(one.imag, other.imag)
    if isinstance(one, Decimal):
        return str(one) == str(other)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return same(list(one.items()), list(other.items()))
    return bool(one == other)


@given(values)
@settings(max_examples=300, deadline=None)
def test_value_round_trip(value: Any) -> None:
    assert same(decode_value(encode_value(value)), value)


def test_values_that_need_care() -> None:
    class Color(enum.Enum):  # local: cannot be found again, so its plain value comes back
        RED = 3

    zoned = datetime(2024, 10, 27, 2, 30, tzinfo=ZoneInfo("Europe/Berlin"), fold=1)
    back = decode_value(encode_value(zoned))
    assert back == zoned
    assert back.fold == 1
    assert str(back.tzinfo) == "Europe/Berlin"
    for value in [
        {"$int": "0x5"},
        {"$set": 1, "x": 2},
        {"$": 1},
        {1: "a", "1": "b", None: "c"},
        PurePosixPath("a"),
        PureWindowsPath("c:\\x"),
        10**5000,
        "\ud83d\ude00",
        bytearray(b"x"),
        date(1, 1, 1),
        time(1, 2, fold=1),
        timedelta(-1, 1, 1),
        Fraction(1, 3),
        uuid.UUID(int=0),
        "",
        [],
        {},
        (),
    ]:
        assert same(decode_value(encode_value(value)), value)
    assert decode_value(encode_value(Color.RED)) == 3
    for scalar, plain in [
        (np.float32(0.5), 0.5),
        (np.int8(3), 3),
        (np.bool_(True), True),
        (np.float64("inf"), math.inf),
        (np.str_("x"), "x"),
    ]:
        assert same(decode_value(encode_value(scalar)), plain)


def test_an_enum_is_never_imported_and_never_runs_code(monkeypatch: pytest.MonkeyPatch) -> None:
    touched: list[str] = []

    class Trap(types.ModuleType):
        def __getattr__(self, name: str) -> Any:
            touched.append(name)
            raise AssertionError(name)

    monkeypatch.setitem(sys.modules, "trap_module", Trap("trap_module"))
    assert decode_value('{"$enum":["trap_module","Kind","A",7]}') == 7
    assert decode_value('{"$enum":["antigravity","geohash","A",7]}') == 7
    assert decode_value('{"$enum":["os","system","true",7]}') == 7
    assert not touched
    assert "antigravity" not in sys.modules


@pytest.mark.parametrize("value", [object(), lambda: 1, np.arange(3), [object()], {"a": {1: object()}}])
def test_unknown_objects_are_refused_or_shown(value: Any) -> None:
    with pytest.raises(ValueNotStorableError, match="cannot be stored"):
        encode_value(value)
    assert "seen" in encode_value(value, on_unknown=lambda _: "seen")


def test_values_without_end_are_refused() -> None:
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(ValueNotStorableError, match="nested"):
        encode_value(endless)


@pytest.mark.parametrize(
    ("wrap", "levels"),
    [
        (lambda value: [value], 1),
        (lambda value: {"a": value}, 1),
        (lambda value: (value,), 2),
        (lambda value: frozenset([value]), 2),
        (lambda value: {1: value}, 3),
    ],
)
def test_the_depth_limit_counts_what_is_written(wrap: Callable[[Any], Any], levels: int) -> None:
    value: Any = 1
    for _ in range(DEEPEST // levels):
        value = wrap(value)
    assert decode_value(encode_value(value)) == value
    with pytest.raises(ValueNotStorableError, match="nested too deeply"):
        encode_value(wrap(value))
    shown = decode_value(encode_value(wrap(value), on_unknown=lambda _: "seen"))
    assert "seen" in str(shown)


def test_what_is_stored_can_be_read_from_a_deep_stack() -> None:
    value: Any = 1
    for _ in range(DEEPEST // 2):
        value = (value,)
    text = encode_value(value)

    def read(frames: int) -> Any:
        return decode_value(text) if frames == 0 else read(frames - 1)

    frames_used = len(inspect.stack(0))
    assert read(sys.getrecursionlimit() - frames_used - 25) == value


def test_what_was_stored_before_there_was_a_limit_can_be_read() -> None:
    text = '{"$tuple":[' * 450 + "1" + "]}" * 450
    value = decode_value(text)
    for _ in range(450):
        (value,) = value
    assert value == 1


@given(st.text())
def test_decoding_damage_is_one_kind_of_error(text: str) -> None:
    for damaged in (text, '{"$int":' + text, '{"$unknown":1}', '{"$tuple":3}', "NaN", '{"$enum":[1]}', "[" * 100_000):
        try:
            decode_value(damaged)
        except StoreDamagedError:
            continue


@given(any_text)
def test_text_columns(text: str) -> None:
    for candidate in (text, "json:" + text):
        column = to_text_column(candidate)
        column.encode()
        assert "\0" not in column
        assert from_text_column(column) == candidate


bit_patterns = st.one_of(
    st.integers(0, 2**64 - 1),
    st.sampled_from([0, 1 << 63, 0x7FF8000000000001, 0xFFF0000000000000, 0x7FF0000000000000, 0x7FF4DEADBEEF0000]),
)


@given(st.integers(0, 70).flatmap(lambda n: st.tuples(*[st.lists(bit_patterns, min_size=n, max_size=n)] * 2)))
def test_scrapes_are_bit_exact(pair: tuple[list[int], list[int]]) -> None:
    before, after = (array("d", struct.pack(f"<{len(bits)}Q", *bits)) for bits in pair)
    keyframe = encode_scrape(bits_of(before), None)
    delta = encode_scrape(bits_of(after), bits_of(before))
    first = decode_scrape(keyframe, len(before), None)
    second = decode_scrape(delta, len(before), first)
    assert first.tolist() == pair[0]
    assert second.tolist() == pair[1]


@given(st.integers(0, 40).flatmap(lambda n: st.lists(st.lists(bit_patterns, min_size=n, max_size=n), min_size=1)))
def test_a_run_of_scrapes_is_read_at_once(run: list[list[int]]) -> None:
    columns = len(run[0])
    scrapes = [np.array(bits, dtype="<u8") for bits in run]
    payloads = [encode_scrape(scrapes[0], None)]
    payloads += [encode_scrape(after, before) for before, after in pairwise(scrapes)]
    assert np.bitwise_xor.accumulate(decode_run(payloads, columns)).tolist() == run
    for number in range(columns):
        with pytest.raises(StoreDamagedError):
            decode_run([*payloads[:-1], payloads[-1] + b"\1" * (number + 1)], columns)


@given(st.lists(bit_patterns, max_size=40))
def test_rows_of_the_first_revision_are_read(bits: list[int]) -> None:
    scrape = np.array(bits, dtype="<u8")
    payload = zlib.compress(np.packbits(scrape != 0).tobytes() + scrape[scrape != 0].tobytes(), 1)
    assert decode_scrape(payload, len(bits), None).tolist() == bits


@given(st.binary(max_size=60), st.integers(0, 40))
def test_any_bytes_are_a_scrape_or_damage(payload: bytes, columns: int) -> None:
    try:
        bits = decode_scrape(payload, columns, None)
    except StoreDamagedError:
        return
    assert payload[:1] == b"\x01"  # no change at all is a scrape as well
    assert len(bits) == columns


@given(
    st.integers(-(2**50), 2**50),
    st.lists(
        st.tuples(st.integers(0, SPAN_MS), st.integers(0, 2**32 - 1), bit_patterns, st.integers(0, 4)), max_size=30
    ),
    st.dictionaries(st.integers(0, 29), any_text, max_size=5),
)
def test_loose_samples_are_bit_exact(
    start: int, samples: list[tuple[int, int, int, int]], metadata: dict[int, str]
) -> None:
    offsets, ids, bits, codes = ([sample[i] for sample in samples] for i in range(4))
    floats: Any = np.array(bits, dtype="<u8").view("<f8")  # an array keeps every NaN payload
    row = decode_loose(
        encode_loose(start, [start + offset for offset in offsets], ids, floats, codes, metadata),
        start,
    )
    assert row.values.view("<u8").tolist() == bits
    assert row.series_ids.tolist() == ids
    assert row.times_ms.tolist() == [start + offset for offset in offsets]
    assert row.codes.tolist() == codes
    assert row.metadata == metadata


@given(st.binary(max_size=60))
def test_damaged_loose_rows_raise(payload: bytes) -> None:
    with pytest.raises(StoreDamagedError):
        decode_loose(payload, 0)


@pytest.mark.parametrize(
    ("given_value", "plain"),
    [
        (1, 1),
        (2**60, 2**60),
        (-(2**1000), -(2**1000)),
        (True, True),
        (0.1, 0.1),
        (np.float32(0.1), float(np.float32(0.1))),
        (np.int64(2**53), 2**53),
        (np.bool_(False), False),
        (np.uint8(7), 7),
        (np.float16("inf"), math.inf),
        (np.longdouble(0.5), 0.5),
        (Decimal("0.5"), Decimal("0.5")),
        (Fraction(1, 4), Fraction(1, 4)),
        (Decimal("Infinity"), math.inf),
        (np.array(3.0), 3.0),
    ],
    ids=range(15),
)
def test_numbers_that_fit(given_value: Any, plain: Any) -> None:
    value = to_sample_value(given_value)
    assert same(value, plain)
    assert same(from_float(float(value), code_of(value)), plain)


@pytest.mark.parametrize(
    "value",
    [2**53 + 1, 10**400, 10**5000, Decimal("0.1"), Fraction(1, 3), "1", None, 1j, [1], np.arange(2), np.complex64(1)],
    ids=range(11),
)
def test_numbers_that_do_not_fit(value: Any) -> None:
    with pytest.raises(ValueNotStorableError) as caught:
        to_sample_value(value)
    assert caught.value.hint


@pytest.mark.parametrize("time_value", [math.nan, math.inf, 1e300, None, "now", 10**400], ids=range(6))
def test_what_is_no_time(time_value: Any) -> None:
    with pytest.raises(ValueNotStorableError):
        milliseconds(time_value)


@given(st.integers(-62_135_596_800_000, 253_402_300_799_999))  # the years 1 to 9999
def test_milliseconds_survive_seconds(time_ms: int) -> None:
    assert milliseconds(time_ms / 1000) == time_ms
