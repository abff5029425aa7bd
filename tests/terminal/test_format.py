from __future__ import annotations

import math
from collections.abc import Callable
from datetime import UTC, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_monitor.terminal import format as human

FUNCTIONS = [
    human.duration,
    human.latency,
    human.byte_count,
    human.rate,
    human.count,
    human.ratio,
    human.percent,
]


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0, "0.0 s"),
        (0.4, "0.4 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (13.4, "13 s"),
        (59.6, "1 m 00 s"),
        (133, "2 m 13 s"),
        (3599.6, "1 h 00 m"),
        (3720, "1 h 02 m"),
        (86_400 * 3 + 3600 * 4, "3 d 04 h"),
        (1e9, "11.6k d"),
        (-133, "-2 m 13 s"),
    ],
)
def test_duration(seconds: float, expected: str) -> None:
    assert human.duration(seconds) == expected


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0, "0 s"),
        (1e-9, "<1 us"),
        (0.00085, "850 us"),
        (0.0009996, "1 ms"),
        (0.0123, "12.3 ms"),
        (0.9999, "1 s"),
        (1.239, "1.24 s"),
        (133, "133 s"),
        (86_400, "1 d 00 h"),
        (-0.5, "-500 ms"),
    ],
)
def test_latency(seconds: float, expected: str) -> None:
    assert human.latency(seconds) == expected


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (0, "0 B"),
        (512, "512 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1.2 * 2**30, "1.2 GiB"),
        (1023.9 * 2**20, "1.0 GiB"),
        (2**70, "1 ZiB"),
        (1e30, "8e+08 ZiB"),
        (-2048, "-2.0 KiB"),
    ],
)
def test_bytes(number: float, expected: str) -> None:
    assert human.byte_count(number) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0, "0"),
        (0.001, "<0.01"),
        (0.25, "0.25"),
        (4.2, "4.2"),
        (412, "412"),
        (999.6, "1k"),
        (12_345, "12.3k"),
        (-3, "-3"),
    ],
)
def test_rate(value: float, expected: str) -> None:
    assert human.rate(value) == expected


@pytest.mark.parametrize(
    ("value", "expected"), [(0, "0"), (12_345, "12,345"), (999_999, "999,999"), (1_234_567, "1.23M")]
)
def test_count(value: float, expected: str) -> None:
    assert human.count(value) == expected


@pytest.mark.parametrize(
    ("value", "expected"), [(0, "0.0 %"), (0.0001, "<0.1 %"), (0.437, "43.7 %"), (1, "100 %"), (0.99999, "100 %")]
)
def test_ratio(value: float, expected: str) -> None:
    assert human.ratio(value) == expected


@pytest.mark.parametrize("function", FUNCTIONS)
def test_what_is_not_known_is_never_a_number(function: Callable[[float | None], str]) -> None:
    assert function(None) == "-"
    assert function(math.nan) == "-"
    assert function(math.inf) == "inf"
    assert function(-math.inf) == "-inf"


@given(st.floats(allow_nan=True, allow_infinity=True), st.sampled_from(FUNCTIONS))
def test_every_number_is_short_ascii(value: float, function: Callable[[float | None], str]) -> None:
    text = function(value)
    assert text.isascii()
    assert 1 <= len(text) <= human.MAX_WIDTH + (value < 0)


def test_time_of_day() -> None:
    zone = timezone(timedelta(hours=1))
    assert human.clock_time(0.0, zone=UTC) == "00:00:00"
    assert human.iso_time(0.0, zone=zone) == "1970-01-01T01:00:00+01:00"
    for unknown in (None, math.nan, math.inf, 1e300, -1e300):
        assert human.clock_time(unknown) == "-"
        assert human.iso_time(unknown) == "-"
